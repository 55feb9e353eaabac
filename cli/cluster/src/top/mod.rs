//! `top`: peers with their speed, sessions, KV pages and memory.
//!
//! * [`rows`] what is shown, and in which order · [`show`](mod@show) the command

pub mod rows;
pub mod show;

pub use show::show;
