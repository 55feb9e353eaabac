//! The rules of a gateway: what arrives, what time brings. See docs/protocol.md for the whole; each handler states its own.
//! Who comes in is in [`super::admission`], how sessions go on after a disturbance in [`super::resume`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dunlin_swarm::{Load, Loads, NumericsClass, PeerName, PeerState, Topology, TopologyPeer, layer_set};

use super::own_model::{OtherModel, OwnModel};
use super::pace::Pace;
use super::recovery::{Disturbance, Recovery};
use super::routes::Routes;
use super::session::{Phase, Session, SessionView};
use super::shell::{Failure, GatewayConfig, GatewayEffect};
use crate::frame::{Attempt, Frame, HeldSession, SessionId};
use crate::sampling::FinishReason;

/// Peers are compared this often.
const LOOK_MS: u64 = 200;
/// Ticks come several times a second; with a longer gap it was this process that stood still, and nobody else is to blame for silence.
const ASLEEP_MS: u64 = 500;

/// All sessions of one gateway.
pub struct GatewayCore {
    pub(super) config: GatewayConfig,
    pub(super) model: OwnModel,
    pub(super) routes: Routes,
    pub(super) pace: Pace,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) queue: VecDeque<SessionId>,
    /// What the first in the queue waits for, in words for people, if not for its turn.
    pub(super) held_up: Option<String>,
    looked_ms: u64,
    shares: bool,
    ticked_ms: Option<u64>,
    /// When sessions leave peers that are about to go.
    pub(super) leave_ms: Option<u64>,
}

impl GatewayCore {
    /// A gateway that knows no peers yet.
    #[must_use]
    pub fn new(config: GatewayConfig) -> Self {
        Self {
            model: OwnModel::new(config.model_digest.clone()),
            config,
            routes: Routes::default(),
            pace: Pace::default(),
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
            held_up: None,
            looked_ms: 0,
            shares: false,
            ticked_ms: None,
            leave_ms: None,
        }
    }

    /// The topology obeyed at the moment.
    #[must_use]
    pub fn topology(&self) -> Option<&Topology> {
        self.routes.topology()
    }

    /// That the swarm has another model than this gateway, if the newest topology says so.
    #[must_use]
    pub fn other_model(&self) -> Option<&OtherModel> {
        self.model.other()
    }

    /// What peers reported last.
    #[must_use]
    pub fn loads(&self) -> &Loads {
        self.routes.loads()
    }

    /// Peers with a working link.
    #[must_use]
    pub fn up(&self) -> &BTreeSet<PeerName> {
        self.routes.up()
    }

    /// Peers of the topology that do not hold all that it gives them, as far as they have said here: their link does not work yet, or what
    /// they have loaded since is not known yet.
    #[must_use]
    pub fn behind(&self) -> BTreeSet<PeerName> {
        let there = |peer: &TopologyPeer| {
            let load = self.loads().get(&peer.name).filter(|_| self.up().contains(&peer.name));
            load.is_some_and(|load| layer_set(&load.held).is_superset(&layer_set(&peer.hold())))
        };
        let peers = self.topology().into_iter().flat_map(|t| &t.peers);
        peers.filter(|peer| !there(peer)).map(|peer| peer.name.clone()).collect()
    }

    /// Peers that sessions go around because others are much faster.
    #[must_use]
    pub fn slow(&self) -> BTreeSet<PeerName> {
        self.pace.slow()
    }

