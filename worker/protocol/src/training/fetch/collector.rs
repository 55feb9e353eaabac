//! Updates that a stage makes while its state is on the way, one after the other, as far as there is room for them.

use std::ops::Range;

use super::super::ids::{StageId, Step};
use super::super::message::Mate;
use super::event::{FetchEffect, FetchId, FetchWork};

/// The longest pause between two looks, in shortest ones.
const LONGEST: u64 = 20;

/// Numbers of what is begun.
#[derive(Debug, Default)]
pub(super) struct Ids(FetchId);

impl Ids {
    /// One that was never used.
    pub fn next(&mut self) -> FetchId {
        self.0 += 1;
        self.0
    }
}

/// Mates that are asked for the update of a step, one after the other.
#[derive(Debug)]
pub(super) struct Round {
    /// Updates in the state that it leads on from.
    pub step: Step,
    /// The pull under way.
    pub id: FetchId,
    asked: usize,
}

impl Round {
    /// Asks the first; nothing when there is none.
    pub fn begin(
        ids: &mut Ids,
        mates: &[Mate],
        stage: StageId,
        step: Step,
        out: &mut Vec<FetchEffect>,
    ) -> Option<Self> {
        let mut round = Self { step, id: 0, asked: 0 };
        round.next(ids, mates, stage, out).then_some(round)
    }

    /// Asks the next; false when all were asked.
    pub fn next(
        &mut self,
        ids: &mut Ids,
        mates: &[Mate],
        stage: StageId,
        out: &mut Vec<FetchEffect>,
    ) -> bool {
        let Some(mate) = mates.get(self.asked) else { return false };
        self.asked += 1;
        self.id = ids.next();
        out.push(FetchEffect::Do(self.id, FetchWork::PullUpdate(mate.clone(), stage, self.step)));
        true
    }
}

/// The updates of a stage that are kept.
#[derive(Debug)]
pub(super) struct Collector {
    pub stage: StageId,
    pub mates: Vec<Mate>,
    kept: Range<Step>,
    room: u64,
    /// The shortest pause, and the next: it grows with the time that an update takes, so that few are asked in vain.
    collect_ms: u64,
    pause_ms: u64,
    doing: Doing,
}

#[derive(Debug)]
enum Doing {
    Pulling(Round),
    Keeping(FetchId),
    /// Nobody has it yet.
    Pausing(u64),
    /// There is no room for more.
    Full,
    /// Nothing can be kept.
    Broken,
}

impl Collector {
    /// Collects from the update of `from` on, as many as `room` says.
    pub fn begin(
        ids: &mut Ids,
        (stage, mates): (StageId, Vec<Mate>),
        from: Step,
        (room, collect_ms): (u64, u64),
        out: &mut Vec<FetchEffect>,
    ) -> Self {
        let mut collector = Self {
            stage,
            mates,
            kept: from..from,
            room,
            collect_ms,
            pause_ms: collect_ms,
            doing: Doing::Broken,
        };
        collector.pull(ids, out);
        collector
    }

    /// When it looks again.
    pub fn wake_ms(&self) -> Option<u64> {
        match self.doing {
            Doing::Pausing(until) => Some(until),
            _ => None,
        }
    }

    /// Is the update of a step here?
    pub fn has(&self, step: Step) -> bool {
        self.kept.contains(&step)
    }

    /// The time may have come.
    pub fn wake(&mut self, ids: &mut Ids, now_ms: u64, out: &mut Vec<FetchEffect>) {
        if self.wake_ms().is_some_and(|until| now_ms >= until) {
            self.pull(ids, out);
        }
    }

    /// Something has come; true when it was for this.
    pub fn came(&mut self, ids: &mut Ids, id: FetchId, out: &mut Vec<FetchEffect>) -> bool {
        match &self.doing {
            Doing::Pulling(round) if round.id == id => {
                self.pause_ms = self.collect_ms;
                let keeping = ids.next();
                out.push(FetchEffect::Do(keeping, FetchWork::Keep(id, round.step)));
                self.doing = Doing::Keeping(keeping);
            }
            Doing::Keeping(keeping) if *keeping == id => {
                self.kept.end += 1;
                self.pull(ids, out);
            }
            _ => return false,
        }
        true
    }

    /// Something has not come; true when it was for this.
    pub fn failed(
        &mut self,
        ids: &mut Ids,
        now_ms: u64,
        (id, why): (FetchId, &str),
        out: &mut Vec<FetchEffect>,
    ) -> bool {
        match &mut self.doing {
            Doing::Pulling(round) if round.id == id => {
                if !round.next(ids, &self.mates, self.stage, out) {
                    self.doing = Doing::Pausing(now_ms + self.pause_ms);
                    self.pause_ms = (2 * self.pause_ms).min(LONGEST * self.collect_ms);
                }
            }
            Doing::Keeping(keeping) if *keeping == id => {
                self.doing = Doing::Broken;
                let (stage, step) = (self.stage, self.kept.end);
                out.push(FetchEffect::Note(format!(
                    "the update of step {step} cannot be kept while the state of stage {stage} is fetched: {why}"
                )));
            }
            _ => return false,
        }
        true
    }

    /// The state here has so many updates: those before need not be kept.
    pub fn advance(&mut self, ids: &mut Ids, step: Step, out: &mut Vec<FetchEffect>) {
        if step <= self.kept.start {
            return;
        }
        let old = self.kept.start..step.min(self.kept.end);
        if !old.is_empty() {
            out.push(FetchEffect::Forget(old));
        }
        self.kept.start = step;
        if step > self.kept.end {
            // It is behind what is here.
            self.kept.end = step;
            self.give_up(out);
            if !matches!(self.doing, Doing::Broken) {
                self.pull(ids, out);
            }
        } else if matches!(self.doing, Doing::Full) {
            self.pull(ids, out);
        }
    }

    /// Nobody needs any of them.
    pub fn end(mut self, out: &mut Vec<FetchEffect>) {
        self.give_up(out);
        if !self.kept.is_empty() {
            out.push(FetchEffect::Forget(self.kept));
        }
    }

    fn give_up(&mut self, out: &mut Vec<FetchEffect>) {
        if let Doing::Pulling(Round { id, .. }) | Doing::Keeping(id) = self.doing {
            out.push(FetchEffect::Drop(id));
        }
    }

    fn pull(&mut self, ids: &mut Ids, out: &mut Vec<FetchEffect>) {
        if self.kept.end - self.kept.start >= self.room {
            if !matches!(self.doing, Doing::Full) {
                let (stage, room) = (self.stage, self.room);
                out.push(FetchEffect::Note(format!(
                    "{room} updates are kept while the state of stage {stage} is fetched, and there is no room for more: give the pool more disk"
                )));
            }
            self.doing = Doing::Full;
            return;
        }
        let round = Round::begin(ids, &self.mates, self.stage, self.kept.end, out);
        self.doing = round.map_or(Doing::Broken, Doing::Pulling);
    }
}
