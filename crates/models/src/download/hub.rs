//! A model hub over HTTPS, with byte ranges (RFC 9110, section 14).

use std::{ops::Range, path::Path, time::Duration};

use reqwest::{Client, Response, StatusCode, header};
use tokio::{fs::File, io::AsyncWriteExt};

use super::{FetchConfig, Meter, Phase, SharedPartial, SourceError, original::Wanted};
use crate::{
    chunk_tree::Tree,
    store::{Partial, StoreError},
};

/// Interruptions in a row without any new byte before the hub is given up.
const INTERRUPTIONS_MAX: u32 = 5;
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Bytes gathered before they are written; a chunk when there is a tree.
const WRITE_BYTES: usize = opengrid_protocol::limits::CHUNK_BYTES as usize;

/// How one request ended early.
enum Stop {
    /// Worth another try.
    Interrupted(String),
    Final(SourceError),
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

fn unavailable(why: impl Into<String>) -> SourceError {
    SourceError::Unavailable(why.into())
}

pub(super) async fn fetch(
    config: &FetchConfig,
    [repo, revision, path]: [&str; 3],
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), SourceError> {
    let url = url(config, [repo, revision, path]);
    let client = client(config)?;
    let mut interruptions = 0;
    let (mut done, size) = partial.with(|partial| Ok((partial.done_bytes(), partial.size()))).await?;
    meter.phase_from(Phase::Downloading, done);
    while let Some(gap) = partial.with(|partial| Ok(partial.first_gap())).await? {
        let stopped = fill(&client, &url, gap, size, partial, meter).await;
        let now = partial.with(|partial| Ok(partial.done_bytes())).await?;
        interruptions = if now > done { 0 } else { interruptions + 1 };
        let first_word = now == done && interruptions == 1;
        done = now;
        match stopped {
            Ok(()) => {}
            Err(Stop::Final(error)) => return Err(error),
            Err(Stop::Interrupted(why)) if interruptions >= INTERRUPTIONS_MAX => return Err(unavailable(why)),
            Err(Stop::Interrupted(why)) => {
                tracing::debug!(why, first_word, "the hub was interrupted, going on");
                tokio::time::sleep(PAUSE_FIRST * 2_u32.pow(interruptions)).await;
            }
        }
    }
    Ok(())
}

/// Puts some files of a repository into `directory`. Their sizes are not known beforehand.
pub(super) async fn fetch_files(
    config: &FetchConfig,
    [repo, revision]: [&str; 2],
    files: &[Wanted],
    directory: &Path,
    meter: &Meter,
) -> Result<(), SourceError> {
    let client = client(config)?;
    for wanted in files {
        let url = url(config, [repo, revision, &wanted.path]);
        let path = directory.join(wanted.name);
        let failed = |source| StoreError::Io { action: "write", path: path.clone(), source };
        let mut file = File::create(&path).await.map_err(failed)?;
        let (mut done, mut interruptions) = (0, 0);
        loop {
            let before = done;
            let stopped = append(&client, &url, wanted.bytes_max, &mut file, &mut done, meter, &failed).await;
            interruptions = if done > before { 0 } else { interruptions + 1 };
            match stopped {
                Ok(()) => break,
                Err(Stop::Final(error)) => return Err(error),
                Err(Stop::Interrupted(why)) if interruptions >= INTERRUPTIONS_MAX => return Err(unavailable(why)),
                Err(Stop::Interrupted(why)) => {
                    tracing::debug!(why, "the hub was interrupted, going on");
                    tokio::time::sleep(PAUSE_FIRST * 2_u32.pow(interruptions)).await;
                }
            }
        }
        file.flush().await.map_err(failed)?;
    }
    Ok(())
}

/// What comes after the first `done` bytes of a file, to its end.
async fn append(
    client: &Client,
    url: &str,
    bytes_max: u64,
    file: &mut File,
    done: &mut u64,
    meter: &Meter,
    failed: &impl Fn(std::io::Error) -> StoreError,
) -> Result<(), Stop> {
    let mut request = client.get(url);
    if *done > 0 {
        request = request.header(header::RANGE, format!("bytes={done}-"));
    }
    let mut response = request.send().await.map_err(no_answer)?;
    let from = match beginning(&response, *done)? {
        (start, Some(total)) if total > bytes_max || total < start => {
            return Err(unavailable(format!("a file of {total} bytes is over the limit of {bytes_max}")).into());
        }
        (start, _) => start,
    };
    // A hub without ranges sends the file from its start: what is here already is passed over.
    let mut skip = *done - from;
    loop {
        let bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(error) => {
                return Err(Stop::Interrupted(format!("the connection to the hub broke ({})", chain(&error))));
            }
        };
        let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
        skip -= passed as u64;
        let fresh = &bytes[passed..];
        *done += fresh.len() as u64;
        if *done > bytes_max {
            return Err(unavailable(format!("a file of over {bytes_max} bytes")).into());
        }
        file.write_all(fresh).await.map_err(|source| SourceError::Store(failed(source)))?;
        meter.done(*done);
    }
}

fn url(config: &FetchConfig, [repo, revision, path]: [&str; 3]) -> String {
    let base = config.hub_url.trim_end_matches('/');
    format!("{base}/{repo}/resolve/{revision}/{path}")
}

