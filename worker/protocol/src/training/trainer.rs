//! A trainer: drives microbatches forward through the stages and back, over whichever peers answer.
//!
//! It keeps the inputs of every stage until the microbatch is through, so that any peer of a stage can take any call again.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::ids::{Microbatch, StageId, Step, StepAttempt};
use super::message::{Mate, ToTrainer, TrainerReport};
use super::peer::{Call, CallKind};
use super::speed::Speed;
use super::wiring::{BACKWARD_ROWS, Wiring};

/// A call of this trainer.
pub type CallId = u64;

/// A peer whose call failed gets no other for this long.
const BAN_MS: u64 = 1000;
/// Pause before calling again after a refusal that only time can fix.
const PAUSE_MS: u64 = 20;
/// The time that a call may take is doubled so often at most.
const DOUBLINGS_MAX: u32 = 6;
/// A call may take so many times as long as calls to its stage do, and so long in any case.
const LATE: f64 = 10.0;
const CALL_MS_MIN: f64 = 2_000.0;

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub enum CallOutcome {
    /// The shell has the answer. At the last stage there is a loss.
    Answered {
        /// Summed over tokens.
        loss: Option<f64>,
    },
    /// The peer does not serve that stage now, or has too much to do.
    Refused,
    /// The step is over.
    Stale,
    /// The stream broke.
    Broken,
    /// The peer says that it cannot be computed: layer and operation.
    Failed(String),
}

/// What the shell must do, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainerEffect {
    /// Call a peer. Inputs: tokens at stage 0, else the outputs of the stage before; backward calls also take the input gradient of the
    /// stage behind, or targets at the last. Then [`TrainerCore::ended`].
    Call {
        /// Number of the call, for [`TrainerCore::ended`].
        id: CallId,
        /// The peer to call.
        peer: Mate,
        /// What it is to compute, and for which microbatch.
        call: Call,
    },
    /// Nobody waits for the answer.
    Abandon {
        /// Number of the call.
        id: CallId,
    },
    /// The tensors of a microbatch are of no use any more.
    Forget {
        /// The step that the microbatch belongs to.
        step: Step,
        /// Its index within the step.
        microbatch: Microbatch,
    },
    /// Tell the conductor.
    Tell(TrainerReport),
    /// End.
    Retire,
}

/// One trainer.
pub struct TrainerCore {
    seed: u64,
    forward_ms_max: u64,
    roster: Vec<Vec<Mate>>,
    wiring: Vec<Wiring>,
    /// How often the time that a call to a stage may take was doubled.
    doubled: Vec<u32>,
    /// What a forward call to a stage takes, waiting included.
    usual: Vec<Speed>,
    flights: BTreeMap<(Step, Microbatch), Flight>,
    calls: BTreeMap<CallId, Started>,
    next_call: CallId,
}

struct Flight {
    attempt: StepAttempt,
    validation: bool,
    stage: StageId,
    backward: bool,
    call: Option<CallId>,
    /// Not before.
    again_ms: u64,
    /// Peers that have computed something for it on this way.
    way: BTreeSet<PeerName>,
    /// Peers that say that they cannot compute what is next, and what they say.
    failed: BTreeMap<PeerName, String>,
    /// Peers that are not asked as long as there are others.
    avoid: BTreeSet<PeerName>,
    /// It was driven before, and failed.
    again: bool,
}

impl Flight {
    fn new(attempt: StepAttempt, validation: bool) -> Self {
        Self {
            attempt,
            validation,
            stage: 0,
            backward: false,
            call: None,
            again_ms: 0,
            way: BTreeSet::new(),
            failed: BTreeMap::new(),
            avoid: BTreeSet::new(),
            again: false,
        }
    }
}

struct Started {
    flight: (Step, Microbatch),
    call: Call,
    peer: PeerName,
    at_ms: u64,
    /// Given up after this long.
    limit_ms: u64,
}

impl Started {
    fn rows(&self) -> f64 {
        if self.call.kind == CallKind::Backward { BACKWARD_ROWS } else { 1.0 }
    }
}

