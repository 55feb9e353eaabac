//! How a peer gets the state of its stage: first values, a checkpoint, or what mates have that go on training.
//!
//! From mates it gets parts of the state, from several at once, all of one step. The updates that the stage makes meanwhile are kept as they are made, for mates have
//! only the last few: so a state may be on its way for as long as it takes. What was kept is followed when the state is here, and the conductor says up to where.
//!
//! * [`event`] what happens, and what is to be done
//! * [`fetcher`] one state after the other, [`parts`] of several mates: do they agree?
//! * [`collector`] the updates that are kept
//!
//! Values are not in it: whoever performs the effects has them, by the number of what brought them.

mod collector;
mod event;
mod fetcher;
mod parts;
#[cfg(test)]
mod tests;

pub use event::{FetchConfig, FetchEffect, FetchEvent, FetchId, FetchWork, StageSize};
pub use fetcher::Fetcher;
