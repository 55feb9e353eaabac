//! What must hold.

use std::collections::BTreeSet;

use dunlin_protocol::Frame;

use super::model::{With, expected};
use super::world::{LAYERS, World};

impl World {
    /// All sessions of living gateways are done, all are asked, and leases have had time to end.
    pub fn finished(&self) -> bool {
        let asked = self.asked.len() as u32 == self.scenario.sessions;
        let done = self.asked.values().all(|a| a.done || !self.gateways[&a.gateway].alive);
        let clean = self.peers.values().all(|p| !p.alive || p.is_clean());
        let all_faults = self.out.faults as usize >= self.scenario.plan.len();
        asked && done && clean && all_faults && self.now > self.last_fault + 100
    }

    /// All hops of a route compute with the same arithmetic.
    pub fn check_open(&mut self, frame: &Frame) {
        let Frame::Open(open) = frame else { return };
        let versions: BTreeSet<u32> =
            open.route.iter().filter_map(|hop| Some(self.peers.get(&hop.peer)?.arithmetic)).collect();
        if versions.len() > 1 {
            let (session, route) = (open.session, &open.route);
            self.out
                .violations
                .push(format!("session {session} is on peers of different arithmetic: {route:?}"));
        }
    }

    pub fn judge(&mut self) {
        let versions: BTreeSet<u32> = self.peers.values().map(|peer| peer.arithmetic).collect();
        for (session, asked) in &self.asked {
            let (len, seed) = (asked.max_len as usize, session.0 - 1);
            let wanted = |arithmetic: &u32| {
                let with = With { adapter: asked.adapter.as_deref(), arithmetic: *arithmetic };
                expected(&asked.prompt, LAYERS, len, seed, with)
            };
            // An answer is of one arithmetic from its first token to its last.
            let begins = |want: &Vec<u32>| asked.got == want[..asked.got.len().min(want.len())];
            let mut all: Vec<Vec<u32>> = versions.iter().map(wanted).collect();
            let want = all.swap_remove(all.iter().position(begins).unwrap_or(0));
            let orphan = !self.gateways[&asked.gateway].alive;
            if asked.got != want[..asked.got.len().min(want.len())] {
                self.out.violations.push(format!("session {session} got other tokens"));
            } else if !asked.done && !orphan {
                let (have, all) = (asked.got.len(), want.len());
                let view =
                    self.gateways[&asked.gateway].core.views().into_iter().find(|v| v.session == *session);
                let phase = view.map_or_else(String::new, |v| format!("{} ({:?})", v.phase, v.route));
                self.out
                    .violations
                    .push(format!("session {session} is stuck at {have} of {all} tokens: {phase}"));
            } else if asked.done && asked.got != want {
                self.out.violations.push(format!("session {session} ended early"));
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
}
