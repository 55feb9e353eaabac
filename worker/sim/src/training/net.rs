//! Streams to the conductor, and what the conductor wants done.
//!
//! A stream is first in, first out. When it breaks, what is on its way is lost, and each end learns of it in its own time. A client then
//! connects again; nothing of an old stream arrives after the hello of a new one.

use dunlin_planner::rebalance::RebalancePolicy;
use dunlin_protocol::training::{
    Checkpoints, Conductor, ConductorConfig, ConductorEffect, ConductorEvent, Phase, StageStart, Step, ToPeer,
};
use dunlin_swarm::PeerName;

use super::events::{Down, Event, Up};
use super::numbers::{ARITHMETIC, State};
use super::world::World;

/// Peers that are told in time serve until so long before their end.
const HAND_OVER_MS: u64 = 5_000;
/// In a script, where calls take long.
const CLAIM_LONG_MS: u64 = 120_000;

impl World {
    pub(super) fn start_conductor(&mut self) {
        // Who is left when all is done is an operator's business.
        if self.conductor.is_some() || self.finished_at.is_some() {
            return;
        }
        self.life += 1;
        self.begun = false;
        self.savers.clear();
        let (shape, script) = (self.scenario.shape, self.scenario.script.as_ref());
        let config = ConductorConfig {
            stages: shape.stages,
            microbatches: shape.microbatches,
            rows: 1,
            costs: vec![1.0; shape.stages as usize],
            steps: self.scenario.steps,
            delayed_updates: shape.delayed_updates,
            tied: shape.tied,
            clip: Some(shape.clip),
            saves: true,
            checkpoint_every: self.scenario.checkpoint_every,
            validate_every: self.scenario.validate_every,
            validation_batches: shape.validation_batches,
            gather_ms: 3000,
            claim_ms_max: if script.is_some() { CLAIM_LONG_MS } else { 3000 },
            hand_over_ms: HAND_OVER_MS,
            policy: RebalancePolicy { cooldown_ms: self.scenario.cooldown_ms, ..RebalancePolicy::default() },
            fetch_ms: script.map_or(200, |s| s.fetch_ms),
            incarnation: self.life,
            arithmetic: ARITHMETIC,
        };
        let found = self.checkpoints();
        self.say(|| format!("conductor {} starts, checkpoints: {found:?}", config.incarnation));
        self.promised = match found {
            Checkpoints::Newest(step) => Some(step),
            _ => None,
        };
        self.completed = self.promised;
        self.conductor = Some(Conductor::new(config));
        self.conduct(ConductorEvent::Checkpoints(found));
    }

    /// What a conductor finds.
    fn checkpoints(&mut self) -> Checkpoints {
        let sound: Vec<Step> =
            self.sealed.keys().filter(|step| !self.damaged.contains(step)).copied().collect();
        match sound.last() {
            Some(step) => Checkpoints::Newest(*step),
            None if self.damaged.is_empty() => Checkpoints::None,
            None => Checkpoints::AllDamaged("all of them".to_owned()),
        }
    }

    /// The conductor wanted to know what is sound.
    pub(super) fn inspected(&mut self, life: u64) {
        if life == self.life && self.conductor.is_some() {
            let found = self.checkpoints();
            self.conduct(ConductorEvent::Checkpoints(found));
        }
    }

    pub(super) fn kill_conductor(&mut self) {
        self.say(|| "the conductor is killed".to_owned());
        self.conductor = None;
        let broken: Vec<u64> = self.streams.keys().copied().collect();
        for stream in broken {
            self.break_stream(stream, false);
        }
        self.accepted.clear();
        let after = 100 + self.draw(2500);
        self.at(after, Event::StartConductor);
    }

    /// It does nothing for a while, and everybody has hung up when it goes on.
    pub(super) fn sleep_conductor(&mut self) {
        let broken: Vec<u64> = self.streams.keys().copied().collect();
        for stream in broken {
            self.break_stream(stream, false);
        }
        self.accepted.clear();
        self.begun = false;
        self.conduct(ConductorEvent::Woke);
    }

    /// Both ends learn of it in their own time.
    pub(super) fn break_stream(&mut self, stream: u64, expelled: bool) {
        if self.streams.remove(&stream).is_none() {
            return;
        }
        let clients = self
            .peers
            .iter()
            .map(|(n, p)| (n, p.stream))
            .chain(self.trainers.iter().map(|(n, t)| (n, t.stream)));
        let client = clients.filter(|(_, s)| *s == Some(stream)).map(|(n, _)| n.clone()).next();
        if let Some(name) = client {
            let after = self.notice();
            self.at(after, Event::ClientLearns { stream, name, expelled });
        }
        let accepted = self.accepted.iter().find(|(_, s)| **s == stream).map(|(n, _)| n.clone());
        if let Some(name) = accepted {
            let after = self.notice();
            self.at(after, Event::ConductorLearns { stream, name });
        }
    }

