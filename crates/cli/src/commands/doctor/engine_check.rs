//! Starts the engine on the smallest model of the store and lets it try to leave its sandbox.

use opengrid_engine::{Engine as _, SandboxProbe};
use opengrid_host::HostProfile;
use opengrid_models::{ModelEntry, gguf};
use opengrid_protocol::beacon::Class;

use super::Check;
use crate::{
    context::Context,
    engine::{self, Subject},
    errors::one_line,
    store::Models,
};

const NAME: &str = "engine";

pub async fn run(context: &Context, host: &HostProfile) -> Check {
    let Ok(models) = Models::open(context) else {
        return Check::warn(NAME, "not tried without a store", "mend the line about models first");
    };
    let here = models.catalogue.models().filter(|entry| models.store.contains(entry.root()));
    let Some(entry) = here.min_by_key(|entry| entry.file.size) else {
        return Check::warn(NAME, "not tried: no model in the store", "`opengrid pull smollm2-135m` gets a small one");
    };
    match try_engine(entry, &models, context, host).await {
        Ok(check) => check,
        Err(error) => Check::fail(NAME, format!("{} cannot be run: {}", entry.id, one_line(&error)), "see the message"),
    }
}

async fn try_engine(
    entry: &ModelEntry,
    models: &Models,
    context: &Context,
    host: &HostProfile,
) -> anyhow::Result<Check> {
    let path = models.store.path(entry.root()).ok_or_else(|| anyhow::anyhow!("the file vanished"))?;
    let info = gguf::file::read_info(&path)?;
    let subject = Subject { entry, info: &info, path };
    let engine = engine::start(&subject, host, &context.settings.config, None).await?;
    let (can, probe) = (engine.capabilities(), engine.probe_sandbox().await);
    engine.shutdown().await;
    let holes = holes(&probe?);
    let exact = if matches!(can.class, Class::Exact(_)) { "exact" } else { "approximate" };
    let finding = format!("{} runs at {:.0} tok/s, {exact}", entry.id, can.decode_tokens_per_s);
    if holes.is_empty() {
        return Ok(Check::ok(NAME, format!("{finding}, confined ({})", can.description)));
    }
    let finding = format!("{finding}, but its process can {}", holes.join(", "));
    Ok(Check::warn(NAME, finding, "a newer kernel (Linux 5.13 with landlock and seccomp) confines it"))
}

/// What the confined process could do all the same.
fn holes(probe: &SandboxProbe) -> Vec<&'static str> {
    let tries = [
        (&probe.read_other_file, "read other files"),
        (&probe.write_file, "write files"),
        (&probe.rename_file, "rename files"),
        (&probe.open_socket, "open sockets"),
        (&probe.start_process, "start programs"),
    ];
    tries.into_iter().filter(|(refused, _)| refused.is_none()).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_succeeds_is_a_hole() {
        let refused = Some("permission denied".to_owned());
        let tight = SandboxProbe {
            read_other_file: refused.clone(),
            write_file: refused.clone(),
            rename_file: refused.clone(),
            open_socket: refused.clone(),
            start_process: refused,
        };
        assert!(holes(&tight).is_empty());
        assert_eq!(holes(&SandboxProbe { open_socket: None, ..tight }), ["open sockets"]);
    }
}
