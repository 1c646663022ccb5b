//! What every command knows: the settings, and how to print.

use std::{path::PathBuf, time::Duration};

use opengrid_node::config::{Wish, WishedPart};

use crate::{
    args::{Global, UpArgs},
    config::{Config, Effective, LogFormat, LogLevel, Overrides},
    errors::usage,
    logging,
};

#[derive(Clone, Debug)]
pub struct Context {
    pub home: PathBuf,
    pub json: bool,
    /// How long running answers may take to end after a request to stop.
    pub grace: Duration,
    pub settings: Effective,
}

impl Context {
    /// Reads the settings; `up` has flags that override them.
    ///
    /// # Errors
    /// The first setting that is wrong, as a usage error.
    pub fn load(global: &Global, up: Option<&UpArgs>) -> anyhow::Result<Self> {
        up.map_or(Ok(()), check_layers)?;
        let overrides = up.into_iter().fold(of_global(global), of_up);
        let settings = Config::load(global.home.clone(), overrides).map_err(|error| usage(error.to_string()))?;
        Ok(Self {
            home: settings.home.clone(),
            json: global.json,
            grace: Duration::from_secs(settings.config.node.grace_seconds),
            settings,
        })
    }

    /// Starts logging as `--log` or the settings say.
    ///
    /// # Errors
    /// When `--log` is no level and no filter.
    pub fn start_logging(&self, global: &Global) -> anyhow::Result<()> {
        let log = &self.settings.config.log;
        let filter = match &global.log {
            Some(text) if level(text).is_none() => text.clone(),
            _ => filter(log.level),
        };
        logging::start(
            &filter,
            if log.format == LogFormat::Json { logging::Format::Json } else { logging::Format::Text },
        )
    }
}

/// Libraries that warn of what is ordinary here: a node without peers yet, one behind a NAT, an address without a route.
const HARMLESS: &str = "libp2p_kad::behaviour=error,libp2p_autonat=error,quinn_udp=error";

/// Our own crates at `level`; what others say below a warning is of use only with a filter of one's own.
fn filter(level: LogLevel) -> String {
    match level {
        LogLevel::Off | LogLevel::Error => level.as_str().to_owned(),
        _ => format!("warn,{HARMLESS},opengrid={}", level.as_str()),
    }
}

fn level(text: &str) -> Option<&str> {
    ["off", "error", "warn", "info", "debug", "trace"].into_iter().find(|level| *level == text)
}

fn of_global(global: &Global) -> Overrides {
    Overrides::new().set("log.level", "--log", global.log.as_deref().and_then(level))
}

fn of_up(overrides: Overrides, up: &UpArgs) -> Overrides {
    overrides
        .set("api.listen", "--listen", up.listen)
        .set("network.p2p_port", "--p2p-port", up.p2p_port)
        .set_list("network.join", "--join", &up.join)
        .set("network.grid_key", "--grid-key", up.grid_key.as_ref().map(|path| path.display().to_string()))
        .set("node.role", "--role", up.role.map(|role| role.as_str()))
        .set("serve.models", "--serve", served(up))
        .set("serve.engine", "--engine", up.engine.as_ref())
        .set("serve.draft", "--draft", up.draft.as_ref())
        .set("serve.threads", "--threads", up.threads)
}

/// `--layers` is said of every model.
fn served(up: &UpArgs) -> Option<String> {
    let part = up.layers.as_ref().map_or_else(String::new, |layers| format!("@{layers}"));
    up.serve.as_ref().map(|models| models.iter().map(|model| format!("{model}{part}")).collect::<Vec<_>>().join(","))
}

