#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use opengrid_protocol::{NodeId, invite::Invite};

use super::{schema::KEYS, *};

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// A home with `file` as its settings.
fn home(file: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), file).unwrap();
    dir
}

fn load_file(file: &str) -> Result<Config, ConfigError> {
    let dir = home(file);
    Config::load_with(Some(dir.path().to_owned()), Overrides::new(), env(&[("OPENGRID_MODELS", "/m")]))
        .map(|effective| effective.config)
}

fn load_env(pairs: &[(&str, &str)]) -> Result<Effective, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    Config::load_with(Some(dir.path().to_owned()), Overrides::new(), env(pairs))
}

/// The error without the directory in front.
fn refusal(file: &str) -> String {
    let text = load_file(file).expect_err("it must be refused").to_string();
    let start = text.find(FILE_NAME).unwrap_or(0);
    text[start..].to_owned()
}

/// The default file with every setting's `#` taken away.
fn uncommented() -> String {
    let names: Vec<String> = KEYS.iter().map(|key| format!("#{} = ", key.name)).collect();
    let open = |line: &str| names.iter().any(|name| line.starts_with(name.as_str()));
    let lines = default_text();
    let lines = lines.lines().map(|line| if open(line) { &line[1..] } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_default_file_says_what_is_default_anyway() {
    let bare = load_file("").unwrap();
    assert_eq!(load_file(&default_text()).unwrap(), bare);
    let dir = home(&uncommented());
    let effective =
        Config::load_with(Some(dir.path().to_owned()), Overrides::new(), env(&[])).expect("the defaults parse");
    let from_file = effective.entries.iter().filter(|entry| matches!(entry.origin, Origin::File { .. })).count();
    assert_eq!(from_file, KEYS.len(), "every key stands in the default file");
    let bare = Config::load_with(Some("/nowhere".into()), Overrides::new(), env(&[])).unwrap();
    assert_eq!(effective.config, bare.config);
}

#[test]
fn the_defaults_are_the_contract() {
    let config = load_file("").unwrap();
    assert_eq!(config.api.listen.to_string(), "127.0.0.1:8470");
    assert_eq!(config.network.p2p_port, 4470);
    assert_eq!(config.serve.models, ServeModels::Auto);
    assert_eq!(config.serve.engine, Engine::Exact);
    assert_eq!((config.serve.threads, config.network.grid_key), (None, None));
    assert_eq!(config.models.sources, [ModelSource::Peers, ModelSource::Hub, ModelSource::Package]);
    assert_eq!(config.node.role, Role::Auto);
}

#[test]
fn unknown_names_are_refused_with_line_and_nearest_name() {
    assert_eq!(
        refusal("# one\n\n[api]\n\n\n\nliste = 1\n"),
        "config.toml line 7: unknown key `liste` in [api]; did you mean `listen`?"
    );
    assert_eq!(refusal("[netwrk]\n"), "config.toml line 1: unknown table [netwrk]; did you mean `network`?");
    assert_eq!(
        refusal("[api]\nmdns = true"),
        "config.toml line 2: unknown key `mdns` in [api]; it belongs to [network]"
    );
    assert_eq!(
        refusal("listen = \"x\""),
        "config.toml line 1: unknown key `listen` outside of any table; put it under [api]"
    );
    assert_eq!(refusal("[log]\nqqqq = 1"), "config.toml line 2: unknown key `qqqq` in [log]");
    assert!(refusal("[node]\nhome = \"/x\"").contains("use --home DIR"));
}

#[test]
fn wrong_types_and_bounds_are_refused_with_the_line() {
    for (file, wanted) in [
        ("[api]\nlisten = 8470", "line 2: `listen` in [api]: takes a text in quotes, not the number 8470"),
        ("[api]\nlisten = \"localhost\"", "line 2: `listen` in [api]: `localhost` is no address with a port"),
        ("[network]\np2p_port = 70000", "line 2: `p2p_port` in [network]: 70000 is out of bounds; it takes 0 to 65535"),
        ("[network]\np2p_port = 99999999999999999999", "out of bounds"),
        ("[network]\np2p_port = \"4470\"", "takes a whole number from 0 to 65535, not the text \"4470\""),
        ("[network]\np2p_port = 4.5", "not the number 4.5"),
        ("[network]\nmdns = \"yes\"", "takes true or false"),
        ("[network]\njoin = \"grid1x\"", "takes a list of texts"),
        ("[network]\njoin = [1]", "the list holds the number 1"),
        ("[network]\njoin = [\"hello\"]", "not an invite"),
        ("[network]\nbootstrap = [\"/ip4/127.0.0.1/tcp/1\"]", "end it with /p2p/"),
        ("[serve]\nengine = \"quick\"", "`quick` is none of `exact`, `fast`"),
        ("[serve]\nmodels = [\"a b\"]", "is no model id"),
        ("[serve]\nslots = 257", "it takes 0 to 256"),
        ("[models]\nsources = [\"ftp\"]", "is no source"),
        ("[api]\nhosts = [\"http://x\"]", "is no host name"),
        ("[models]\nhub = \"ftp://x\"", "is no URL"),
        ("api = 3", "`api` is a table"),
        ("[api\n", "line 1: not valid TOML"),
        ("[api]\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"", "line 3: not valid TOML: duplicate key"),
    ] {
        let error = refusal(file);
        assert!(error.contains(wanted), "{file:?} gave {error:?}");
        assert!(!error.contains('\n'), "{error:?} is one line");
    }
}

#[test]
fn hostile_files_are_bounded() {
    let long = format!("[api]\nhosts = [\"{}\"]", "a".repeat(5_000));
    assert!(refusal(&long).len() < 400);
    let many = format!("[api]\nhosts = [{}]", "\"a\",".repeat(65));
    assert!(refusal(&many).contains("at most 64"));
    assert!(refusal(&"#".repeat(300_000)).contains("larger than"));
    assert!(refusal(&format!("x = {}", "[".repeat(10_000))).contains("line 1"));
    let control = refusal("[api]\n\"a\\nb\\u001b[31m\" = 1");
    assert!(!control.contains(['\n', '\u{1b}']), "{control:?}");
}

#[test]
fn flags_beat_env_beats_file() {
    let dir = home("[api]\nlisten = \"127.0.0.1:1\"\n[network]\np2p_port = 1\n[log]\nlevel = \"warn\"\n");
    let variables = env(&[("OPENGRID_API_LISTEN", "127.0.0.1:2"), ("OPENGRID_NETWORK_P2P_PORT", "2")]);
    let flags = Overrides::new().set("network.p2p_port", "--p2p-port", Some(3)).set("serve.threads", "--t", None::<u8>);
    let effective = Config::load_with(Some(dir.path().to_owned()), flags, variables).unwrap();
    assert_eq!(effective.config.network.p2p_port, 3);
    assert_eq!(effective.config.api.listen.port(), 2);
    assert_eq!(effective.config.log.level, LogLevel::Warn);
    let shown = effective.show_json();
    assert_eq!(shown["network.p2p_port"], serde_json::json!({"value": 3, "origin": "flag", "at": "--p2p-port"}));
    assert_eq!(shown["api.listen"]["at"], "OPENGRID_API_LISTEN");
    assert_eq!(shown["log.level"]["origin"], "file");
    assert!(shown["log.level"]["at"].as_str().unwrap().ends_with("config.toml line 6"));
    assert_eq!(shown["serve.threads"]["origin"], "default");
    let text = effective.show();
    assert!(
        text.lines().any(|line| line.starts_with("p2p_port = 3 ") && line.ends_with("# flag, --p2p-port")),
        "{text}"
    );
}

#[test]
fn what_show_prints_can_be_used_as_the_file() {
    let file = "[serve]\nmodels = [\"a\", \"b\"]\nthreads = 2\n[network]\nmdns = false\n";
    let dir = home(file);
    let first = Config::load_with(Some(dir.path().to_owned()), Overrides::new(), env(&[])).unwrap();
    std::fs::write(dir.path().join(FILE_NAME), first.show()).unwrap();
    let second = Config::load_with(Some(dir.path().to_owned()), Overrides::new(), env(&[])).unwrap();
    assert_eq!(second.config, first.config);
    assert_eq!(second.config.serve.models, ServeModels::These(vec!["a".into(), "b".into()]));
}

#[test]
fn variables_are_checked_like_the_file() {
    let refused = |name: &str, value: &str| load_env(&[(name, value)]).unwrap_err().to_string();
    assert_eq!(
        refused("OPENGRID_API_LISTE", "x"),
        "OPENGRID_API_LISTE: unknown setting; did you mean `OPENGRID_API_LISTEN`?"
    );
    assert_eq!(
        refused("OPENGRID_SERVE_THREADS", "many"),
        "OPENGRID_SERVE_THREADS: takes a whole number from 0 to 1024, not `many`"
    );
    assert!(refused("OPENGRID_NETWORK_MDNS", "maybe").contains("true or false"));
    let effective = load_env(&[
        ("OPENGRID_TEST_MODEL", "not a setting"),
        ("OPENGRID_MODELS", "/store"),
        ("OPENGRID_NETWORK_MDNS", "off"),
        ("OPENGRID_SERVE_MODELS", "a, b"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(effective.config.models.dir, Path::new("/store"));
    assert!(!effective.config.network.mdns);
    assert_eq!(effective.config.serve.models, ServeModels::These(vec!["a".into(), "b".into()]));
    assert!(refused("OPENGRID_SERVE_MODELS", "auto,a").contains("`auto` stands alone"));
    let none = load_env(&[("OPENGRID_SERVE_MODELS", "none")]).unwrap();
    assert_eq!(none.config.serve.models, ServeModels::None);
}

#[cfg(unix)]
#[test]
fn variables_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let bad = vec![("OPENGRID_MODELS".into(), OsString::from_vec(vec![0xff]))];
    let error = Config::load_with(Some("/x".into()), Overrides::new(), bad).unwrap_err();
    assert_eq!(error.to_string(), "OPENGRID_MODELS: is not valid UTF-8; set it again");
}

#[test]
fn the_home_comes_from_flag_then_variable_then_platform() {
    let variables = env(&[("OPENGRID_HOME", "/from/env")]);
    let by_flag = Config::load_with(Some("/from/flag".into()), Overrides::new(), variables.clone()).unwrap();
    assert_eq!(by_flag.home, Path::new("/from/flag"));
    let by_env = Config::load_with(None, Overrides::new(), variables).unwrap();
    assert_eq!(by_env.home, Path::new("/from/env"));
    assert_eq!(by_env.show_json()["node.home"]["origin"], "env");
}

#[test]
fn relative_paths_in_the_file_start_at_the_home() {
    let dir = home("[network]\ngrid_key = \"grid.key\"\n[models]\ndir = \"store\"\n");
    let config = Config::load_with(Some(dir.path().to_owned()), Overrides::new(), env(&[])).unwrap().config;
    assert_eq!(config.network.grid_key, Some(dir.path().join("grid.key")));
    assert_eq!(config.models.dir, dir.path().join("store"));
}

#[test]
fn invites_come_from_flags() {
    let invite = Invite { node: NodeId([9; 32]), addresses: vec![vec![4; 8]], private: false }.to_text();
    let flags = Overrides::new().set_list("network.join", "--join", &[invite.clone(), invite.clone()]);
    let config = Config::load_with(Some("/x".into()), flags, env(&[])).unwrap().config;
    assert_eq!(config.network.join, [invite.clone(), invite]);
    let bad = Overrides::new().set_list("network.join", "--join", &["nonsense".into()]);
    let error = Config::load_with(Some("/x".into()), bad, env(&[])).unwrap_err().to_string();
    assert!(error.starts_with("--join: not an invite"), "{error}");
}

#[test]
fn init_writes_once_and_never_over() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("new/home");
    let path = init(&home).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), default_text());
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(init(&home), Err(ConfigError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn any_origin_needs_keys() {
    for origins in ["[\"https://app.example\"]", "[\"http://localhost:3000\"]", "[\"http://[::1]:8080\"]"] {
        load_file(&format!("[api]\ncors_origins = {origins}\n")).unwrap();
    }
    for wrong in
        ["https://app.example/", "app.example", "https://APP.example", "https://a.example:443", "null", "file://"]
    {
        let text = refusal(&format!("[api]\ncors_origins = [\"{wrong}\"]\n"));
        assert!(text.contains("line 2") && text.contains("no origin"), "{wrong}: {text}");
    }
    let any = load_file("[api]\ncors_origins = [\"*\"]\n").expect_err("it must be refused").to_string();
    assert!(any.contains("require_key = true"), "{any}");
    load_file("[api]\ncors_origins = [\"*\"]\nrequire_key = true\n").unwrap();
    load_file("[api]\ncors_origins = [\"*\"]\nlisten = \"0.0.0.0:8470\"\n").unwrap();
}
