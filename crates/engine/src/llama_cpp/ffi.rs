//! Thin, safe wrappers over llama.cpp's C interface. The only unsafe code of the project: every block says why it
//! holds. Used in child processes only, from one thread: one model and one context a process, and beside those of the last
//! stage the ones of a draft model, on the same threads.
#![allow(unsafe_code)]

mod encoder;
mod rows;
mod state;

use std::{
    ffi::{CStr, CString, c_char, c_void},
    marker::PhantomData,
    path::Path,
    ptr::NonNull,
    rc::Rc,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
};

use llama_cpp_sys_2 as sys;
use opengrid_protocol::session::Token;
use parking_lot::Mutex;

use super::pace;

pub use encoder::{Encoder, EncoderOptions};
pub use rows::{Span, TokenTable};

/// The last error that llama.cpp logged: the reason when a call returns null.
static LAST_ERROR: Mutex<String> = Mutex::new(String::new());
static BACKEND: Once = Once::new();
const LOG_BYTES_MAX: usize = 500;
/// How long a pool's threads spin for the next step before they sleep, in units of 131,072 pauses of the processor:
/// longer than from one token to the next, shorter than llama.cpp's 50, which burn a core for 0.1 s after each answer.
const POLL: u32 = 10;
/// A stage waits for others between its steps, perhaps on the same cores.
const POLL_STAGE: u32 = 0;