impl TrainerCore {
    /// A trainer that knows nobody yet. A forward call may take `forward_ms_max`, a backward call 2.5 times that, and less when calls to the stage are known to take much
    /// less; twice as long when the stage has not answered in time.
    #[must_use]
    pub fn new(seed: u64, forward_ms_max: u64) -> Self {
        Self {
            seed,
            forward_ms_max,
            roster: Vec::new(),
            wiring: Vec::new(),
            doubled: Vec::new(),
            usual: Vec::new(),
            flights: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
        }
    }

    /// Microbatches on their way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// The stream to the conductor is new: it gives all work anew.
    pub fn connected(&mut self, out: &mut Vec<TrainerEffect>) {
        let all: Vec<_> = self.flights.keys().copied().collect();
        for flight in all {
            self.drop_flight(flight, out);
        }
    }

    /// The conductor speaks.
    pub fn hear(&mut self, message: ToTrainer, now_ms: u64, out: &mut Vec<TrainerEffect>) {
        match message {
            ToTrainer::Roster { stages, closing } => {
                self.wiring.resize_with(stages.len(), Wiring::default);
                self.doubled.resize(stages.len(), 0);
                self.usual.resize(stages.len(), Speed::default());
                for (wiring, mates) in self.wiring.iter_mut().zip(&stages) {
                    wiring.set(mates.iter().map(|m| &m.name));
                }
                self.roster = stages;
                // Calls to peers that are no longer there will not be answered.
                let lost =
                    |c: &Started| self.mate(c.call.stage, &c.peer).is_none() && !closing.contains(&c.peer);
                let gone = self.calls.iter().filter(|(_, c)| lost(c));
                let gone: Vec<CallId> = gone.map(|(&id, _)| id).collect();
                for id in gone {
                    out.push(TrainerEffect::Abandon { id });
                    self.ended(id, CallOutcome::Broken, now_ms, out);
                }
            }
            ToTrainer::Work { step, microbatch, validation, attempt } => {
                let key = (step, microbatch);
                if self.flights.get(&key).is_some_and(|f| f.attempt < attempt) {
                    self.drop_flight(key, out);
                }
                self.flights.entry(key).or_insert_with(|| Flight::new(attempt, validation));
            }
            ToTrainer::Anew => self.connected(out),
            ToTrainer::Committed { step } => {
                let old: Vec<_> = self.flights.range(..(step + 1, 0)).map(|(&flight, _)| flight).collect();
                for flight in old {
                    self.drop_flight(flight, out);
                }
            }
            // Its shell ends with the reason. What it drives yet, others have finished, and nobody waits for it.
            ToTrainer::Refused { .. } | ToTrainer::Retire => {
                self.connected(out);
                out.push(TrainerEffect::Retire);
            }
        }
        self.launch(now_ms, out);
    }

    fn drop_flight(&mut self, flight: (Step, Microbatch), out: &mut Vec<TrainerEffect>) {
        if let Some(dropped) = self.flights.remove(&flight) {
            if let Some(id) = dropped.call
                && self.calls.remove(&id).is_some()
            {
                out.push(TrainerEffect::Abandon { id });
            }
            out.push(TrainerEffect::Forget { step: flight.0, microbatch: flight.1 });
        }
    }

    /// Time passes: calls that take too long go to somebody else (the peer is slow, not banned), calls that had to wait are made.
    pub fn tick(&mut self, now_ms: u64, out: &mut Vec<TrainerEffect>) {
        let late = self.calls.iter().filter(|(_, c)| now_ms > c.at_ms + c.limit_ms);
        let late: Vec<CallId> = late.map(|(&id, _)| id).collect();
        for id in late {
            out.push(TrainerEffect::Abandon { id });
            // Twice as long from now on: a stage whose peers are all slower than expected is slow, not stuck.
            if let Some(started) = self.calls.get(&id)
                && started.limit_ms >= self.limit_ms(started.call.stage, started.rows())
                && let Some(doubled) = self.doubled.get_mut(started.call.stage as usize)
            {
                *doubled = (*doubled + 1).min(DOUBLINGS_MAX);
            }
            self.ended(id, CallOutcome::Refused, now_ms, out);
        }
        self.launch(now_ms, out);
    }

