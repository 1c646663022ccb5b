//! The threads that compute.

use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

/// How long a pool's threads spin for the next step before they sleep, in units of 131,072 pauses of the processor:
/// longer than from one token to the next, shorter than llama.cpp's 50, which burn a core for 0.1 s after each answer.
pub(super) const POLL: u32 = 10;
/// A stage waits for others between its steps, perhaps on the same cores.
pub(super) const POLL_STAGE: u32 = 0;

/// Threads that stay between steps; without it ggml starts new ones at every step.
pub(super) struct Pool {
    pub(super) pool: NonNull<sys::ggml_threadpool>,
    pub(super) threads: i32,
}

impl Pool {
    pub(super) fn new(threads: u32, poll: u32) -> Result<Self, String> {
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
