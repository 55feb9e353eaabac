//! One state of a stage after the other.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::super::ids::{StageId, Step};
use super::super::message::{Fetch, FetchFailure, Mate, StageStart, StateDigest};
use super::collector::{Collector, Ids, Round};
use super::event::{FetchConfig, FetchEffect, FetchEvent, FetchId, FetchWork, StageSize};
use super::parts::{Part, contradicted};

/// What is got of a stage, and kept of its updates.
#[derive(Debug)]
pub struct Fetcher {
    config: FetchConfig,
    ids: Ids,
    task: Option<Task>,
    collector: Option<Collector>,
}

/// A state on its way.
#[derive(Debug)]
struct Task {
    stage: StageId,
    wanted: Step,
    mates: Vec<Mate>,
    /// Mates that gave what is not right.
    wrong: BTreeSet<PeerName>,
    /// The state that was here is brought up to date.
    from: Option<Step>,
    /// Attempts at what is being got, and at all of the state.
    attempt: u32,
    wholes: u32,
    /// What the last attempt came to.
    why: String,
    doing: Doing,
}

#[derive(Debug)]
enum Doing {
    /// What mates do not have is read, or a kept update is taken back: until that is here.
    Reading(FetchId),
    Parts(Vec<Part>),
    Checking(FetchId, Vec<Part>),
    Kept(FetchId, Step),
    Update(Round),
    /// The engine is at it.
    Engine(FetchId),
    /// Until then; what is wanted is the update of a step, or all of the state.
    Pausing(u64, Option<Step>),
}

impl Fetcher {
    /// Nothing is wanted yet.
    #[must_use]
    pub fn new(config: FetchConfig) -> Self {
        Self { config, ids: Ids::default(), task: None, collector: None }
    }

    /// When [`FetchEvent::Deadline`] is due, if nothing happens before.
    #[must_use]
    pub fn wake_ms(&self) -> Option<u64> {
        let pause = match self.task.as_ref().map(|task| &task.doing) {
            Some(Doing::Pausing(until, _)) => Some(*until),
            _ => None,
        };
        pause.into_iter().chain(self.collector.as_ref().and_then(Collector::wake_ms)).min()
    }

    /// Something happened.
    pub fn handle(&mut self, now_ms: u64, event: FetchEvent, out: &mut Vec<FetchEffect>) {
        match event {
            FetchEvent::Load(load) => self.load(load, out),
            FetchEvent::Fetch(fetch, from) => self.fetch(fetch, from, out),
            FetchEvent::TakesPart => self.end_collector(out),
            FetchEvent::Left => {
                self.give_up(out);
                self.end_collector(out);
            }
            FetchEvent::Part(id, step, says) => self.part(now_ms, id, (step, says), out),
            FetchEvent::Came(id) => self.came(id, out),
            FetchEvent::Checked(id, wrong) => self.checked(now_ms, id, wrong, out),
            FetchEvent::At(id, step, state) => self.at(id, (step, state), out),
            FetchEvent::Failed(id, failure, why) => self.failed(now_ms, id, (failure, why), out),
            FetchEvent::Deadline => self.wake(now_ms, out),
        }
    }

    fn load(&mut self, load: StageStart, out: &mut Vec<FetchEffect>) {
        self.give_up(out);
        self.end_collector(out);
        let id = self.ids.next();
        self.task = Some(Task::new((load.stage, load.step), Vec::new(), None, Doing::Reading(id)));
        out.push(FetchEffect::Do(id, FetchWork::Read(load)));
    }

    fn fetch(&mut self, fetch: Fetch, from: Option<Step>, out: &mut Vec<FetchEffect>) {
        self.give_up(out);
        let Fetch { stage, step, mates, .. } = fetch;
        let id = self.ids.next();
        self.task = Some(Task::new((stage, step), mates.clone(), from, Doing::Engine(id)));
        if from.is_none() {
            return self.whole(out);
        }
        // What was kept while the state was on its way leads on from it.
        match &mut self.collector {
            Some(collector) if collector.stage == stage => collector.mates = mates,
            _ => self.end_collector(out),
        }
        out.extend(from.map(|step| FetchEffect::Do(id, FetchWork::Where(step))));
    }

    /// Nothing of the present state is wanted.
    fn give_up(&mut self, out: &mut Vec<FetchEffect>) {
        if let Some(task) = self.task.take() {
            task.drop(out);
        }
    }

    fn end_collector(&mut self, out: &mut Vec<FetchEffect>) {
        if let Some(collector) = self.collector.take() {
            collector.end(out);
        }
    }

