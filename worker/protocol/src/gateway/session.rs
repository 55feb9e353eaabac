//! One session as its gateway sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_swarm::{Layers, NumericsClass, Paging, PeerName, Position};

use super::recovery::{Disturbance, Disturbed};
use super::routes::Way;
use super::shell::Submission;
use crate::frame::{Attempt, GatewayId, Hop, Open, SessionId};
use crate::sampling::SamplingParams;
use crate::windows::Windows;

/// Where a session stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not started yet: others run.
    Queued,
    /// On its way.
    Running,
    /// Tried again at that time, or when peers change.
    Waiting {
        /// When, in milliseconds.
        until_ms: u64,
        /// What it waits for.
        on: WaitsFor,
    },
}

/// What a session waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// KV pages, in words for people: nobody younger is let in before it.
    Pages(String),
    /// Anything else, in words for people.
    Other(String),
}

/// What a person may want to know of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The number by which logs and `/swarm` name it.
    pub session: SessionId,
    /// Tokens known: those of the prompt, and those that were generated.
    pub tokens: usize,
    /// The try it is in.
    pub attempt: Attempt,
    /// The hops of its route: peer and layers.
    pub route: Vec<(PeerName, Layers)>,
    /// `queued`, `running`, or what it waits for.
    pub phase: String,
}

pub(super) struct Session {
    pub tokens: Arc<Vec<u32>>,
    pub prompt_len: u32,
    pub max_len: u32,
    pub sampling: Arc<SamplingParams>,
    pub eos: Arc<Vec<u32>>,
    windows: Windows,
    pub adapter: Option<Arc<str>>,
    pub deadline_ms: u64,
    /// When the gateway took it: its place in every line.
    pub born_ms: u64,
    /// What the peers of its route say that they compute; nothing before it has one. It stays once the session has said something.
    pub arithmetic: Option<NumericsClass>,
    /// The first attempt with this class. What comes of earlier ones has other bits.
    pub arithmetic_since: Attempt,
    pub phase: Phase,
    pub attempt: Attempt,
    pub route: Vec<Hop>,
    /// All hops of `route` have the KV cache of all positions before the last token: a token of this attempt came.
    pub filled: bool,
    /// Positions that a peer has at least for some layers, by its reports and by tokens that came; each attempt begins there.
    pub known: BTreeMap<(PeerName, Layers), Position>,
    /// Nothing is taken to be known before the next attempt.
    pub distrust: bool,
    /// Hops that have reported in this attempt.
    pub reported: BTreeSet<(PeerName, Layers)>,
    pub progress_ms: u64,
    /// Attempts since the last token that led nowhere, and nobody knows why.
    pub fruitless: u32,
    /// So many of them because nothing came at all: refusals are answers, and make nobody more patient with silence.
    pub silent: u32,
    /// Waits since the last token that ended because time was up.
    pub waits: u32,
    /// When a stage gave its pages to others, if it has said nothing since.
    pub gave_ms: Option<u64>,
    /// Peers that a hop could not reach, or that lack the adapter, until when they are avoided.
    pub avoid: BTreeMap<PeerName, u64>,
    /// What it has not recovered from yet.
    pub disturbed: Option<Disturbed>,
}

impl Session {
    pub(super) fn new(submission: Submission, now_ms: u64) -> Self {
        Self {
            prompt_len: submission.tokens.len() as u32,
            tokens: Arc::new(submission.tokens),
            max_len: submission.max_len,
            sampling: Arc::new(submission.sampling),
            eos: Arc::new(submission.eos),
            windows: submission.windows,
            adapter: submission.adapter,
            deadline_ms: submission.deadline_ms,
            born_ms: now_ms,
            arithmetic: None,
            arithmetic_since: 0,
            phase: Phase::Queued,
            attempt: 0,
            route: Vec::new(),
            filled: false,
            known: BTreeMap::new(),
            distrust: false,
            reported: BTreeSet::new(),
            progress_ms: now_ms,
            fruitless: 0,
            silent: 0,
            waits: 0,
            gave_ms: None,
            avoid: BTreeMap::new(),
            disturbed: None,
        }
    }

    /// It has said something.
    pub(super) fn has_begun(&self) -> bool {
        self.tokens.len() > self.prompt_len as usize
    }

    /// It stands still when nothing has come for this long: longer each time that nothing comes at all.
    pub(super) fn patience_ms(&self, stall_ms: u64) -> u64 {
        stall_ms << self.silent.min(4)
    }

    /// The position that the next attempt computes first on hops that kept everything before it.
    pub(super) fn resume_from(&self) -> Position {
        self.tokens.len() as Position - 1
    }

    /// Hops that have something, as far as we know.
    pub(super) fn keepers(&mut self) -> Vec<(PeerName, Layers)> {
        self.note_filled();
        self.known.iter().filter(|(_, have)| **have > 0).map(|(key, _)| key.clone()).collect()
    }

    fn note_filled(&mut self) {
        if self.filled {
            let all = self.resume_from();
            self.known = self.route.iter().map(|hop| ((hop.peer.clone(), hop.layers), all)).collect();
        }
    }

    /// A hop reports what it has; is that more than was known?
    pub(super) fn report(&mut self, peer: &PeerName, layers: Layers, have: Position) -> bool {
        let key = (peer.clone(), layers);
        let known = self.known.get(&key).copied();
        if known.is_none_or(|known| have > known) && !self.distrust {
            self.known.insert(key.clone(), have);
        }
        self.reported.insert(key) || known.is_none_or(|known| have > known)
    }

