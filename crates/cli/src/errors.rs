//! How a command fails: one lower-case line on stderr with the mend, and an exit code.

use std::{fmt, io};

/// The command line or the configuration is wrong: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error for [`Usage`].
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// 2 for a wrong command line or configuration, 0 when the reader of our output went away, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        2
    } else if is_broken_pipe(error) {
        0
    } else {
        1
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The whole chain of causes on one line, without those that a message before them holds already; line breaks of foreign
/// messages become spaces.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_follow_the_kind_of_error_through_its_context() {
        assert_eq!(exit_code(&usage("no")), 2);
        assert_eq!(exit_code(&Err::<(), _>(usage("no")).context("while").unwrap_err()), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("no")), 1);
        assert_eq!(exit_code(&io::Error::from(io::ErrorKind::BrokenPipe).into()), 0);
        assert_eq!(exit_code(&io::Error::from(io::ErrorKind::NotFound).into()), 1);
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read x: no such file; mend it").context("while y");
        assert_eq!(one_line(&error), "while y: cannot read x: no such file; mend it");
    }

    #[test]
    fn messages_stay_on_one_line() {
        let error = anyhow::anyhow!("a\n  b").context("while\tdoing");
        assert_eq!(one_line(&error), "while doing: a b");
    }
}
