//! `status`: who holds which layers, and how a swarm does.
//!
//! * [`view`] what is shown, which `-o json` prints · [`serving`] of a swarm that serves, [`training`] of one that trains, from what was asked
//! * [`ask`] asks · [`render`] the text · [`show`](mod@show) the command

pub mod ask;
pub mod render;
pub mod serving;
pub mod show;
pub mod training;
pub mod view;

pub use show::show;