/// Warnings and errors go to stderr, the rest to nothing: stdout carries frames.
unsafe extern "C" fn log(level: sys::ggml_log_level, text: *const c_char, _data: *mut c_void) {
    if text.is_null() || !matches!(level, sys::GGML_LOG_LEVEL_WARN | sys::GGML_LOG_LEVEL_ERROR) {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let line: String = text.trim().chars().take(LOG_BYTES_MAX).collect();
    if level == sys::GGML_LOG_LEVEL_ERROR {
        LAST_ERROR.lock().clone_from(&line);
    }
    eprintln!("{line}");
}

fn init_backend() {
    BACKEND.call_once(|| {
        // SAFETY: the callback is a static function without data; both calls have no other preconditions.
        unsafe {
            sys::llama_log_set(Some(log), std::ptr::null_mut());
            sys::llama_backend_init();
        }
    });
}

fn last_error(what: &str) -> String {
    let error = LAST_ERROR.lock();
    if error.is_empty() { what.to_owned() } else { format!("{what}: {error}") }
}

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

    fn ptr(&self) -> *mut sys::llama_model {
        self.model.as_ptr()
    }

    fn vocab(&self) -> *const sys::llama_vocab {
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

#[derive(Clone, Copy, Debug)]
pub struct ContextOptions {
    pub slots: u16,
    /// Tokens a slot.
    pub context_tokens: u32,
    pub threads: u32,
    /// Most tokens a step.
    pub batch: u32,
    /// Most logits a step.
    pub outputs: u32,
    pub flash_attention: bool,
    /// Keeps the rows that come out of the last layer, for [`Context::rows_out`]; the head's logits mean nothing then.
    pub rows_out: bool,
    /// Rows come from elsewhere, and the next ones not at once.
    pub is_stage: bool,
}

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub struct BatchToken {
    pub token: Token,
    pub position: usize,
    pub slot: usize,
    pub output: bool,
}

/// The KV cache and buffers of a model: `slots` sequences with their own cells.
pub struct Context<'m> {
    context: NonNull<sys::llama_context>,
    /// One for each of [`pace::levels`].
    pools: Rc<[Pool]>,
    slots: usize,
    batch: usize,
    vocabulary: usize,
    /// Outputs of the last step, as indices into its batch.
    outputs: Vec<bool>,
    buffers: BatchBuffers,
    /// Numbers of a row between layers.
    width: usize,
    /// What is seen of steps; ggml's callback holds a pointer to it.
    watch: Box<Watch>,
    /// Of the last [`Context::decode_rows`].
    rows_out: Vec<f32>,
    model: PhantomData<&'m Model>,
}

#[derive(Default)]
struct BatchBuffers {
    token: Vec<i32>,
    position: Vec<i32>,
    slot_count: Vec<i32>,
    slot: Vec<i32>,
    slot_pointer: Vec<*mut i32>,
    output: Vec<i8>,
}

impl<'m> Context<'m> {
    /// # Errors
    /// llama.cpp's own words, mostly for lack of memory.
    pub fn new(model: &'m Model, options: ContextOptions) -> Result<Self, String> {
        let poll = if options.is_stage { POLL_STAGE } else { POLL };
        let pools: Vec<Pool> = pace::levels(options.threads.clamp(1, 512))
            .into_iter()
            .map(|threads| Pool::new(threads, poll))
            .collect::<Result<_, _>>()?;
        Self::on(model, options, pools.into())
    }

    /// A context that computes on the threads of this one, while this one does not: threads of their own would wait for
    /// work by spinning on the cores that the other's need.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn beside<'n>(&self, model: &'n Model, options: ContextOptions) -> Result<Context<'n>, String> {
        Context::on(model, options, self.pools.clone())
    }

    fn on(model: &'m Model, options: ContextOptions, pools: Rc<[Pool]>) -> Result<Self, String> {
        let threads = i32::try_from(options.threads.clamp(1, 512)).unwrap_or(1);
        // SAFETY: returns a struct by value.
        let mut params = unsafe { sys::llama_context_default_params() };
        let context_tokens = options.context_tokens.div_ceil(256).saturating_mul(256);
        params.n_ctx = context_tokens.saturating_mul(u32::from(options.slots));
        params.n_seq_max = u32::from(options.slots);
        params.n_batch = options.batch;
        params.n_ubatch = options.batch;
        params.n_outputs_max = options.outputs;
        params.n_threads = threads;
        params.n_threads_batch = threads;
        params.flash_attn_type =
            if options.flash_attention { sys::LLAMA_FLASH_ATTN_TYPE_AUTO } else { sys::LLAMA_FLASH_ATTN_TYPE_DISABLED };
        params.kv_unified = false;
        params.swa_full = true;
        params.no_perf = true;
        let watch = Box::new(Watch {
            cache: CacheBuffers::default(),
            capture: options.rows_out.then(|| rows::Capture::of_last_layer(model)).transpose()?,
        });
        params.cb_eval = Some(watch_node);
        params.cb_eval_user_data = std::ptr::from_ref(&*watch).cast_mut().cast();
        // SAFETY: `model` is live; `params` points to `watch`, which lives as long as the context and does not move.
        let context = unsafe { sys::llama_init_from_model(model.ptr(), params) };
        let context = NonNull::new(context).ok_or_else(|| last_error("llama.cpp makes no context"))?;
        let mut context = Self {
            context,
            pools,
            slots: usize::from(options.slots),
            batch: options.batch as usize,
            vocabulary: model.vocabulary_size() as usize,
            outputs: Vec::new(),
            buffers: BatchBuffers::default(),
            width: model.embedding_width() as usize,
            watch,
            rows_out: Vec::new(),
            model: PhantomData,
        };
        context.use_threads(0);
        Ok(context)
    }

    /// The next steps run on the threads of this level of [`pace::levels`].
    pub fn use_threads(&mut self, level: usize) {
        let Some(pool) = self.pools.get(level) else { return };
        // SAFETY: context and pool live until `drop`; ggml pauses the pool that was attached before, and starts a paused one
        // with the next graph. Contexts that share pools compute one after the other: all is one thread.
        unsafe {
            sys::llama_set_n_threads(self.ptr(), pool.threads, pool.threads);
            sys::llama_attach_threadpool(self.ptr(), pool.pool.as_ptr(), pool.pool.as_ptr());
        }
    }

    /// Gives the memory of an empty KV cache back to the system until it is written again: llama.cpp fills it with zeros
    /// at the start, so all of it would stay resident. Called when all slots are empty and the weights are on the CPU.
    #[cfg(target_os = "linux")]
    pub fn release_cache(&mut self) {
        const PAGE: usize = 65_536;
        self.watch.cache.closed.store(true, Ordering::Relaxed);
        for buffer in self.watch.cache.found.lock().drain(..) {
            // SAFETY: the buffer belongs to this context. Only whole pages inside it are given back; they are private
            // anonymous memory from malloc and read as zeros afterwards, as llama.cpp left them. Nothing computes.
            unsafe {
                if !sys::ggml_backend_buffer_is_host(buffer.as_ptr()) {
                    continue;
                }
                let base = sys::ggml_backend_buffer_get_base(buffer.as_ptr());
                let skipped = base.addr().next_multiple_of(PAGE) - base.addr();
                let whole = sys::ggml_backend_buffer_get_size(buffer.as_ptr()).saturating_sub(skipped) / PAGE * PAGE;
                libc::madvise(base.byte_add(skipped), whole, libc::MADV_DONTNEED);
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub fn release_cache(&mut self) {
        self.watch.cache.closed.store(true, Ordering::Relaxed);
    }

    /// Numbers of threads to choose from.
    pub fn levels(&self) -> usize {
        self.pools.len()
    }

    fn ptr(&self) -> *mut sys::llama_context {
        self.context.as_ptr()
    }

    /// Cuts `slot` back to its first `keep` cells. False when this kind of cache cannot be cut: then the slot is empty.
    pub fn truncate(&mut self, slot: usize, keep: usize) -> bool {
        if slot >= self.slots {
            return false;
        }
        let (id, from) = (slot as i32, i32::try_from(keep).unwrap_or(i32::MAX));
        // SAFETY: the context is live and the sequence id lies within its `n_seq_max`.
        unsafe {
            let memory = sys::llama_get_memory(self.ptr());
            let last = from - 1;
            let whole = sys::llama_memory_seq_rm(memory, id, from, -1)
                && sys::llama_memory_seq_pos_max(memory, id) == last
                && (keep == 0 || sys::llama_memory_seq_pos_min(memory, id) == 0);
            whole || {
                sys::llama_memory_seq_rm(memory, id, -1, -1);
                keep == 0
            }
        }
    }

    /// Computes `tokens` in one call. Logits of those marked are read with [`Context::logits`] until the next step.
    ///
    /// # Errors
    /// When llama.cpp fails: the cache is in doubt then, the process must end.
    pub fn decode(&mut self, tokens: &[BatchToken]) -> Result<(), String> {
        if tokens.is_empty() || tokens.len() > self.batch {
            return Err(format!("a step of {} tokens, at most {} fit", tokens.len(), self.batch));
        }
        if tokens.iter().any(|token| token.slot >= self.slots || token.token as usize >= self.vocabulary) {
            return Err("a token or slot is out of range".to_owned());
        }
        self.outputs.clear();
        self.outputs.extend(tokens.iter().map(|token| token.output));
        let batch = self.buffers.fill(tokens);
        // SAFETY: all arrays of the batch have `n_tokens` entries and live in `self.buffers` during the call; token
        // ids and sequence ids were checked above.
        match unsafe { sys::llama_decode(self.ptr(), batch) } {
            0 => Ok(()),
            code => Err(last_error(&format!("llama_decode returned {code}"))),
        }
    }

    /// The logits after token `index` of the last step; `None` where none were asked for.
    pub fn logits(&mut self, index: usize) -> Option<&mut [f32]> {
        if !self.outputs.get(index).copied().unwrap_or(false) {
            return None;
        }
        // SAFETY: the index lies in the last batch and is marked as output, so llama.cpp has a row of `n_vocab`
        // floats for it that stays until the next decode, which needs `&mut self`.
        unsafe {
            let row = sys::llama_get_logits_ith(self.ptr(), index as i32);
            (!row.is_null()).then(|| std::slice::from_raw_parts_mut(row, self.vocabulary))
        }
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: the pools are detached first and freed after; the context is freed once.
        unsafe {
            sys::llama_detach_threadpool(self.ptr());
            sys::llama_free(self.ptr());
        }
    }
}

/// Buffers in which llama.cpp keeps keys and values, as seen in a step's graph.
#[derive(Default)]
struct CacheBuffers {
    found: Mutex<Vec<NonNull<sys::ggml_backend_buffer>>>,
    /// No more to be found.
    closed: AtomicBool,
}

/// What ggml's callback looks for.
struct Watch {
    cache: CacheBuffers,
    capture: Option<rows::Capture>,
}

/// Called by ggml for every node of a graph before it computes, and again after those that were asked for.
unsafe extern "C" fn watch_node(node: *mut sys::ggml_tensor, ask: bool, watch: *mut c_void) -> bool {
    // SAFETY: `watch` is what `Context::new` set, alive as long as the context; only shared references are made of it.
    let Some(watch) = (unsafe { watch.cast::<Watch>().as_ref() }) else { return false };
    // SAFETY: ggml passes a live node.
    let Some(tensor) = (unsafe { node.as_ref() }) else { return false };
    let is_wanted = watch.capture.as_ref().is_some_and(|capture| capture.wants(tensor));
    match (&watch.capture, ask) {
        (Some(capture), false) if is_wanted => capture.take(tensor),
        _ => watch.cache.note(tensor),
    }
    is_wanted
}

impl CacheBuffers {
    /// Notes the buffers that the node reads keys and values from, until told to stop.
    fn note(&self, node: &sys::ggml_tensor) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: sources and what they are views of live as long as the graph. The name is an array that ends in a NUL.
        unsafe {
            for source in node.src.iter().filter_map(|source| source.as_ref()) {
                let root = source.view_src.as_ref().unwrap_or(source);
                let name = CStr::from_ptr(root.name.as_ptr()).to_bytes();
                let Some(buffer) = NonNull::new(root.buffer) else { continue };
                let mut found = self.found.lock();
                if (name.starts_with(b"cache_k_l") || name.starts_with(b"cache_v_l")) && !found.contains(&buffer) {
                    found.push(buffer);
                }
            }
        }
    }
}

/// Threads that stay between steps; without it ggml starts new ones at every step.
struct Pool {
    pool: NonNull<sys::ggml_threadpool>,
    threads: i32,
}

impl Pool {
    fn new(threads: u32, poll: u32) -> Result<Self, String> {
        let threads = i32::try_from(threads).unwrap_or(1);
        // SAFETY: a struct by value, then a pool of `threads` threads; null only when out of memory.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(threads);
            params.poll = poll;
            params.paused = threads > 1;
            sys::ggml_threadpool_new(&raw mut params)
        };
        let pool = NonNull::new(pool).ok_or("no memory for the thread pool")?;
        Ok(Self { pool, threads })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: no context uses it any more; freed once.
        unsafe { sys::ggml_threadpool_free(self.pool.as_ptr()) }
    }
}

impl BatchBuffers {
    fn fill(&mut self, tokens: &[BatchToken]) -> sys::llama_batch {
        self.token.clear();
        self.position.clear();
        self.slot.clear();
        self.output.clear();
        for token in tokens {
            self.token.push(token.token as i32);
            self.position.push(token.position as i32);
            self.slot.push(token.slot as i32);
            self.output.push(i8::from(token.output));
        }
        self.slot_count.resize(tokens.len(), 1);
        self.slot_pointer.clear();
        self.slot_pointer.extend(self.slot.iter_mut().map(std::ptr::from_mut));
        sys::llama_batch {
            n_tokens: tokens.len() as i32,
            token: self.token.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.position.as_mut_ptr(),
            n_seq_id: self.slot_count.as_mut_ptr(),
            seq_id: self.slot_pointer.as_mut_ptr(),
            logits: self.output.as_mut_ptr(),
        }
    }
}
