//! Constrained decoding: a grammar and the answer so far say which tokens may come next. Pure.
//!
//! Grammars are texts in llguidance's dialect of Lark (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>),
//! which embeds JSON schemas as `%json {…}` and names control tokens by id as `<[151657]>`. The gateway writes and
//! [`check`]s them; the worker computes the masks. State is a function of the answer's tokens alone, so another worker
//! continues a constrained answer as it continues any other.
//!
//! A grammar comes from a stranger: its size and nesting are bounded before it is parsed, the work to compile it and the
//! work of each step by llguidance's fuel. Its parser is recursive: [`check`] brings a stack of its own, callers of
//! [`Grammars::compile`] run on one of [`STACK_BYTES`].

mod vocabulary;

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv},
};
use opengrid_protocol::{limits::GRAMMAR_BYTES_MAX, session::Token};

pub use vocabulary::Words;

/// Stack that parsing the deepest grammar needs, with room.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;
/// Deepest nesting of brackets.
const DEPTH_MAX: usize = 256;
/// Of an explanation, in characters.
const REASON_CHARS_MAX: usize = 300;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    #[error("a grammar of {bytes} bytes is over the limit of {GRAMMAR_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("a grammar nested over {DEPTH_MAX} levels deep")]
    TooDeep,
    #[error("{0}")]
    Invalid(String),
    /// The answer so far is not one that the grammar allows.
    #[error("the answer so far does not follow the grammar")]
    Broken,
    /// The vocabulary has no token that goes on, or the step took too much work.
    #[error("no token can follow: {0}")]
    Stuck(String),
}

/// Compiles grammars for one vocabulary.
pub struct Grammars(ParserFactory);

impl Grammars {
    /// # Errors
    /// When the vocabulary cannot be used.
    pub fn new(words: &Words) -> Result<Self, GrammarError> {
        factory(&words.environment()?).map(Self)
    }

    /// The constraint on the rest of an answer that begins with `answer_so_far`.
    ///
    /// # Errors
    /// [`GrammarError`]
    pub fn compile(&self, grammar: &str, answer_so_far: &[Token]) -> Result<Constraint, GrammarError> {
        let mut constraint = Constraint(compile(&self.0, grammar)?);
        constraint.0.consume_tokens(answer_so_far).map_err(|_| GrammarError::Broken)?;
        Ok(constraint)
    }
}

/// Whether a grammar compiles, whatever the vocabulary.
///
/// # Errors
/// The first thing wrong with it, for the person who wrote the schema.
pub fn check(grammar: &str) -> Result<(), GrammarError> {
    check_shape(grammar)?;
    let grammar = grammar.to_owned();
    let checked = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn(move || {
        let factory = factory(&ApproximateTokEnv::single_byte_env())?;
        compile(&factory, &grammar).map(drop)
    });
    let internal = || GrammarError::Invalid("it cannot be checked now".into());
    checked.map_err(|_| internal())?.join().map_err(|_| internal())?
}

fn factory(tokens: &TokEnv) -> Result<ParserFactory, GrammarError> {
    let slices = SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(tokens, InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|error| invalid(&error))?;
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    factory.quiet();
    Ok(factory)
}

fn compile(factory: &ParserFactory, grammar: &str) -> Result<Matcher, GrammarError> {
    check_shape(grammar)?;
    let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
    Ok(Matcher::new(Ok(parser.map_err(|error| invalid(&error))?)))
}

/// What bounds the recursion of parsers, before any of them runs.
fn check_shape(grammar: &str) -> Result<(), GrammarError> {
    if grammar.len() > GRAMMAR_BYTES_MAX {
        return Err(GrammarError::TooLarge { bytes: grammar.len() });
    }
    let mut depth = 0_usize;
    for byte in grammar.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(GrammarError::TooDeep);
        }
    }
    Ok(())
}

fn invalid(error: &impl ToString) -> GrammarError {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let mut reason = lines.next().unwrap_or_default().to_owned();
    // Of patterns the next lines are the pattern, marks under it, and what is wrong with it.
    if reason.ends_with(':') {
        let pattern = lines.next().unwrap_or_default();
        let why = lines.find_map(|line| line.strip_prefix("error: ")).unwrap_or("it cannot be used");
        reason += &format!(" {why} (in `{pattern}`)");
    }
    GrammarError::Invalid(reason.chars().take(REASON_CHARS_MAX).collect())
}

/// What the rest of one answer may be.
#[derive(Clone)]
pub struct Constraint(Matcher);

impl Constraint {
    /// Sets the logits of all tokens that may not come next to minus infinity. Where the grammar may end, the tokens
    /// that end an answer stay.
    ///
    /// # Errors
    /// [`GrammarError::Stuck`]
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let allowed = self.0.compute_mask_or_eos().map_err(|error| stuck(&error))?;
        let mut any = false;
        for (token, logit) in logits.iter_mut().enumerate() {
            if token < allowed.len() && allowed.get(token) {
                any = true;
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any { Ok(()) } else { Err(GrammarError::Stuck("the vocabulary has no such token".into())) }
    }

    /// Appends a token to the answer.
    ///
    /// # Errors
    /// [`GrammarError::Broken`] for a token that the mask forbids.
    pub fn accept(&mut self, token: Token) -> Result<(), GrammarError> {
        self.0.consume_token(token).map_err(|_| GrammarError::Broken)
    }

    /// Nothing can follow: the answer is whole.
    pub fn is_complete(&self) -> bool {
        self.0.is_stopped()
    }
}

fn stuck(error: &impl ToString) -> GrammarError {
    match invalid(error) {
        GrammarError::Invalid(why) => GrammarError::Stuck(why),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "tests.rs"]
mod tests;