    /// (running or waiting, queued).
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.sessions.len() - self.queue.len(), self.queue.len())
    }

    /// Classes of peers that its answers need, which end with no other than they have begun with, and that the next one would take.
    #[must_use]
    pub fn needed(&mut self) -> BTreeSet<Option<NumericsClass>> {
        let on = self.sessions.values().filter(|s| s.has_begun() || s.phase == Phase::Running);
        let next = self.routes.fresh().ok().map(|way| way.arithmetic);
        on.map(|s| s.arithmetic).chain(next).collect()
    }

    /// Every session, for people.
    #[must_use]
    pub fn views(&self) -> Vec<SessionView> {
        let mut views: Vec<SessionView> = self.sessions.iter().map(|(&id, s)| s.view(id)).collect();
        if let (Some(what), Some(first)) = (&self.held_up, self.queue.front())
            && let Some(view) = views.iter_mut().find(|v| v.session == *first)
        {
            view.phase = format!("queued: {what}");
        }
        views
    }

    /// The client is gone.
    pub fn cancel(&mut self, session: SessionId, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.end(session, now_ms, out);
    }

    /// The gateway is about to end: so do its sessions.
    pub fn end_all(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.queue.clear();
        let all: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in all {
            self.fail(id, Failure::Ending, now_ms, out);
        }
    }

    /// A topology arrived; older epochs are ignored, and those of another model refused: sessions go on with the peers that they have. Sessions
    /// leave peers that are no longer in it.
    pub fn set_topology(&mut self, topology: Topology, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let obeyed = self.topology().map(|known| known.epoch);
        if obeyed.is_some_and(|known| known > topology.epoch) {
            return;
        }
        if let Err(other) = self.model.admit(&topology, obeyed) {
            return out.push(GatewayEffect::TopologyRefused(other));
        }
        if self.topology() == Some(&topology) {
            return;
        }
        let old: BTreeSet<PeerName> =
            self.topology().into_iter().flat_map(|t| &t.peers).map(|p| p.name.clone()).collect();
        for peer in topology.peers.iter().filter(|p| !old.contains(&p.name)) {
            out.push(GatewayEffect::Connect { peer: peer.name.clone(), addr: peer.addr.clone() });
        }
        let gone: Vec<PeerName> = old.into_iter().filter(|name| topology.peer(name).is_none()).collect();
        self.routes.set_topology(topology);
        self.leave_draining_soon(now_ms);
        for peer in gone {
            // While there still is a link: it can be told to free what it holds.
            self.leave(&peer, Disturbance::PeerLost, now_ms, out);
            self.routes.peer_lost(&peer);
            self.pace.forget(&peer);
            out.push(GatewayEffect::Disconnect { peer });
        }
        self.retry_waiting(now_ms, out);
    }

    /// The link to a peer works. It is on routes from its first pong on.
    pub fn peer_up(&mut self, peer: PeerName) {
        self.routes.peer_up(peer);
    }

    /// The link to a peer is broken or silent: sessions on it go on elsewhere.
    pub fn peer_lost(&mut self, peer: &PeerName, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.routes.peer_lost(peer);
        self.leave(peer, Disturbance::PeerLost, now_ms, out);
    }

    /// A ping came back after so many microseconds.
    pub fn round_trip(&mut self, peer: &PeerName, micros: u64, now_ms: u64) {
        self.pace.round_trip(peer, micros, now_ms);
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
            Frame::Open(_)
            | Frame::Rows { .. }
            | Frame::Room { .. }
            | Frame::Close { .. }
            | Frame::Ping { .. } => {}
        }
    }

    /// Rule: a token is emitted when it is the next one, whatever the attempt it comes from: its bits do not depend on that, as long as all
    /// since then are of one arithmetic. One that skips a position shows that a token was lost on the way; the session is resumed where its
    /// gateway stands.
    #[expect(clippy::too_many_arguments, reason = "the fields of a frame")]
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
        let is_ours = (s.arithmetic_since..=s.attempt).contains(&attempt);
        if s.phase != Phase::Running || !is_ours || (position as usize) < s.tokens.len() {
            return;
        }
        if position as usize > s.tokens.len() {
            self.resume(id, Disturbance::Stalled, now_ms, out);
            return;
        }
        Arc::make_mut(&mut s.tokens).push(token);
        if attempt == s.attempt {
            s.filled = true;
        }
        s.progress_ms = now_ms;
        (s.fruitless, s.silent, s.waits, s.gave_ms) = (0, 0, 0, None);
        if let Some(disturbed) = s.disturbed.take() {
            let recovery = Recovery {
                reason: disturbed.reason,
                answered: position.saturating_sub(s.prompt_len),
                stall_ms: now_ms.saturating_sub(disturbed.since_ms),
                replayed_rows: disturbed.rows,
            };
            out.push(GatewayEffect::Recovered { session: id, recovery });
        }
        out.push(GatewayEffect::Emit { session: id, position, token, logprob, top });
        if let Some(reason) = finish {
            out.push(GatewayEffect::Finished { session: id, reason });
            self.end(id, now_ms, out);
        }
    }

    /// Rule: what a peer holds of a session that is not ours any more is freed. Growth of what it holds of one is progress; so is its
    /// place in the line of an engine that works.
    fn pong(
        &mut self,
        peer: &PeerName,
        load: Load,
        held: &[HeldSession],
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        let works = self.loads().get(peer).is_none_or(|before| before.layer_rows != load.layer_rows);
        for h in held {
            match self.sessions.get_mut(&h.session) {
                None => {
                    let frame = Frame::Close { session: h.session, attempt: Attempt::MAX };
                    out.push(GatewayEffect::Send { peer: peer.clone(), frame });
                }
                Some(s) if s.attempt == h.attempt => {
                    if s.report(peer, h.layers, h.have) || (h.waiting > 0 && works) {
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
        if !self.up().contains(peer) {
            return;
        }
        let before = self.routes.set_load(peer, load);
        let after = &self.routes.loads()[peer];
        let changed = before.as_ref().is_none_or(|b| {
            b.held != after.held || b.draining != after.draining || b.spare_pages < after.spare_pages
        });
        if changed {
            self.leave_draining_soon(now_ms);
            self.retry_waiting(now_ms, out);
            self.start_queued(now_ms, out);
        }
    }

    /// Time passes: deadlines, sessions that stand still, waits that are over.
    pub fn tick(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let gap_ms = now_ms.saturating_sub(self.ticked_ms.replace(now_ms).unwrap_or(now_ms));
        if gap_ms >= ASLEEP_MS {
            for s in self.sessions.values_mut() {
                s.progress_ms = (s.progress_ms + gap_ms).min(now_ms);
            }
        }
        let overdue: Vec<(SessionId, String)> = self
            .sessions
            .iter()
            .filter(|(_, s)| now_ms >= s.deadline_ms)
            .map(|(&id, s)| (id, s.view(id).phase))
            .collect();
        for (id, waiting_for) in overdue {
            self.fail(id, Failure::Deadline { waiting_for }, now_ms, out);
        }
        self.wake(now_ms, out);
        self.leave_draining(now_ms, out);
        if now_ms.saturating_sub(self.looked_ms) >= LOOK_MS {
            self.looked_ms = now_ms;
            self.look(now_ms, out);
        }
        self.start_queued(now_ms, out);
    }

    /// Compares peers; sessions leave those that are slow.
    fn look(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let Some(topology) = self.routes.topology() else { return };
        self.pace.look(topology, self.routes.loads(), self.routes.up(), now_ms);
        self.routes.set_slow(self.pace.slow());
        self.leave_slow(now_ms, out);
        // Every other time: what moved is in the next pong.
        self.shares = !self.shares;
        if self.shares {
            self.share_lines(now_ms, out);
        }
    }

    /// Sessions that run on `peer`, oldest first.
    pub(super) fn running_on(&self, peer: &PeerName) -> Vec<SessionId> {
        let mut all: Vec<(u64, SessionId)> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.phase == Phase::Running && s.route.iter().any(|hop| hop.peer == *peer))
            .map(|(&id, s)| (s.born_ms, id))
            .collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }

    /// Peers that are about to go.
    pub(super) fn draining(&self) -> BTreeSet<PeerName> {
        let peers = self.topology().into_iter().flat_map(|t| &t.peers);
        peers
            .filter(|p| {
                p.state == PeerState::Draining || self.loads().get(&p.name).is_some_and(|load| load.draining)
            })
            .map(|p| p.name.clone())
            .collect()
    }

    pub(super) fn fail(&mut self, id: SessionId, error: Failure, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        out.push(GatewayEffect::Failed { session: id, error });
        self.end(id, now_ms, out);
    }

    /// Frees everything of a session on the stages.
    pub(super) fn close(&self, id: SessionId, out: &mut Vec<GatewayEffect>) {
        let Some(s) = self.sessions.get(&id) else { return };
        let peers: BTreeSet<&PeerName> = s.route.iter().map(|h| &h.peer).collect();
        for peer in peers.into_iter().filter(|peer| self.routes.up().contains(*peer)) {
            let frame = Frame::Close { session: id, attempt: s.attempt };
            out.push(GatewayEffect::Send { peer: peer.clone(), frame });
        }
    }

    /// Frees everything of a session here and on the stages, and lets the next one start.
    fn end(&mut self, id: SessionId, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        self.close(id, out);
        self.sessions.remove(&id);
        self.queue.retain(|queued| *queued != id);
        self.start_queued(now_ms, out);
    }
}
