//! What must hold.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::frame::HeldSession;
use dunlin_protocol::gateway::Failure;
use dunlin_protocol::{Frame, GatewayId, SessionId, StageEffect};
use dunlin_swarm::{NumericsClass, PeerName};

use super::model::{With, expected};
use super::world::{Asked, World};

impl World {
    /// All sessions of living gateways are done, all are asked, and leases have had time to end.
    pub fn finished(&self) -> bool {
        let asked = self.asked.len() as u32 == self.scenario.sessions;
        let done = self.asked.values().all(|a| a.done || !self.gateways[&a.gateway].alive);
        let clean = self.peers.values().all(|p| !p.alive || p.is_clean());
        let all_faults = self.out.faults as usize >= self.scenario.plan.len();
        asked && done && clean && all_faults && self.now() > self.last_fault + 100
    }

    /// All hops of a route compute with the same arithmetic, and are of the model of the gateway that opens a session on them.
    pub fn check_open(&mut self, gateway: u64, frame: &Frame) {
        let Frame::Open(open) = frame else { return };
        let own = &self.gateways[&gateway].model.source;
        let hops = open.route.iter().filter_map(|hop| self.peers.get(&hop.peer));
        if let Some(other) = hops.map(|peer| &peer.model.source).find(|source| *source != own) {
            let (session, route) = (open.session, &open.route);
            self.out
                .violations
                .push(format!("session {session} of {own} is on peers of another model, {other}: {route:?}"));
        }
        let classes: BTreeSet<NumericsClass> =
            open.route.iter().filter_map(|hop| Some(self.peers.get(&hop.peer)?.arithmetic)).collect();
        if classes.len() > 1 {
            let (session, route) = (open.session, &open.route);
            self.out
                .violations
                .push(format!("session {session} is on peers of different arithmetic: {route:?}"));
        }
    }

    /// Whoever loses its place on a peer that has no pages for it is told so: now, or before in the same attempt. `held` is what the peer held.
    pub fn check_told(
        &mut self,
        name: &PeerName,
        held: &BTreeMap<GatewayId, Vec<HeldSession>>,
        effects: &[StageEffect],
    ) {
        for effect in effects {
            let StageEffect::Free { session, .. } = effect else { continue };
            let is_told = effects.iter().any(|effect| {
                matches!(effect, StageEffect::Send { frame: Frame::Refused { session: told, .. }, .. } if told == session)
            });
            let attempt =
                held.values().flatten().find(|held| held.session == *session).map(|held| held.attempt);
            let was_told =
                attempt.is_some_and(|attempt| self.refused.contains(&(name.clone(), *session, attempt)));
            if !is_told && !was_told {
                self.out.violations.push(format!("{name} sends session {session} away and tells nobody"));
            }
        }
    }

    pub fn judge(&mut self) {
        let classes: BTreeSet<NumericsClass> = self.peers.values().map(|peer| peer.arithmetic).collect();
        for (session, asked) in &self.asked {
            match self.judge_answer(*session, asked, &classes) {
                Ok(failed) => self.out.failed += u32::from(failed),
                Err(what) => self.out.violations.push(format!("session {session} {what}")),
            }
        }
        if self.asked.len() as u32 != self.scenario.sessions {
            self.out.violations.push("not every session was taken".to_owned());
        }
        for (name, peer) in self.peers.iter().filter(|(_, p)| p.alive) {
            if !peer.is_clean() {
                let (pages, sessions) = (peer.engine.pages(), peer.node.session_count());
                let used = pages.total() - pages.free();
                self.out.violations.push(format!("{name} keeps {used} pages of {sessions} sessions"));
            }
        }
        for ((_, layer), times) in &self.computed {
            let again = times.iter().map(|n| u64::from(n.saturating_sub(1))).sum::<u64>();
            *self.out.again.entry(*layer).or_default() += again;
        }
        if self.out.in_flight_max > 5000 {
            self.out.violations.push(format!("{} events at once", self.out.in_flight_max));
        }
    }

    /// Did a session get what it must? True if that was a failure.
    fn judge_answer(
        &self,
        session: SessionId,
        asked: &Asked,
        classes: &BTreeSet<NumericsClass>,
    ) -> Result<bool, String> {
        let (len, seed) = (asked.max_len as usize, session.0 - 1);
        let gateway = &self.gateways[&asked.gateway];
        let wanted = |&arithmetic: &NumericsClass| {
            let with = With {
                model: &gateway.model.source,
                adapter: asked.adapter.as_deref(),
                arithmetic,
                overflows: self.scenario.overflows,
                slides: self.scenario.slides,
            };
            (arithmetic, expected(&asked.prompt, len, seed, with))
        };
        // An answer is of one arithmetic, and of the model of its gateway, from its first token to its last.
        let begins = |(_, (want, _)): &(NumericsClass, (Vec<u32>, bool))| {
            asked.got == want[..asked.got.len().min(want.len())]
        };
        let found = classes.iter().map(wanted).find(begins);
        let (arithmetic, (want, fails)) = found.ok_or("got other tokens")?;
        if asked.cancelled || (!asked.done && !gateway.alive) {
            return Ok(false);
        }
        if !asked.done {
            let (have, all) = (asked.got.len(), want.len());
            let view = gateway.core.views().into_iter().find(|v| v.session == session);
            let phase = view.map_or_else(String::new, |v| format!("{} ({:?})", v.phase, v.route));
            return Err(format!("is stuck at {have} of {all} tokens: {phase}"));
        }
        match &asked.failed {
            Some(Failure::OtherArithmetic { .. }) if self.excused.contains(&arithmetic) => Ok(true),
            // Whether it may is judged by whoever changed the model.
            Some(Failure::OtherModel(_)) if self.hosted => Ok(true),
            // A stage that fails at the row of a token may tell so before the last stage has told the token: they are two links.
            Some(Failure::NonFinite { .. }) if fails && asked.got.len() + 1 >= want.len() => Ok(true),
            _ if asked.got != want => {
                let (have, all) = (asked.got.len(), want.len());
                Err(format!("ended early, with {have} of {all} tokens: {:?}", asked.failed))
            }
            Some(error) => Err(format!("failed: {error:?}")),
            None if fails => Err("did not fail where its rows overflow".to_owned()),
            None => Ok(false),
        }
    }
}
