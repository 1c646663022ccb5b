//! `opengrid keys`: who may use this node's API, for what and how much. Works with and without a running node, which
//! sees changes by itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opengrid_gateway::{
    Limits,
    keys::{self, KeyRecord, NewKey, Scope},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    args::{KeysCommand, KeysCreateArgs, KeysRevokeArgs, ScopeArg},
    context::Context,
    output,
};

const HEADINGS: [&str; 6] = ["name", "key", "scopes", "requests/min", "tokens/min", "expires"];
const RIGHT: [bool; 6] = [false, false, false, true, true, false];

/// # Errors
/// When the file of keys cannot be read or written, or a name is taken, bad or unknown.
pub fn run(command: &KeysCommand, context: &Context) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create(args) => create(args, context),
        KeysCommand::Ls => list(context),
        KeysCommand::Revoke(args) => revoke(args, context),
    }
}

fn create(args: &KeysCreateArgs, context: &Context) -> anyhow::Result<()> {
    let now = now_unix_s();
    let new = NewKey {
        name: args.name.clone(),
        scopes: args.scope.iter().map(|scope| Scope::from(*scope)).collect(),
        limits: Limits { requests_per_minute: args.requests_per_minute, tokens_per_minute: args.tokens_per_minute },
        expires_unix_s: args.expires.map(|time| now.saturating_add(time.as_secs())),
    };
    let (key, record) = keys::change(&context.home, |list| {
        let key = list.create(new, now)?;
        Ok((key, list.keys().last().cloned()))
    })?;
    if context.json {
        let row = record.as_ref().map(Row::of);
        return output::json(&json!({ "key": key.expose(), "about": row }));
    }
    output::line(key.expose())?;
    if let Some(record) = &record {
        let row = Row::of(record);
        eprintln!("key `{}` for {}: keep it, it is not shown again", row.name, row.scopes.join(", "));
    }
    Ok(())
}

fn list(context: &Context) -> anyhow::Result<()> {
    let list = keys::read(&context.home)?;
    let rows: Vec<Row> = list.keys().iter().map(Row::of).collect();
    if context.json {
        return output::json(&rows);
    }
    if rows.is_empty() {
        return output::line("no API keys: `opengrid keys create NAME` makes one");
    }
    let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    output::line(output::table(&HEADINGS, &RIGHT, &cells))
}

fn revoke(args: &KeysRevokeArgs, context: &Context) -> anyhow::Result<()> {
    let revoked = keys::change(&context.home, |list| {
        args.keys.iter().map(|which| list.revoke(which)).collect::<Result<Vec<KeyRecord>, _>>()
    })?;
    let names: Vec<&str> = revoked.iter().map(|key| key.name.as_str()).collect();
    if context.json {
        return output::json(&json!({ "revoked": names }));
    }
    names.iter().try_for_each(|name| output::line(format!("revoked {name}")))
}

impl From<ScopeArg> for Scope {
    fn from(scope: ScopeArg) -> Self {
        match scope {
            ScopeArg::Inference => Self::Inference,
            ScopeArg::Read => Self::Read,
            ScopeArg::Admin => Self::Admin,
        }
    }
}

/// A key as it is listed: nothing that opens anything.
#[derive(Serialize)]
struct Row {
    name: String,
    prefix: String,
    scopes: Vec<&'static str>,
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u32>,
    created_unix_s: u64,
    expires_unix_s: Option<u64>,
    expired: bool,
}

impl Row {
    fn of(key: &KeyRecord) -> Self {
        Self {
            name: key.name.clone(),
            prefix: key.prefix.clone(),
            scopes: key.scopes.iter().map(|scope| scope.as_str()).collect(),
            requests_per_minute: key.limits.requests_per_minute.map(|limit| limit.get()),
            tokens_per_minute: key.limits.tokens_per_minute.map(|limit| limit.get()),
            created_unix_s: key.created_unix_s,
            expires_unix_s: key.expires_unix_s,
            expired: key.is_expired(now_unix_s()),
        }
    }

    fn cells(&self) -> Vec<String> {
        let limit = |limit: Option<u32>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
        let expires = match self.expires_unix_s {
            None => "never".to_owned(),
            Some(_) if self.expired => "expired".to_owned(),
            Some(at) => format!("in {}", output::duration(at.saturating_sub(now_unix_s()))),
        };
        vec![
            self.name.clone(),
            format!("{}…", self.prefix),
            self.scopes.join(","),
            limit(self.requests_per_minute),
            limit(self.tokens_per_minute),
            expires,
        ]
    }
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