    /// A call ended.
    pub fn ended(&mut self, id: CallId, outcome: CallOutcome, now_ms: u64, out: &mut Vec<TrainerEffect>) {
        let Some(started) = self.calls.remove(&id) else { return };
        let key = started.flight;
        let Some(flight) = self.flights.get_mut(&key).filter(|f| f.call == Some(id)) else { return };
        flight.call = None;
        match outcome {
            CallOutcome::Answered { loss } => self.answered(&started, loss, now_ms, out),
            CallOutcome::Refused => flight.again_ms = now_ms + PAUSE_MS,
            // The conductor says when the step is over; until then this may be a peer that is ahead of it.
            CallOutcome::Stale => flight.again_ms = now_ms + PAUSE_MS,
            CallOutcome::Failed(what) => self.failed(started, what, out),
            CallOutcome::Broken => {
                if let Some(wiring) = self.wiring.get_mut(started.call.stage as usize) {
                    wiring.ban(&started.peer, now_ms + BAN_MS);
                }
            }
        }
        self.launch(now_ms, out);
    }

    /// A call was answered: the stage is measured by it, and its microbatch goes on to the next one, or is finished.
    fn answered(&mut self, started: &Started, loss: Option<f64>, now_ms: u64, out: &mut Vec<TrainerEffect>) {
        let (key, stage) = (started.flight, started.call.stage);
        let Some(flight) = self.flights.get_mut(&key) else { return };
        if let Some(doubled) = self.doubled.get_mut(stage as usize)
            && (now_ms - started.at_ms) * 8 < started.limit_ms
        {
            *doubled = doubled.saturating_sub(1);
        }
        if let Some(wiring) = self.wiring.get_mut(stage as usize) {
            wiring.done(&started.peer, started.rows(), started.at_ms, now_ms);
        }
        if let Some(usual) = self.usual.get_mut(stage as usize) {
            usual.measure((now_ms - started.at_ms) as f64 / started.rows());
        }
        // It computes what others could not, of the same values.
        for (peer, what) in std::mem::take(&mut flight.failed) {
            out.push(TrainerEffect::Tell(TrainerReport::Contradicted {
                step: key.0,
                microbatch: key.1,
                attempt: flight.attempt,
                peer,
                by: started.peer.clone(),
                what,
            }));
        }
        flight.way.insert(started.peer.clone());
        let last = stage as usize + 1 >= self.roster.len();
        match started.call.kind {
            CallKind::Forward => {
                flight.stage = stage + 1;
                flight.backward = flight.stage as usize + 1 >= self.roster.len() && !flight.validation;
            }
            CallKind::Backward if stage > 0 => {
                flight.stage = stage - 1;
                flight.backward = true;
            }
            CallKind::Backward | CallKind::Loss => {
                let (loss, attempt) = (loss.filter(|_| last), flight.attempt);
                self.flights.remove(&key);
                out.push(TrainerEffect::Tell(TrainerReport::Finished {
                    step: key.0,
                    microbatch: key.1,
                    attempt,
                    loss,
                }));
                out.push(TrainerEffect::Forget { step: key.0, microbatch: key.1 });
            }
        }
    }

    /// A peer says that it cannot compute a microbatch. That may be so; or its memory fails it; or what it was given is wrong, because somebody's on the way did. So another
    /// of its stage is asked, on another machine if there is one. When all say so, all of it is driven once more, over others where there are others. Only then it is so.
    fn failed(&mut self, started: Started, what: String, out: &mut Vec<TrainerEffect>) {
        let Some(flight) = self.flights.get_mut(&started.flight) else { return };
        let Some(mates) = self.roster.get(started.call.stage as usize) else { return };
        flight.failed.insert(started.peer.clone(), what.clone());
        let asked = |m: &&Mate| flight.failed.contains_key(&m.name);
        let machines: BTreeSet<&str> =
            mates.iter().filter(asked).map(|m| m.host.as_str()).filter(|h| !h.is_empty()).collect();
        let elsewhere = mates.iter().any(|m| !asked(&m) && !machines.contains(m.host.as_str()));
        let enough = flight.failed.len() > 1 && machines.len() != 1;
        if elsewhere || (!enough && mates.iter().any(|m| !asked(&m))) {
            let here = mates.iter().filter(|m| elsewhere && machines.contains(m.host.as_str()));
            flight.avoid.extend(here.map(|m| m.name.clone()));
            flight.avoid.extend(flight.failed.keys().cloned());
        } else if !flight.again {
            flight.avoid = std::mem::take(&mut flight.way);
            flight.avoid.extend(std::mem::take(&mut flight.failed).into_keys());
            flight.again = true;
            (flight.stage, flight.backward) = (0, false);
        } else {
            let (step, microbatch) = started.flight;
            let (attempt, peers) = (flight.attempt, std::mem::take(&mut flight.failed).into_keys().collect());
            out.push(TrainerEffect::Tell(TrainerReport::Failed { step, microbatch, attempt, peers, what }));
            // The conductor says which trainer drives it once more, if any.
            self.drop_flight(started.flight, out);
        }
    }