    /// Begins another attempt on `way`; returns the rows that have to be computed again.
    pub(super) fn begin(&mut self, way: Way, now_ms: u64) -> u64 {
        self.note_filled();
        let resume_from = self.resume_from();
        self.attempt += 1;
        if self.arithmetic != way.arithmetic {
            (self.arithmetic, self.arithmetic_since) = (way.arithmetic, self.attempt);
        }
        let known = std::mem::take(&mut self.known);
        self.route = way
            .hops
            .into_iter()
            .map(|hop| {
                let key = (hop.peer, hop.layers);
                let from = known.get(&key).copied().unwrap_or(0).min(resume_from);
                Hop { peer: key.0, addr: hop.addr, layers: key.1, from }
            })
            .collect();
        // A stage cuts what it has to where it is to go on.
        self.known = self.route.iter().map(|hop| ((hop.peer.clone(), hop.layers), hop.from)).collect();
        (self.filled, self.distrust) = (false, false);
        self.reported.clear();
        self.progress_ms = now_ms;
        self.phase = Phase::Running;
        self.route.iter().map(|hop| u64::from(resume_from - hop.from)).sum()
    }

    /// It stands still from now on, unless it does so already. A session of which nobody has computed anything has nothing to be disturbed in.
    pub(super) fn disturb(&mut self, reason: Disturbance, now_ms: u64) {
        if self.filled || self.known.values().any(|have| *have > 0) {
            self.disturbed.get_or_insert(Disturbed { since_ms: now_ms, reason, rows: 0 });
        }
    }

    /// The peer of the hop that holds the others up, by the latest reports: the last one that has less than all before it. Those before
    /// it compute no more than a window ahead.
    pub(super) fn behind(&self) -> Option<PeerName> {
        let mut least = self.tokens.len() as Position;
        let mut behind = None;
        for hop in &self.route {
            let have = self.known.get(&(hop.peer.clone(), hop.layers)).copied().unwrap_or(0);
            if have < least {
                (least, behind) = (have, Some(hop.peer.clone()));
            }
        }
        behind
    }

    /// A hop has only so many positions.
    pub(super) fn has_only(&mut self, index: usize, have: Position) {
        self.note_filled();
        self.filled = false;
        if let Some(hop) = self.route.get(index) {
            self.known.insert((hop.peer.clone(), hop.layers), have);
        }
    }

    /// A peer has lost all that it had.
    pub(super) fn forget_peer(&mut self, peer: &PeerName) {
        self.note_filled();
        self.filled = false;
        self.known.retain(|(name, _), _| name != peer);
        self.reported.retain(|(name, _)| name != peer);
    }

    /// Nothing is taken to be where it should be.
    pub(super) fn forget_all(&mut self) {
        (self.filled, self.distrust) = (false, true);
        self.known.clear();
    }

    /// It leaves all peers. Whatever one of them says that it has of it yet is of an attempt that is over, and freed.
    pub(super) fn let_go(&mut self) {
        self.forget_all();
        self.reported.clear();
        if !self.route.is_empty() {
            self.route.clear();
            self.attempt += 1;
        }
    }

    /// What peers count as taken by this session already.
    pub(super) fn counted(&self) -> BTreeSet<(PeerName, Layers)> {
        let known = self.known.iter().filter(|(_, have)| **have > 0).map(|(key, _)| key.clone());
        known.chain(self.reported.iter().cloned()).collect()
    }

    /// KV pages in these layers for all it has and some positions ahead, as a peer counts them.
    pub(super) fn pages(&self, layers: Layers, paging: Paging) -> u32 {
        let positions = paging.counted_positions(self.tokens.len() as Position, self.max_len);
        self.windows.pages_of(layers, positions, paging)
    }

    /// Will a hop of its route take pages for it, without having said so yet?
    pub(super) fn is_on_its_way_to(&self, hop: &Hop) -> bool {
        let key = (hop.peer.clone(), hop.layers);
        self.phase == Phase::Running && hop.from == 0 && !self.reported.contains(&key)
    }

    /// `started_ms`: when the gateway's clock began, in milliseconds since 1970.
    pub(super) fn open(&self, session: SessionId, gateway: &GatewayId, started_ms: u64) -> Open {
        Open {
            session,
            attempt: self.attempt,
            gateway: gateway.clone(),
            index: 0,
            route: self.route.clone(),
            tokens: Arc::clone(&self.tokens),
            prompt_len: self.prompt_len,
            max_len: self.max_len,
            sampling: Arc::clone(&self.sampling),
            eos: Arc::clone(&self.eos),
            adapter: self.adapter.clone(),
            arithmetic: self.arithmetic,
            born_ms: started_ms.saturating_add(self.born_ms),
        }
    }

    pub(super) fn view(&self, session: SessionId) -> SessionView {
        let phase = match &self.phase {
            Phase::Queued => "queued".to_owned(),
            Phase::Running => "running".to_owned(),
            Phase::Waiting { on: WaitsFor::Pages(what) | WaitsFor::Other(what), .. } => what.clone(),
        };
        let route = self.route.iter().map(|h| (h.peer.clone(), h.layers)).collect();
        SessionView { session, tokens: self.tokens.len(), attempt: self.attempt, route, phase }
    }
}
