//! The rules of a gateway. See docs/protocol.md for the whole; each handler states its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dunlin_planner::{Loads, NoRoute, PeerName, PeerState, RouteHop, Topology, degrade, route};

use super::session::{Phase, Session, SessionView};
use super::{Failure, GatewayConfig, GatewayEffect, Recovery, Rejected, Submission};
use crate::frame::{Attempt, Frame, Held, Refusal, SessionId};
use crate::sampling::FinishReason;

/// First wait after a refusal that only time mends; doubles with each fruitless try.
const BACKOFF_MS: u64 = 50;
/// And grows to this.
const BACKOFF_MS_MAX: u64 = 2000;
/// A peer that a neighbour could not reach, that lacks the session's adapter, or that gets nowhere, is avoided by that session for this long.
const AVOID_MS: u64 = 5000;
/// After this many tries without a token nothing is taken to be where it should be.
const FRUITLESS_BEFORE_RESTART: u32 = 2;

/// All sessions of one gateway.
pub struct GatewayCore {
    config: GatewayConfig,
    topology: Option<Topology>,
    /// Peers with a working link.
    up: BTreeSet<PeerName>,
    loads: Loads,
    sessions: BTreeMap<SessionId, Session>,
    queue: VecDeque<SessionId>,
}

impl GatewayCore {
    /// A gateway that knows no peers yet.
    #[must_use]
    pub fn new(config: GatewayConfig) -> Self {
        Self {
            config,
            topology: None,
            up: BTreeSet::new(),
            loads: Loads::new(),
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
        }
    }

    /// The topology obeyed at the moment.
    #[must_use]
    pub fn topology(&self) -> Option<&Topology> {
        self.topology.as_ref()
    }

    /// What peers reported last.
    #[must_use]
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// Peers with a working link.
    #[must_use]
    pub fn up(&self) -> &BTreeSet<PeerName> {
        &self.up
    }