    /// How long a call may take.
    fn limit_ms(&self, stage: StageId, rows: f64) -> u64 {
        let stage = stage as usize;
        let usual = self.usual.get(stage).and_then(Speed::seconds_per_row);
        let late = usual.map_or(f64::INFINITY, |ms| (LATE * ms * rows).max(CALL_MS_MIN));
        let limit = (self.forward_ms_max as f64 * rows).min(late);
        limit as u64 * (1 << self.doubled.get(stage).copied().unwrap_or_default())
    }

    /// Makes the next call of every microbatch that has none, oldest first.
    fn launch(&mut self, now_ms: u64, out: &mut Vec<TrainerEffect>) {
        let stages = self.roster.len();
        let waiting: Vec<(Step, Microbatch)> = self.flights.keys().copied().collect();
        for key in waiting {
            let Some(flight) = self.flights.get_mut(&key) else { continue };
            if flight.call.is_some() || flight.again_ms > now_ms || stages == 0 {
                continue;
            }
            let last = flight.stage as usize + 1 >= stages;
            let kind = match (flight.backward, last, flight.validation) {
                (true, ..) | (false, true, false) => CallKind::Backward,
                (false, true, true) => CallKind::Loss,
                (false, false, _) => CallKind::Forward,
            };
            let stage = flight.stage;
            let call = Call { stage, step: key.0, microbatch: key.1, attempt: flight.attempt, kind };
            let rows = if kind == CallKind::Backward { BACKWARD_ROWS } else { 1.0 };
            let wiring = &mut self.wiring[stage as usize];
            let Some(name) = wiring.choose(rows, now_ms, self.seed, &flight.avoid) else { continue };
            let mates = &self.roster[stage as usize];
            let Some(peer) = mates.iter().find(|m| m.name == name).cloned() else { continue };
            let id = self.next_call;
            self.next_call += 1;
            flight.call = Some(id);
            let limit_ms = self.limit_ms(stage, rows);
            self.calls.insert(id, Started { flight: key, call, peer: name, at_ms: now_ms, limit_ms });
            out.push(TrainerEffect::Call { id, peer, call });
        }
    }

    fn mate(&self, stage: StageId, name: &PeerName) -> Option<&Mate> {
        self.roster.get(stage as usize)?.iter().find(|m| m.name == *name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{Mate, ToTrainer};
    use super::{CallOutcome, TrainerCore, TrainerEffect};

    #[test]
    fn a_trainer_that_may_go_drives_nothing_any_more() {
        let (mut core, mut out) = (TrainerCore::new(1, 1000), Vec::new());
        let mate = Mate { name: "a".into(), addr: String::new(), host: String::new() };
        core.hear(ToTrainer::Roster { stages: vec![vec![mate]], closing: Vec::new() }, 0, &mut out);
        core.hear(ToTrainer::Work { step: 0, microbatch: 0, validation: true, attempt: 0 }, 0, &mut out);
        assert!(matches!(out[..], [TrainerEffect::Call { id: 0, .. }]), "{out:?}");
        out.clear();
        core.hear(ToTrainer::Retire, 1, &mut out);
        let forget = TrainerEffect::Forget { step: 0, microbatch: 0 };
        assert_eq!(out, [TrainerEffect::Abandon { id: 0 }, forget, TrainerEffect::Retire]);
        core.ended(0, CallOutcome::Broken, 2, &mut out);
        assert_eq!((core.in_flight(), out.len()), (0, 3));
    }
}
