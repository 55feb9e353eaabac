//! The side of a session that executes layers.
//!
//! State is kept per *segment*: (session, layer range). A peer may appear in a route more than once, with its own span and
//! with a shadow it took over; each appearance is a segment of its own, with its KV cache in the engine and its journal here.

mod flow;
mod journal;
mod node;
mod open;
mod sender;
mod session;
mod shell;

pub use journal::Journal;
pub use node::StageNode;
pub use sender::Sender;
pub use shell::{
    Computed, Input, Line, Output, Recipient, SampleRequest, StageConfig, StageEffect, StageJob, Urgency,
};