/// `--layers` needs models that do not say their layers themselves.
fn check_layers(up: &UpArgs) -> anyhow::Result<()> {
    let (Some(layers), Some(models)) = (&up.layers, &up.serve) else { return Ok(()) };
    let said = |model: &&String| model.parse::<Wish>().is_ok_and(|wish| wish.part != WishedPart::Whole);
    if let Some(model) = models.iter().find(|model| ["none", "auto"].contains(&model.as_str())) {
        return Err(usage(format!("--layers {layers} is of a model: name it, e.g. --serve smollm2-135m, not {model}")));
    }
    match models.iter().find(said) {
        Some(model) => Err(usage(format!("--serve {model} says its layers itself: leave out --layers {layers}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{Role, ServeModels};

    fn global(home: &std::path::Path) -> Global {
        Global { home: Some(home.to_owned()), json: false, log: None }
    }

    #[test]
    fn every_flag_of_up_reaches_its_setting_and_beats_the_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("config.toml"), "[api]\nlisten = \"127.0.0.1:9\"\n[network]\np2p_port = 9\n")
            .unwrap();
        let up = UpArgs {
            listen: Some("127.0.0.1:8".parse().unwrap()),
            p2p_port: Some(7),
            serve: Some(vec!["none".into()]),
            role: Some(crate::args::RoleArg::Edge),
            grid_key: Some("/k".into()),
            threads: Some(3),
            engine: Some("fast".into()),
            ..UpArgs::default()
        };
        let config = Context::load(&global(home.path()), Some(&up)).unwrap().settings.config;
        assert_eq!(config.api.listen.port(), 8);
        assert_eq!(config.network.p2p_port, 7);
        assert_eq!(config.network.grid_key, Some("/k".into()));
        assert_eq!(config.serve.models, ServeModels::None);
        assert_eq!(config.serve.threads.unwrap().get(), 3);
        assert_eq!(config.node.role, Role::Edge);
        assert_eq!(config.serve.engine, crate::config::Engine::Fast);
    }

    #[test]
    fn layers_are_said_once_and_of_a_model() {
        let home = tempfile::tempdir().unwrap();
        let load = |model: &str, layers: Option<&str>| {
            let serve = Some(vec![model.to_owned()]);
            let up = UpArgs { serve, layers: layers.map(str::to_owned), ..UpArgs::default() };
            Context::load(&global(home.path()), Some(&up)).map(|context| context.settings.config.serve.models)
        };
        let whole = load("m@0..5", None).unwrap();
        assert_eq!(load("m", Some("0..5")).unwrap(), whole);
        for (model, layers) in [("m@0..5", "7..9"), ("m@auto", "auto"), ("none", "0..5"), ("auto", "auto")] {
            let error = load(model, Some(layers)).unwrap_err();
            assert_eq!(crate::errors::exit_code(&error), 2);
            assert!(error.to_string().contains(model), "{error}");
        }
    }

    #[test]
    fn a_draft_model_is_whole_and_for_layers() {
        let home = tempfile::tempdir().unwrap();
        let load = |layers: Option<&str>, draft: &str| {
            let (serve, draft) = (Some(vec!["m".to_owned()]), Some(draft.to_owned()));
            let up = UpArgs { serve, layers: layers.map(str::to_owned), draft, ..UpArgs::default() };
            Context::load(&global(home.path()), Some(&up)).map(|context| context.settings.config.serve.draft)
        };
        assert_eq!(load(Some("4..9"), "small").unwrap().as_deref(), Some("small"));
        assert_eq!(load(Some("auto"), "small").unwrap().as_deref(), Some("small"));
        assert_eq!(load(None, "").unwrap(), None);
        for (layers, draft, why) in [(None, "small", "--layers"), (Some("4..9"), "small@0..2", "whole")] {
            let error = load(layers, draft).unwrap_err();
            assert_eq!(crate::errors::exit_code(&error), 2);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_wrong_file_is_a_usage_error_that_names_its_line() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("config.toml"), "[api]\nliste = 1\n").unwrap();
        let error = Context::load(&global(home.path()), None).unwrap_err();
        assert_eq!(crate::errors::exit_code(&error), 2);
        assert!(error.to_string().contains("line 2") && error.to_string().contains("`listen`"), "{error}");
    }
}
