//! Thin, safe wrappers over llama.cpp's C interface. The only unsafe code of the project: every block says why it
//! holds. Used in child processes only, from one thread: one model and one context a process, and beside those of the last
//! stage the ones of a draft model, on the same threads.
#![allow(unsafe_code)]

mod encoder;
mod model;
mod pool;
mod rows;
mod state;

use std::{
    ffi::{CStr, c_char, c_void},
    marker::PhantomData,
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

use pool::{POLL, POLL_STAGE, Pool};

pub use encoder::{Encoder, EncoderOptions};
pub use model::{Model, ModelOptions};
pub use rows::{Span, TokenTable};

/// The last error that llama.cpp logged: the reason when a call returns null.
static LAST_ERROR: Mutex<String> = Mutex::new(String::new());
static BACKEND: Once = Once::new();
const LOG_BYTES_MAX: usize = 500;
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
