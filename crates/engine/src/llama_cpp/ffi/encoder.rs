//! The context of an encoder: no KV cache, whole texts in, one vector a text out.

use std::{marker::PhantomData, ptr::NonNull};

use llama_cpp_sys_2 as sys;
use opengrid_protocol::session::Token;

use super::{BatchBuffers, BatchToken, Model, Pool, last_error};
use crate::llama_cpp::pace;

#[derive(Clone, Copy, Debug)]
pub struct EncoderOptions {
    /// Texts a step.
    pub sequences: u32,
    /// Tokens a step, all texts together; an encoder sees a text in one piece.
    pub tokens: u32,
    pub threads: u32,
    pub flash_attention: bool,
}

pub struct Encoder<'m> {
    context: NonNull<sys::llama_context>,
    pools: Vec<Pool>,
    options: EncoderOptions,
    /// Numbers of a vector.
    width: usize,
    vocabulary: usize,
    buffers: BatchBuffers,
    model: PhantomData<&'m Model>,
}

impl<'m> Encoder<'m> {
    /// # Errors
    /// llama.cpp's own words, mostly for lack of memory; a model that pools nothing.
    pub fn new(model: &'m Model, options: EncoderOptions) -> Result<Self, String> {
        let threads = options.threads.clamp(1, 512);
        let thread_count = i32::try_from(threads).unwrap_or(1);
        // SAFETY: returns a struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = options.tokens;
        params.n_batch = options.tokens;
        params.n_ubatch = options.tokens;
        params.n_seq_max = options.sequences;
        params.n_outputs_max = 0;
        params.embeddings = true;
        params.n_threads = thread_count;
        params.n_threads_batch = thread_count;
        params.flash_attn_type =
            if options.flash_attention { sys::LLAMA_FLASH_ATTN_TYPE_AUTO } else { sys::LLAMA_FLASH_ATTN_TYPE_DISABLED };
        params.no_perf = true;
        // SAFETY: `model` is live; `params` holds no pointers but the defaults' nulls.
        let context = unsafe { sys::llama_init_from_model(model.ptr(), params) };
        let context = NonNull::new(context).ok_or_else(|| last_error("llama.cpp makes no context"))?;
        let mut encoder = Self {
            context,
            pools: Vec::new(),
            options,
            width: model.embedding_width() as usize,
            vocabulary: model.vocabulary_size() as usize,
            buffers: BatchBuffers::default(),
            model: PhantomData,
        };
        encoder.pools = pace::levels(threads)
            .into_iter()
            .map(|threads| Pool::new(threads, super::POLL))
            .collect::<Result<_, _>>()?;
        encoder.use_threads(0);
        // SAFETY: reads a field of a live context.
        let pooling = unsafe { sys::llama_pooling_type(encoder.ptr()) };
        let one_vector = [sys::LLAMA_POOLING_TYPE_MEAN, sys::LLAMA_POOLING_TYPE_CLS, sys::LLAMA_POOLING_TYPE_LAST]
            .contains(&pooling);
        if one_vector {
            Ok(encoder)
        } else {
            Err("the model does not say how it makes one vector of a text".to_owned())
        }
    }

    /// Numbers of threads to choose from.
    pub fn levels(&self) -> usize {
        self.pools.len()
    }

    /// The next steps run on the threads of this level of [`pace::levels`].
    pub fn use_threads(&mut self, level: usize) {
        let Some(pool) = self.pools.get(level) else { return };
        // SAFETY: context and pool live until `drop`; ggml pauses the pool that was attached before.
        unsafe {
            sys::llama_set_n_threads(self.ptr(), pool.threads, pool.threads);
            sys::llama_attach_threadpool(self.ptr(), pool.pool.as_ptr(), pool.pool.as_ptr());
        }
    }

    fn ptr(&self) -> *mut sys::llama_context {
        self.context.as_ptr()
    }

    /// One vector for each text, as the model gives it, in one call.
    ///
    /// # Errors
    /// Texts that do not fit a step, and failures of llama.cpp: the process must end then.
    pub fn encode(&mut self, texts: &[&[Token]]) -> Result<Vec<Vec<f32>>, String> {
        let tokens: usize = texts.iter().map(|text| text.len()).sum();
        let fits = texts.len() <= self.options.sequences as usize && tokens <= self.options.tokens as usize;
        if !fits || texts.iter().any(|text| text.is_empty()) {
            return Err(format!("a step of {} texts with {tokens} tokens does not fit", texts.len()));
        }
        if texts.iter().copied().flatten().any(|token| *token as usize >= self.vocabulary) {
            return Err("a token is out of range".to_owned());
        }
        let entries = texts.iter().enumerate().flat_map(|(slot, text)| {
            text.iter().enumerate().map(move |(position, token)| BatchToken {
                token: *token,
                position,
                slot,
                output: true,
            })
        });
        let batch = self.buffers.fill(&entries.collect::<Vec<_>>());
        // SAFETY: all arrays of the batch have `n_tokens` entries and live in `self.buffers` during the call; token ids
        // and sequence ids were checked above, and all tokens fit one micro-batch.
        match unsafe { sys::llama_encode(self.ptr(), batch) } {
            0 => (0..texts.len()).map(|sequence| self.vector(sequence)).collect(),
            code => Err(last_error(&format!("llama_encode returned {code}"))),
        }
    }

    fn vector(&self, sequence: usize) -> Result<Vec<f32>, String> {
        // SAFETY: the context pools (checked in `new`), so the row of a sequence of the last batch is null or has
        // `width` floats that stay until the next call, which needs `&mut self`; they are copied at once.
        unsafe {
            let row = sys::llama_get_embeddings_seq(self.ptr(), sequence as i32);
            if row.is_null() {
                return Err("llama.cpp gave no vector".to_owned());
            }
            Ok(std::slice::from_raw_parts(row, self.width).to_vec())
        }
    }
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        // SAFETY: the pools are detached first and freed after; the context is freed once.
        unsafe {
            sys::llama_detach_threadpool(self.ptr());
            sys::llama_free(self.ptr());
        }
    }
}
