//! How sessions go on: attempts, waits, and what each refusal means.

use std::collections::BTreeSet;

use dunlin_swarm::{PeerName, RouteHop};

use super::core::GatewayCore;
use super::recovery::Disturbance;
use super::routes::{NoWay, WantedNumerics, Way};
use super::session::{Phase, Session, WaitsFor};
use super::shell::{Failure, GatewayEffect};
use crate::frame::{Attempt, Frame, Refusal, SessionId};

/// First wait for something that only time brings; doubles with each that ends in vain.
const BACKOFF_MS: u64 = 50;
/// And grows to this.
const BACKOFF_MS_MAX: u64 = 2000;
/// A peer that a neighbour could not reach, that lacks the session's adapter, or that gets nowhere, is avoided by that session for this long.
const AVOID_MS: u64 = 5000;
/// After this many attempts that led nowhere, and nobody knows why, nothing is taken to be where it should be.
const FRUITLESS_BEFORE_RESTART: u32 = 2;
/// A session that gave its pages back waits this long for others to be free before it stands in line for them.
const PATIENCE_MS: u64 = 5000;
/// When the swarm has another model, peers that a session has been without for this long do not come back.
const STAYS_LOST_MS: u64 = 5000;
/// When others serve with another arithmetic, those that a session has been without for this long do not come back: longer than the silence of a
/// node that was cut off, or than it takes to read layers anew. It keeps its place from others for no longer.
const OUTDATED_MS: u64 = 120_000;
/// Whoever goes at the same time as a peer that says that it goes has said so after this long, which is more than two pings.
const OTHERS_TELL_MS: u64 = 500;
/// Sessions that leave slow peers at once: the others go on slowly meanwhile.
const MOVES_MAX: usize = 4;

