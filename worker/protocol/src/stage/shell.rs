//! Between a node and its shell: what is to be computed and sent.

use std::sync::Arc;

use dunlin_swarm::{Layers, NumericsClass, PeerName, Position};

use super::sender::Sender;
use crate::frame::{Attempt, Frame, GatewayId, Refusal, RowData, SessionId};
use crate::sampling::SamplingParams;
use crate::windows::Windows;

/// Bounds of a stage.
#[derive(Clone, Debug)]
pub struct StageConfig {
    /// Name of this peer, as routes have it.
    pub name: PeerName,
    /// Values in a row.
    pub hidden: usize,
    /// Which bits its engine computes.
    pub arithmetic: NumericsClass,
    /// Longest sequence that its engine can compute.
    pub positions_max: u32,
    /// What layers of the model keep of a sequence.
    pub windows: Windows,
    /// KV pages of its engine, each of one layer.
    pub pages: u32,
    /// Sessions it takes at most.
    pub sessions_max: usize,
    /// Bytes of all journals and of rows that wait, at most; beyond, the least recently used session's journal is dropped.
    pub journal_bytes_max: usize,
    /// A gateway not heard of for this long has no sessions any more, unless it says another time.
    pub lease_ms: u64,
}

/// Where a frame goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipient {
    /// To a peer, by a link of our own.
    Peer {
        /// Name of the peer.
        name: PeerName,
        /// `host:port` of its gRPC server.
        addr: String,
    },
    /// To a peer, by the link it opened to send us rows.
    Upstream(PeerName),
    /// To a gateway, by the link it opened.
    Gateway(GatewayId),
}

/// How soon a job matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A sequence waits for its next token.
    Step,
    /// An answer that had begun stands still until this is computed again.
    Replay,
    /// A prompt.
    Prompt,
}

/// The place of a job in the engine's line: what is more urgent goes first, then older sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// How soon it matters.
    pub urgency: Urgency,
    /// When the gateway took its session.
    pub born_ms: u64,
}

/// What a job computes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Tokens, for the first layers.
    Tokens(Vec<u32>),
    /// Rows from the hop before: `count * hidden` values.
    Rows(RowData),
}

/// Sample a token from the last row of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// Temperature, penalties and the like, and the seed.
    pub params: Arc<SamplingParams>,
    /// All tokens up to and with the one that the last row was made from.
    pub tokens: Arc<Vec<u32>>,
    /// How many of them are the prompt.
    pub prompt_len: u32,
}

/// Work for the engine. Jobs of one segment are done in the order they were given.
#[derive(Clone, Debug, PartialEq)]
pub struct StageJob {
    /// Which session.
    pub session: SessionId,
    /// The attempt that it belongs to; a stage obeys the highest that it has seen.
    pub attempt: Attempt,
    /// The layers of the segment.
    pub layers: Layers,
    /// With which adapter, if any.
    pub adapter: Option<Arc<str>>,
    /// When its turn comes.
    pub line: Line,
    /// Position of the first row.
    pub start: Position,
    /// Number of rows.
    pub count: u32,
    /// What they are made from.
    pub input: Input,
    /// The last layers are among `layers`: the output is a token or nothing, not rows.
    pub last: bool,
    /// Sample from the last row.
    pub sample: Option<SampleRequest>,
}

/// What a job gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Rows for the next hop.
    Rows(RowData),
    /// KV cache only (the last hop, before the end of the prompt).
    Nothing,
    /// A token.
    Token {
        /// Index of the token in the vocabulary.
        token: u32,
        /// Its log-probability.
        logprob: f32,
        /// The likeliest tokens, if asked for.
        top: Vec<(u32, f32)>,
    },
    /// The job failed. Later jobs of this segment fail too, until the segment is truncated or freed.
    Failed(Refusal),
}

/// A job that is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// Which session.
    pub session: SessionId,
    /// The attempt that it belongs to; a stage obeys the highest that it has seen.
    pub attempt: Attempt,
    /// The layers of the segment.
    pub layers: Layers,
    /// Position of the first row.
    pub start: Position,
    /// Number of rows.
    pub count: u32,
    /// What was computed, or why it was not.
    pub output: Output,
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum StageEffect {
    /// Send a frame.
    Send {
        /// The gateway or peer that gets it.
        to: Recipient,
        /// The frame, as the session protocol has it.
        frame: Frame,
    },
    /// Give the engine a job.
    Compute(StageJob),
    /// Forget the KV cache of positions from `to` on.
    Truncate {
        /// Which session.
        session: SessionId,
        /// The layers of the segment.
        layers: Layers,
        /// First position to forget.
        to: Position,
    },
    /// End the stream of a caller that sent what is not its to send; nothing else came of it.
    Forbidden {
        /// The caller whose stream ends.
        from: Sender,
        /// The rule that it broke.
        rule: &'static str,
    },
    /// Forget the KV cache.
    Free {
        /// Which session.
        session: SessionId,
        /// The layers of the segment.
        layers: Layers,
    },
}
