//! A model and its vocabulary.

use std::{
    ffi::{CStr, CString, c_char},
    path::Path,
    ptr::NonNull,
};

use llama_cpp_sys_2 as sys;
use opengrid_protocol::session::Token;

use super::{init_backend, last_error};

#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    pub vocabulary_only: bool,
    /// Repack weights for faster, not batch-invariant kernels.
    pub repack: bool,
    pub gpu_layers: u32,
}

/// A loaded model or vocabulary.
pub struct Model {
    model: NonNull<sys::llama_model>,
    vocabulary: NonNull<sys::llama_vocab>,
}

impl Model {
    /// # Errors
    /// llama.cpp's own words for what is wrong with the file.
    pub fn load(path: &Path, options: ModelOptions) -> Result<Self, String> {
        init_backend();
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "the path holds a NUL".to_owned())?;
        // SAFETY: returns a struct by value.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.vocab_only = options.vocabulary_only;
        params.use_extra_bufts = options.repack;
        params.n_gpu_layers = i32::try_from(options.gpu_layers).unwrap_or(i32::MAX);
        // SAFETY: `path` is NUL-terminated and outlives the call; `params` holds no pointers but the defaults' nulls.
        let model = unsafe { sys::llama_model_load_from_file(path.as_ptr(), params) };
        let model = NonNull::new(model).ok_or_else(|| last_error("llama.cpp refuses the file"))?;
        // SAFETY: `model` is a live model; its vocabulary lives as long as it.
        let vocabulary = unsafe { sys::llama_model_get_vocab(model.as_ptr()) };
        let Some(vocabulary) = NonNull::new(vocabulary.cast_mut()) else {
            // SAFETY: the model is freed once and not used after.
            unsafe { sys::llama_model_free(model.as_ptr()) };
            return Err("the model has no vocabulary".to_owned());
        };
        Ok(Self { model, vocabulary })
    }

    pub(super) fn ptr(&self) -> *mut sys::llama_model {
        self.model.as_ptr()
    }

    pub(super) fn vocab(&self) -> *const sys::llama_vocab {
        self.vocabulary.as_ptr()
    }

    /// A scalar of the GGUF header as text.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut text = vec![0_u8; 256];
        // SAFETY: the buffer's length is passed along; llama.cpp writes at most that many bytes.
        let length =
            unsafe { sys::llama_model_meta_val_str(self.ptr(), key.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
        text.truncate(usize::try_from(length).ok()?.min(text.len() - 1));
        String::from_utf8(text).ok()
    }

    /// A number under `<architecture>.<key>`.
    pub fn architecture_number(&self, key: &str) -> Option<u64> {
        let architecture = self.metadata("general.architecture")?;
        self.metadata(&format!("{architecture}.{key}"))?.parse().ok()
    }

    /// Bytes of all weights.
    pub fn weight_bytes(&self) -> u64 {
        // SAFETY: reads a field of a live model.
        unsafe { sys::llama_model_size(self.ptr()) }
    }

    pub fn trained_context(&self) -> u32 {
        self.architecture_number("context_length").and_then(|tokens| u32::try_from(tokens).ok()).unwrap_or(0)
    }

    /// Bytes of keys and values that one token takes in an f16 cache.
    pub fn kv_bytes_per_token(&self) -> u64 {
        // SAFETY: these read fields of a live model.
        let (layers, heads, kv_heads, width) = unsafe {
            (
                sys::llama_model_n_layer(self.ptr()),
                sys::llama_model_n_head(self.ptr()),
                sys::llama_model_n_head_kv(self.ptr()),
                sys::llama_model_n_embd(self.ptr()),
            )
        };
        let positive = |value: i32| u64::try_from(value).unwrap_or(0);
        let head = positive(width) / positive(heads).max(1);
        let key = self.architecture_number("attention.key_length").unwrap_or(head);
        let value = self.architecture_number("attention.value_length").unwrap_or(head);
        positive(layers).saturating_mul(positive(kv_heads)).saturating_mul(key.saturating_add(value)).saturating_mul(2)
    }

    /// Numbers of a row between layers, and of a vector that an encoder gives.
    pub fn embedding_width(&self) -> u32 {
        // SAFETY: reads a field of a live model.
        u32::try_from(unsafe { sys::llama_model_n_embd(self.ptr()) }).unwrap_or(0)
    }

    /// Whether it turns whole texts into vectors instead of continuing them: it looks both ways and pools.
    pub fn is_encoder(&self) -> bool {
        let both_ways = || {
            let architecture = self.metadata("general.architecture")?;
            self.metadata(&format!("{architecture}.attention.causal"))
        };
        self.architecture_number("pooling_type").is_some_and(|kind| (1..=3).contains(&kind))
            && both_ways().as_deref() == Some("false")
    }

    /// Why this kind of model cannot be served, if it cannot.
    pub fn unsupported(&self) -> Option<&'static str> {
        // SAFETY: these read fields of a live model.
        let (encoder, decoder, diffusion) = unsafe {
            (
                sys::llama_model_has_encoder(self.ptr()),
                sys::llama_model_has_decoder(self.ptr()),
                sys::llama_model_is_diffusion(self.ptr()),
            )
        };
        if encoder || !decoder {
            return Some("it is an encoder, not a text generator");
        }
        diffusion.then_some("it is a diffusion model")
    }

    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: a null name asks for the default template; the result is null or lives as long as the model.
        let template = unsafe { sys::llama_model_chat_template(self.ptr(), std::ptr::null()) };
        owned_text(template)
    }

    pub fn vocabulary_size(&self) -> u32 {
        // SAFETY: reads a field of a live vocabulary.
        u32::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocab()) }).unwrap_or(0)
    }

    pub fn bos(&self) -> Option<Token> {
        // SAFETY: reads a field of a live vocabulary.
        self.known(unsafe { sys::llama_vocab_bos(self.vocab()) })
    }

    pub fn eos(&self) -> Option<Token> {
        // SAFETY: reads a field of a live vocabulary.
        self.known(unsafe { sys::llama_vocab_eos(self.vocab()) })
    }

    /// The tokens before what stands in front of a gap, before what follows it, and before what fills it.
    pub fn fill_in_middle(&self) -> Option<[Token; 3]> {
        let vocab = self.vocab();
        // SAFETY: each reads a field of a live vocabulary.
        let [prefix, suffix, middle] = unsafe {
            [sys::llama_vocab_fim_pre(vocab), sys::llama_vocab_fim_suf(vocab), sys::llama_vocab_fim_mid(vocab)]
        };
        Some([self.known(prefix)?, self.known(suffix)?, self.known(middle)?])
    }

    /// What ends a text in an encoder.
    pub fn sep(&self) -> Option<Token> {
        // SAFETY: reads a field of a live vocabulary.
        self.known(unsafe { sys::llama_vocab_sep(self.vocab()) })
    }

    /// Whether the tokenizer is BERT's.
    pub fn is_wordpiece(&self) -> bool {
        // SAFETY: reads a field of a live vocabulary.
        unsafe { sys::llama_vocab_type(self.vocab()) == sys::LLAMA_VOCAB_TYPE_WPM }
    }

    pub fn is_control(&self, token: Token) -> bool {
        // SAFETY: the index lies within the vocabulary.
        self.index(token).is_some_and(|token| unsafe { sys::llama_vocab_is_control(self.vocab(), token) })
    }

    pub fn adds_bos(&self) -> bool {
        // SAFETY: reads a field of a live vocabulary.
        unsafe { sys::llama_vocab_get_add_bos(self.vocab()) }
    }

    fn known(&self, token: i32) -> Option<Token> {
        Token::try_from(token).ok().filter(|token| *token < self.vocabulary_size())
    }

    fn index(&self, token: Token) -> Option<i32> {
        i32::try_from(token).ok().filter(|_| token < self.vocabulary_size())
    }

    pub fn ends_generation(&self, token: Token) -> bool {
        // SAFETY: the index lies within the vocabulary.
        self.index(token).is_some_and(|token| unsafe { sys::llama_vocab_is_eog(self.vocab(), token) })
    }

    /// The text of a token as the vocabulary has it, control tokens included.
    pub fn token_text(&self, token: Token) -> Option<String> {
        // SAFETY: the index lies within the vocabulary; the text lives as long as it.
        owned_text(unsafe { sys::llama_vocab_get_text(self.vocab(), self.index(token)?) })
    }

    /// The bytes that a token prints; none for control tokens.
    pub fn piece(&self, token: Token) -> Vec<u8> {
        let Some(token) = self.index(token) else { return Vec::new() };
        let mut piece = vec![0_u8; 64];
        let mut length = self.write_piece(token, &mut piece);
        if length < 0 {
            piece.resize(length.unsigned_abs() as usize, 0);
            length = self.write_piece(token, &mut piece);
        }
        piece.truncate(usize::try_from(length).unwrap_or(0));
        piece
    }

    fn write_piece(&self, token: i32, piece: &mut [u8]) -> i32 {
        let room = i32::try_from(piece.len()).unwrap_or(i32::MAX);
        // SAFETY: llama.cpp writes at most `room` bytes, or returns the negated number that it needs.
        unsafe { sys::llama_token_to_piece(self.vocab(), token, piece.as_mut_ptr().cast(), room, 0, false) }
    }

    /// # Errors
    /// For texts whose tokens cannot be counted in 31 bits.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, String> {
        let length = i32::try_from(text.len()).map_err(|_| "the text is too long".to_owned())?;
        let mut tokens = vec![0_i32; text.len() / 3 + 16];
        let fill = |tokens: &mut Vec<i32>| {
            let room = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: pointer and length of `text` belong together; llama.cpp writes at most `room` tokens, or
            // returns the negated number that it needs.
            unsafe {
                let (text, out) = (text.as_ptr().cast(), tokens.as_mut_ptr());
                sys::llama_tokenize(self.vocab(), text, length, out, room, add_special, parse_special)
            }
        };
        let mut count = fill(&mut tokens);
        if count < 0 && count != i32::MIN {
            tokens.resize(count.unsigned_abs() as usize, 0);
            count = fill(&mut tokens);
        }
        let count = usize::try_from(count).map_err(|_| "the text does not tokenize".to_owned())?;
        tokens.truncate(count);
        Ok(tokens.into_iter().filter_map(|token| self.known(token)).collect())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: contexts borrow the model, so none is left; freed once.
        unsafe { sys::llama_model_free(self.ptr()) }
    }
}

fn owned_text(text: *const c_char) -> Option<String> {
    // SAFETY: callers pass null or a NUL-terminated string of a live model.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