    /// (running or waiting, queued).
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.sessions.len() - self.queue.len(), self.queue.len())
    }

    /// Every session, for people.
    #[must_use]
    pub fn views(&self) -> Vec<SessionView> {
        self.sessions.iter().map(|(&id, s)| s.view(id)).collect()
    }

    /// Can a new session be routed now?
    ///
    /// # Errors
    /// Which layers nobody holds.
    pub fn ready(&self) -> Result<(), NoRoute> {
        self.find_route(None, 0).map(drop)
    }

    /// Takes a sequence to be continued.
    ///
    /// # Errors
    /// When there is no room, no holder for some layers, or no sense in it.
    pub fn submit(
        &mut self,
        submission: Submission,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) -> Result<(), Rejected> {
        let retry_after_s = self.config.retry_after_s;
        if submission.tokens.is_empty() || submission.tokens.len() >= submission.max_len as usize {
            return Err(Rejected::Invalid { message: "no prompt, or no room for an answer".to_owned() });
        }
        if self.sessions.contains_key(&submission.session) {
            return Err(Rejected::Invalid { message: "the session exists".to_owned() });
        }
        if let Err(no_route) = self.find_route(None, now_ms) {
            return Err(Rejected::NoCapacity { retry_after_s, message: no_route.to_string() });
        }
        if self.counts().0 >= self.config.running_max && self.queue.len() >= self.config.queue_max {
            return Err(Rejected::Busy { retry_after_s });
        }
        let id = submission.session;
        self.sessions.insert(id, Session::new(submission, now_ms));
        self.queue.push_back(id);
        self.start_queued(now_ms, out);
        Ok(())
    }

    /// The client is gone.
    pub fn cancel(&mut self, session: SessionId, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.end(session, now_ms, out);
    }

    /// A topology arrived; older epochs are ignored. Sessions leave peers that are no longer in it.
    pub fn set_topology(&mut self, topology: Topology, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        if self.topology.as_ref().is_some_and(|known| known.epoch > topology.epoch || *known == topology) {
            return;
        }
        let old: BTreeSet<PeerName> =
            self.topology.iter().flat_map(|t| &t.peers).map(|p| p.name.clone()).collect();
        for peer in topology.peers.iter().filter(|p| !old.contains(&p.name)) {
            out.push(GatewayEffect::Connect { peer: peer.name.clone(), addr: peer.addr.clone() });
        }
        let gone: Vec<PeerName> = old.into_iter().filter(|name| topology.peer(name).is_none()).collect();
        self.topology = Some(topology);
        self.leave_draining(now_ms, out);
        for peer in gone {
            self.move_away(&peer, "PeerLost", now_ms, out);
            self.up.remove(&peer);
            self.loads.remove(&peer);
            out.push(GatewayEffect::Disconnect { peer });
        }
        self.retry_waiting(now_ms, out);
    }

    /// The link to a peer works.
    pub fn peer_up(&mut self, peer: PeerName, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.up.insert(peer);
        self.retry_waiting(now_ms, out);
    }

    /// The link to a peer is broken or silent: sessions on it go on elsewhere, those with the least left to do first.
    pub fn peer_lost(&mut self, peer: &PeerName, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.up.remove(peer);
        self.loads.remove(peer);
        self.move_away(peer, "PeerLost", now_ms, out);
    }

    fn move_away(
        &mut self,
        peer: &PeerName,
        reason: &'static str,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        let mut on_it: Vec<(u32, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.phase == Phase::Running && s.route.iter().any(|hop| hop.peer == *peer))
            .map(|(&id, s)| (s.max_len - s.tokens.len() as u32, id))
            .collect();
        on_it.sort_unstable();
        for (_, id) in on_it {
            self.resume(id, reason, now_ms, out);
        }
    }

    /// A frame from `peer`.
    pub fn frame(&mut self, peer: &PeerName, frame: Frame, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        match frame {
            Frame::Token { session, attempt, position, token, logprob, top, finish } => {
                self.token(session, attempt, (position, token), (logprob, top), finish, now_ms, out);
            }
            Frame::Refused { session, attempt, index, reason } => {
                self.refused(session, attempt, index as usize, reason, now_ms, out);
            }
            Frame::Pong { load, held, .. } => self.pong(peer, load, &held, now_ms, out),
            Frame::Open(_) | Frame::Rows { .. } | Frame::Close { .. } | Frame::Ping { .. } => {}
        }
    }

    /// Rule: a token is emitted when it is the next one, whatever the attempt it comes from: its bits do not depend on that. One that
    /// skips a position shows that a token was lost on the way; the session is resumed where its gateway stands.
    fn token(
        &mut self,
        id: SessionId,
        attempt: Attempt,
        (position, token): (u32, u32),
        (logprob, top): (f32, Vec<(u32, f32)>),
        finish: Option<FinishReason>,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        if s.phase != Phase::Running || attempt > s.attempt || (position as usize) < s.tokens.len() {
            return;
        }
        if position as usize > s.tokens.len() {
            self.resume(id, "Stalled", now_ms, out);
            return;
        }
        Arc::make_mut(&mut s.tokens).push(token);
        if attempt == s.attempt {
            s.filled = true;
        }
        s.progress_ms = now_ms;
        s.fruitless = 0;
        s.silent = 0;
        if let Some((since_ms, reason, replayed_rows)) = s.disturbed.take() {
            let recovery = Recovery { reason, stall_ms: now_ms.saturating_sub(since_ms), replayed_rows };
            out.push(GatewayEffect::Recovered { session: id, recovery });
        }
        out.push(GatewayEffect::Emit { session: id, position, token, logprob, top });
        if let Some(reason) = finish {
            out.push(GatewayEffect::Finished { session: id, reason });
            self.end(id, now_ms, out);
        }
    }

    /// Rule: what a stage lacks is computed again from where it is still known; what only time can mend is tried again later.
    fn refused(
        &mut self,
        id: SessionId,
        attempt: Attempt,
        index: usize,
        reason: Refusal,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        if s.attempt != attempt || s.phase != Phase::Running {
            return;
        }
        match reason {
            Refusal::NeedReplay { .. } | Refusal::NoJournal => {
                s.forget(index);
                self.resume(id, "NeedReplay", now_ms, out);
            }
            Refusal::LinkDown { to } => {
                s.avoid.insert(to, now_ms + AVOID_MS);
                self.resume(id, "LinkDown", now_ms, out);
            }
            Refusal::NotHolding { .. } => {
                s.forget(index);
                self.wait(id, "a stage to load its layers", "Moved", now_ms);
            }
            // Others may have it already; this one is asked again when they cannot do without it.
            Refusal::NoAdapter { name } => {
                if let Some(hop) = s.route.get(index) {
                    s.avoid.insert(hop.peer.clone(), now_ms + AVOID_MS);
                }
                s.forget(index);
                self.wait(id, &format!("a stage to load adapter {name}"), "NoAdapter", now_ms);
            }
            Refusal::NoPages | Refusal::TooManySessions => {
                self.close(id, out);
                self.wait(id, "memory on the stages", "NoPages", now_ms);
            }
            Refusal::NonFinite { layer } => self.fail(id, Failure::NonFinite { layer }, now_ms, out),
            Refusal::BadRequest { message } => self.fail(id, Failure::Refused { message }, now_ms, out),
        }
    }

    /// Rule: what a peer holds of a session that is not ours any more is freed; growth of what it holds is progress.
    fn pong(
        &mut self,
        peer: &PeerName,
        load: dunlin_planner::Load,
        held: &[Held],
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        for h in held {
            match self.sessions.get_mut(&h.session) {
                None => {
                    let frame = Frame::Close { session: h.session, attempt: Attempt::MAX };
                    out.push(GatewayEffect::Send { peer: peer.clone(), frame });
                }
                Some(s) if s.attempt == h.attempt && s.phase == Phase::Running => {
                    let known = s.progress.insert((peer.clone(), h.layers), h.have);
                    if known.is_none_or(|known| h.have > known) {
                        s.progress_ms = now_ms;
                    }
                }
                // Left behind by an earlier attempt on a peer that the session has left.
                Some(s) if s.attempt > h.attempt && !s.route.iter().any(|hop| hop.peer == *peer) => {
                    let frame = Frame::Close { session: h.session, attempt: h.attempt };
                    out.push(GatewayEffect::Send { peer: peer.clone(), frame });
                }
                Some(_) => {}
            }
        }
        if !self.up.contains(peer) {
            return;
        }
        let before = self.loads.insert(peer.clone(), load);
        let after = &self.loads[peer];
        let changed = before.as_ref().is_none_or(|b| b.held != after.held || b.draining != after.draining);
        if changed {
            self.leave_draining(now_ms, out);
            self.retry_waiting(now_ms, out);
        }
    }

    /// Time passes: deadlines, sessions that stand still, waits that are over.
    pub fn tick(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let overdue: Vec<(SessionId, String)> = self
            .sessions
            .iter()
            .filter(|(_, s)| now_ms >= s.deadline_ms)
            .map(|(&id, s)| (id, s.view(id).phase))
            .collect();
        for (id, waiting_for) in overdue {
            self.fail(id, Failure::Deadline { waiting_for }, now_ms, out);
        }
        let stall_ms = self.config.stall_ms;
        let still = |s: &Session| {
            s.phase == Phase::Running && now_ms.saturating_sub(s.progress_ms) >= stall_ms << s.silent.min(4)
        };
        let due = |s: &Session| matches!(s.phase, Phase::Waiting { until_ms, .. } if now_ms >= until_ms);
        let again: Vec<(SessionId, bool)> =
            self.sessions.iter().filter(|(_, s)| still(s) || due(s)).map(|(&id, s)| (id, still(s))).collect();
        for (id, is_still) in again {
            if let Some(s) = self.sessions.get_mut(&id).filter(|_| is_still) {
                s.silent += 1;
            }
            self.resume(id, "Stalled", now_ms, out);
        }
        self.start_queued(now_ms, out);
    }

    fn start_queued(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        while self.counts().0 < self.config.running_max {
            let Some(id) = self.queue.pop_front() else { return };
            self.attempt(id, now_ms, out);
        }
    }

    fn retry_waiting(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let mut waiting: Vec<(u32, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, s)| matches!(s.phase, Phase::Waiting { .. }))
            .map(|(&id, s)| (s.max_len - s.tokens.len() as u32, id))
            .collect();
        waiting.sort_unstable();
        for (_, id) in waiting {
            self.attempt(id, now_ms, out);
        }
    }

    /// Sessions leave peers that are about to go, as soon as there is a way around them.
    fn leave_draining(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let draining: BTreeSet<PeerName> = self
            .topology
            .iter()
            .flat_map(|t| &t.peers)
            .filter(|p| p.state == PeerState::Draining || self.loads.get(&p.name).is_some_and(|l| l.draining))
            .map(|p| p.name.clone())
            .collect();
        if draining.is_empty() {
            return;
        }
        let on_them: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.phase == Phase::Running && s.route.iter().any(|h| draining.contains(&h.peer)))
            .map(|(&id, _)| id)
            .collect();
        for id in on_them {
            let around = self.find_route(Some(id), now_ms);
            if around.is_ok_and(|hops| !hops.iter().any(|h| draining.contains(&h.peer))) {
                self.resume(id, "Draining", now_ms, out);
            }
        }
    }

    /// Another attempt because something went wrong.
    fn resume(&mut self, id: SessionId, reason: &'static str, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        s.disturbed.get_or_insert((now_ms, reason, 0));
        s.fruitless += 1;
        if s.fruitless > FRUITLESS_BEFORE_RESTART {
            s.filled = false;
            s.kept.clear();
            // Who gets nowhere however often it is asked may be broken in a way that it cannot tell.
            if let Some(peer) = s.behind() {
                s.avoid.insert(peer, now_ms + AVOID_MS);
            }
        }
        self.attempt(id, now_ms, out);
    }

    /// The next attempt on the best route there is, or a wait for one.
    fn attempt(&mut self, id: SessionId, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        match self.find_route(Some(id), now_ms) {
            Err(no_route) => self.wait(id, &no_route.to_string(), "PeerLost", now_ms),
            Ok(hops) => {
                let Some(s) = self.sessions.get_mut(&id) else { return };
                let left: BTreeSet<PeerName> = s
                    .route
                    .iter()
                    .map(|h| h.peer.clone())
                    .filter(|peer| self.up.contains(peer) && !hops.iter().any(|h| h.peer == *peer))
                    .collect();
                let replayed = s.begin(hops, now_ms);
                if let Some((_, _, rows)) = &mut s.disturbed {
                    *rows += replayed;
                }
                let attempt = s.attempt - 1;
                let first = s.route[0].peer.clone();
                let open = Frame::Open(s.open(id, &self.config.id));
                for peer in left {
                    let frame = Frame::Close { session: id, attempt };
                    out.push(GatewayEffect::Send { peer, frame });
                }
                out.push(GatewayEffect::Send { peer: first, frame: open });
            }
        }
    }

    fn wait(&mut self, id: SessionId, what: &str, reason: &'static str, now_ms: u64) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        s.disturbed.get_or_insert((now_ms, reason, 0));
        s.fruitless += 1;
        let backoff_ms = (BACKOFF_MS << s.fruitless.min(16)).min(BACKOFF_MS_MAX);
        s.phase = Phase::Waiting { until_ms: now_ms + backoff_ms, reason: what.to_owned() };
    }

    /// The best route now; for a session, one that keeps what it can and avoids whom its hops could not reach and who lacks its adapter.
    fn find_route(&self, id: Option<SessionId>, now_ms: u64) -> Result<Vec<RouteHop>, NoRoute> {
        let Some(topology) = &self.topology else { return Err(NoRoute { missing: Vec::new() }) };
        let down = topology.peers.iter().map(|p| &p.name).filter(|name| !self.up.contains(name));
        let mut lost: BTreeSet<PeerName> = down.cloned().collect();
        let session = id.and_then(|id| self.sessions.get(&id));
        let keep = session.map(Session::keepers).unwrap_or_default();
        let avoided = session.into_iter().flat_map(|s| &s.avoid).filter(|(_, until_ms)| now_ms < **until_ms);
        let avoided: BTreeSet<PeerName> = avoided.map(|(name, _)| name.clone()).collect();
        if !avoided.is_empty() {
            let without: BTreeSet<PeerName> = lost.union(&avoided).cloned().collect();
            if let Ok(hops) = route(&degrade(topology, &without), &self.loads, &keep) {
                return Ok(hops);
            }
        }
        lost.retain(|name| topology.peer(name).is_some());
        route(&degrade(topology, &lost), &self.loads, &keep)
    }

    fn fail(&mut self, id: SessionId, error: Failure, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        out.push(GatewayEffect::Failed { session: id, error });
        self.end(id, now_ms, out);
    }

    fn close(&mut self, id: SessionId, out: &mut Vec<GatewayEffect>) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        let peers: BTreeSet<PeerName> = s.route.iter().map(|h| h.peer.clone()).collect();
        for peer in peers.into_iter().filter(|peer| self.up.contains(peer)) {
            let frame = Frame::Close { session: id, attempt: s.attempt };
            out.push(GatewayEffect::Send { peer, frame });
        }
        s.filled = false;
        s.kept.clear();
    }

    /// Frees everything of a session here and on the stages, and lets the next one start.
    fn end(&mut self, id: SessionId, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.close(id, out);
        self.sessions.remove(&id);
        self.queue.retain(|queued| *queued != id);
        self.start_queued(now_ms, out);
    }
}