    fn part(&mut self, now_ms: u64, id: FetchId, came: (Step, String), out: &mut Vec<FetchEffect>) {
        let Some(Task { doing: Doing::Parts(parts), .. }) = &mut self.task else { return };
        let Some(part) = parts.iter_mut().find(|part| part.id == id) else { return };
        part.came = Some(came);
        let steps: Option<Vec<Step>> =
            parts.iter().map(|part| part.came.as_ref().map(|(step, _)| *step)).collect();
        let Some(steps) = steps else { return };
        if steps.iter().any(|step| *step != steps[0]) {
            return self.again(now_ms, "the mates are not at one step".to_owned(), None, out);
        }
        let wrong = contradicted(parts);
        if !wrong.is_empty() {
            return self.blame(now_ms, wrong, out);
        }
        let parts = std::mem::take(parts);
        let id = self.ids.next();
        out.push(FetchEffect::Do(id, FetchWork::Check(parts.iter().map(|part| part.id).collect())));
        self.doing(Doing::Checking(id, parts));
    }

    fn checked(
        &mut self,
        now_ms: u64,
        id: FetchId,
        wrong: Vec<(FetchId, String)>,
        out: &mut Vec<FetchEffect>,
    ) {
        let Some(Task { doing: Doing::Checking(checking, parts), stage, .. }) = &self.task else { return };
        if *checking != id {
            return;
        }
        if wrong.is_empty() {
            let (id, parts) = (self.ids.next(), parts.iter().map(|part| part.id).collect());
            out.push(FetchEffect::Do(id, FetchWork::Install(*stage, parts)));
            return self.doing(Doing::Engine(id));
        }
        let giver = |id: FetchId| parts.iter().find(|part| part.id == id).map(|part| part.mate.name.clone());
        let wrong = wrong.into_iter().filter_map(|(id, what)| Some((giver(id)?, what))).collect();
        self.blame(now_ms, wrong, out);
    }

    /// These mates are not asked again.
    fn blame(&mut self, now_ms: u64, wrong: Vec<(PeerName, String)>, out: &mut Vec<FetchEffect>) {
        let mut why = String::new();
        for (mate, what) in wrong {
            why = format!("{mate}: {what}");
            out.push(FetchEffect::Wrong(mate.clone(), what));
            if let Some(task) = &mut self.task {
                task.wrong.insert(mate);
            }
        }
        self.again(now_ms, why, None, out);
    }

    fn came(&mut self, id: FetchId, out: &mut Vec<FetchEffect>) {
        if self.collector.as_mut().is_some_and(|collector| collector.came(&mut self.ids, id, out)) {
            return;
        }
        let Some(task) = &mut self.task else { return };
        let next = self.ids.next();
        let work = match &task.doing {
            Doing::Reading(reading) if *reading == id => FetchWork::Install(task.stage, vec![id]),
            Doing::Kept(kept, _) if *kept == id => FetchWork::Follow(id),
            Doing::Update(round) if round.id == id => FetchWork::Follow(id),
            _ => return,
        };
        out.push(FetchEffect::Do(next, work));
        task.doing = Doing::Engine(next);
    }

    /// The engine has a state: it is the one that is wanted, or the next update is needed.
    fn at(&mut self, id: FetchId, (step, state): (Step, StateDigest), out: &mut Vec<FetchEffect>) {
        let Some(task) =
            self.task.take_if(|task| matches!(task.doing, Doing::Engine(engine) if engine == id))
        else {
            return;
        };
        if let Some(collector) = &mut self.collector {
            collector.advance(&mut self.ids, step, out);
        }
        if step >= task.wanted {
            out.push(FetchEffect::Ready { stage: task.stage, step, state, from: task.from });
            return;
        }
        self.task = Some(Task { attempt: 0, ..task });
        self.update(step, out);
    }

    /// The update that leads on from `step`: one that was kept, or that of a mate, which may be making it now.
    fn update(&mut self, step: Step, out: &mut Vec<FetchEffect>) {
        let Some(task) = &mut self.task else { return };
        if self.collector.as_ref().is_some_and(|collector| collector.has(step)) {
            let id = self.ids.next();
            out.push(FetchEffect::Do(id, FetchWork::TakeKept(step)));
            task.doing = Doing::Kept(id, step);
        } else if let Some(round) = Round::begin(&mut self.ids, &task.mates, task.stage, step, out) {
            task.doing = Doing::Update(round);
        } else {
            self.fail(FetchFailure::Passing, "there is nobody to get it from".to_owned(), out);
        }
    }

    fn failed(
        &mut self,
        now_ms: u64,
        id: FetchId,
        (failure, why): (FetchFailure, String),
        out: &mut Vec<FetchEffect>,
    ) {
        let collector = self.collector.as_mut();
        if collector.is_some_and(|collector| collector.failed(&mut self.ids, now_ms, (id, &why), out)) {
            return;
        }
        let Some(task) = &mut self.task else { return };
        match &mut task.doing {
            Doing::Reading(reading) if *reading == id => self.fail(failure, why, out),
            Doing::Engine(engine) if *engine == id => self.fail(failure, why, out),
            Doing::Parts(parts) if parts.iter().any(|part| part.id == id) => {
                self.again(now_ms, why, None, out);
            }
            Doing::Checking(checking, _) if *checking == id => self.again(now_ms, why, None, out),
            Doing::Kept(kept, step) if *kept == id => {
                let step = *step;
                self.again(now_ms, why, Some(step), out);
            }
            Doing::Update(round) if round.id == id => {
                let step = round.step;
                if round.next(&mut self.ids, &task.mates, task.stage, out) {
                    return;
                }
                self.again(now_ms, why, Some(step), out);
            }
            // An answer to what was given up.
            _ => {}
        }
    }

