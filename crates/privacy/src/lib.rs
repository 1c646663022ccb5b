//! What keeps prompts and answers from everybody but the worker that serves them: [`sealing`], the end-to-end channel
//! between a gateway and a worker. Pure but for the operating system's random numbers; the clock is an argument.

pub mod sealing;
