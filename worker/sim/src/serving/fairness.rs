//! Is the line fair? A second opinion on each batch, from what stood in the line before it.
//!
//! * A batch has rows of one layer range, and no more than its budget.
//! * With pages for all, whoever runs has nobody before it in its line who does not: steps in the order in which they came, replays before prompts,
//!   older sessions before younger. And whoever is first is not passed over for long by other layer ranges. So everybody's wait is bounded by
//!   the work of those before.
//! * Without, nobody takes a page while an older session lacks one.

use dunlin_protocol::stage::Urgency;
use dunlin_schedule::{Batcher, Budget, Part, SegmentKey, Waiting};
use dunlin_swarm::Position;

/// Batches of other layer ranges before the first in line has its turn, at most.
const PASSED_MAX: u32 = 3;

/// A segment that stood in the line before a batch.
pub(super) struct Stood {
    waiting: Waiting,
    /// Pages that it lacks to run all that it wants to.
    lacks: usize,
    /// Positions that it has pages for.
    room: Position,
    /// Pages that nobody had.
    free: usize,
}

/// What a batch began with.
pub(super) struct Tried {
    key: SegmentKey,
    start: Position,
    count: u32,
    is_sampled: bool,
}

/// Whoever was first in a line, and how many batches it has been passed over by.
type First = Option<(SegmentKey, u32)>;

pub(super) struct Fairness {
    budget: Budget,
    /// Of steps, and of everything else.
    first: [First; 2],
}

impl Stood {
    /// All that wait in the line of an engine.
    pub fn all(batcher: &Batcher, budget: Budget) -> Vec<Self> {
        let pages = batcher.pages();
        let stood = |waiting: Waiting| {
            let reach = (waiting.start + waiting.wanted(budget)) as usize;
            let (lacks, room) =
                (pages.lacking(&waiting.key, reach), pages.reach(&waiting.key, 0) as Position);
            Self { waiting, lacks, room, free: pages.free() }
        };
        batcher.line().waiting().map(stood).collect()
    }

    fn is_step(&self) -> bool {
        self.waiting.line.urgency == Urgency::Step
    }

    fn age(&self) -> (u64, SegmentKey) {
        (self.waiting.line.born_ms, self.waiting.key)
    }
}

impl Tried {
    pub fn of(part: &Part) -> Self {
        let Part { key, start, count, .. } = *part;
        Self { key, start, count, is_sampled: part.sample.is_some() }
    }
}

impl Fairness {
    pub fn new(budget: Budget) -> Self {
        Self { budget, first: [None, None] }
    }

    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// A batch of `parts` was made of those who stood in the line; what is wrong with it goes to `wrong`.
    pub fn batch(&mut self, stood: &[Stood], parts: &[Tried], wrong: &mut Vec<String>) {
        let (mut steps, mut long): (Vec<&Stood>, Vec<&Stood>) = stood.iter().partition(|s| s.is_step());
        steps.sort_unstable_by_key(|s| s.waiting.arrival);
        long.sort_unstable_by_key(|s| (s.waiting.line, s.waiting.arrival));
        let rows = |line: &[&Stood]| -> u32 {
            let ours = |part: &&Tried| line.iter().any(|s| s.waiting.key == part.key);
            parts.iter().filter(ours).map(|part| part.count).sum()
        };
        let (step_rows, long_rows) = (rows(&steps), rows(&long));
        let sampled = parts.iter().filter(|part| part.is_sampled).count() as u32;
        if step_rows > self.budget.step_rows
            || long_rows > self.budget.prefill_rows
            || sampled > self.budget.sampled()
        {
            wrong.push(format!(
                "a batch of {step_rows} rows of steps and {long_rows} others, {sampled} sampled: {:?}",
                self.budget
            ));
        }
        let Some(free) = stood.first().map(|s| s.free) else { return };
        if stood.iter().map(|s| s.lacks).sum::<usize>() > free {
            self.first = [None, None];
            return short_of_pages(stood, parts, free, wrong);
        }
        if parts.is_empty() {
            wrong.push(format!("{} wait, there are pages for all, and nobody runs", stood.len()));
        }
        for (first, line) in self.first.iter_mut().zip([steps, long]) {
            in_turn(&line, parts, first, wrong);
        }
    }
}

/// Nobody who runs has passed by somebody of the same layers; and who is first in `line` has been for few batches.
fn in_turn(line: &[&Stood], parts: &[Tried], first: &mut First, wrong: &mut Vec<String>) {
    let runs = |s: &Stood| parts.iter().any(|part| part.key == s.waiting.key);
    let of_these_layers = |s: &&&Stood| parts.iter().any(|part| part.key.1 == s.waiting.key.1);
    let mut left = None;
    for s in line.iter().filter(of_these_layers) {
        match left {
            None if !runs(s) => left = Some(s.waiting.key.0),
            Some(left) if runs(s) => {
                wrong.push(format!(
                    "session {} runs before session {left}, whose turn it is",
                    s.waiting.key.0
                ));
            }
            _ => {}
        }
    }
    *first = line.first().filter(|s| !runs(s)).map(|s| {
        let before = first.filter(|(key, _)| *key == s.waiting.key).map_or(0, |(_, batches)| batches);
        (s.waiting.key, before + 1)
    });
    if let Some(((session, _), batches)) = first.filter(|(_, batches)| *batches > PASSED_MAX) {
        wrong.push(format!("session {session} is first in line, and {batches} batches ran without it"));
    }
}

/// Nobody takes a page that an older one lacks.
fn short_of_pages(stood: &[Stood], parts: &[Tried], free: usize, wrong: &mut Vec<String>) {
    for s in stood {
        let Some(part) = parts.iter().find(|part| part.key == s.waiting.key) else { continue };
        let older = stood.iter().filter(|other| other.age() < s.age());
        let lacks: usize = older.map(|other| other.lacks).sum();
        if part.start + part.count > s.room && lacks > free {
            wrong.push(format!(
                "session {} takes a page, and older ones lack {lacks} of {free}",
                s.waiting.key.0
            ));
        }
    }
}
