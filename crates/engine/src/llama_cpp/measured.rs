//! Self-test and benchmark results, kept between starts: valid for one file, one binary, one machine, one set-up.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use opengrid_protocol::{Layers, codec};
use serde::Serialize;

use super::{EmbeddedConfig, Mode, messages::Measured};

const FILE_BYTES_MAX: u64 = 4_096;
/// Raise when the self-test changes what it proves.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Key<'a> {
    version: u32,
    model: (Vec<u8>, u64, u128),
    program: (u64, u128),
    package: &'a str,
    cpu: String,
    mode: Mode,
    threads: u32,
    gpu_layers: u32,
    layers: Option<Layers>,
}

/// Where the result of this configuration lies; `None` without a cache directory.
///
/// # Errors
/// When the model file or the program cannot be looked at.
pub fn path(config: &EmbeddedConfig) -> io::Result<Option<PathBuf>> {
    let Some(directory) = &config.cache_dir else { return Ok(None) };
    let stamp = |metadata: &Metadata| {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (metadata.len(), modified.map_or(0, |time| time.as_nanos()))
    };
    let (model_bytes, model_time) = stamp(&fs::metadata(&config.model_path)?);
    let key = Key {
        version: VERSION,
        model: (identity(config, model_bytes), model_bytes, model_time),
        program: stamp(&fs::metadata(&config.program)?),
        package: env!("CARGO_PKG_VERSION"),
        cpu: cpu(),
        mode: config.mode,
        threads: config.threads,
        gpu_layers: config.gpu_layers,
        layers: config.stage.as_ref().map(|stage| stage.layers),
    };
    let name = blake3::hash(&codec::encode(&key)).to_hex();
    Ok(Some(directory.join(format!("engine-{}.json", &name[..32]))))
}

/// What names the weights in the class: those of a slice by model and layers.
pub fn identity(config: &EmbeddedConfig, file_bytes: u64) -> Vec<u8> {
    let mut identity = config.model_root.map_or_else(|| file_bytes.to_le_bytes().to_vec(), |root| root.to_vec());
    identity.extend(config.stage.iter().flat_map(|stage| codec::encode(&stage.layers)));
    identity
}

/// Model name and features of the first processor; empty where the system does not say.
fn cpu() -> String {
    let mut text = String::new();
    if let Ok(file) = File::open("/proc/cpuinfo") {
        let _ = file.take(FILE_BYTES_MAX * 4).read_to_string(&mut text);
    }
    let first = text.split("\n\n").next().unwrap_or_default();
    let wanted = |line: &&str| ["model name", "flags", "Features"].iter().any(|name| line.starts_with(name));
    first.lines().filter(wanted).collect::<Vec<_>>().join("\n")
}

/// A result kept earlier; anything unreadable counts as none.
pub fn read(path: &Path) -> Option<Measured> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// # Errors
/// When the directory cannot be written; the next start measures again.
pub fn write(path: &Path, measured: &Measured) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    File::create(&unfinished)?.write_all(serde_json::to_string(measured)?.as_bytes())?;
    fs::rename(unfinished, path)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use opengrid_protocol::beacon::Class;

    use super::*;

    #[test]
    fn results_survive_and_damage_counts_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/engine-1.json");
        let measured =
            Measured { class: Class::Exact([7; 16]), decode_tokens_per_s: 91.5, prefill_tokens_per_s: 260.25 };
        assert_eq!(read(&file), None);
        write(&file, &measured).unwrap();
        assert_eq!(read(&file), Some(measured));
        fs::write(&file, "{").unwrap();
        assert_eq!(read(&file), None);
    }

    #[test]
    fn another_setup_has_another_key() {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("model");
        fs::write(&model, "weights").unwrap();
        let mut config = EmbeddedConfig::new(model.clone(), model.clone());
        assert_eq!(path(&config).unwrap(), None);
        config.cache_dir = Some(directory.path().to_owned());
        let first = path(&config).unwrap().unwrap();
        assert_eq!(path(&config).unwrap().unwrap(), first);
        config.threads += 1;
        assert_ne!(path(&config).unwrap().unwrap(), first);
        config.threads -= 1;
        fs::write(&model, "other weights").unwrap();
        assert_ne!(path(&config).unwrap().unwrap(), first);
    }
}
