//! The conversation in the terminal. Questions and answers are kept in memory only.

use std::io::Write;

use rustyline::{
    Completer, Config, Editor, Helper, Highlighter, Hinter,
    error::ReadlineError,
    history::MemHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use crate::{
    api::Api,
    chat::{self, Message, Settings},
    errors::one_line,
};

const HELP: &str = "\
/bye            end (or Ctrl-D)
/clear          forget the conversation
/system TEXT    set the system message and start afresh
/help           this list
Ctrl-C stops an answer. A line that ends with \\ goes on in the next; so does text between \"\"\" and \"\"\".";

#[derive(Completer, Helper, Highlighter, Hinter)]
struct Multiline;

impl Validator for Multiline {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let complete = is_complete(context.input());
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

type Reader = Editor<Multiline, MemHistory>;

fn is_complete(input: &str) -> bool {
    !input.ends_with('\\') && input.matches("\"\"\"").count().is_multiple_of(2)
}

/// What was meant: the quotes around and the backslashes before line breaks are gone.
fn unquoted(input: &str) -> String {
    let joined = input.replace("\\\n", "\n");
    let trimmed = joined.trim();
    let inner = trimmed.strip_prefix("\"\"\"").and_then(|rest| rest.strip_suffix("\"\"\""));
    inner.unwrap_or(trimmed).trim().to_owned()
}

#[derive(Debug, PartialEq, Eq)]
enum Input {
    Nothing,
    Bye,
    Clear,
    Help,
    System(String),
    Unknown(String),
    Question(String),
}

impl Input {
    fn parse(line: &str) -> Self {
        let text = unquoted(line);
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((&text, ""));
        match word {
            "" => Self::Nothing,
            "/bye" | "/exit" | "/quit" => Self::Bye,
            "/clear" => Self::Clear,
            "/help" | "/?" => Self::Help,
            "/system" => Self::System(rest.trim().to_owned()),
            // A path or a comment is a question; a single word with one slash is a slip.
            _ if word.starts_with('/') && !word[1..].contains('/') && rest.is_empty() => Self::Unknown(word.to_owned()),
            _ => Self::Question(text),
        }
    }
}

struct Conversation {
    api: Api,
    settings: Settings,
    messages: Vec<Message>,
}

/// Runs until `/bye` or the end of input.
///
/// # Errors
/// When the terminal fails. What goes wrong with one answer is printed, and the conversation goes on.
pub async fn run(api: Api, settings: Settings, system: Option<String>) -> anyhow::Result<()> {
    let mut conversation = Conversation { api, settings, messages: Vec::new() };
    conversation.restart(system);
    let config = Config::builder().max_history_size(1_000)?.build();
    let mut reader = Reader::with_history(config, MemHistory::new())?;
    reader.set_helper(Some(Multiline));
    eprintln!("{}: /help lists what can be typed, /bye ends", conversation.settings.model);
    loop {
        let line;
        (reader, line) = next_line(reader).await?;
        let Some(line) = line else { return Ok(()) };
        match Input::parse(&line) {
            Input::Nothing => {}
            Input::Bye => return Ok(()),
            Input::Help => eprintln!("{HELP}"),
            Input::Unknown(word) => eprintln!("{word} is unknown: /help lists what can be typed"),
            Input::Clear => {
                let system = conversation.system();
                conversation.restart(system);
                eprintln!("the conversation is forgotten");
            }
            Input::System(text) => {
                conversation.restart((!text.is_empty()).then_some(text));
                eprintln!("the conversation starts afresh");
            }
            Input::Question(text) => conversation.answer(text).await?,
        }
    }
}

/// Reads on a thread of its own, as editing blocks. `None`: the end of input.
async fn next_line(mut reader: Reader) -> anyhow::Result<(Reader, Option<String>)> {
    let read = tokio::task::spawn_blocking(move || {
        loop {
            match reader.readline(">>> ") {
                Ok(line) => {
                    let kept = reader.add_history_entry(line.as_str()).map(|_| Some(line));
                    return (reader, kept);
                }
                Err(ReadlineError::Interrupted) => eprintln!("(/bye or Ctrl-D ends)"),
                Err(ReadlineError::Eof) => return (reader, Ok(None)),
                Err(error) => return (reader, Err(error)),
            }
        }
    });
    let (reader, line) = read.await?;
    Ok((reader, line?))
}

impl Conversation {
    fn system(&self) -> Option<String> {
        self.messages.iter().find(|message| message.role == "system").map(|message| message.content.clone())
    }

    fn restart(&mut self, system: Option<String>) {
        self.messages = system.map(|text| Message::new("system", text)).into_iter().collect();
    }

    /// Prints the answer as it comes. A question without an answer is forgotten; a stopped answer counts as far as
    /// it got.
    async fn answer(&mut self, question: String) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", question));
        let mut printed = String::new();
        let ask = chat::ask(&self.api, &self.settings, &self.messages, |text| {
            printed.push_str(text);
            show(text)
        });
        let result = tokio::select! {
            result = ask => Some(result),
            _ = tokio::signal::ctrl_c() => None,
        };
        if !printed.is_empty() && !printed.ends_with('\n') {
            show("\n")?;
        }
        match result {
            Some(Ok(answer)) => eprintln!("[{}]\n", answer.summary()),
            Some(Err(error)) => eprintln!("error: {}\n", one_line(&error)),
            None => eprintln!("[stopped]\n"),
        }
        if printed.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Message::new("assistant", printed));
        }
        Ok(())
    }
}

fn show(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_goes_on_until_it_is_complete() {
        assert!(is_complete("a"));
        assert!(!is_complete("a\\"));
        assert!(!is_complete("\"\"\"a\nb"));
        assert!(is_complete("\"\"\"a\nb\"\"\""));
        assert_eq!(unquoted("\"\"\"a\nb\"\"\""), "a\nb");
        assert_eq!(unquoted("a\\\nb"), "a\nb");
    }

    #[test]
    fn commands_are_told_apart_from_questions() {
        assert_eq!(Input::parse("  "), Input::Nothing);
        assert_eq!(Input::parse("/bye"), Input::Bye);
        assert_eq!(Input::parse("/system be short"), Input::System("be short".into()));
        assert_eq!(Input::parse("/sytem"), Input::Unknown("/sytem".into()));
        assert_eq!(Input::parse("/etc/passwd is what?"), Input::Question("/etc/passwd is what?".into()));
        assert_eq!(Input::parse("why?"), Input::Question("why?".into()));
    }
}