    pub(super) fn client_learns(&mut self, stream: u64, name: &PeerName, expelled: bool) {
        if let Some(peer) = self.peers.get_mut(name)
            && peer.stream == Some(stream)
            && !peer.silent
        {
            peer.stream = None;
            if peer.retired {
                return;
            }
            if expelled {
                self.say(|| format!("{name} was expelled: it begins anew"));
                self.kill_peer(name, false);
                if self.scenario.script.is_none() {
                    let after = 100 + self.draw(500);
                    self.at(after, Event::Join);
                }
                return;
            }
        } else if let Some(trainer) = self.trainers.get_mut(name)
            && trainer.stream == Some(stream)
        {
            trainer.stream = None;
            if trainer.retired {
                return;
            }
        } else {
            return;
        }
        let after = 20 + self.draw(400);
        self.at(after, Event::Connect(name.clone()));
    }

    pub(super) fn connect(&mut self, name: &PeerName) {
        let wants = self.peers.get(name).is_some_and(|p| p.stream.is_none() && !p.silent && !p.retired)
            || self.trainers.get(name).is_some_and(|t| t.stream.is_none() && !t.retired);
        if !wants {
            return;
        }
        if self.conductor.is_none() {
            let after = 100 + self.draw(200);
            self.at(after, Event::Connect(name.clone()));
            return;
        }
        let stream = self.count();
        self.streams.insert(stream, (0, 0));
        self.connected(name, stream);
    }

    /// A client speaks.
    pub(super) fn up(&mut self, name: &PeerName, stream: Option<u64>, message: Up) {
        let Some(stream) = stream else { return };
        let at = self.now() + self.latency();
        let Some((last, _)) = self.streams.get_mut(&stream) else {
            self.out.lost += 1;
            return;
        };
        *last = at.max(*last);
        let after = *last - self.now();
        self.at(after, Event::Up { stream, from: name.clone(), message });
    }

    fn down(&mut self, name: &PeerName, message: Down) {
        let Some(&stream) = self.accepted.get(name) else { return };
        let at = self.now() + self.latency();
        let Some((_, last)) = self.streams.get_mut(&stream) else {
            self.out.lost += 1;
            return;
        };
        *last = at.max(*last);
        let after = *last - self.now();
        self.at(after, Event::Down { stream, to: name.clone(), message });
    }

    pub(super) fn arrives_up(&mut self, stream: u64, from: &PeerName, message: Up) {
        self.say(|| format!("{from} -> conductor: {message:?}"));
        let event = match message {
            Up::Hello(hello) => {
                self.accepted.insert(from.clone(), stream);
                ConductorEvent::Connected(hello)
            }
            Up::Peer(report) => ConductorEvent::Peer(from.clone(), report),
            Up::Trainer(report) => ConductorEvent::Trainer(from.clone(), report),
        };
        if self.accepted.get(from) == Some(&stream) {
            self.conduct(event);
        }
    }

    /// The conductor hears, decides, and is obeyed.
    pub(super) fn conduct(&mut self, event: ConductorEvent) {
        let Some(conductor) = &mut self.conductor else { return };
        let mut effects = Vec::new();
        let before = conductor.phase().clone();
        conductor.handle(self.calendar.now(), event, &mut effects);
        let after = conductor.phase().clone();
        if before != after {
            self.say(|| format!("conductor: {before:?}, now {after:?}"));
        }
        for effect in effects {
            match effect {
                ConductorEffect::ToPeer(name, message) => {
                    if let ToPeer::Load(StageStart { step, checkpoint, .. }) = message {
                        self.loads(step, checkpoint);
                        self.goes_back(step);
                    }
                    if let ToPeer::Save { step, .. } = message {
                        self.savers.entry(step).or_default().insert(name.clone());
                    }
                    self.down(&name, Down::Peer(message));
                }
                ConductorEffect::ToTrainer(name, message) => self.down(&name, Down::Trainer(message)),
                ConductorEffect::Inspect => {
                    let after = 5 + self.draw(500);
                    self.at(after, Event::Inspected { life: self.life });
                }
                ConductorEffect::Discard { step } => self.say(|| format!("what there is of {step} goes")),
                ConductorEffect::Prepare => {
                    let after = 2 + self.draw(100);
                    self.at(after, Event::Prepared { life: self.life });
                }
                ConductorEffect::Confirm { step } => {
                    let after = 2 + self.draw(100);
                    self.at(after, Event::Confirmed { life: self.life, step });
                }
                ConductorEffect::Seal { step, records } => {
                    self.promised = self.promised.max(Some(step));
                    let after = 5 + self.draw(200);
                    self.at(after, Event::Sealed { life: self.life, step, records });
                }
                ConductorEffect::Committed(committed) => self.committed(&committed),
                ConductorEffect::Moved(moved) => self.moved(moved),
                ConductorEffect::Drop(name) => {
                    self.say(|| format!("conductor drops {name}"));
                    self.unforeseen = true;
                    let told = self.draw(4) > 0;
                    if let Some(stream) = self.accepted.remove(&name) {
                        self.break_stream(stream, told);
                    }
                }
                ConductorEffect::Note(text) => self.say(|| format!("conductor: {text}")),
            }
        }
        self.watch();
    }

