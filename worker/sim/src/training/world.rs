//! What happens in order, and what must hold.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::training::conductor::{Committed, Moved};
use dunlin_protocol::training::{Conductor, ConductorEvent, Phase, StageId, Step};
use dunlin_swarm::PeerName;

use super::events::Event;
use super::numbers::{State, Truth, sequential};
use super::peer_shell::PeerShell;
use super::scenario::{Kinds, Outcome, Scenario, Struck};
use super::trainer_shell::TrainerShell;
use crate::calendar::Calendar;
use crate::serving::model::mix;

/// Everything is finished this long after the last fault, or something is stuck.
const LIVENESS_MS: u64 = 240_000;
/// What is still on its way after the end has arrived by then.
const DRAIN_MS: u64 = 5_000;
const TICK_MS: u64 = 200;
/// Deliveries in a second of virtual time; a storm has more.
const DELIVERIES_PER_SECOND: u64 = 3000;

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) calendar: Calendar<Event>,
    draws: u64,
    pub(super) conductor: Option<Conductor>,
    /// Lives of the conductor.
    pub(super) life: u64,
    /// This life has begun to make steps.
    pub(super) begun: bool,
    pub(super) peers: BTreeMap<PeerName, PeerShell>,
    pub(super) trainers: BTreeMap<PeerName, TrainerShell>,
    /// Streams that work, and the arrival of the last message up and down.
    pub(super) streams: BTreeMap<u64, (u64, u64)>,
    /// The stream that the conductor has of each process.
    pub(super) accepted: BTreeMap<PeerName, u64>,
    /// Streams that began since ever; requests and fetches count here too.
    pub(super) counter: u64,
    /// Files of checkpoints by their record.
    pub(super) files: BTreeMap<String, (Step, StageId, State)>,
    pub(super) sealed: BTreeMap<Step, Vec<State>>,
    /// Those that this life of the conductor has told to write or check a checkpoint.
    pub(super) savers: BTreeMap<Step, BTreeSet<PeerName>>,
    /// The newest that this life of the conductor found, has completed or is completing.
    pub(super) promised: Option<Step>,
    /// The newest that it found or has completed.
    pub(super) completed: Option<Step>,
    /// Those of which some file is no longer what it was.
    pub(super) damaged: BTreeSet<Step>,
    pub(super) truth: Vec<Truth>,
    /// Peers that have started, and trainers.
    pub(super) born: u32,
    pub(super) made: u32,
    pub(super) faults_left: u32,
    pub(super) last_fault: u64,
    /// Conductor's step, the largest since all went back last.
    pub(super) reached: Step,
    /// Somebody left with no time or no mate, or was lost: work may be done again.
    pub(super) unforeseen: bool,
    pub(super) suspending: bool,
    /// Somebody computes or says what is wrong, or has done so.
    pub(super) wrong: bool,
    /// Armed: what the so manieth delivery is followed by.
    pub(super) kill_at: Option<(u64, Struck)>,
    pub(super) finished_at: Option<u64>,
    pub(super) out: Outcome,
}

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario.clone());
    while let Some(event) = world.calendar.pop() {
        let over = match &world.scenario.script {
            Some(script) => world.now() > script.end_ms,
            None => {
                world.finished_at.is_some_and(|at| world.now() > at + DRAIN_MS)
                    || world.now() > world.last_fault + LIVENESS_MS
            }
        };
        if over || !world.out.violations.is_empty() {
            break;
        }
        world.handle(event);
    }
    world.judge();
    world.out
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut world = Self {
            calendar: Calendar::default(),
            draws: 0,
            conductor: None,
            life: 0,
            begun: false,
            peers: BTreeMap::new(),
            trainers: BTreeMap::new(),
            streams: BTreeMap::new(),
            accepted: BTreeMap::new(),
            counter: 0,
            files: BTreeMap::new(),
            sealed: BTreeMap::new(),
            savers: BTreeMap::new(),
            promised: None,
            completed: None,
            damaged: BTreeSet::new(),
            truth: sequential(&scenario.shape, scenario.steps),
            born: 0,
            made: 0,
            faults_left: scenario.faults,
            last_fault: 0,
            reached: 0,
            unforeseen: false,
            suspending: false,
            wrong: false,
            kill_at: scenario.kill_at,
            finished_at: None,
            out: Outcome::default(),
            scenario,
        };
        world.at(0, Event::StartConductor);
        for life in world.scenario.script.iter().flat_map(|s| s.lives.clone()).collect::<Vec<_>>() {
            world.at(life.0, Event::Join);
        }
        for _ in 0..world.scenario.peers {
            let after = world.draw(600);
            world.at(after, Event::Join);
        }
        for _ in 0..world.scenario.trainers {
            let after = world.draw(600);
            world.at(after, Event::JoinTrainer);
        }
        world.at(1, Event::Tick);
        for loss in world.scenario.losses.clone() {
            world.at(loss.at_ms, Event::Loss(loss));
        }
        if world.faults_left > 0 {
            // Most faults hit when steps are made, some the beginning.
            let after = 2500 + world.draw(2500);
            world.at(after, Event::Fault);
        }
        world
    }

    pub(super) fn draw(&mut self, below: u64) -> u64 {
        self.draws += 1;
        mix(self.scenario.seed, self.draws.wrapping_mul(0x1234_5678_9abc_def1)) % below.max(1)
    }

    pub(super) fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(super) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.scenario.trace {
            let line = format!("{:>7} ms  {}", self.now(), text());
            self.out.trace.push(line);
        }
    }

    pub(super) fn violation(&mut self, text: String) {
        self.say(|| format!("VIOLATION {text}"));
        self.out.violations.push(text);
    }

    pub(super) fn now(&self) -> u64 {
        self.calendar.now()
    }

    pub(super) fn at(&mut self, after_ms: u64, event: Event) {
        self.calendar.at(after_ms, event);
    }

    /// One way over the network.
    pub(super) fn latency(&mut self) -> u64 {
        if let Some(exactly) = self.scenario.script.as_ref().and_then(|s| s.one_way_ms) {
            return exactly;
        }
        let usual = self.scenario.latency_ms;
        1 + self.draw(usual) + if self.draw(20) == 0 { self.draw(6 * usual) } else { 0 }
    }

    /// How long it takes somebody to learn that a stream is gone.
    pub(super) fn notice(&mut self) -> u64 {
        if self.draw(3) == 0 { 1 + self.draw(1500) } else { 1 + self.draw(50) }
    }

    /// Counts a delivery; true when somebody is killed instead.
    fn strikes(&mut self, from: Option<&PeerName>, to: Option<&PeerName>) -> bool {
        self.out.deliveries += 1;
        let Some((left, struck)) = self.kill_at else { return false };
        if left > 0 {
            self.kill_at = Some((left - 1, struck));
            return false;
        }
        self.kill_at = None;
        self.fault("at a message");
        let one = match struck {
            Struck::Receiver => to,
            Struck::Sender => from,
            Struck::AllPeers => {
                self.kill_all();
                // What others say to each other arrives.
                return [from, to].into_iter().flatten().any(|name| !self.trainers.contains_key(name));
            }
        };
        match one {
            None => self.kill_conductor(),
            Some(name) if self.trainers.contains_key(name) => self.kill_trainer(&name.clone()),
            Some(name) => self.kill_peer(&name.clone(), true),
        }
        true
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each kind of event")]
    fn handle(&mut self, event: Event) {
        match event {
            Event::Up { stream, from, message } => {
                if !self.streams.contains_key(&stream) {
                    self.out.lost += 1;
                } else if !self.strikes(Some(&from), None) {
                    self.arrives_up(stream, &from, message);
                }
            }
            Event::Down { stream, to, message } => {
                if !self.streams.contains_key(&stream) {
                    self.out.lost += 1;
                } else if !self.strikes(None, Some(&to)) {
                    self.arrives_down(stream, &to, message);
                }
            }
            Event::ClientLearns { stream, name, expelled } => self.client_learns(stream, &name, expelled),
            Event::ConductorLearns { stream, name } => {
                if self.accepted.get(&name) == Some(&stream) {
                    self.accepted.remove(&name);
                    self.conduct(ConductorEvent::Gone(name));
                }
            }
            Event::Connect(name) => self.connect(&name),
            Event::Call { peer, asked } => {
                if !self.strikes(Some(&asked.trainer.clone()), Some(&peer)) {
                    self.call_arrives(&peer, asked);
                }
            }
            Event::HangUp { peer, trainer, id } => self.hang_up(&peer, &trainer, id),
            Event::Answer { from, trainer, id, answer } => {
                if !self.strikes(Some(&from), Some(&trainer)) {
                    self.answer_arrives(&trainer, id, answer);
                }
            }
            Event::Engine { peer } => self.engine_done(&peer),
            Event::Pull { to, by, ask, stage, wanted } => self.pull_arrives(&to, by, ask, stage, wanted),
            Event::Given { to, ask, given } => self.arrives_given(&to, ask, given),
            Event::PullEnded { to, ask, why } => self.pull_ended(&to, ask, why),
            Event::Reduce { peer, id, event } => self.reduce(&peer, id, event),
            Event::Wake(peer) => self.wake(&peer),
            Event::Fetch { peer, event } => self.fetch_event(&peer, event),
            Event::Loaded { peer, fetch, load } => self.loaded(&peer, fetch, &load),
            Event::Written { peer, step, stage, state, works } => {
                self.written(&peer, step, stage, state, works);
            }
            Event::Sealed { life, step, records } => self.seal(life, step, &records),
            Event::Inspected { life } => self.inspected(life),
            Event::Prepared { life } => self.prepared(life),
            Event::Confirmed { life, step } => self.confirmed(life, step),
            Event::StartConductor => self.start_conductor(),
            Event::Tick => {
                self.at(TICK_MS, Event::Tick);
                self.look_for_empty_stages();
                if self.conductor.is_some() {
                    self.conduct(ConductorEvent::Tick);
                }
                let names: Vec<PeerName> = self.trainers.keys().cloned().collect();
                for name in names {
                    self.trainer_tick(&name);
                }
            }
            Event::Fault => self.next_fault(),
            Event::Loss(loss) => self.lose(loss),
            Event::Notice(name) => {
                let notice_ms = self.scenario.script.as_ref().map_or(0, |s| s.notice_ms);
                self.peer_leaves(&name, notice_ms);
            }
            Event::Kill(name) => {
                let works = self.peers.get(&name).is_some_and(|p| !p.retired);
                if self.scenario.kinds == Kinds::Notice && !self.unforeseen && works {
                    self.violation(format!("{name} had notice, and was still there at its end"));
                }
                self.kill_peer(&name, false);
            }
            Event::Join => self.join(),
            Event::JoinTrainer => self.join_trainer(),
        }
    }

    /// The conductor says that a step is complete.
    pub(super) fn committed(&mut self, committed: &Committed) {
        self.out.commits += 1;
        self.out.decided_ms.push(self.now());
        if let Some(conductor) = &self.conductor {
            self.out.members = conductor.members();
        }
        self.out.redone += committed.redone;
        self.say(|| format!("step {} is complete: {committed:?}", committed.step));
        let Some(truth) = self.truth.get(committed.step as usize) else { return };
        let wrong = committed.loss != truth.loss
            || committed.norm != truth.norm
            || committed.validation.is_some_and(|v| v != truth.validation);
        if wrong {
            let text = format!("step {}: {committed:?} instead of {truth:?}", committed.step);
            self.violation(text);
        }
    }

    fn look_for_empty_stages(&mut self) {
        let empty = self.conductor.as_ref().is_some_and(|c| c.members().iter().any(Vec::is_empty));
        if empty && self.out.commits > 0 {
            self.out.downtime_ms += TICK_MS;
        }
    }

    /// A peer is sent to another stage.
    pub(super) fn moved(&mut self, moved: Moved) {
        self.say(|| format!("moves: {moved:?}"));
        self.out.moves += 1;
        if let Some(conductor) = self.conductor.as_ref().filter(|c| *c.phase() == Phase::Running)
            && conductor.members()[moved.from as usize].is_empty()
        {
            self.violation(format!("nobody is left where it was: {moved:?}"));
        }
        let brings = self.peers.get(&moved.peer).is_some_and(|p| p.has_sums_of(moved.step));
        self.out.handed_over += u32::from(brings);
    }

    /// After everything that the conductor did: its step never goes back but for a loss.
    pub(super) fn watch(&mut self) {
        let Some(conductor) = &self.conductor else { return };
        if let Phase::Failed(why) = conductor.phase() {
            let why = format!("the conductor gives up: {why}");
            self.violation(why);
            return;
        }
        let (step, phase) = (conductor.step(), conductor.phase().clone());
        if matches!(phase, Phase::Running | Phase::Finishing) {
            // A life that begins may not have heard of the last update, and makes it again.
            let least = if self.begun { self.reached } else { self.reached.saturating_sub(1) };
            if step < least {
                self.violation(format!("the conductor goes from step {least} to {step}"));
            }
            self.begun = true;
            self.reached = step;
        }
        match phase {
            Phase::Finished if self.finished_at.is_none() => {
                self.say(|| "finished".to_owned());
                self.finished_at = Some(self.now());
                if step != self.scenario.steps {
                    self.violation(format!("finished at step {step}"));
                }
                let truth = self.truth[self.scenario.steps as usize].states.clone();
                if self.sealed.get(&self.scenario.steps) != Some(&truth) {
                    self.violation("the last checkpoint is not the last state".to_owned());
                }
            }
            Phase::Suspended if self.suspending => self.resume(),
            _ => {}
        }
    }

    /// Somebody is told to load: that must be there, and be the newest that this conductor has completed or is completing, unless that is damaged.
    pub(super) fn loads(&mut self, step: Step, checkpoint: bool) {
        let there = if checkpoint { self.sealed.contains_key(&step) } else { step == 0 };
        let newest = self.promised.filter(|newest| !self.damaged.contains(newest));
        let right = newest.is_none_or(|newest| checkpoint && step >= newest);
        if !there || !right {
            self.violation(format!(
                "load step {step}, checkpoint {checkpoint}, and the newest is {newest:?}"
            ));
        }
    }

    /// All are told to load a checkpoint: has a stage really nobody left?
    pub(super) fn goes_back(&mut self, to: Step) {
        if to >= self.reached {
            return;
        }
        self.out.went_back += 1;
        let reached = self.reached;
        let holds = |stage: StageId| {
            let current = |p: &PeerShell| {
                let at = p.driver.position().1;
                at >= reached || at + 1 == reached && p.has_averages(&self.scenario.shape, at)
            };
            self.peers.values().any(|p| {
                p.healthy() && p.driver.serving() && p.driver.position().0 == Some(stage) && current(p)
            })
        };
        let lost = (0..self.scenario.shape.stages).any(|s| !holds(s));
        let newest = self.sealed.keys().next_back().copied().unwrap_or(0);
        self.say(|| format!("back from step {reached} to {to}"));
        if !lost && !self.wrong {
            self.violation(format!("back from step {reached} to {to}, and every stage has a peer"));
        }
        if to > newest {
            self.violation(format!("back to step {to}, which is in no checkpoint"));
        }
        self.reached = to;
    }

    fn judge(&mut self) {
        self.out.ms = self.now();
        self.out.steps = self.reached;
        self.out.settled_ms = self.finished_at.unwrap_or(self.now()).saturating_sub(self.last_fault);
        if !self.out.violations.is_empty() || self.scenario.script.is_some() {
            return;
        }
        if self.finished_at.is_none() {
            let at = self.conductor.as_ref().map(|c| (c.step(), c.phase().clone()));
            let members = self.conductor.as_ref().map(Conductor::members);
            self.violation(format!("not finished at {} ms: {at:?}, {members:?}", self.now()));
            return;
        }
        let left: Vec<String> = self
            .peers
            .iter()
            .filter(|(_, p)| p.healthy() && (p.driver.load() > 0 || !p.engine_idle()))
            .map(|(n, p)| format!("{n} has {} calls left", p.driver.load()))
            .chain(
                self.trainers
                    .iter()
                    .filter(|(_, t)| t.core.in_flight() > 0)
                    .map(|(n, t)| format!("{n} has {} microbatches left", t.core.in_flight())),
            )
            .collect();
        for text in left {
            self.violation(text);
        }
        let settled = self.finished_at.unwrap_or(self.now());
        if self.out.deliveries > DELIVERIES_PER_SECOND * (1 + settled / 1000) {
            self.violation(format!("{} deliveries in {settled} ms", self.out.deliveries));
        }
        if self.scenario.kinds == Kinds::Notice && !self.unforeseen && self.out.redone > 0 {
            self.violation(format!("{} contributions were computed again", self.out.redone));
        }
    }

    /// Names of peers that work.
    pub(super) fn healthy(&self) -> BTreeSet<PeerName> {
        self.peers.iter().filter(|(_, p)| p.healthy()).map(|(n, _)| n.clone()).collect()
    }
}
