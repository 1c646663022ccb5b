//! The home, the catalogue and the hashes of the models.

use std::{fs, io, path::Path};

use opengrid_models::{Store, store::StoredModel};

use super::Check;
use crate::{
    context::Context,
    errors::one_line,
    output::{bytes, clean},
    progress::byte_bar,
    store::Models,
};

/// Writable where it exists; else `opengrid up` makes it.
pub fn home(context: &Context) -> Check {
    let home = &context.home;
    if !home.exists() {
        return Check::ok("home", format!("{} will be made by the first `opengrid up`", home.display()));
    }
    match try_write(home) {
        Ok(()) => Check::ok("home", format!("{} is writable", home.display())),
        Err(error) => {
            let finding = format!("{} is not writable: {error}", home.display());
            Check::fail("home", finding, "give it to this user, or choose another with --home")
        }
    }
}

fn try_write(home: &Path) -> io::Result<()> {
    let probe = home.join(format!(".doctor-{}", std::process::id()));
    fs::write(&probe, b"")?;
    fs::remove_file(&probe)
}

/// A line for the catalogue and one per model of the store. `quick` does not read the files.
pub async fn models(context: &Context, quick: bool) -> Vec<Check> {
    let models = match Models::open(context) {
        Ok(models) => models,
        Err(error) => {
            return vec![Check::fail("models", one_line(&error), "mend the file or the directory that it names")];
        }
    };
    let stored = match models.store.list() {
        Ok(stored) => stored,
        Err(error) => return vec![Check::fail("models", error.to_string(), "see that the directory is readable")],
    };
    if stored.is_empty() {
        let finding = format!("none in {}", models.store.directory().display());
        return vec![Check::ok("models", format!("{finding} (`opengrid pull smollm2-135m` gets a small one)"))];
    }
    let mut checks = Vec::new();
    for file in stored {
        let name = models.catalogue.by_root(file.root).map_or_else(|| file.root.to_string(), |entry| entry.id.clone());
        checks.push(model(models.store.clone(), file, name, quick).await);
    }
    checks
}

async fn model(store: Store, file: StoredModel, name: String, quick: bool) -> Check {
    let size = bytes(file.size);
    if quick {
        return Check::ok("models", format!("{name} is here ({size}, hash not checked)"));
    }
    let label = name.clone();
    let verified = tokio::task::spawn_blocking(move || {
        let bar = byte_bar(&format!("checking {label}"), file.size);
        let verified = store.verify(file.root, &mut |done, _| bar.set_position(done));
        bar.finish_and_clear();
        verified
    })
    .await;
    match verified {
        Ok(Ok(())) => Check::ok("models", format!("{name} has the right hash ({size})")),
        Ok(Err(error)) => Check::fail(
            "models",
            format!("{name}: {}", clean(&error.to_string())),
            format!("`opengrid pull {name}` gets it again"),
        ),
        Err(error) => Check::fail("models", format!("{name} could not be read: {error}"), "look at the disk"),
    }
}
