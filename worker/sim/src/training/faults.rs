//! What goes wrong.

use dunlin_planner::PeerName;
use dunlin_protocol::training::{ConductorEvent, Phase, StageId, Step};

use super::peer::PeerShell;
use super::scenario::{Kinds, Loss};
use super::world::{Event, World};

/// Whoever hangs is killed after this long, by whoever watches processes.
const PROBE_MS: u64 = 15_000;
/// From a notice to the end, where it is long enough to go in peace.
const NOTICE_MS: u64 = 20_000;
/// The conductor's shell takes a stream for broken after this long without a sign of life.
const SILENCE_MS: u64 = 2_000;

impl World {
    pub(super) fn fault(&mut self, kind: &'static str) {
        self.say(|| format!("fault: {kind}"));
        *self.out.faults.entry(kind).or_insert(0) += 1;
        self.last_fault = self.now;
    }

    pub(super) fn next_fault(&mut self) {
        self.faults_left = self.faults_left.saturating_sub(1);
        if self.faults_left > 0 {
            // Some at once, for what two of them do to each other.
            let after = if self.draw(3) == 0 { self.draw(60) } else { self.draw(1200) };
            self.at(after, Event::Fault);
        }
        if self.finished_at.is_some() || self.suspending {
            return;
        }
        let kind = match self.scenario.kinds {
            Kinds::All => self.draw(14),
            Kinds::Notice => 8 + self.draw(2),
        };
        let healthy: Vec<PeerName> = self.healthy().into_iter().collect();
        let one = self.draw(healthy.len() as u64) as usize;
        let Some(one) = healthy.get(one).cloned() else { return };
        match kind {
            0 => {
                self.fault("peer killed");
                self.kill_peer(&one, true);
            }
            1 => {
                self.fault("two of a stage killed");
                let stage = self.peers.get(&one).and_then(|p| p.node.position().0);
                let two: Vec<PeerName> = healthy
                    .iter()
                    .filter(|n| self.peers.get(*n).is_some_and(|p| p.node.position().0 == stage))
                    .take(2)
                    .cloned()
                    .collect();
                for name in two {
                    self.kill_peer(&name, true);
                }
            }
            2 => {
                let names: Vec<PeerName> = self.trainers.keys().cloned().collect();
                let which = self.draw(names.len() as u64) as usize;
                if let Some(name) = names.get(which) {
                    self.fault("trainer killed");
                    self.kill_trainer(name);
                }
            }
            3 if self.conductor.is_some() => {
                self.fault("conductor killed");
                self.kill_conductor();
            }
            4 | 5 => {
                let streams: Vec<u64> = self.streams.keys().copied().collect();
                let which = self.draw(streams.len() as u64) as usize;
                if let Some(stream) = streams.get(which) {
                    self.fault("stream broken");
                    self.unforeseen = true;
                    self.break_stream(*stream, false);
                }
            }
            6 => {
                self.fault("engine hangs");
                self.unforeseen = true;
                if let Some(peer) = self.peers.get_mut(&one) {
                    peer.deaf = true;
                }
                self.at(PROBE_MS, Event::Kill(one));
                self.replace();
            }
            7 => {
                self.fault("process hangs");
                self.unforeseen = true;
                if let Some(peer) = self.peers.get_mut(&one) {
                    peer.silent = true;
                    if let Some(stream) = peer.stream {
                        self.at(SILENCE_MS, Event::ConductorLearns { stream, name: one.clone() });
                    }
                }
                self.at(PROBE_MS, Event::Kill(one));
                self.replace();
            }
            8 => {
                self.fault("notice");
                let stage = self.peers.get(&one).and_then(|p| p.node.position().0);
                let stays = |s: StageId| {
                    self.peers.iter().any(|(n, p)| {
                        *n != one && !p.leaving && p.node.serving() && p.node.position().0 == Some(s)
                    })
                };
                if stage.is_some_and(|s| !stays(s)) {
                    self.unforeseen = true;
                }
                let after =
                    if self.scenario.kinds == Kinds::Notice { NOTICE_MS } else { 300 + self.draw(8000) };
                self.peer_leaves(&one, after);
                self.at(after, Event::Kill(one));
                self.replace();
            }
            9 => {
                self.fault("newcomer");
                self.at(1, Event::Join);
            }
            10 if self.conductor.as_ref().is_some_and(|c| *c.phase() == Phase::Running) => {
                self.fault("suspended");
                self.suspending = true;
                self.conduct(ConductorEvent::Suspend);
            }
            11 | 12 if self.kill_at.is_none() => {
                let (left, receiver) = (self.draw(60), self.draw(2) == 0);
                self.kill_at = Some((left, receiver));
            }
            13 => {
                self.fault("disk full");
                if let Some(peer) = self.peers.get_mut(&one) {
                    peer.broken_disk = true;
                }
            }
            _ => {}
        }
    }

    /// A checkpoint is complete. It may not stay what it is.
    pub(super) fn damage(&mut self, step: Step) {
        self.damaged.remove(&step);
        let older = self.sealed.range(..step).any(|(s, _)| !self.damaged.contains(s));
        if self.scenario.damages && older && self.draw(2) == 0 {
            self.fault("checkpoint damaged");
            self.damaged.insert(step);
        }
    }

    /// Peers of one stage go, or learn that they will.
    pub(super) fn lose(&mut self, loss: Loss) {
        let serves = |p: &PeerShell| p.node.serving() && p.node.position().0 == Some(loss.stage);
        let gone: Vec<PeerName> = self
            .peers
            .iter()
            .filter(|(_, p)| p.healthy() && !p.leaving && serves(p))
            .take(loss.peers)
            .map(|(n, _)| n.clone())
            .collect();
        for name in gone {
            if loss.notice_ms > 0 {
                self.peer_leaves(&name, loss.notice_ms);
                self.at(loss.notice_ms, Event::Kill(name));
            } else {
                self.kill_peer(&name, loss.replaced);
            }
        }
        self.last_fault = self.now;
    }

    /// Somebody new comes, mostly; always when there are too few.
    pub(super) fn replace(&mut self) {
        let enough = self.healthy().iter().filter(|n| self.peers.get(*n).is_some_and(|p| !p.leaving)).count()
            >= self.scenario.shape.stages as usize;
        if !enough || self.draw(4) > 0 {
            let after = 100 + self.draw(3000);
            self.at(after, Event::Join);
        }
        self.last_fault = self.now;
    }
}
