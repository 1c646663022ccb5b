//! Entries to TOML, and the user's file kept up to date.

use std::{fmt::Write as _, io::Write as _, path::Path};

use super::{Catalogue, CatalogueError, Conversion, FILE_NAME, ModelEntry, Source, TemplateSource, read_bounded};

pub(super) fn add(directory: &Path, model: &ModelEntry) -> Result<(), CatalogueError> {
    let path = directory.join(FILE_NAME);
    let origin = path.display().to_string();
    let before = read_bounded(&path)?.unwrap_or_default();
    let own = Catalogue::from_toml(&before, &origin)?;
    let text = if own.get(&model.id).is_some() {
        let others = own.models().filter(|other| other.id != model.id);
        others.chain([model]).map(to_toml).collect::<Vec<_>>().join("\n")
    } else if before.is_empty() {
        to_toml(model)
    } else {
        format!("{}\n\n{}", before.trim_end(), to_toml(model))
    };
    Catalogue::from_toml(&text, &origin)?;
    let failed = |source| CatalogueError::Io { path: path.clone(), source };
    let mut file = crate::store::temporary_file(directory).map_err(failed)?;
    file.file.write_all(text.as_bytes()).and_then(|()| file.persist(&path)).map_err(failed)
}

pub(super) fn to_toml(model: &ModelEntry) -> String {
    let class = format!("{:?}", model.class).to_lowercase();
    let template = match &model.template {
        TemplateSource::Gguf => quoted("gguf"),
        TemplateSource::Inline(text) => format!("{{ inline = {} }}", quoted(text)),
    };
    let mut text = format!(
        "[[model]]\nid = {}\nname = {}\nlicence = {}\nclass = {}\ntask = {}\ncontext = {}\ncreated = {}\ntemplate = {template}\n",
        quoted(&model.id),
        quoted(&model.name),
        quoted(&model.licence),
        quoted(&class),
        quoted(&model.task.to_string()),
        model.context,
        model.created,
    );
    let file = &model.file;
    let (sha256, blake3) = (hex::encode(file.sha256), file.blake3);
    let name = quoted(&file.name);
    let _ = write!(
        text,
        "\n[[model.file]]\nname = {name}\nsize = {}\nsha256 = \"{sha256}\"\nblake3 = \"{blake3}\"\n",
        file.size
    );
    for source in &model.sources {
        text.push_str(&source_to_toml(source));
    }
    text
}

fn source_to_toml(source: &Source) -> String {
    let convert = match source.convert() {
        Some(Conversion::Bert) => "convert = \"bert\"\n",
        None => "",
    };
    let text = match source {
        Source::Hub { repo, revision, path, .. } => format!(
            "\n[[model.source]]\nkind = \"hub\"\nrepo = {}\nrevision = {}\npath = {}\n",
            quoted(repo),
            quoted(revision),
            quoted(path)
        ),
        Source::Package { registry, name, version, member, .. } => format!(
            "\n[[model.source]]\nkind = \"package\"\nregistry = {}\nname = {}\nversion = {}\nmember = {}\n",
            quoted(&format!("{registry:?}").to_lowercase()),
            quoted(name),
            quoted(version),
            quoted(member)
        ),
    };
    text + convert
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_added_replaced_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut model = Catalogue::built_in().unwrap().models().next().unwrap().clone();
        assert_eq!(model.sources[0].convert(), Some(Conversion::Bert), "the richest entry");
        let others = Catalogue::built_in().unwrap().models().count();
        model.id = "mine".into();
        model.template = TemplateSource::Inline("{% if \"x\" %}\n\ty'\u{1}\"{% endif %}".into());
        let catalogue = Catalogue::add_to_user_file(directory.path(), &model).unwrap();
        assert_eq!(catalogue.get("mine"), Some(&model));
        assert_eq!(catalogue.models().count(), others + 1);
        model.name = "other".into();
        let catalogue = Catalogue::add_to_user_file(directory.path(), &model).unwrap();
        assert_eq!(catalogue.get("mine").unwrap().name, "other");
        model.id = "bad id".into();
        assert!(Catalogue::add_to_user_file(directory.path(), &model).is_err());
        assert_eq!(Catalogue::load(directory.path()).unwrap().models().count(), others + 1);
    }

    #[test]
    fn a_users_entry_overrides_the_built_in_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut model = Catalogue::built_in().unwrap().models().next().unwrap().clone();
        model.sources.clear();
        let catalogue = Catalogue::add_to_user_file(directory.path(), &model).unwrap();
        assert_eq!(catalogue.models().count(), Catalogue::built_in().unwrap().models().count());
        assert!(catalogue.get(&model.id).unwrap().sources.is_empty());
    }

    #[test]
    fn comments_survive_an_addition() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE_NAME), "# mine\n").unwrap();
        let model = Catalogue::built_in().unwrap().models().next().unwrap().clone();
        Catalogue::add_to_user_file(directory.path(), &model).unwrap();
        let text = std::fs::read_to_string(directory.path().join(FILE_NAME)).unwrap();
        assert!(text.starts_with("# mine\n\n[[model]]"), "{text}");
    }
}
