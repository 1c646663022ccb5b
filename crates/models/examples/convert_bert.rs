//! `convert_bert DIRECTORY FILE.gguf`: converts the sentence-transformers model in a directory (`model.safetensors`,
//! `config.json`, `vocab.txt`) and prints what a catalogue entry says of the result.
#![allow(clippy::print_stdout, reason = "a tool")]

use std::{
    error::Error,
    fs::{self, File},
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use opengrid_models::{
    chunk_tree::Builder,
    convert::{Header, LENGTH_BYTES, plan_bert},
};
use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, output] = arguments.as_slice() else {
        return Err("usage: convert_bert DIRECTORY FILE.gguf".into());
    };
    let directory = Path::new(directory);
    let mut weights = File::open(directory.join("model.safetensors"))?;
    let size = weights.metadata()?.len();
    let mut length = [0; LENGTH_BYTES];
    weights.read_exact(&mut length)?;
    let mut json = vec![0; usize::try_from(Header::json_bytes(length, size)?)?];
    weights.read_exact(&mut json)?;
    let [config, vocabulary] = ["config.json", "vocab.txt"].map(|name| fs::read(directory.join(name)));
    let plan = plan_bert(&Header::parse(&json, size)?, &config?, &vocabulary?)?;
    let (mut file, mut tree, mut sha256) = (BufWriter::new(File::create(output)?), Builder::new(), Sha256::new());
    let read = |at, buffer: &mut [u8]| {
        weights.seek(SeekFrom::Start(at))?;
        weights.read_exact(buffer)
    };
    plan.write(read, |part| {
        tree.update(part);
        sha256.update(part);
        file.write_all(part)
    })?;
    file.flush()?;
    println!("size = {}\nsha256 = \"{}\"", plan.size(), hex::encode(sha256.finalize()));
    println!("blake3 = \"{}\"", tree.finish().root());
    Ok(())
}