impl GatewayCore {
    /// Rule: what a stage lacks is computed again from where it is still known; what only time brings is tried again later, and what other
    /// stages hold is kept meanwhile.
    #[expect(clippy::too_many_arguments, reason = "the fields of a frame")]
    pub(super) fn refused(
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
            Refusal::NeedReplay { have } => {
                s.has_only(index, have);
                self.resume(id, Disturbance::NeedReplay, now_ms, out);
            }
            Refusal::NoJournal => self.lacks_journal(id, index, now_ms, out),
            Refusal::LinkDown { to } => {
                let again = s.avoid.insert(to, now_ms + AVOID_MS).is_some_and(|until_ms| now_ms < until_ms);
                if again {
                    // There is no way around it: dialling it takes the time that it takes.
                    self.wait(id, "a link between two stages", Disturbance::LinkDown, now_ms);
                } else {
                    self.resume(id, Disturbance::LinkDown, now_ms, out);
                }
            }
            Refusal::NotHolding { .. } => {
                s.has_only(index, 0);
                self.wait(id, "a stage to load its layers", Disturbance::NotHolding, now_ms);
            }
            // Others may have it already; this one is asked again when they cannot do without it.
            Refusal::NoAdapter { name } => {
                if let Some(hop) = s.route.get(index) {
                    s.avoid.insert(hop.peer.clone(), now_ms + AVOID_MS);
                }
                s.has_only(index, 0);
                self.wait(id, &format!("a stage to load adapter {name}"), Disturbance::NoAdapter, now_ms);
            }
            // Another life of its name than the one that was asked: its next pong says what it is.
            Refusal::OtherArithmetic { own } => {
                if let Some(hop) = s.route.get(index) {
                    s.avoid.insert(hop.peer.clone(), now_ms + AVOID_MS);
                }
                s.has_only(index, 0);
                let what = format!("a stage of its version of the arithmetic; one has version {own}");
                self.wait(id, &what, Disturbance::NotHolding, now_ms);
            }
            Refusal::NoPages | Refusal::TooManySessions => {
                if s.has_begun() {
                    s.gave_ms.get_or_insert(now_ms);
                    if let Some(peer) = s.route.get(index).map(|hop| hop.peer.clone()) {
                        s.forget_peer(&peer);
                    }
                } else {
                    self.let_go(id, out);
                }
                let on = WaitsFor::Pages("memory on the stages".to_owned());
                self.wait_for(id, on, Disturbance::NoPages, now_ms);
            }
            Refusal::NonFinite { layer } => self.fail(id, Failure::NonFinite { layer }, now_ms, out),
            Refusal::BadRequest { message } => self.fail(id, Failure::Refused { message }, now_ms, out),
        }
    }

    /// The rows of a hop are made again, and journaled on the way. Whoever gave them up for their memory is not broken; but there are none to lack
    /// for a hop that begins with the first.
    fn lacks_journal(&mut self, id: SessionId, index: usize, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        let gave_up = s.route.get(index).is_some_and(|hop| hop.from > 0);
        s.has_only(index, 0);
        if gave_up {
            s.disturb(Disturbance::NeedReplay, now_ms);
            self.attempt(id, now_ms, out);
        } else {
            self.resume(id, Disturbance::NeedReplay, now_ms, out);
        }
    }

    /// Sessions that stand still, and those whose wait is over.
    pub(super) fn wake(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let stall_ms = self.config.stall_ms;
        let still = |s: &Session| {
            s.phase == Phase::Running && now_ms.saturating_sub(s.progress_ms) >= s.patience_ms(stall_ms)
        };
        let due = |s: &Session| matches!(s.phase, Phase::Waiting { until_ms, .. } if now_ms >= until_ms);
        for id in self.by_age(|s| still(s) || due(s)) {
            let Some(s) = self.sessions.get_mut(&id) else { continue };
            if still(s) {
                s.silent += 1;
                self.resume(id, Disturbance::Stalled, now_ms, out);
            } else {
                s.waits += 1;
                self.attempt(id, now_ms, out);
            }
        }
    }

    /// Something has changed: whoever waits may try, the oldest first.
    pub(super) fn retry_waiting(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        for id in self.by_age(|s| matches!(s.phase, Phase::Waiting { .. })) {
            self.attempt(id, now_ms, out);
        }
    }

    /// Sessions leave a peer, the oldest first.
    pub(super) fn leave(
        &mut self,
        peer: &PeerName,
        reason: Disturbance,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        for id in self.running_on(peer) {
            self.resume(id, reason, now_ms, out);
        }
    }

    /// Something has changed that may show a way around peers that are about to go, or that one is.
    pub(super) fn leave_draining_soon(&mut self, now_ms: u64) {
        if !self.draining().is_empty() {
            self.leave_ms.get_or_insert(now_ms + OTHERS_TELL_MS);
        }
    }

    /// Rule: sessions leave peers that are about to go if no layer of theirs comes to another that is. Where all go at once, nothing is gained:
    /// sessions would compute again what they have on one after the other.
    pub(super) fn leave_draining(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        if self.leave_ms.is_none_or(|at_ms| now_ms < at_ms) {
            return;
        }
        self.leave_ms = None;
        let draining = self.draining();
        for peer in &draining {
            for id in self.running_on(peer) {
                let Ok(way) = self.way(id, now_ms) else { continue };
                let s = &self.sessions[&id];
                let is_kept = |hop: &RouteHop| {
                    s.route
                        .iter()
                        .any(|on| on.peer == hop.peer && on.layers.intersection(hop.layers) == hop.layers)
                };
                let stays = |hop: &RouteHop| !draining.contains(&hop.peer) || is_kept(hop);
                if way.hops.iter().all(|hop| hop.peer != *peer && stays(hop)) {
                    self.resume(id, Disturbance::Draining, now_ms, out);
                }
            }
        }
    }

    /// Sessions leave slow peers, a few at a time, when what they still have to say is worth computing again what they have said.
    pub(super) fn leave_slow(&mut self, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let moving = |s: &Session| s.disturbed.is_some_and(|d| d.reason == Disturbance::Slow);
        let mut room = MOVES_MAX.saturating_sub(self.sessions.values().filter(|s| moving(s)).count());
        for peer in self.pace.slow() {
            let Some(topology) = self.routes.topology() else { return };
            let (loads, up) = (self.routes.loads(), self.routes.up());
            let Some(cost) = self.pace.cost(&peer, topology, loads, up, &self.pace.slow()) else { continue };
            for id in self.running_on(&peer) {
                if room == 0 {
                    return;
                }
                let s = &self.sessions[&id];
                // A row of a replay takes no longer than a token does.
                let (left, again) = (u64::from(s.max_len) - s.tokens.len() as u64, s.tokens.len() as u64);
                if moving(s)
                    || left * cost.own_us.saturating_sub(cost.elsewhere_us) < 2 * again * cost.elsewhere_us
                {
                    continue;
                }
                if self.way(id, now_ms).is_ok_and(|way| !way.hops.iter().any(|hop| hop.peer == peer)) {
                    self.resume(id, Disturbance::Slow, now_ms, out);
                    room -= 1;
                }
            }
        }
    }

    /// Another attempt because the one on its way was disturbed.
    pub(super) fn resume(
        &mut self,
        id: SessionId,
        reason: Disturbance,
        now_ms: u64,
        out: &mut Vec<GatewayEffect>,
    ) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        s.disturb(reason, now_ms);
        if reason.is_unexplained() {
            s.fruitless += 1;
        }
        if s.fruitless > FRUITLESS_BEFORE_RESTART {
            let behind = s.behind();
            s.forget_all();
            // A peer that never makes progress may be broken without knowing it. To see that again would take this long.
            if let Some(peer) = behind {
                let again_ms = s.patience_ms(self.config.stall_ms);
                s.avoid.insert(peer, now_ms + AVOID_MS.max(2 * again_ms));
            }
        }
        self.attempt(id, now_ms, out);
    }

    /// The next attempt on the best way there is, or a wait for one. Waiting is not failing: it says nothing about what peers hold. Without a way, a
    /// session of a model or of an arithmetic that the swarm no longer has ends.
    fn attempt(&mut self, id: SessionId, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        match self.way(id, now_ms) {
            Err(no_way) => match self.is_over(id, &no_way, now_ms) {
                Some(failure) => self.fail(id, failure, now_ms, out),
                None => self.wait(id, &no_way.to_string(), Disturbance::PeerLost, now_ms),
            },
            Ok(way) => match self.lacks_pages(id, &way.hops, now_ms) {
                Some(lack) => {
                    self.let_go(id, out);
                    self.wait_for(id, WaitsFor::Pages(lack), Disturbance::NoPages, now_ms);
                }
                None => self.begin(id, way, now_ms, out),
            },
        }
    }

    /// Rule: nobody waits for pages with pages in hand, or two may wait for each other. A session that has said nothing yet has lost little;
    /// one that has begun gets pages from younger ones.
    fn let_go(&mut self, id: SessionId, out: &mut Vec<GatewayEffect>) {
        if self.sessions.get(&id).is_some_and(Session::has_begun) {
            return;
        }
        self.close(id, out);
        if let Some(s) = self.sessions.get_mut(&id) {
            s.let_go();
        }
    }

    /// Why there will not be a way for a session any more, if so: the swarm has another model, or serves with another arithmetic, and whom it lacks has
    /// been away for too long. With nothing computed, there is nothing to wait for.
    fn is_over(&mut self, id: SessionId, no_way: &NoWay, now_ms: u64) -> Option<Failure> {
        let s = self.sessions.get(&id)?;
        let stood_ms = s.disturbed.map(|disturbed| now_ms.saturating_sub(disturbed.since_ms));
        if let Some(other) = self.model.other() {
            return stood_ms.is_none_or(|ms| ms >= STAYS_LOST_MS).then(|| Failure::OtherModel(other.clone()));
        }
        let is_late = s.has_begun() && stood_ms.is_some_and(|ms| ms >= OUTDATED_MS);
        let others_serve = is_late && self.routes.fresh().is_ok();
        others_serve.then(|| Failure::OtherArithmetic { lacking: no_way.to_string() })
    }

    /// Opens the session on the hops of `way`.
    pub(super) fn begin(&mut self, id: SessionId, way: Way, now_ms: u64, out: &mut Vec<GatewayEffect>) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        let up = self.routes.up();
        let left: BTreeSet<PeerName> = s
            .route
            .iter()
            .map(|h| h.peer.clone())
            .filter(|peer| up.contains(peer) && !way.hops.iter().any(|h| h.peer == *peer))
            .collect();
        let replayed = s.begin(way, now_ms);
        if let Some(disturbed) = &mut s.disturbed {
            disturbed.rows += replayed;
        }
        let attempt = s.attempt - 1;
        let first = s.route[0].peer.clone();
        let open = Frame::Open(s.open(id, &self.config.id, self.config.started_ms));
        for peer in left {
            let frame = Frame::Close { session: id, attempt };
            out.push(GatewayEffect::Send { peer, frame });
        }
        out.push(GatewayEffect::Send { peer: first, frame: open });
    }

    fn wait(&mut self, id: SessionId, what: &str, reason: Disturbance, now_ms: u64) {
        self.wait_for(id, WaitsFor::Other(what.to_owned()), reason, now_ms);
    }

    /// Rule: a wait that goes on ends when it was to end, however often its session tries in between.
    fn wait_for(&mut self, id: SessionId, on: WaitsFor, reason: Disturbance, now_ms: u64) {
        let Some(s) = self.sessions.get_mut(&id) else { return };
        s.disturb(reason, now_ms);
        let until_ms = match s.phase {
            Phase::Waiting { until_ms, .. } if now_ms < until_ms => until_ms,
            _ => now_ms + (BACKOFF_MS << s.waits.min(16)).min(BACKOFF_MS_MAX),
        };
        s.phase = Phase::Waiting { until_ms, on };
    }

    /// The best way for a session now: it keeps what it can, and goes around peers that its hops could not reach or that lack its adapter.
    fn way(&mut self, id: SessionId, now_ms: u64) -> Result<Way, super::routes::NoWay> {
        let Some(s) = self.sessions.get_mut(&id) else { return self.routes.fresh() };
        let avoid = s.avoid.iter().filter(|(_, until_ms)| now_ms < **until_ms);
        let avoid: BTreeSet<PeerName> = avoid.map(|(name, _)| name.clone()).collect();
        // A session that has answered nothing yet may begin anew with any arithmetic.
        let is_bound = s.attempt > 0 && s.has_begun();
        let wanted = if is_bound { WantedNumerics::Same(s.arithmetic) } else { WantedNumerics::Newest };
        let keepers = s.keepers();
        self.routes.find(&keepers, &avoid, wanted)
    }

    /// What is lacking in KV pages for a session to begin on `hops`, in words for people. A peer counts the pages that sessions there may
    /// still take; those on their way to it are counted here.
    ///
    /// An answer that has begun goes on wherever it can, and younger ones make room for it there. If it was itself the one to make room, it
    /// waits until there is some, but not for ever: what it holds elsewhere may be what others wait for.
    pub(super) fn lacks_pages(&self, id: SessionId, hops: &[RouteHop], now_ms: u64) -> Option<String> {
        let s = self.sessions.get(&id)?;
        if s.has_begun() && s.gave_ms.is_none_or(|gave_ms| now_ms.saturating_sub(gave_ms) >= PATIENCE_MS) {
            return None;
        }
        let counted = s.counted();
        let is_counted = |hop: &&RouteHop| counted.contains(&(hop.peer.clone(), hop.layers));
        let peers: BTreeSet<&PeerName> = hops.iter().map(|hop| &hop.peer).collect();
        for peer in peers {
            let Some(load) = self.routes.loads().get(peer) else { continue };
            let own = hops.iter().filter(|hop| hop.peer == *peer);
            let more: u32 =
                own.clone().filter(|hop| !is_counted(hop)).map(|hop| s.pages(hop.layers, load.paging)).sum();
            // What it has there of other layers is freed when it begins.
            let left = counted
                .iter()
                .filter(|(name, layers)| name == peer && !own.clone().any(|hop| hop.layers == *layers));
            let need = more.saturating_sub(left.map(|(_, layers)| s.pages(*layers, load.paging)).sum());
            if need == 0 {
                continue;
            }
            let on_their_way: u32 = self
                .sessions
                .values()
                .flat_map(|other| other.route.iter().map(move |h| (other, h)))
                .filter(|(other, h)| h.peer == *peer && other.is_on_its_way_to(h))
                .map(|(other, h)| other.pages(h.layers, load.paging))
                .sum();
            // What others may take yet is not theirs before they do.
            let spare = if s.has_begun() { load.free_pages } else { load.spare_pages };
            let spare = spare.saturating_sub(on_their_way);
            if need > spare {
                return Some(format!("memory on {peer}: {need} pages of KV cache, it can spare {spare}"));
            }
            let older = self.sessions.iter().find(|(other, o)| {
                (o.born_ms, **other) < (s.born_ms, id)
                    && matches!(o.phase, Phase::Waiting { on: WaitsFor::Pages(_), .. })
            });
            if let Some((older, _)) = older {
                return Some(format!("memory on {peer}, behind session {older}"));
            }
        }
        None
    }

    fn by_age(&self, which: impl Fn(&Session) -> bool) -> Vec<SessionId> {
        let mut all: Vec<(u64, SessionId)> =
            self.sessions.iter().filter(|(_, s)| which(s)).map(|(&id, s)| (s.born_ms, id)).collect();
        all.sort_unstable();
        all.into_iter().map(|(_, id)| id).collect()
    }
}
