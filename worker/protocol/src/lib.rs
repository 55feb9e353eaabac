//! The session protocol, without sockets, threads or clocks.
//!
//! A gateway owns its sessions and alone counts their *attempts*; stages obey the highest attempt they have seen. So nobody
//! has to agree on who is lost: a wrong suspicion costs a replay, never a token.
//!
//! * [`frame`] what is said
//! * [`stage`] the side that executes layers: segments, journals, leases
//! * [`gateway`] the side that owns sessions: routes, losses, admission
//! * [`windows`] what layers keep of a sequence
//! * [`sampling`] how tokens are chosen
//! * [`training`] the protocol of a swarm that trains: conductor, peers, trainers
//!
//! Time comes in as milliseconds; effects go out as data. docs/protocol.md tells the whole story.

pub mod frame;
pub mod gateway;
pub mod sampling;
pub mod stage;
pub mod training;
pub mod windows;

pub use frame::{Attempt, Frame, GatewayId, HeldSession, Hop, Open, Refusal, RowData, SessionId};
pub use gateway::{GatewayConfig, GatewayCore, GatewayEffect};
pub use sampling::{FinishReason, SamplingParams};
pub use stage::{
    Computed, Input, Line, Output, Recipient, SampleRequest, Sender, StageConfig, StageEffect, StageJob,
    StageNode, Urgency,
};
pub use windows::Windows;
