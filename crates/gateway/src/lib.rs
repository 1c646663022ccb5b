//! The HTTP face of a node: OpenAI API, native API and web page
