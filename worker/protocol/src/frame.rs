//! What gateways and stages say to each other.

use std::fmt;
use std::sync::Arc;

use dunlin_swarm::{Epoch, Layers, Load, NumericsClass, Paging, PeerName, Position};

use crate::sampling::{FinishReason, SamplingParams};

/// Rows that a hop of this build takes ahead of what it has computed, once it has said so ([`Frame::Room`]). Enough for the next batch to be there when one is done;
/// the bound of what a session can pile up on a peer. What it takes before that is [`FIRST_WINDOW_ROWS`](dunlin_swarm::limits::FIRST_WINDOW_ROWS).
pub const WINDOW_ROWS: u32 = 256;
/// Positions of a page of KV cache of this build. Others say theirs: [`Load::paging`].
pub const PAGE_POSITIONS: u32 = Paging::OWN.page_positions;
/// Positions beyond what a session has, for which pages count as taken in this build.
pub const PAGES_ROOM_AHEAD: u32 = Paging::OWN.positions_ahead;

/// Number of a try to go on with a session; only its gateway counts it up.
pub type Attempt = u32;

/// A session, unique among all gateways of a swarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One life of a gateway: after a restart the incarnation differs and old sessions are nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId {
    /// Pod name.
    pub name: String,
    /// Drawn at start.
    pub incarnation: u64,
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:x}", self.name, self.incarnation)
    }
}

/// One step of a session's route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The peer that executes it.
    pub peer: PeerName,
    /// Where that peer listens.
    pub addr: String,
    /// The layers that it executes for this session.
    pub layers: Layers,
    /// First position whose input row this hop must receive in this attempt; it holds the KV cache of all before.
    pub from: Position,
}

/// Rows of activations, shared without copying between journal, engine and wire.
#[derive(Clone, Debug, Default)]
pub struct RowData {
    values: Arc<Vec<f32>>,
    start: usize,
    len: usize,
}

impl RowData {
    /// Takes over `values`.
    #[must_use]
    pub fn new(values: Vec<f32>) -> Self {
        let len = values.len();
        Self { values: Arc::new(values), start: 0, len }
    }

    /// The values, row by row.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of `parts`, one behind the other; copied unless there is only one.
    #[must_use]
    pub fn concat(parts: &[Self]) -> Self {
        match parts {
            [one] => one.clone(),
            _ => Self::new(parts.iter().flat_map(|part| part.as_slice()).copied().collect()),
        }
    }

    /// The part `start..end` (in values), sharing memory; clipped to what there is.
    #[must_use]
    pub fn slice(&self, start: usize, end: usize) -> Self {
        let (start, end) = (start.min(self.len), end.min(self.len));
        Self { values: Arc::clone(&self.values), start: self.start + start, len: end.saturating_sub(start) }
    }
}

impl PartialEq for RowData {
    fn eq(&self, other: &Self) -> bool {
        let bits = |data: &Self| -> Vec<u32> { data.as_slice().iter().map(|v| v.to_bits()).collect() };
        bits(self) == bits(other)
    }
}

/// Starts or restarts a session on the hops of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// The session that is started.
    pub session: SessionId,
    /// Number of this attempt. A stage drops what it has of lower ones.
    pub attempt: Attempt,
    /// The gateway that owns the session. It alone opens and closes it.
    pub gateway: GatewayId,
    /// Which hop of the route this is for.
    pub index: u32,
    /// All hops, in the order of layers.
    pub route: Vec<Hop>,
    /// All tokens known: the prompt and what was generated.
    pub tokens: Arc<Vec<u32>>,
    /// How many of them are the prompt.
    pub prompt_len: u32,
    /// The sequence ends when it has this many tokens.
    pub max_len: u32,
    /// How to choose tokens.
    pub sampling: Arc<SamplingParams>,
    /// Tokens that end the sequence; empty to ignore them.
    pub eos: Arc<Vec<u32>>,
    /// The adapter that every row is computed with; none for the model itself. Always the same in a session.
    pub adapter: Option<Arc<str>>,
    /// Which bits every row is, if the gateway says so. What has been answered never changes it.
    pub arithmetic: Option<NumericsClass>,
    /// When the gateway took the request, in milliseconds since 1970 by its clock: older sessions go first wherever there is a line. All
    /// stages have the same number, so that two sessions are everywhere in the same order.
    pub born_ms: u64,
}

