//! A stage: who speaks, what is held, what is freed. See docs/protocol.md for the whole; each handler states its own rule.
//! How a session begins is in [`super::open`], how rows pass in [`super::flow`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dunlin_swarm::{Layers, PeerName};

use super::sender::Sender;
use super::session::{Segment, Session};
use super::shell::{Recipient, StageConfig, StageEffect};
use crate::frame::{Attempt, Frame, GatewayId, HeldSession, Hop, Refusal, SessionId};
use crate::windows::Windows;

/// An engine that has had no pages for the only session that has any for so many ticks will never have them.
const HOPELESS_TICKS: u32 = 20;

/// For how long the sessions of a gateway are kept.
struct Lease {
    /// When it was last heard of.
    heard_ms: u64,
    /// Without a word of it.
    lasts_ms: u64,
}

/// All sessions on one peer.
pub struct StageNode {
    pub(super) config: StageConfig,
    pub(super) held: Vec<Layers>,
    pub(super) adapters: BTreeSet<Arc<str>>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    /// Of each gateway with sessions here.
    leases: BTreeMap<GatewayId, Lease>,
    /// Counts up with each use of a session: the order in which journals are dropped.
    pub(super) uses: u64,
    /// Frames to this peer itself, handled before anything else.
    pub(super) local: VecDeque<Frame>,
    /// At least the bytes of all journals and of rows that wait.
    row_bytes_bound: usize,
    /// Ticks in a row in which the engine had no pages for the only session that has any.
    hopeless: u32,
}

impl StageNode {
    /// A stage without sessions that holds no layers yet.
    #[must_use]
    pub fn new(config: StageConfig) -> Self {
        Self {
            config,
            held: Vec::new(),
            adapters: BTreeSet::new(),
            sessions: BTreeMap::new(),
            leases: BTreeMap::new(),
            uses: 0,
            local: VecDeque::new(),
            row_bytes_bound: 0,
            hopeless: 0,
        }
    }

    /// The layers it can execute from now on.
    pub fn set_held(&mut self, held: Vec<Layers>) {
        self.held = held;
    }

    /// The adapters it can execute them with from now on.
    pub fn set_adapters(&mut self, adapters: BTreeSet<Arc<str>>) {
        self.adapters = adapters;
    }

    /// Values in a row, the longest sequence that its engine can compute, and what layers keep of one; known once the model is.
    pub fn set_model(&mut self, hidden: usize, positions_max: u32, windows: Windows) {
        self.config.hidden = hidden;
        self.config.positions_max = positions_max;
        self.config.windows = windows;
    }

    /// KV pages of its engine from now on.
    pub fn set_pages(&mut self, pages: u32) {
        self.config.pages = pages;
    }

    /// Bytes of all journals from now on; see [`StageConfig::journal_bytes_max`].
    pub fn set_journal_bytes_max(&mut self, bytes: usize) {
        self.config.journal_bytes_max = bytes;
        self.bound_journals(0);
    }