fn no_answer(error: reqwest::Error) -> Stop {
    match error.is_connect() {
        true => Stop::Final(unavailable(format!("the hub cannot be reached ({})", chain(&error)))),
        false => Stop::Interrupted(format!("the hub does not answer ({})", chain(&error))),
    }
}

fn client(config: &FetchConfig) -> Result<Client, SourceError> {
    Client::builder()
        .user_agent(concat!("opengrid/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(config.connect_time_max)
        .read_timeout(config.silence_time_max)
        .redirect(reqwest::redirect::Policy::limited(5))
        .https_only(config.hub_url.starts_with("https:"))
        .build()
        .map_err(|error| unavailable(format!("no http client can be made: {}", chain(&error))))
}

/// Requests `gap` and stores what comes.
async fn fill(
    client: &Client,
    url: &str,
    gap: Range<u64>,
    size: u64,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), Stop> {
    let mut request = client.get(url);
    if gap != (0..size) {
        request = request.header(header::RANGE, format!("bytes={}-{}", gap.start, gap.end - 1));
    }
    let response = request.send().await.map_err(no_answer)?;
    let (from, total) = beginning(&response, gap.start)?;
    same_size(total, size)?;
    let tree = partial.with(|partial| Ok(partial.tree().cloned())).await?;
    receive(response, from, gap, tree, partial, meter).await
}

/// Where in the file the body begins (at `wanted` or at 0) and, where it is told, the size of the whole file.
fn beginning(response: &Response, wanted: u64) -> Result<(u64, Option<u64>), Stop> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let (start, total) = range
                .and_then(parse_content_range)
                .ok_or_else(|| unavailable("the hub sent a part without saying which"))?;
            if start != wanted {
                return Err(unavailable(format!("the hub sent bytes from {start}, not from {wanted}")).into());
            }
            Ok((start, total))
        }
        StatusCode::OK => Ok((0, response.content_length())),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(Stop::Interrupted(format!("the hub answers {status}")))
        }
        status => Err(unavailable(format!("the hub does not give the file ({status})")).into()),
    }
}

fn same_size(found: Option<u64>, size: u64) -> Result<(), SourceError> {
    match found {
        Some(found) if found != size => {
            Err(unavailable(format!("the hub's file has {found} bytes, the catalogue says {size}")))
        }
        _ => Ok(()),
    }
}

/// First byte and total size of `bytes START-END/TOTAL`.
fn parse_content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    Some((start, total.trim().parse().ok()))
}

async fn receive(
    mut response: Response,
    from: u64,
    gap: Range<u64>,
    tree: Option<Tree>,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), Stop> {
    let mut at = from;
    let mut written = gap.start;
    let mut buffer = Vec::with_capacity(WRITE_BYTES);
    while written + (buffer.len() as u64) < gap.end {
        let bytes = match response.chunk().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break,
            Err(error) => {
                // Without a tree every byte is a step forward; with one only whole chunks are.
                if tree.is_none() {
                    flush(&mut buffer, written, None, partial, meter).await?;
                }
                return Err(Stop::Interrupted(format!("the connection to the hub broke ({})", chain(&error))));
            }
        };
        // A hub without ranges sends the file from its start: what is here already is passed over.
        let skip = usize::try_from(gap.start.saturating_sub(at)).unwrap_or(usize::MAX).min(bytes.len());
        at += bytes.len() as u64;
        let room = (gap.end - written) as usize - buffer.len();
        let mut fresh = &bytes[skip..][..room.min(bytes.len() - skip)];
        while !fresh.is_empty() {
            let (now, later) = fresh.split_at(fresh.len().min(WRITE_BYTES - buffer.len()));
            buffer.extend_from_slice(now);
            fresh = later;
            if buffer.len() == WRITE_BYTES {
                written += flush(&mut buffer, written, tree.as_ref(), partial, meter).await?;
            }
        }
    }
    let complete = written + buffer.len() as u64 == gap.end;
    if complete || tree.is_none() {
        flush(&mut buffer, written, tree.as_ref(), partial, meter).await?;
    }
    if complete { Ok(()) } else { Err(Stop::Interrupted("the hub ended the file early".to_owned())) }
}

/// Writes the buffer at `offset`, proven where there is a tree, and returns its length.
async fn flush(
    buffer: &mut Vec<u8>,
    offset: u64,
    tree: Option<&Tree>,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<u64, SourceError> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let bytes = std::mem::replace(buffer, Vec::with_capacity(WRITE_BYTES));
    let length = bytes.len() as u64;
    let index = (offset / WRITE_BYTES as u64) as u32;
    if let Some(tree) = tree {
        tree.verify_chunk(index, &bytes).map_err(|error| unavailable(format!("the hub has another file: {error}")))?;
    }
    let proven = tree.is_some();
    let write = move |partial: &mut Partial| {
        if proven { partial.write_chunk(index, &bytes) } else { partial.append(&bytes) }.map(|()| partial.done_bytes())
    };
    meter.done(partial.with(write).await?);
    Ok(length)
}

/// An error and its causes in one line, without the URL (it may carry a token).
fn chain(error: &reqwest::Error) -> String {
    let mut cause = std::error::Error::source(error);
    let mut last = None;
    while let Some(inner) = cause {
        last = Some(inner.to_string());
        cause = inner.source();
    }
    last.unwrap_or_else(
        || if error.is_timeout() { "it took too long".to_owned() } else { "no reason given".to_owned() },
    )
}
