//! `opengrid doctor`: looks at this machine and node, and says how to mend what is wrong.

mod engine_check;
mod machine;
mod node;
mod storage;

use std::process::ExitCode;

use serde::Serialize;

use crate::{
    api::Api,
    args::{DoctorArgs, Global},
    context::Context,
    errors::one_line,
    output,
    shapes::Status,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub level: Level,
    pub finding: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Check {
    pub fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, finding: finding.into(), mend: None }
    }

    pub fn warn(check: &'static str, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, finding: finding.into(), mend: Some(mend.into()) }
    }

    pub fn fail(check: &'static str, finding: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, finding: finding.into(), mend: Some(mend.into()) }
    }

    fn line(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        let mend = self.mend.as_ref().map(|mend| format!("; {mend}")).unwrap_or_default();
        output::clean(&format!("{level}  {:9}  {}{mend}", self.check, self.finding)).replace('\n', " ")
    }
}

/// Prints each line as it is found. Fails (exit code 1) when a check does; warnings are none.
///
/// # Errors
/// When stdout is closed.
pub async fn run(args: &DoctorArgs, global: &Global) -> anyhow::Result<ExitCode> {
    let mut report = Report { json: global.json, checks: Vec::new() };
    match Context::load(global, None) {
        Ok(context) => examine(&mut report, args, &context).await?,
        Err(error) => report.add(Check::fail("settings", one_line(&error), "the rest needs the settings"))?,
    }
    if report.json {
        output::json(&report.checks)?;
    }
    let failed = report.checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn examine(report: &mut Report, args: &DoctorArgs, context: &Context) -> anyhow::Result<()> {
    report.add(settings(context))?;
    report.add(storage::home(context))?;
    let status = node_status(context).await;
    report.add(node::running(&status))?;
    let status = status.ok().flatten();
    for check in node::ports(context, status.is_some()).await {
        report.add(check)?;
    }
    report.add(node::nat(status.as_ref()))?;
    report.add(node::clock(status.as_ref()))?;
    let host = machine::profile(context).await?;
    report.add(machine::memory(&host))?;
    report.add(machine::disk(&host))?;
    for check in storage::models(context, args.quick).await {
        report.add(check)?;
    }
    report.add(engine_check::run(context, &host).await)
}

fn settings(context: &Context) -> Check {
    let file = context.settings.file();
    if file.exists() {
        Check::ok("settings", format!("{} is sound", file.display()))
    } else {
        Check::ok("settings", "no config.toml: the defaults hold (`opengrid config init` writes one)")
    }
}

/// `None`: no node runs.
async fn node_status(context: &Context) -> anyhow::Result<Option<Status>> {
    match Api::of_home(&context.home)? {
        Some(api) => Ok(Some(api.get("/grid/v1/status").await?)),
        None => Ok(None),
    }
}

struct Report {
    json: bool,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, check: Check) -> anyhow::Result<()> {
        if !self.json {
            output::line(check.line())?;
        }
        self.checks.push(check);
        Ok(())
    }
}
