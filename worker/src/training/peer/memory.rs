//! Memory that is freed is kept: the next step takes it again.

/// Up to this size it is taken from what was freed, and so much is kept: the largest that can be said.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 1 << 30;

/// From now on, this process keeps what it frees. Each step takes the same vectors, and in an average as many pieces, as the one before; to get
/// them from the system, page by page, takes a third of an average's time.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for what in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt(3) takes numbers, and refuses those that it does not know.
        #[allow(unsafe_code, reason = "std knows nothing of the allocator's options")]
        let taken = unsafe { libc::mallopt(what, KEPT_BYTES) };
        if taken == 0 {
            tracing::debug!(what, "the allocator knows no such option");
        }
    }
}
