//! Lists the files of `web/`, and those of Swagger UI that the page of the documentation needs, as a table of embedded
//! bytes, so that the page needs no list of its own.

use std::{
    env, fs,
    hash::Hasher,
    io::{self, Cursor},
    path::Path,
};

use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::ZipArchive;

/// Of Swagger UI's archive, below its one folder; and the name under `/docs`.
const SWAGGER_UI: [(&str, &str); 3] = [
    ("dist/swagger-ui-bundle.js", "swagger-ui.js"),
    ("dist/swagger-ui.css", "swagger-ui.css"),
    ("LICENSE", "LICENSE.txt"),
];

fn content_type(extension: &str) -> Option<&'static str> {
    Some(match extension {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "json" | "webmanifest" => "application/json",
        "txt" => "text/plain; charset=utf-8",
        _ => return None,
    })
}

fn collect(folder: &Path, prefix: &str, rows: &mut Vec<String>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if path.is_dir() {
            collect(&path, &name, rows)?;
            continue;
        }
        let Some(kind) = path.extension().and_then(|e| e.to_str()).and_then(content_type) else { continue };
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        hasher.write(&fs::read(&path)?);
        rows.push(format!(
            "File {{ path: {name:?}, content_type: {kind:?}, etag: \"\\\"{:016x}\\\"\", bytes: include_bytes!({:?}) }},\n",
            hasher.finish(),
            path,
        ));
    }
    Ok(())
}

fn unpack_swagger_ui(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED)).map_err(io::Error::other)?;
    for (inside, name) in SWAGGER_UI {
        let is_it = |path: &String| path.split_once('/').is_some_and(|(_, below)| below == inside);
        let path = archive.file_names().flatten().map(String::from).find(is_it);
        let path = path.ok_or_else(|| io::Error::other(format!("{inside} is not in Swagger UI's archive")))?;
        let mut file = archive.by_name(&path).map_err(io::Error::other)?;
        io::copy(&mut file, &mut fs::File::create(folder.join(name))?)?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=web");
    println!("cargo:rerun-if-changed=build.rs");
    let root = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    let web = Path::new(&root).join("web");
    let mut rows = Vec::new();
    if web.is_dir() {
        collect(&web, "", &mut rows)?;
    }
    let docs = Path::new(&out).join("docs");
    unpack_swagger_ui(&docs)?;
    collect(&docs, "/docs", &mut rows)?;
    fs::write(Path::new(&out).join("web_files.rs"), format!("&[\n{}]\n", rows.concat()))
}
