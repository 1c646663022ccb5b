//! `opengrid run`: one answer, or a conversation.

use std::io::{IsTerminal, Read, Write};

use anyhow::bail;
use opengrid_models::catalogue::Task;
use serde_json::Value;

use crate::{
    api::{self, Api},
    args::RunArgs,
    chat::{self, Message, Settings},
    context::Context,
    errors::usage,
    output::{self, clean},
    repl,
    shapes::Model,
};

/// Longest prompt from stdin, in bytes; the gateway takes no longer bodies by default.
const PROMPT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// # Errors
/// When no node runs, nobody serves the model, or the answer breaks off.
pub async fn run(args: &RunArgs, context: &Context) -> anyhow::Result<()> {
    let prompt = prompt(args)?;
    if prompt.is_none() && context.json {
        return Err(usage("--json needs a prompt: `opengrid run MODEL \"PROMPT\" --json`"));
    }
    let api = Api::of(&args.target, &context.home)?;
    let settings = Settings {
        model: args.model.clone(),
        temperature: args.temperature,
        max_tokens: args.max_tokens,
        seed: args.seed,
    };
    match prompt {
        Some(prompt) => answer_once(&api, &settings, messages(args.system.as_deref(), prompt), context.json).await,
        None => {
            check_model(&api, &settings.model).await?;
            repl::run(api, settings, args.system.clone()).await
        }
    }
}

/// `-` and a pipe read stdin. A prompt on the command line leaves stdin alone, as it may be a script's.
fn prompt(args: &RunArgs) -> anyhow::Result<Option<String>> {
    let from_stdin = match args.prompt.as_deref() {
        Some("-") => true,
        Some(prompt) => return non_empty(prompt.to_owned()).map(Some),
        None => !std::io::stdin().is_terminal(),
    };
    if from_stdin { read_stdin().and_then(non_empty).map(Some) } else { Ok(None) }
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    let mut stdin = std::io::stdin().lock().take(PROMPT_BYTES_MAX + 1);
    stdin.read_to_string(&mut text).map_err(|error| usage(format!("the prompt on stdin cannot be read: {error}")))?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        return Err(usage(format!("the prompt on stdin is over {PROMPT_BYTES_MAX} bytes: send less")));
    }
    Ok(text)
}

fn non_empty(prompt: String) -> anyhow::Result<String> {
    if prompt.trim().is_empty() {
        return Err(usage("the prompt is empty: give one, e.g. `opengrid run MODEL \"hello\"`"));
    }
    Ok(prompt)
}

fn messages(system: Option<&str>, prompt: String) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", prompt)]).collect()
}

async fn answer_once(api: &Api, settings: &Settings, messages: Vec<Message>, json: bool) -> anyhow::Result<()> {
    let mut printed = String::new();
    let result = chat::ask(api, settings, &messages, |text| {
        if json {
            return Ok(());
        }
        printed.push_str(text);
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        Ok(stdout.flush()?)
    })
    .await;
    if !printed.is_empty() && !printed.ends_with('\n') {
        output::line("")?;
    }
    let answer = result?;
    if json {
        return output::json(&answer);
    }
    if std::io::stderr().is_terminal() {
        eprintln!("[{}]", answer.summary());
    }
    Ok(())
}

/// Says what is wrong with the model before anybody has typed a question.
async fn check_model(api: &Api, id: &str) -> anyhow::Result<()> {
    let answer: Value = api.get("/grid/v1/models").await?;
    let models: Vec<Model> = api::rows(&answer, "models")?;
    match models.iter().find(|model| model.id == id) {
        None => bail!("the model `{}` does not exist: `opengrid ls` lists the models", clean(id)),
        Some(model) if model.task == Task::Embedding => {
            bail!("`{}` makes embeddings and does not talk: POST /v1/embeddings takes texts for it", clean(id))
        }
        Some(model) if model.workers == 0 => {
            eprintln!("nobody serves {id} right now: `opengrid up --serve {id}` on some node mends that");
            Ok(())
        }
        Some(_) => Ok(()),
    }
}
