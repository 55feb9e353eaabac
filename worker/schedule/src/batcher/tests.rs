//! What waits, fails and is forgotten, with a runner that only writes down what it is asked.

use std::collections::BTreeMap;

use dunlin_protocol::frame::PAGE_POSITIONS;
use dunlin_protocol::stage::{Computed, Input, Line, Output, StageJob, Urgency};
use dunlin_protocol::{Refusal, SessionId, Windows};
use dunlin_swarm::Layers;

use super::{Batcher, Runner};
use crate::line::{Budget, Part};
use crate::pages::SegmentKey;

const LAYERS: Layers = Layers { start: 0, end: 2 };
/// A token that no layer can compute with.
const BAD: u32 = 666;

/// Writes down how many pages each segment has, and who ran.
#[derive(Default)]
struct Notes {
    pages: BTreeMap<SegmentKey, usize>,
    /// Of each layer those that were given back.
    behind: BTreeMap<(SegmentKey, u32), usize>,
    /// The same before the last results.
    behind_before_results: BTreeMap<(SegmentKey, u32), usize>,
    ran: Vec<Vec<u64>>,
    lacks: Option<Refusal>,
}

impl Runner for Notes {
    type Rows = ();

    fn check(&self, _: &Part) -> Result<(), Refusal> {
        self.lacks.clone().map_or(Ok(()), Err)
    }

    fn set_pages(&mut self, key: SegmentKey, pages: usize) {
        self.pages.insert(key, pages);
        self.pages.retain(|_, pages| *pages > 0);
    }

    fn give_back(&mut self, key: SegmentKey, layer: u32, pages: usize) {
        self.behind.insert((key, layer), pages);
    }

    fn forward(&mut self, _: Layers, parts: &[Part]) -> Result<(), (usize, Refusal)> {
        for part in parts {
            let pages = self.pages.get(&part.key).map_or(0, |pages| *pages as u32);
            assert!(part.start + part.count <= pages * PAGE_POSITIONS, "{part:?} has {pages} pages a layer");
        }
        self.ran.push(parts.iter().map(|part| part.key.0.0).collect());
        let bad = |part: &Part| part.inputs.iter().any(|input| *input == Input::Tokens(vec![BAD]));
        match parts.iter().position(bad) {
            Some(bad) => Err((bad, Refusal::NonFinite { layer: 1 })),
            None => Ok(()),
        }
    }

    fn outputs(&mut self, parts: Vec<Part>, (): (), each: &mut dyn FnMut(&Part, Result<Output, Refusal>)) {
        self.behind_before_results.clone_from(&self.behind);
        parts.iter().for_each(|part| each(part, Ok(Output::Nothing)));
    }
}

fn batcher(pages: usize) -> (Batcher, Notes) {
    let budget = Budget { step_rows: 4, prefill_rows: 32, prefill_ends: 4 };
    (Batcher::new(budget, 1, pages), Notes::default())
}

fn job(session: u64, start: u32, tokens: Vec<u32>) -> StageJob {
    StageJob {
        session: SessionId(session),
        attempt: 1,
        layers: LAYERS,
        adapter: None,
        line: Line { urgency: Urgency::Prompt, born_ms: session },
        start,
        count: tokens.len() as u32,
        input: Input::Tokens(tokens),
        last: true,
        sample: None,
    }
}

/// Runs one batch: (session, positions, what failed).
fn step(batcher: &mut Batcher, notes: &mut Notes) -> Vec<(u64, u32, Option<Refusal>)> {
    let mut results = Vec::new();
    batcher.step(notes, &mut |done: Computed| {
        let failed = match done.output {
            Output::Failed(reason) => Some(reason),
            _ => None,
        };
        results.push((done.session.0, done.start + done.count, failed));
    });
    results
}

#[test]
fn a_result_means_that_the_next_job_may_begin_where_it_ends() {
    let (mut batcher, mut notes) = batcher(8);
    batcher.push(job(1, 0, vec![1; 20]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 20, None)]);
    batcher.push(job(1, 20, vec![1]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 21, None)]);
    batcher.push(job(1, 40, vec![1]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 41, Some(Refusal::NeedReplay { have: 21 }))]);
}

#[test]
fn a_part_that_cannot_be_computed_fails_alone_and_its_segment_with_it_until_it_begins_again() {
    let (mut batcher, mut notes) = batcher(8);
    for (session, token) in [(1, 5), (2, BAD), (3, 5)] {
        batcher.push(job(session, 0, vec![token]));
    }
    let results = step(&mut batcher, &mut notes);
    assert_eq!(results, [(2, 1, Some(Refusal::NonFinite { layer: 1 })), (1, 1, None), (3, 1, None)]);
    assert_eq!(notes.ran, [vec![1, 2, 3], vec![1, 3]], "the others ran again");
    batcher.push(job(2, 1, vec![5]));
    assert!(batcher.line().is_empty(), "nothing of it waits");
    batcher.truncate((SessionId(2), LAYERS), 0, &mut notes);
    batcher.push(job(2, 0, vec![5]));
    assert_eq!(step(&mut batcher, &mut notes), [(2, 1, None)]);
}

