//! `opengrid bench`: what this machine can do for the grid.

mod estimate;

use std::path::PathBuf;

use anyhow::bail;
use opengrid_engine::Engine as _;
use opengrid_host::{HostProfile, Probe, role_by_speed};
use opengrid_models::{ModelEntry, catalogue::Task, gguf};
use serde::Serialize;

use self::estimate::{ClassRow, Measured};
use crate::{
    args::BenchArgs,
    context::Context,
    engine::{self, Subject},
    output::{self, bytes},
    store::Models,
};

#[derive(Serialize)]
struct Report {
    host: HostProfile,
    models: Vec<ModelRow>,
    classes: Vec<ClassRow>,
}

/// A model that was loaded and measured, or why it was not.
#[derive(Serialize)]
struct ModelRow {
    id: String,
    class: String,
    quantisation: String,
    prefill_tokens_per_s: Option<f32>,
    decode_tokens_per_s: Option<f32>,
    /// Resident, weights and KV cache.
    memory_bytes: Option<u64>,
    slots: Option<u16>,
    context_tokens: Option<u32>,
    engine: Option<String>,
    role: Option<String>,
    error: Option<String>,
    #[serde(skip)]
    size: estimate::Size,
}

/// # Errors
/// When a named model does not exist or is not in the store, or stdout is closed. A model that cannot be loaded is a
/// row that says why.
pub async fn run(args: &BenchArgs, context: &Context) -> anyhow::Result<()> {
    let models = Models::open(context)?;
    let chosen = chosen(args, &models)?;
    let directory = models.store.directory().to_owned();
    let host = tokio::task::spawn_blocking(move || Probe::new(directory).run()).await?;
    let mut rows = Vec::new();
    for (entry, path) in chosen {
        eprintln!("measuring {} …", entry.id);
        rows.push(measure(entry, path, &host, args, context).await);
    }
    let measured: Vec<Measured> = rows.iter().filter_map(measured).collect();
    let classes =
        estimate::classes(&measured, host.memory.available_bytes, context.settings.config.limits.memory_percent);
    let report = Report { host, models: rows, classes };
    if context.json { output::json(&report) } else { print(&report) }
}

fn chosen<'a>(args: &BenchArgs, models: &'a Models) -> anyhow::Result<Vec<(&'a ModelEntry, PathBuf)>> {
    if args.models.is_empty() {
        let talkers = models.catalogue.models().filter(|entry| entry.task == Task::Generation);
        let here = talkers.filter_map(|entry| Some((entry, models.store.path(entry.root())?)));
        return Ok(here.collect());
    }
    let named = args.models.iter().map(|id| {
        let entry = models.entry(id)?;
        if entry.task != Task::Generation {
            bail!("`{id}` makes embeddings: only models that generate are measured");
        }
        match models.store.path(entry.root()) {
            Some(path) => Ok((entry, path)),
            None => bail!("`{0}` is not in the store: `opengrid pull {0}` gets it", entry.id),
        }
    });
    named.collect()
}

async fn measure(
    entry: &ModelEntry,
    path: PathBuf,
    host: &HostProfile,
    args: &BenchArgs,
    context: &Context,
) -> ModelRow {
    let mut row = ModelRow {
        id: entry.id.clone(),
        class: format!("{:?}", entry.class).to_lowercase(),
        quantisation: String::new(),
        prefill_tokens_per_s: None,
        decode_tokens_per_s: None,
        memory_bytes: None,
        slots: None,
        context_tokens: None,
        engine: None,
        role: None,
        error: None,
        size: estimate::Size { weight_bytes: entry.file.size, parameters: 0 },
    };
    if let Err(error) = fill(&mut row, entry, path, host, args, context).await {
        row.error = Some(crate::errors::one_line(&error));
    }
    row
}

