//! What goes wrong.

use dunlin_protocol::training::{
    ConductorEvent, Contribution, Held, HeldSums, Hello, Mate, PeerReport, Phase, StageId, StateDigest, Step,
    TrainingRole,
};
use dunlin_swarm::PeerName;

use super::events::Event;
use super::flaw::Flaw;
use super::numbers::ARITHMETIC;
use super::peer_shell::PeerShell;
use super::scenario::{Kinds, Loss, Struck};
use super::world::World;

/// A process that hangs is killed after this long, as a supervisor does.
const PROBE_MS: u64 = 15_000;
/// From a notice to the end, where it is long enough to go in peace.
const NOTICE_MS: u64 = 20_000;
/// The conductor's shell takes a stream for broken after this long without a sign of life.
const SILENCE_MS: u64 = 2_000;

impl World {
    pub(super) fn fault(&mut self, kind: &'static str) {
        self.say(|| format!("fault: {kind}"));
        *self.out.faults.entry(kind).or_insert(0) += 1;
        self.last_fault = self.now();
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each kind of fault")]
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
            Kinds::All => self.draw(15),
            Kinds::Notice => 8 + self.draw(2),
            Kinds::Wrong => [3, 4, 9, 14, 20, 21, 22, 23, 24, 25, 26][self.draw(11) as usize],
        };
        // A wrong update that nobody else is there to compare with nobody can find out.
        let hidden = |p: &PeerShell| {
            use Flaw::{Differs, Miscalculates, Miswrites, OtherAverage};
            matches!(p.flaw, Some(Miscalculates | Differs | OtherAverage | Miswrites))
        };
        if matches!(kind, 3 | 4 | 14) && self.peers.values().any(hidden) {
            return;
        }
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
                let stage = self.peers.get(&one).and_then(|p| p.driver.position().0);
                let two: Vec<PeerName> = healthy
                    .iter()
                    .filter(|n| self.peers.get(*n).is_some_and(|p| p.driver.position().0 == stage))
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
                let stage = self.peers.get(&one).and_then(|p| p.driver.position().0);
                let stays = |s: StageId| {
                    self.peers.iter().any(|(n, p)| {
                        *n != one && !p.leaving && p.driver.serving() && p.driver.position().0 == Some(s)
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
                let struck = match self.draw(8) {
                    0 => Struck::AllPeers,
                    1..=4 => Struck::Receiver,
                    _ => Struck::Sender,
                };
                self.kill_at = Some((self.draw(60), struck));
            }
            13 => {
                self.fault("disk full");
                if let Some(peer) = self.peers.get_mut(&one) {
                    peer.broken_disk = true;
                }
            }
            14 if self.conductor.is_some() => {
                self.fault("conductor sleeps");
                self.sleep_conductor();
            }
            20 => self.flaw(&one, "memory flips", Flaw::Flipped),
            21 => self.flaw(&one, "update comes out wrong", Flaw::Miscalculates),
            22 => self.flaw(&one, "false failure", Flaw::Refuses),
            23 => self.flaw(&one, "other averages", Flaw::OtherAverage),
            26 => self.flaw(&one, "other checkpoint", Flaw::Miswrites),
            24 => self.prophet(),
            25 => self.far_report(&one),
            _ => {}
        }
    }

    /// Something becomes wrong with a peer that has a mate: the only one of a stage nobody can compare with anything.
    fn flaw(&mut self, name: &PeerName, kind: &'static str, flaw: Flaw) {
        let serves = |p: &PeerShell| p.healthy() && p.driver.serving() && !p.leaving;
        let Some(peer) = self.peers.get(name).filter(|p| serves(p) && p.flaw.is_none()) else { return };
        let stage = peer.driver.position().0;
        let mates =
            self.peers.values().filter(|p| serves(p) && p.flaw.is_none() && p.driver.position().0 == stage);
        if flaw != Flaw::Flipped && mates.count() < 2 {
            return;
        }
        self.fault(kind);
        self.wrong = true;
        self.unforeseen = true;
        if let Some(peer) = self.peers.get_mut(name) {
            peer.flaw = Some(flaw);
            if flaw == Flaw::Flipped {
                peer.state.now.own ^= 1 << 40;
                peer.state.before.own ^= 1 << 40;
            }
        }
    }

    /// Somebody says hello who has been where nobody can have been.
    fn prophet(&mut self) {
        let stages = u64::from(self.scenario.shape.stages);
        let (stage, far) = (self.draw(stages) as StageId, self.draw(2) == 0);
        let step = if far { 1_000_000 } else { self.draw(self.scenario.steps + 1) };
        self.fault("hello from the future");
        self.wrong = true;
        let name = PeerName(format!("x{}", self.count()));
        let done = (0..100).map(|microbatch| Contribution { microbatch, loss: None }).collect();
        let held = Held {
            stage,
            step,
            sums: vec![HeldSums { done, adding: vec![7; 50] }; if far { 9 } else { 0 }],
            scale: Some(0.5),
            state: StateDigest { fingerprint: 666, root: None },
            ..Held::default()
        };
        let me = Mate { name: name.clone(), addr: "nowhere".to_owned(), host: String::new() };
        let role = TrainingRole::Peer { held: Some(held) };
        self.conduct(ConductorEvent::Connected(Hello { me, arithmetic: Some(ARITHMETIC), role }));
        let stream = self.count();
        self.accepted.insert(name.clone(), stream);
        let after = 500 + self.draw(3000);
        self.at(after, Event::ConductorLearns { stream, name });
    }

    /// A peer says that it is where nobody can be.
    fn far_report(&mut self, name: &PeerName) {
        if !self.accepted.contains_key(name) || self.is_witness(name) {
            return;
        }
        self.fault("report of a far step");
        // It may be the last of its stage.
        self.wrong = true;
        self.unforeseen = true;
        let step = 1_000_000 + self.draw(10);
        let state = StateDigest::default();
        let report = PeerReport::Applied { step, scale: 1.0, state };
        self.conduct(ConductorEvent::Peer(name.clone(), report));
    }

    /// All peers at once, as when a zone fails; others come.
    pub(super) fn kill_all(&mut self) {
        let names: Vec<PeerName> = self.peers.keys().cloned().collect();
        for name in names {
            self.kill_peer(&name, false);
            let after = 100 + self.draw(1500);
            self.at(after, Event::Join);
        }
        self.last_fault = self.now();
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
        let serves = |p: &PeerShell| p.driver.serving() && p.driver.position().0 == Some(loss.stage);
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
        self.last_fault = self.now();
    }

    /// Somebody new comes, mostly; always when there are too few.
    pub(super) fn replace(&mut self) {
        let enough = self.healthy().iter().filter(|n| self.peers.get(*n).is_some_and(|p| !p.leaving)).count()
            >= self.scenario.shape.stages as usize;
        if !enough || self.draw(4) > 0 {
            let after = 100 + self.draw(3000);
            self.at(after, Event::Join);
        }
        self.last_fault = self.now();
    }
}
