//! A GGUF file of the user's own: into the store, and into the user's catalogue under a name made of the file's.

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use opengrid_models::{
    Catalogue, ModelEntry, Store,
    catalogue::{FileEntry, SizeClass, TemplateSource},
    gguf::ModelInfo,
    store::Added,
};

use super::report;
use crate::{progress::byte_bar, store::Models};

const ID_CHARS_MAX: usize = 64;
/// What SPDX says where nobody asserts a licence.
const NO_LICENCE: &str = "NOASSERTION";

/// # Errors
/// When the file is no language model in GGUF, or the disk is full.
pub async fn add(path: &Path, models: Models, json: bool) -> anyhow::Result<()> {
    if !path.is_file() {
        bail!("{} is no file: give the path of a .gguf file or an id of `opengrid ls`", path.display());
    }
    let added = copy(path.to_owned(), models.store.clone()).await?;
    let root = added.root.to_string();
    if let Some(entry) = models.catalogue.by_root(added.root) {
        return report(&entry.id, root, added.size, added.known, json);
    }
    let entry = entry(path, &added, &models.catalogue);
    Catalogue::add_to_user_file(models.store.directory(), &entry)?;
    report(&entry.id, root, added.size, added.known, json)
}

/// Hashing and copying block for as long as the disk takes.
async fn copy(path: PathBuf, store: Store) -> anyhow::Result<Added> {
    let work = move || {
        let bar = byte_bar(&path.file_name().unwrap_or_default().to_string_lossy(), 0);
        let added = store.add_file(&path, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        added
    };
    Ok(tokio::task::spawn_blocking(work).await.context("the copy was cut off")??)
}

fn entry(path: &Path, added: &Added, catalogue: &Catalogue) -> ModelEntry {
    let info = &added.info;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let id = free_id(&id_of(&stem), &added.root.to_string(), catalogue);
    ModelEntry {
        name: info.name.as_deref().and_then(one_line).unwrap_or_else(|| id.clone()),
        licence: info.licence.as_deref().and_then(one_line).unwrap_or_else(|| NO_LICENCE.into()),
        class: class_of(info),
        task: info.task,
        context: u32::try_from(info.context_length).unwrap_or(u32::MAX).max(1),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        template: TemplateSource::Gguf,
        file: FileEntry { name: format!("{id}.gguf"), size: added.size, sha256: added.sha256, blake3: added.root },
        sources: Vec::new(),
        id,
    }
}

/// Letters, digits and `. _ -`, small, a letter or digit first.
fn id_of(stem: &str) -> String {
    let plain =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_ascii_lowercase() } else { '-' });
    let id: String = plain.skip_while(|c| !c.is_ascii_alphanumeric()).take(ID_CHARS_MAX).collect();
    if id.is_empty() { "model".into() } else { id }
}

/// Two files of one name stay apart by the beginning of their hash.
fn free_id(id: &str, root: &str, catalogue: &Catalogue) -> String {
    if catalogue.get(id).is_none() { id.to_owned() } else { format!("{id}-{}", &root[..8]) }
}

/// A text of the file, made fit for the catalogue: one line, bounded, not empty.
fn one_line(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line: String = words.collect::<Vec<_>>().join(" ").chars().take(100).collect();
    (!line.is_empty()).then_some(line)
}

/// By parameters, with the catalogue's borders.
fn class_of(info: &ModelInfo) -> SizeClass {
    match info.parameters {
        0..1_000_000_000 => SizeClass::Tiny,
        1_000_000_000..5_000_000_000 => SizeClass::Small,
        5_000_000_000..40_000_000_000 => SizeClass::Medium,
        _ => SizeClass::Large,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_file_names() {
        assert_eq!(id_of("SmolLM2-135M-Instruct.Q4_1"), "smollm2-135m-instruct.q4_1");
        assert_eq!(id_of("..my model (1)"), "my-model--1-");
        assert_eq!(id_of("模型"), "model");
        assert_eq!(id_of(&"a".repeat(500)).len(), ID_CHARS_MAX);
        let catalogue = Catalogue::built_in().unwrap();
        assert_eq!(free_id("smollm2-135m", &"ab".repeat(32), &catalogue), "smollm2-135m-abababab");
        assert_eq!(free_id("new", &"ab".repeat(32), &catalogue), "new");
    }

    #[test]
    fn texts_of_the_file_are_made_harmless() {
        assert_eq!(one_line("a\n\u{1b}b  c").unwrap(), "a b c");
        assert_eq!(one_line(" \n"), None);
        assert_eq!(one_line(&"x".repeat(1_000)).unwrap().len(), 100);
    }
}
