//! One session as its gateway sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_planner::{Layers, PeerName, Position, RouteHop};

use super::Submission;
use crate::frame::{Attempt, GatewayId, Hop, Open, SessionId};
use crate::sampling::SamplingParams;

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
        /// For what, in words for people.
        reason: String,
    },
}

/// What a person may want to know of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Which.
    pub session: SessionId,
    /// Tokens known.
    pub tokens: usize,
    /// The try it is in.
    pub attempt: Attempt,
    /// Where it runs.
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
    pub adapter: Option<Arc<str>>,
    pub deadline_ms: u64,
    pub phase: Phase,
    pub attempt: Attempt,
    pub route: Vec<Hop>,
    /// Hops of `route` that are known to have the KV cache of all positions before the last token.
    pub filled: bool,
    /// (peer, layers) that were filled before the current attempt and are still so.
    pub kept: Vec<(PeerName, Layers)>,
    /// Sum of positions over all hops, from the latest pongs, in the current attempt.
    pub progress: BTreeMap<(PeerName, Layers), Position>,
    pub progress_ms: u64,
    /// Resumed this many times without a token in between.
    pub fruitless: u32,
    /// So many of them because nothing came at all: refusals are answers, and make nobody more patient with silence.
    pub silent: u32,
    /// Peers that a hop could not reach, or that lack the adapter, until when they are avoided.
    pub avoid: BTreeMap<PeerName, u64>,
    /// Since when and why it stands still, and rows computed again since.
    pub disturbed: Option<(u64, &'static str, u64)>,
}

impl Session {
    pub(super) fn new(submission: Submission, now_ms: u64) -> Self {
        Self {
            prompt_len: submission.tokens.len() as u32,
            tokens: Arc::new(submission.tokens),
            max_len: submission.max_len,
            sampling: Arc::new(submission.sampling),
            eos: Arc::new(submission.eos),
            adapter: submission.adapter,
            deadline_ms: submission.deadline_ms,
            phase: Phase::Queued,
            attempt: 0,
            route: Vec::new(),
            filled: false,
            kept: Vec::new(),
            progress: BTreeMap::new(),
            progress_ms: now_ms,
            fruitless: 0,
            silent: 0,
            avoid: BTreeMap::new(),
            disturbed: None,
        }
    }

    /// The position that the next attempt computes first on hops that kept everything before it.
    pub(super) fn resume_from(&self) -> Position {
        self.tokens.len() as Position - 1
    }

    /// Hops that kept everything before the last token, as far as we know.
    pub(super) fn keepers(&self) -> Vec<(PeerName, Layers)> {
        if self.filled {
            self.route.iter().map(|hop| (hop.peer.clone(), hop.layers)).collect()
        } else {
            self.kept.clone()
        }
    }

    /// Begins another attempt on `hops`; returns the rows that have to be computed again.
    pub(super) fn begin(&mut self, hops: Vec<RouteHop>, now_ms: u64) -> u64 {
        let keepers = self.keepers();
        let resume_from = self.resume_from();
        self.attempt += 1;
        self.route = hops
            .into_iter()
            .map(|hop| {
                let kept = keepers.contains(&(hop.peer.clone(), hop.layers));
                let from = if kept { resume_from } else { 0 };
                Hop { peer: hop.peer, addr: hop.addr, layers: hop.layers, from }
            })
            .collect();
        self.kept = self.route.iter().filter(|h| h.from > 0).map(|h| (h.peer.clone(), h.layers)).collect();
        self.filled = false;
        self.progress.clear();
        self.progress_ms = now_ms;
        self.phase = Phase::Running;
        self.route.iter().filter(|h| h.from == 0).count() as u64 * u64::from(resume_from)
    }

    /// The peer of the first hop that has not computed all known tokens in this attempt, by the latest reports.
    pub(super) fn behind(&self) -> Option<PeerName> {
        let known = self.tokens.len() as Position;
        let computed = |hop: &&Hop| self.progress.get(&(hop.peer.clone(), hop.layers)).copied().unwrap_or(0);
        self.route.iter().find(|hop| computed(hop) < known).map(|hop| hop.peer.clone())
    }

    /// `hop` has lost what we thought it had.
    pub(super) fn forget(&mut self, index: usize) {
        let Some(hop) = self.route.get(index) else { return };
        let lost = (hop.peer.clone(), hop.layers);
        self.kept = self.keepers();
        self.filled = false;
        self.kept.retain(|kept| *kept != lost);
    }

    pub(super) fn open(&self, session: SessionId, gateway: &GatewayId) -> Open {
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
        }
    }

    pub(super) fn view(&self, session: SessionId) -> SessionView {
        let phase = match &self.phase {
            Phase::Queued => "queued".to_owned(),
            Phase::Running => "running".to_owned(),
            Phase::Waiting { reason, .. } => reason.clone(),
        };
        let route = self.route.iter().map(|h| (h.peer.clone(), h.layers)).collect();
        SessionView { session, tokens: self.tokens.len(), attempt: self.attempt, route, phase }
    }
}