    fn wake(&mut self, now_ms: u64, out: &mut Vec<FetchEffect>) {
        if let Some(collector) = &mut self.collector {
            collector.wake(&mut self.ids, now_ms, out);
        }
        match self.task.as_ref().map(|task| &task.doing) {
            Some(Doing::Pausing(until, Some(step))) if now_ms >= *until => {
                let step = *step;
                self.update(step, out);
            }
            Some(Doing::Pausing(until, None)) if now_ms >= *until => self.parts(out),
            _ => {}
        }
    }

    /// All of it is got.
    fn whole(&mut self, out: &mut Vec<FetchEffect>) {
        self.end_collector(out);
        let size = self.size();
        let Some(task) = &mut self.task else { return };
        if task.wholes >= self.config.wholes_max {
            let why = task.why.clone();
            return self.fail(FetchFailure::Passing, why, out);
        }
        (task.from, task.attempt) = (None, 0);
        task.wholes += 1;
        let (of, room) = ((task.stage, task.mates.clone()), (size.updates_max, self.config.collect_ms));
        self.collector = Some(Collector::begin(&mut self.ids, of, task.wanted, room, out));
        self.parts(out);
    }

    /// Parts of it from several mates.
    fn parts(&mut self, out: &mut Vec<FetchEffect>) {
        let size = self.size();
        let Some(task) = &mut self.task else { return };
        let mates: Vec<&Mate> = task.mates.iter().filter(|mate| !task.wrong.contains(&mate.name)).collect();
        let count = mates.len().min(self.config.mates_max);
        // Each attempt leaves another one out, should one of them be lost.
        let count = count - usize::from(task.attempt > 2 && count > 1);
        if count == 0 {
            let why = task.why.clone();
            return self.fail(FetchFailure::Passing, why, out);
        }
        let at = |i: usize| size.chunks * i / count;
        let mut parts = Vec::with_capacity(count);
        for i in 0..count {
            let (id, mate) = (self.ids.next(), mates[(i + task.attempt as usize) % mates.len()].clone());
            out.push(FetchEffect::Do(id, FetchWork::PullState(mate.clone(), task.stage, at(i)..at(i + 1))));
            parts.push(Part { id, mate, came: None });
        }
        task.doing = Doing::Parts(parts);
    }

    /// Another attempt, at the update of a step or at all of the state, after a pause. When nobody has the update any more, all of the state is needed.
    fn again(&mut self, now_ms: u64, why: String, update: Option<Step>, out: &mut Vec<FetchEffect>) {
        let Some(task) = &mut self.task else { return };
        task.doing.drop(out);
        task.attempt += 1;
        task.why.clone_from(&why);
        if task.attempt < self.config.attempts_max {
            task.doing = Doing::Pausing(now_ms + self.config.pause_ms, update);
        } else if update.is_some() {
            out.push(FetchEffect::Note(format!("an update is missing: the whole state is fetched ({why})")));
            self.whole(out);
        } else {
            self.fail(FetchFailure::Passing, why, out);
        }
    }

    fn fail(&mut self, failure: FetchFailure, why: String, out: &mut Vec<FetchEffect>) {
        if let Some(task) = self.task.take() {
            let stage = task.stage;
            task.drop(out);
            self.end_collector(out);
            out.push(FetchEffect::GiveUp(stage, failure, why));
        }
    }

    fn doing(&mut self, doing: Doing) {
        if let Some(task) = &mut self.task {
            task.doing = doing;
        }
    }

    fn size(&self) -> StageSize {
        let stage = self.task.as_ref().map_or(0, |task| task.stage as usize);
        self.config.stages.get(stage).copied().unwrap_or(StageSize { chunks: 0, updates_max: 0 })
    }
}

impl Task {
    fn new((stage, wanted): (StageId, Step), mates: Vec<Mate>, from: Option<Step>, doing: Doing) -> Self {
        let why = "there is nobody to get it from".to_owned();
        Self { stage, wanted, mates, wrong: BTreeSet::new(), from, attempt: 0, wholes: 0, why, doing }
    }

    fn drop(self, out: &mut Vec<FetchEffect>) {
        self.doing.drop(out);
    }
}

impl Doing {
    fn drop(&self, out: &mut Vec<FetchEffect>) {
        match self {
            Self::Reading(id) | Self::Kept(id, _) | Self::Engine(id) => out.push(FetchEffect::Drop(*id)),
            Self::Update(round) => out.push(FetchEffect::Drop(round.id)),
            Self::Parts(parts) => out.extend(parts.iter().map(|part| FetchEffect::Drop(part.id))),
            Self::Checking(id, parts) => {
                out.push(FetchEffect::Drop(*id));
                out.extend(parts.iter().map(|part| FetchEffect::Drop(part.id)));
            }
            Self::Pausing(..) => {}
        }
    }
}