    /// Number of sessions.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Layer ranges that sessions use: they must stay loaded.
    #[must_use]
    pub fn layers_in_use(&self) -> Vec<Layers> {
        let mut all: Vec<Layers> = self.sessions.values().flat_map(|s| s.segments.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Bytes of all journals.
    #[must_use]
    pub fn journal_bytes(&self) -> usize {
        self.sessions.values().flat_map(|s| s.segments.values()).map(|s| s.journal.bytes()).sum()
    }

    /// Bytes of rows that have arrived and are not computed.
    fn waiting_bytes(&self) -> usize {
        let segments = self.sessions.values().flat_map(|s| s.segments.values());
        segments.map(|s| s.waiting_bytes(self.config.hidden)).sum()
    }

    /// KV pages that no session here has or is about to take.
    #[must_use]
    pub fn spare_pages(&self) -> u32 {
        let taken: u64 = self.sessions.values().map(|s| s.pages(&self.config.windows)).sum();
        u32::try_from(u64::from(self.config.pages).saturating_sub(taken)).unwrap_or(u32::MAX)
    }

    /// What it holds, by gateway.
    #[must_use]
    pub fn held(&self) -> BTreeMap<GatewayId, Vec<HeldSession>> {
        let mut all: BTreeMap<GatewayId, Vec<HeldSession>> = BTreeMap::new();
        for (&session, s) in &self.sessions {
            let own = all.entry(s.gateway.clone()).or_default();
            let held = |(&layers, g): (&Layers, &Segment)| HeldSession {
                session,
                attempt: s.attempt,
                layers,
                have: g.have,
                waiting: g.in_line(),
            };
            own.extend(s.segments.iter().map(held));
        }
        all
    }

    /// A gateway gave a sign of life. Its sessions are kept for `lease_ms` behind it; one that does not say how long has the stage's own lease.
    pub fn heard(&mut self, gateway: &GatewayId, lease_ms: Option<u64>, now_ms: u64) {
        if let Some(lease) = self.leases.get_mut(gateway) {
            *lease = Lease { heard_ms: now_ms, lasts_ms: lease_ms.unwrap_or(self.config.lease_ms) };
        }
    }

    /// A gateway has a session here. Its next sign of life says how long it may be silent; until then it is the stage's own lease.
    pub(super) fn lease(&mut self, gateway: &GatewayId, now_ms: u64) {
        let lease = Lease { heard_ms: now_ms, lasts_ms: self.config.lease_ms };
        self.leases.entry(gateway.clone()).or_insert(lease);
    }

    /// Frees the sessions of gateways whose lease has ended.
    pub fn tick(&mut self, now_ms: u64, out: &mut Vec<StageEffect>) {
        self.leases.retain(|gateway, lease| {
            let alive = now_ms.saturating_sub(lease.heard_ms) < lease.lasts_ms;
            if !alive {
                self.sessions.retain(|&session, s| {
                    let keep = s.gateway != *gateway;
                    if !keep {
                        s.free_all(session, out);
                    }
                    keep
                });
            }
            alive
        });
    }

    /// A frame of a session arrived from `from`. Pings are the shell's.
    pub fn frame(&mut self, from: &Sender, frame: Frame, now_ms: u64, out: &mut Vec<StageEffect>) {
        if let Err(rule) = from.may_send(&frame).and_then(|()| self.may_send(from, &frame)) {
            out.push(StageEffect::Forbidden { from: from.clone(), rule });
            return;
        }
        self.local.push_back(frame);
        self.settle(now_ms, out);
    }

    /// Whether `frame` is `from`'s to send, as its session is routed. What is of another attempt is ignored anyway.
    fn may_send(&self, from: &Sender, frame: &Frame) -> Result<(), &'static str> {
        let session = |id: &SessionId| self.sessions.get(id);
        let routed = |id, attempt: &Attempt| session(id).filter(|s| s.attempt == *attempt);
        let is = |hop: Option<&Hop>| {
            hop.is_some_and(|hop| matches!(from, Sender::Peer(name) if *name == hop.peer))
        };
        let (fine, rule) = match frame {
            Frame::Rows { session, attempt, index, .. } => {
                let before = |s: &Session| is(index.checked_sub(1).and_then(|i| s.route.get(i as usize)));
                (routed(session, attempt).is_none_or(before), "rows come from the hop before")
            }
            Frame::Room { session, attempt, index, .. } => {
                let own = |s: &Session| is(s.route.get(*index as usize));
                (routed(session, attempt).is_none_or(own), "a hop speaks of its own room")
            }
            Frame::Token { session, attempt, .. } => {
                (routed(session, attempt).is_none_or(|s| is(s.route.last())), "tokens come from the last hop")
            }
            Frame::Close { session: id, .. } => {
                let own = |s: &Session| matches!(from, Sender::Gateway(gateway) if *gateway == s.gateway);
                (session(id).is_none_or(own), "only its gateway closes a session")
            }
            Frame::Open(_) | Frame::Refused { .. } | Frame::Ping { .. } | Frame::Pong { .. } => return Ok(()),
        };
        if fine { Ok(()) } else { Err(rule) }
    }

    /// Handles frames until none to this peer itself is left.
    pub(super) fn settle(&mut self, now_ms: u64, out: &mut Vec<StageEffect>) {
        while let Some(frame) = self.local.pop_front() {
            match frame {
                Frame::Open(open) => self.open(open, now_ms, out),
                Frame::Rows { session, attempt, index, start, count, data } => {
                    self.rows(session, attempt, index, start, count, &data, out);
                }
                Frame::Room { session, attempt, index, until } => {
                    self.room(session, attempt, index, until, out);
                }
                Frame::Token { session, attempt, position, token, .. } => {
                    self.token(session, attempt, position, token, out);
                }
                Frame::Close { session, attempt } => self.close(session, attempt, out),
                Frame::Refused { .. } | Frame::Ping { .. } | Frame::Pong { .. } => {}
            }
        }
    }

    /// The link to a peer is down: gateways of sessions that need it are told.
    pub fn link_down(&mut self, to: &PeerName, out: &mut Vec<StageEffect>) {
        let reason = Refusal::LinkDown { to: to.clone() };
        for (&session, s) in &mut self.sessions {
            let last = s.route.len() - 1;
            let needs = |index: usize| {
                let next = if index == last { 0 } else { index + 1 };
                s.route.get(next).is_some_and(|hop| hop.peer == *to)
            };
            let from = s.segments.values().map(|segment| segment.index).find(|&index| needs(index));
            if let Some(index) = from {
                s.refuse(session, index, reason.clone(), out);
            }
        }
    }

    /// Has the engine work and no pages for any of it? To be said with every tick. Rule: the youngest session here that is younger than
    /// one which waits gives its pages back, so that the oldest always gets what it needs; it comes again when there are enough. A session
    /// that has all pages to itself and needs more is refused.
    pub fn starved(&mut self, is_starved: bool, out: &mut Vec<StageEffect>) {
        let hopeless = std::mem::take(&mut self.hopeless);
        if !is_starved {
            return;
        }
        let which = |of: fn(&Segment) -> bool| {
            let some = self.sessions.iter().filter(move |(_, s)| s.segments.values().any(of));
            some.map(|(&id, s)| (s.born_ms, id))
        };
        let Some(oldest) = which(|g| g.given > g.have).min() else { return };
        let youngest = which(|g| g.have > 0).max();
        if let Some((_, session)) = youngest.filter(|youngest| *youngest > oldest) {
            self.send_away(session, Refusal::NoPages, out);
        } else if which(|g| g.have > 0).all(|other| other == oldest) {
            self.hopeless = hopeless + 1;
            if self.hopeless >= HOPELESS_TICKS {
                let (name, pages) = (&self.config.name, self.config.pages);
                let message =
                    format!("the sequence needs more than the {pages} pages of KV cache that {name} has");
                self.send_away(oldest.1, Refusal::BadRequest { message }, out);
            }
        }
    }

    fn send_away(&mut self, session: SessionId, reason: Refusal, out: &mut Vec<StageEffect>) {
        let Some(mut s) = self.sessions.remove(&session) else { return };
        let index = s.segments.values().map(|g| g.index).min().unwrap_or(0);
        s.refuse(session, index, reason, out);
        s.free_all(session, out);
    }

    fn close(&mut self, session: SessionId, attempt: Attempt, out: &mut Vec<StageEffect>) {
        if let Some(s) = self.sessions.get(&session)
            && s.attempt <= attempt
        {
            s.free_all(session, out);
            self.sessions.remove(&session);
        }
    }

    /// Drops journals, least recently used session first, until they fit beside the rows that wait, which take their memory. Replay then starts one
    /// hop earlier. Rows that the next hop has not had yet are kept: windows bound them.
    pub(super) fn bound_journals(&mut self, more: usize) {
        self.row_bytes_bound += more;
        if self.row_bytes_bound <= self.config.journal_bytes_max {
            return;
        }
        let mut bytes = self.journal_bytes() + self.waiting_bytes();
        let mut by_use: Vec<(u64, SessionId)> = self.sessions.iter().map(|(&id, s)| (s.used, id)).collect();
        by_use.sort_unstable();
        for (_, id) in by_use {
            if bytes <= self.config.journal_bytes_max {
                break;
            }
            for segment in self.sessions.get_mut(&id).into_iter().flat_map(|s| s.segments.values_mut()) {
                bytes -= segment.journal.forget_before(segment.sent);
            }
        }
        self.row_bytes_bound = bytes;
    }

    /// Sends a frame to a hop, be it another peer or this one.
    pub(super) fn send(&mut self, hop: &Hop, frame: Frame, out: &mut Vec<StageEffect>) {
        if hop.peer == self.config.name {
            self.local.push_back(frame);
        } else {
            let to = Recipient::Peer { name: hop.peer.clone(), addr: hop.addr.clone() };
            out.push(StageEffect::Send { to, frame });
        }
    }
}
