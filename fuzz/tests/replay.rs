//! The targets on stable Rust: every file of the committed corpus, then mutations of them for FUZZ_SECONDS (1) a
//! target, from FUZZ_SEED (the clock). An input that breaks an invariant is kept in `artifacts/NAME/`.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use opengrid_fuzz::{TARGETS, Target};

const INPUT_BYTES_MAX: usize = 4_096;

fn folder(kind: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(name)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = folder("corpus", name);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} has no seeds", folder.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// One to four changes of a seed: bits, bytes, lengths, cuts, repeats, pieces of other seeds.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut input = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + self.below(16) + 1).min(input.len());
            match self.below(8) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.next() as u8,
                2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => input.truncate(at),
                4 => drop(input.drain(at..end)),
                5 => {
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                6 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    input.splice(at..end, other[from..].iter().copied());
                }
                _ => {
                    let noise = self.next().to_le_bytes();
                    input.splice(at..end, noise[..self.below(8)].iter().copied());
                }
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }
}

fn run((name, target): Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let folder = folder("artifacts", name);
        fs::create_dir_all(&folder).unwrap();
        let sum = input
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        let file = folder.join(format!("crash-{sum:016x}"));
        fs::write(&file, input).unwrap();
        panic!("{name} broke; the input is in {}", file.display());
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn the_corpus_and_its_mutations_break_nothing() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = from_env("FUZZ_SEED").unwrap_or(clock);
    let time = Duration::from_secs(from_env("FUZZ_SECONDS").unwrap_or(1));
    println!("FUZZ_SEED={seed}");
    for target in TARGETS {
        let seeds = corpus(target.0);
        seeds.iter().for_each(|input| run(*target, input));
        let (start, mut random, mut runs) = (Instant::now(), Random(seed), 0);
        while start.elapsed() < time {
            run(*target, &random.mutate(&seeds));
            runs += 1;
        }
        println!("{:20} {} seeds, {runs} mutations", target.0, seeds.len());
    }
}

#[test]
fn every_target_has_a_binary_and_seeds_and_no_other_has() {
    let names = |kind: &str| {
        let mut names: Vec<String> = fs::read_dir(folder(kind, ""))
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mut targets: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    targets.sort();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = fs::read_to_string(folder(".", "Cargo.toml")).unwrap();
    for name in &targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in Cargo.toml");
    }
}
