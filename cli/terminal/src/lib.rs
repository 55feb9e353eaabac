//! How the tool talks to whoever runs it, whatever the command is about.
//!
//! * [`print`] results for people and, with `--output json`, for programs; colours, tables, hints · [`words`] numbers and times in words
//! * [`progress`] how far long work is · [`exit`] what exit codes mean
//! * [`record`] where figures come from

pub mod exit;
pub mod print;
pub mod progress;
pub mod record;
pub mod words;