/// Why a stage does not go on with a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no KV pages to spare, or older sessions need those of this one: nothing of it is held any more.
    NoPages,
    /// It has the KV cache of this many positions only.
    NeedReplay {
        /// Positions it has.
        have: Position,
    },
    /// It no longer has the rows that the next hop needs.
    NoJournal,
    /// It does not hold these layers.
    NotHolding {
        /// The layers that the route gives to it.
        layers: Layers,
    },
    /// It does not have this adapter (yet).
    NoAdapter {
        /// Name of the adapter, as the session has it.
        name: String,
    },
    /// It computes other bits than those of the session: not one row may come from it.
    OtherArithmetic {
        /// Its own class.
        own: NumericsClass,
    },
    /// It cannot reach the next hop.
    LinkDown {
        /// The peer of the next hop.
        to: PeerName,
    },
    /// The model produced a value that is not finite.
    NonFinite {
        /// In which layer (the number of layers for the head).
        layer: u32,
    },
    /// It has as many sessions as it takes.
    TooManySessions,
    /// The request makes no sense to it.
    BadRequest {
        /// What is wrong.
        message: String,
    },
}

/// What a stage holds of a session; gateways free what they do not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSession {
    /// The session that this is a part of.
    pub session: SessionId,
    /// The latest try seen.
    pub attempt: Attempt,
    /// The layers that it has the KV cache of.
    pub layers: Layers,
    /// Positions whose KV cache is there.
    pub have: Position,
    /// Rows in the line of the engine: they wait for those of others, which is no reason to worry. Rows that the next hop takes no more of
    /// are not among them: it is for that hop to say what they wait for.
    pub waiting: u32,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Gateway to the first hop; each hop passes it on to the next before any rows.
    Open(Open),
    /// From hop `index - 1` to hop `index`.
    Rows {
        /// The session that it is about.
        session: SessionId,
        /// The attempt that it belongs to; a stage obeys the highest that it has seen.
        attempt: Attempt,
        /// Which hop they are for.
        index: u32,
        /// Position of the first row.
        start: Position,
        /// Number of rows.
        count: u32,
        /// `count * hidden` values.
        data: RowData,
    },
    /// From the last hop to the gateway and to the first hop.
    Token {
        /// The session that it is about.
        session: SessionId,
        /// The attempt that it belongs to; a stage obeys the highest that it has seen.
        attempt: Attempt,
        /// Index of the new token in the sequence.
        position: Position,
        /// Index of the token in the vocabulary.
        token: u32,
        /// Its log-probability.
        logprob: f32,
        /// The likeliest tokens with theirs, if asked for.
        top: Vec<(u32, f32)>,
        /// It is the last one.
        finish: Option<FinishReason>,
    },
    /// From hop `index` to the hop before it: rows of positions before `until` may be sent.
    Room {
        /// The session that it is about.
        session: SessionId,
        /// The attempt that it belongs to; a stage obeys the highest that it has seen.
        attempt: Attempt,
        /// Which hop has room.
        index: u32,
        /// One past the last position it takes now.
        until: Position,
    },
    /// Gateway to every peer of the route: free everything of this session up to this try.
    Close {
        /// The session that it is about.
        session: SessionId,
        /// The latest try.
        attempt: Attempt,
    },
    /// Peer to gateway.
    Refused {
        /// The session that it is about.
        session: SessionId,
        /// The attempt that it belongs to; a stage obeys the highest that it has seen.
        attempt: Attempt,
        /// Which hop refuses.
        index: u32,
        /// Why it does not go on, and with that what the gateway does next.
        reason: Refusal,
    },
    /// Five times a second on every stream.
    Ping {
        /// Counts up.
        seq: u64,
        /// The sender's epoch.
        epoch: Epoch,
    },
    /// The answer to a ping: how the stage is doing, and what it holds of the gateway that asks.
    Pong {
        /// That of the ping.
        seq: u64,
        /// How the sender is doing.
        load: Load,
        /// What it holds of the asking gateway's sessions.
        held: Vec<HeldSession>,
    },
}

impl Frame {
    /// About how many bytes it takes while it waits. Tokens and biases of an opening are not counted: they are those that its session has anyway,
    /// shared with it. A session of the longest sequence may open at any time, however many others do: what would not fit into a queue once
    /// would not do so ever.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const SMALL: usize = 64;
        SMALL
            + match self {
                Self::Rows { data, .. } => size_of_val(data.as_slice()),
                Self::Open(open) => SMALL * open.route.len(),
                Self::Pong { held, .. } => size_of_val(held.as_slice()),
                Self::Token { top, .. } => size_of_val(top.as_slice()),
                Self::Room { .. } | Self::Close { .. } | Self::Refused { .. } | Self::Ping { .. } => 0,
            }
    }
}
