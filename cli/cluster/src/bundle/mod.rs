//! `support-bundle`: all that somebody needs who is to help, in one file, without secrets.
//!
//! * [`redact`](mod@redact) takes out of a manifest what may be a key · [`collect`] asks · [`archive`] writes

pub mod archive;
pub mod collect;
pub mod redact;
pub mod write;

pub use write::write;