async fn fill(
    row: &mut ModelRow,
    entry: &ModelEntry,
    path: PathBuf,
    host: &HostProfile,
    args: &BenchArgs,
    context: &Context,
) -> anyhow::Result<()> {
    let info = gguf::file::read_info(&path)?;
    row.quantisation = info.quantisation.clone();
    row.size = estimate::Size { weight_bytes: info.weight_bytes, parameters: info.parameters };
    let subject = Subject { entry, info: &info, path };
    let engine = engine::start(&subject, host, &context.settings.config, args.threads).await?;
    let can = engine.capabilities();
    engine.shutdown().await;
    row.prefill_tokens_per_s = Some(can.prefill_tokens_per_s);
    row.decode_tokens_per_s = Some(can.decode_tokens_per_s);
    row.memory_bytes = Some(can.memory_bytes);
    row.slots = Some(can.slots);
    row.context_tokens = Some(can.context_tokens);
    row.engine = Some(can.description);
    row.role = Some(format!("{:?}", role_by_speed(can.decode_tokens_per_s)).to_lowercase());
    Ok(())
}

fn measured(row: &ModelRow) -> Option<Measured> {
    Some(Measured {
        id: row.id.clone(),
        class: row.class.clone(),
        size: row.size,
        prefill_tokens_per_s: row.prefill_tokens_per_s?,
        decode_tokens_per_s: row.decode_tokens_per_s?,
    })
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::line(output::pairs(&host_rows(&report.host)))?;
    output::line("")?;
    let headings = ["model", "quantisation", "prefill", "decode", "memory", "sessions", "context", "engine"];
    let right = [false, false, true, true, true, true, true, false];
    let rows: Vec<Vec<String>> = report.models.iter().map(model_cells).collect();
    if rows.is_empty() {
        output::line("no model in the store to measure: `opengrid pull smollm2-135m` gets a small one")?;
        return Ok(());
    }
    output::line(output::table(&headings, &right, &rows))?;
    output::line("")?;
    let headings = ["class", "prefill", "decode", "fits", "how known"];
    let rows: Vec<Vec<String>> = report.classes.iter().map(class_cells).collect();
    output::line(output::table(&headings, &[false, true, true, false, false], &rows))
}

fn host_rows(host: &HostProfile) -> Vec<(&'static str, String)> {
    let (cpu, memory) = (&host.cpu, &host.memory);
    let gpus: Vec<String> = host.gpus.iter().map(|gpu| format!("{} ({})", gpu.name, bytes(gpu.memory_bytes))).collect();
    vec![
        ("system", format!("{} ({})", host.os.name, host.os.arch)),
        ("processor", cpu.brand.clone()),
        (
            "cores",
            format!("{} physical, {} logical, {} usable", cpu.physical_cores, cpu.logical_cores, cpu.usable_cores),
        ),
        ("memory", format!("{} of {} available", bytes(memory.available_bytes), bytes(memory.total_bytes))),
        (
            "disk",
            host.disk.as_ref().map_or_else(|| "unknown".into(), |disk| format!("{} free", bytes(disk.free_bytes))),
        ),
        ("gpu", if gpus.is_empty() { "none".into() } else { gpus.join(", ") }),
    ]
}

fn model_cells(row: &ModelRow) -> Vec<String> {
    let number = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    vec![
        row.id.clone(),
        row.quantisation.clone(),
        number(row.prefill_tokens_per_s.map(per_second)),
        number(row.decode_tokens_per_s.map(per_second)),
        number(row.memory_bytes.map(bytes)),
        number(row.slots.map(|slots| slots.to_string())),
        number(row.context_tokens.map(|tokens| tokens.to_string())),
        row.error.clone().or_else(|| row.engine.clone()).unwrap_or_default(),
    ]
}

fn class_cells(row: &ClassRow) -> Vec<String> {
    let number = |value: Option<f32>| value.map_or_else(|| "-".into(), per_second);
    vec![
        row.class.into(),
        number(row.prefill_tokens_per_s),
        number(row.decode_tokens_per_s),
        if row.fits { "yes" } else { "no" }.into(),
        row.basis.clone(),
    ]
}

fn per_second(value: f32) -> String {
    if value < 10.0 { format!("{value:.1} tok/s") } else { format!("{value:.0} tok/s") }
}