    /// Does the destination of checkpoints take nothing now?
    pub(super) fn is_away(&self) -> bool {
        (self.scenario.away_ms.0..self.scenario.away_ms.1).contains(&self.now())
    }

    /// The conductor wanted to know whether the destination takes anything.
    pub(super) fn prepared(&mut self, life: u64) {
        if life == self.life {
            let error = self.is_away().then(|| "away".to_owned());
            self.conduct(ConductorEvent::Prepared(error));
        }
    }

    /// The conductor wanted to know whether the last checkpoint is there.
    pub(super) fn confirmed(&mut self, life: u64, step: Step) {
        if life == self.life {
            let there = !self.is_away() && self.sealed.contains_key(&step) && !self.damaged.contains(&step);
            let error = (!there).then(|| "it is not there".to_owned());
            self.conduct(ConductorEvent::Confirmed { step, error });
        }
    }

    /// The manifest is written, whether the conductor that wanted it lives or not.
    pub(super) fn seal(&mut self, life: u64, step: Step, records: &[String]) {
        if life != self.life && self.draw(2) == 0 {
            return;
        }
        let away = self.is_away();
        if away && self.draw(2) == 0 {
            // It is written all the same where only the answer was lost.
            self.say(|| format!("checkpoint {step} is not sealed"));
            self.not_sealed(life, step);
            return;
        }
        let states: Vec<Option<State>> = (0..)
            .zip(records)
            .map(|(stage, record)| {
                self.files.get(record).filter(|f| (f.0, f.1) == (step, stage)).map(|f| f.2)
            })
            .collect();
        let states: Option<Vec<State>> = states.into_iter().collect();
        match states {
            Some(states) if states == self.truth[step as usize].states => {
                self.sealed.insert(step, states);
            }
            _ => self.violation(format!("the checkpoint of step {step} is wrong: {records:?}")),
        }
        self.say(|| format!("checkpoint {step} is sealed"));
        self.damage(step);
        if away {
            self.not_sealed(life, step);
        } else if life == self.life && self.conductor.is_some() {
            self.completed = self.completed.max(Some(step));
            self.conduct(ConductorEvent::Sealed { step, error: None });
        }
    }

    /// The conductor is told so: it counts on the one before, whether or not this one is there.
    fn not_sealed(&mut self, life: u64, step: Step) {
        if life == self.life {
            if self.promised == Some(step) {
                self.promised = self.completed;
            }
            self.conduct(ConductorEvent::Sealed { step, error: Some("away".to_owned()) });
        }
    }

    /// The run was suspended: everybody is gone, later all begin anew from the checkpoint.
    pub(super) fn resume(&mut self) {
        self.suspending = false;
        self.say(|| "suspended".to_owned());
        if self.conductor.as_ref().is_none_or(|c| *c.phase() != Phase::Suspended) {
            return;
        }
        self.kill_conductor();
        let peers: Vec<PeerName> = self.peers.keys().cloned().collect();
        let trainers: Vec<PeerName> = self.trainers.keys().cloned().collect();
        let (many, drivers) = (peers.len().max(self.scenario.shape.stages as usize), trainers.len().max(1));
        for name in peers {
            self.kill_peer(&name, false);
        }
        for name in trainers {
            self.trainers.remove(&name);
        }
        let newest = self.sealed.keys().next_back().copied().unwrap_or(0);
        if newest < self.reached {
            self.violation(format!("suspended at step {} with checkpoint {newest}", self.reached));
        }
        for _ in 0..many {
            let after = 500 + self.draw(2000);
            self.at(after, Event::Join);
        }
        for _ in 0..drivers {
            let after = 500 + self.draw(2000);
            self.at(after, Event::JoinTrainer);
        }
        self.last_fault = self.now();
    }
}
