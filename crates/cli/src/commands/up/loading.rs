//! Shows how models are fetched and loaded after the start: bars on a terminal, else a line per change.

use std::{collections::HashMap, io::IsTerminal, sync::Arc, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use opengrid_node::{
    Node,
    handle::{GridHandle, ServedModel},
};
use tokio_util::sync::CancellationToken;

use crate::shapes::named;

const EVERY: Duration = Duration::from_millis(200);

/// Until every model is ready or failed, or `closing`.
pub async fn show(node: Arc<Node>, closing: CancellationToken) {
    let mut display = Display::new();
    while closing.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        let models = node.status().models;
        for model in &models {
            display.update(model);
        }
        if models.iter().all(|model| is_settled(&model.state)) {
            return;
        }
    }
}

fn is_settled(state: &str) -> bool {
    state == "ready" || state.starts_with("failed")
}

struct Display {
    bars: Option<MultiProgress>,
    shown: HashMap<String, Shown>,
}

struct Shown {
    bar: ProgressBar,
    step: String,
}

impl Display {
    fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new), shown: HashMap::new() }
    }

    fn update(&mut self, model: &ServedModel) {
        let bars = self.bars.as_ref();
        let name = named(&model.id, model.layers.as_deref());
        let shown = self.shown.entry(name.clone()).or_insert_with(|| Shown {
            bar: bars.map_or_else(ProgressBar::hidden, |bars| bars.add(new_bar(&name))),
            step: String::new(),
        });
        let (step, percent) = split_percent(&model.state);
        shown.bar.set_position(percent.unwrap_or(0));
        shown.bar.set_message(model.state.clone());
        if shown.step != step {
            shown.step = step;
            let line = line(&name, model);
            if is_settled(&model.state) {
                shown.bar.finish_and_clear();
            }
            if bars.is_none() || is_settled(&model.state) {
                eprintln!("{line}");
            }
        }
    }
}

fn new_bar(id: &str) -> ProgressBar {
    let bar = ProgressBar::new(100).with_prefix(id.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(EVERY);
    bar
}

fn line(name: &str, model: &ServedModel) -> String {
    if model.state != "ready" {
        return format!("{name}: {}", split_percent(&model.state).0);
    }
    let (slots, context, speed) = (model.slots, model.context_tokens, model.decode_tokens_per_s);
    format!("{name}: ready ({slots} answers of {context} tokens at once, {speed:.0} tok/s, {})", model.class)
}

/// `fetching 34% …`: the state without its number, and the number.
fn split_percent(state: &str) -> (String, Option<u64>) {
    let number = state.split_whitespace().find_map(|word| word.strip_suffix('%')?.parse::<u64>().ok());
    match number {
        Some(percent) => (state.replace(&format!(" {percent}%"), ""), Some(percent.min(100))),
        None => (state.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_do_not_make_new_steps() {
        assert_eq!(split_percent("fetching 34% of the file"), ("fetching of the file".into(), Some(34)));
        assert_eq!(split_percent("fetching 0%"), ("fetching".into(), Some(0)));
        assert_eq!(split_percent("loading"), ("loading".into(), None));
        assert!(is_settled("ready") && is_settled("failed: no memory") && !is_settled("loading"));
    }
}
