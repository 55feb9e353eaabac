//! One gateway among stages that the test plays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod draining;
mod numerics;
mod pages;
mod resume;
mod world;
