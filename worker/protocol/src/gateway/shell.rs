//! Between the core and its shell: what is asked, and what is to be done.

use std::sync::Arc;

use dunlin_swarm::PeerName;
use thiserror::Error;

use super::own_model::OtherModel;
use super::recovery::Recovery;
use super::routes::NoWay;
use crate::frame::{Frame, GatewayId, SessionId};
use crate::sampling::{FinishReason, SamplingParams};
use crate::windows::Windows;

/// Bounds of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Name and incarnation.
    pub id: GatewayId,
    /// Digest of the model's source. Topologies of another model are not obeyed. If it is empty, it is that of the first topology.
    pub model_digest: String,
    /// When `now_ms` was 0, in milliseconds since 1970.
    pub started_ms: u64,
    /// Sessions that run at once.
    pub running_max: usize,
    /// Sessions that wait for their turn.
    pub queue_max: usize,
    /// A session without any progress for this long is tried again.
    pub stall_ms: u64,
    /// What clients are told to wait after a refusal, in seconds.
    pub retry_after_s: u32,
}

/// A sequence to be continued.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Unique among all gateways.
    pub session: SessionId,
    /// The prompt, not empty.
    pub tokens: Vec<u32>,
    /// Length of prompt and answer together, more than the prompt's.
    pub max_len: u32,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Tokens that end it.
    pub eos: Vec<u32>,
    /// What layers of the model keep of it.
    pub windows: Windows,
    /// The adapter it is computed with; none for the model itself.
    pub adapter: Option<Arc<str>>,
    /// It fails when not finished by then.
    pub deadline_ms: u64,
}

/// Why no new session can run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotReady {
    /// The swarm has another model than this gateway.
    #[error(transparent)]
    OtherModel(#[from] OtherModel),
    /// Some layers have no holder.
    #[error(transparent)]
    NoWay(#[from] NoWay),
}

/// Why a submission is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The queue is full (HTTP 429).
    Busy {
        /// When to try again, in seconds.
        retry_after_s: u32,
    },
    /// Some layers have no holder at the moment (HTTP 503).
    NoCapacity {
        /// When to try again, in seconds.
        retry_after_s: u32,
        /// What is missing.
        message: String,
    },
    /// It makes no sense (HTTP 400).
    Invalid {
        /// What is wrong.
        message: String,
    },
}

/// Why a session that was taken ends without its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its deadline passed.
    Deadline {
        /// What it was waiting for.
        waiting_for: String,
    },
    /// The model gave a value that is not finite.
    NonFinite {
        /// Index of the layer; the number of layers for the output matrix.
        layer: u32,
    },
    /// A stage finds the request senseless: an error of ours.
    Refused {
        /// What it said.
        message: String,
    },
    /// The swarm has another model, and no stage of the session's own is left.
    OtherModel(OtherModel),
    /// The swarm serves with another version of the arithmetic, and some layers have had no peer of the session's own for long.
    OtherArithmetic {
        /// What nobody holds, and who has which version.
        lacking: String,
    },
    /// The gateway is about to end.
    Ending,
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum GatewayEffect {
    /// Keep a link to this peer.
    Connect {
        /// Its name.
        peer: PeerName,
        /// `host:port` of its gRPC server.
        addr: String,
    },
    /// No longer.
    Disconnect {
        /// Its name.
        peer: PeerName,
    },
    /// Send a frame.
    Send {
        /// The stage that gets it.
        peer: PeerName,
        /// The frame, as the session protocol has it.
        frame: Frame,
    },
    /// A token for the client; each position once, in order.
    Emit {
        /// Which session.
        session: SessionId,
        /// Its index in the sequence.
        position: u32,
        /// Index of the token in the vocabulary.
        token: u32,
        /// Its log-probability.
        logprob: f32,
        /// The likeliest tokens, if asked for.
        top: Vec<(u32, f32)>,
    },
    /// The answer is complete.
    Finished {
        /// Which session.
        session: SessionId,
        /// What ended it: an end token, or its length.
        reason: FinishReason,
    },
    /// There will be no more tokens.
    Failed {
        /// Which session.
        session: SessionId,
        /// What the client is told.
        error: Failure,
    },
    /// A topology is not obeyed: it is of another model.
    TopologyRefused(OtherModel),
    /// A session goes on after a disturbance: for the metrics, and for `/swarm`.
    Recovered {
        /// Which session.
        session: SessionId,
        /// What disturbed it, how long it stood still, and what was computed again.
        recovery: Recovery,
    },
}