#[test]
fn what_waits_behind_a_part_that_fails_is_forgotten() {
    let (mut batcher, mut notes) = batcher(8);
    batcher.push(job(1, 0, vec![BAD]));
    // More than there is room for in its batch.
    batcher.push(job(1, 1, vec![5; 40]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 32, Some(Refusal::NonFinite { layer: 1 }))]);
    assert!(batcher.line().is_empty() && batcher.line().rows() == 0);
}

#[test]
fn a_job_without_rows_is_refused_when_its_turn_comes_and_keeps_nobody_waiting() {
    let refused = || Some(Refusal::BadRequest { message: "a job without rows".to_owned() });
    for urgency in [Urgency::Step, Urgency::Replay, Urgency::Prompt] {
        // One page for each of the two layers, and 1 has them: a refusal needs none.
        let (mut batcher, mut notes) = batcher(2);
        let empty = |session, start| StageJob {
            line: Line { urgency, born_ms: session },
            ..job(session, start, Vec::new())
        };
        batcher.push(job(1, 0, vec![1; 5]));
        batcher.push(empty(1, 5));
        batcher.push(empty(2, 700));
        let results: Vec<_> = (0..2).flat_map(|_| step(&mut batcher, &mut notes)).collect();
        let of = |session| results.iter().filter(move |r| r.0 == session).cloned().collect::<Vec<_>>();
        assert_eq!(of(1), [(1, 5, None), (1, 5, refused())], "{urgency:?}");
        assert_eq!(of(2), [(2, 700, refused())], "{urgency:?}");
        assert!(batcher.line().is_empty() && !batcher.line().is_starved() && batcher.line().rows() == 0);
        batcher.truncate((SessionId(1), LAYERS), 5, &mut notes);
        batcher.push(job(1, 5, vec![1]));
        assert_eq!(step(&mut batcher, &mut notes), [(1, 6, None)], "{urgency:?}");
    }
}

#[test]
fn whoever_lacks_what_a_part_needs_says_so_and_takes_no_page() {
    let (mut batcher, mut notes) = batcher(8);
    let lack = Refusal::NotHolding { layers: LAYERS };
    notes.lacks = Some(lack.clone());
    batcher.push(job(1, 0, vec![1]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 1, Some(lack))]);
    assert_eq!((batcher.pages().free(), notes.ran.len()), (8, 0));
}

#[test]
fn pages_are_given_back_as_far_as_a_segment_is_forgotten() {
    let (mut batcher, mut notes) = batcher(8);
    let key = (SessionId(1), LAYERS);
    batcher.push(job(1, 0, vec![1; 32]));
    batcher.push(job(1, 32, vec![1; 10]));
    step(&mut batcher, &mut notes);
    assert_eq!((notes.pages[&key], batcher.pages().free()), (2, 4));
    batcher.truncate(key, 16, &mut notes);
    assert_eq!((notes.pages[&key], batcher.pages().free(), batcher.line().rows()), (1, 6, 0));
    batcher.push(job(1, 16, vec![1]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 17, None)]);
    batcher.truncate(key, 0, &mut notes);
    assert_eq!((notes.pages.len(), batcher.pages().free()), (0, 8));
}

#[test]
fn layers_that_slide_give_pages_back_and_what_is_gone_is_computed_again_from_the_beginning() {
    let (batcher, mut notes) = batcher(80);
    let mut batcher = batcher.with_windows(Windows::new([Some(16), None]));
    let key = (SessionId(1), LAYERS);
    for start in (0..640).step_by(32) {
        batcher.push(job(1, start, vec![1; 32]));
        assert_eq!(step(&mut batcher, &mut notes), [(1, start + 32, None)]);
    }
    // 640 - 16 - 256 positions are behind: 23 pages of 40.
    assert_eq!(notes.behind, BTreeMap::from([((key, 0), 23)]));
    assert_eq!(notes.behind_before_results, notes.behind, "whoever has a result finds them free");
    assert_eq!(batcher.pages().free(), 80 - (40 + 17));
    batcher.truncate(key, 300, &mut notes);
    assert_eq!((notes.pages.len(), batcher.pages().free()), (0, 80));
    batcher.push(job(1, 300, vec![1]));
    assert_eq!(step(&mut batcher, &mut notes), [(1, 301, Some(Refusal::NeedReplay { have: 0 }))]);
}
