//! A driver for CUDA that needs no GPU: its kernels, compiled from the sources of `dunlin-cuda`, run on the host.
//!
//! It is for tests. It is slow, and finds what a real device hides: barriers that not all threads reach, memory that nobody has written, copies
//! that leave their buffer, streams that do not wait for each other. What can be set is at the top of `driver.cpp`.
#![allow(unsafe_code, reason = "loads a shared library")]
#![deny(unsafe_op_in_unsafe_fn)]

use std::ffi::{CStr, CString};
use std::path::Path;

/// The shared library, a `libcuda.so.1`.
#[must_use]
pub fn path() -> &'static Path {
    Path::new(concat!(env!("OUT_DIR"), "/libcuda.so.1"))
}

/// Makes it the driver of this process, for good. Call it before anything asks for a driver.
///
/// # Panics
/// When it cannot be loaded.
pub fn load() {
    let path = CString::new(path().as_os_str().as_encoded_bytes()).expect("a path has no zero bytes");
    // SAFETY: the library has no initialisers that depend on anything, and is never closed.
    let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!library.is_null(), "{}", last_error());
}

/// Allows this process to compute on it, which takes thousands of times as long as on a GPU.
///
/// Call it before other threads look at the environment.
pub fn allow() {
    // SAFETY: promised.
    unsafe { std::env::set_var("DUNLIN_EMULATED_GPU", "allow") };
}

fn last_error() -> String {
    // SAFETY: the text is valid until the next call of this thread.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the emulated driver cannot be loaded".into();
    }
    // SAFETY: as above; it ends with a zero byte.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
