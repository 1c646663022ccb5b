//! How families of models write tool calls, told from their chat templates.
//!
//! One table serves reading ([`Notation`]), writing (calls of earlier turns where the template cannot) and forcing
//! (grammars), so that what a grammar forces is what the parser reads.

use super::calls::Notation;
use crate::text::template::Call;

/// A family's way to write calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `<tool_call>{…}</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM 3. Also what models without tools are taught.
    Hermes,
    /// Llama 3.1 and later: the bare object.
    Llama,
    /// `[TOOL_CALLS][{…}]`: Mistral up to Nemo.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`: later Mistral.
    MistralNamed,
    /// `<|tool_call|>[{…}]<|/tool_call|>`: Phi-4-mini.
    Phi,
    /// A model whose template knows no tools: Hermes, but the marks may be forgotten.
    Taught,
}

/// The text around names and arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape {
    pub begin: &'static str,
    /// Before the name, between name and arguments, after the arguments.
    pub call: [&'static str; 3],
    pub separator: &'static str,
    pub end: &'static str,
    /// More than one call in an answer.
    pub parallel: bool,
}

const HERMES_SHAPE: Shape = Shape {
    begin: "",
    call: ["<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"],
    separator: "\n",
    end: "",
    parallel: true,
};
const LLAMA_SHAPE: Shape =
    Shape { begin: "", call: ["{\"name\": \"", "\", \"parameters\": ", "}"], separator: "", end: "", parallel: false };
const MISTRAL_SHAPE: Shape = Shape {
    begin: "[TOOL_CALLS][",
    call: ["{\"name\": \"", "\", \"arguments\": ", "}"],
    separator: ", ",
    end: "]",
    parallel: true,
};
const MISTRAL_NAMED_SHAPE: Shape =
    Shape { begin: "", call: ["[TOOL_CALLS]", "[ARGS]", ""], separator: "", end: "", parallel: true };
const PHI_SHAPE: Shape = Shape {
    begin: "<|tool_call|>[",
    call: ["{\"name\": \"", "\", \"arguments\": ", "}"],
    separator: ", ",
    end: "]<|/tool_call|>",
    parallel: true,
};

const HERMES: Notation =
    Notation { openers: &["<tool_call>"], bare: false, named: false, closer: Some("</tool_call>") };
const TAUGHT: Notation = Notation { bare: true, ..HERMES };
const LLAMA: Notation = Notation { openers: &["<|python_tag|>"], bare: true, named: false, closer: None };
const MISTRAL: Notation = Notation { openers: &["[TOOL_CALLS]"], bare: false, named: true, closer: None };
const PHI: Notation =
    Notation { openers: &["<|tool_call|>", "functools["], bare: false, named: false, closer: Some("<|/tool_call|>") };

impl Dialect {
    /// `None` for templates that know no tools, or whose way to write calls we do not read.
    pub fn of(template: &str) -> Option<Self> {
        let has = |mark: &str| template.contains(mark);
        if has("[TOOL_CALLS]") {
            return Some(if has("[ARGS]") { Self::MistralNamed } else { Self::Mistral });
        }
        if has("<tool_call>") && !["<function=", "<arg_key>", "<invoke"].iter().any(|other| has(other)) {
            return Some(Self::Hermes);
        }
        if has("<|start_header_id|>") && has("ipython") {
            return Some(Self::Llama);
        }
        (has("<|tool|>") && has("<|end|>")).then_some(Self::Phi)
    }

    pub fn notation(self) -> &'static Notation {
        match self {
            Self::Hermes => &HERMES,
            Self::Taught => &TAUGHT,
            Self::Llama => &LLAMA,
            Self::Mistral | Self::MistralNamed => &MISTRAL,
            Self::Phi => &PHI,
        }
    }

    pub fn shape(self) -> &'static Shape {
        match self {
            Self::Hermes | Self::Taught => &HERMES_SHAPE,
            Self::Llama => &LLAMA_SHAPE,
            Self::Mistral => &MISTRAL_SHAPE,
            Self::MistralNamed => &MISTRAL_NAMED_SHAPE,
            Self::Phi => &PHI_SHAPE,
        }
    }

    /// Calls as the model itself would have written them.
    pub fn write(self, calls: &[Call]) -> String {
        let Shape { begin, call: [before, between, after], separator, end, .. } = self.shape();
        let write = |call: &Call| {
            let arguments = match &call.arguments {
                serde_json::Value::String(text) => text.clone(),
                object => object.to_string(),
            };
            format!("{before}{}{between}{arguments}{after}", call.name)
        };
        let calls: Vec<String> = calls.iter().map(write).collect();
        format!("{begin}{}{end}", calls.join(separator))
    }
}
