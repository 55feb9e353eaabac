//! Who runs next, with how many rows and whose pages.

use std::sync::Arc;

use dunlin_protocol::stage::{Input, Line, SampleRequest, StageJob, Urgency};
use dunlin_protocol::{RowData, SamplingParams, SessionId};
use dunlin_swarm::Layers;

use super::{Budget, Scheduler};
use crate::pages::PageTable;

const BUDGET: Budget = Budget { step_rows: 3, prefill_rows: 8, prefill_ends: 2 };

/// A job of a session that is as old as its number is small.
fn job(session: u64, urgency: Urgency, start: u32, count: u32) -> StageJob {
    StageJob {
        session: SessionId(session),
        attempt: 1,
        layers: Layers::new(0, 2),
        adapter: None,
        line: Line { urgency, born_ms: session },
        start,
        count,
        input: Input::Tokens((start..start + count).collect()),
        last: false,
        sample: None,
    }
}

fn step(session: u64, start: u32) -> StageJob {
    job(session, Urgency::Step, start, 1)
}

fn prompt(session: u64, start: u32, count: u32) -> StageJob {
    job(session, Urgency::Prompt, start, count)
}

/// Runs a batch; pages are taken for what it has.
fn batch_of(scheduler: &mut Scheduler, pages: &mut PageTable) -> Vec<(u64, u32, u32)> {
    let parts = scheduler.next(BUDGET, 1, pages);
    for part in &parts {
        let tokens = part.inputs.iter().flat_map(|input| match input {
            Input::Tokens(tokens) => tokens.clone(),
            Input::Rows(rows) => rows.as_slice().iter().map(|v| *v as u32).collect(),
        });
        assert!(tokens.eq(part.start..part.start + part.count));
        pages.grow(part.key, (part.start + part.count) as usize).unwrap();
    }
    parts.iter().map(|p| (p.key.0.0, p.start, p.count)).collect()
}

fn batch(scheduler: &mut Scheduler) -> Vec<(u64, u32, u32)> {
    batch_of(scheduler, &mut PageTable::new(1000))
}

#[test]
fn a_long_prompt_delays_tokens_by_one_part_at_most() {
    let mut scheduler = Scheduler::default();
    scheduler.push(prompt(1, 0, 20));
    scheduler.push(step(2, 7));
    assert_eq!(batch(&mut scheduler), [(2, 7, 1), (1, 0, 8)]);
    scheduler.push(step(2, 8));
    assert_eq!(batch(&mut scheduler), [(2, 8, 1), (1, 8, 8)]);
    assert_eq!(batch(&mut scheduler), [(1, 16, 4)]);
    assert!(scheduler.is_empty() && scheduler.rows() == 0);
}

#[test]
fn tokens_are_served_in_the_order_in_which_they_came_within_the_budget() {
    let mut scheduler = Scheduler::default();
    for session in [5, 3, 9, 1] {
        scheduler.push(step(session, 4));
    }
    assert_eq!(batch(&mut scheduler), [(5, 4, 1), (3, 4, 1), (9, 4, 1)]);
    assert_eq!(batch(&mut scheduler), [(1, 4, 1)]);
}

#[test]
fn an_answer_that_had_begun_goes_before_prompts_and_older_sessions_before_younger() {
    let mut scheduler = Scheduler::default();
    scheduler.push(prompt(1, 0, 3));
    scheduler.push(job(9, Urgency::Replay, 0, 3));
    scheduler.push(job(7, Urgency::Replay, 0, 3));
    scheduler.push(prompt(0, 0, 3));
    assert_eq!(batch(&mut scheduler), [(7, 0, 3), (9, 0, 3), (0, 0, 2)], "several in one batch");
    assert_eq!(batch(&mut scheduler), [(0, 2, 1), (1, 0, 3)]);
}

#[test]
fn few_prompts_end_with_one_batch_however_short_they_are() {
    let sampled = SampleRequest {
        params: Arc::new(SamplingParams::default()),
        tokens: Arc::new(vec![0]),
        prompt_len: 1,
    };
    let mut scheduler = Scheduler::default();
    for session in 1..=5 {
        scheduler.push(StageJob { last: true, sample: Some(sampled.clone()), ..prompt(session, 0, 1) });
    }
    assert_eq!(batch(&mut scheduler), [(1, 0, 1), (2, 0, 1)]);
    assert_eq!(batch(&mut scheduler), [(3, 0, 1), (4, 0, 1)]);
    assert_eq!(batch(&mut scheduler), [(5, 0, 1)]);
}

#[test]
fn rows_that_came_one_by_one_run_together() {
    let mut scheduler = Scheduler::default();
    let one = |position: u32| StageJob {
        input: Input::Rows(RowData::new(vec![position as f32])),
        ..job(1, Urgency::Replay, position, 1)
    };
    (0..18).for_each(|position| scheduler.push(one(position)));
    let sample = SampleRequest {
        params: Arc::new(SamplingParams::default()),
        tokens: Arc::new(Vec::new()),
        prompt_len: 1,
    };
    scheduler.push(StageJob { sample: Some(sample), line: step(1, 0).line, ..one(18) });
    assert_eq!(scheduler.rows(), 19);
    assert_eq!(batch(&mut scheduler), [(1, 0, 8)]);
    assert_eq!(batch(&mut scheduler), [(1, 8, 8)]);
    let parts = scheduler.next(BUDGET, 1, &PageTable::new(10));
    assert!(parts[0].sample.is_some() && parts[0].count == 3, "{parts:?}");
    assert!(scheduler.is_empty() && scheduler.rows() == 0);
}

#[test]
fn a_part_ends_where_a_token_is_sampled() {
    let mut scheduler = Scheduler::default();
    let sample = SampleRequest { params: Arc::default(), tokens: Arc::new(Vec::new()), prompt_len: 1 };
    scheduler.push(StageJob { sample: Some(sample), ..prompt(1, 0, 5) });
    scheduler.push(step(1, 5));
    assert_eq!(batch(&mut scheduler), [(1, 0, 5)]);
    assert_eq!(batch(&mut scheduler), [(1, 5, 1)]);
}

#[test]
fn jobs_of_a_segment_can_be_forgotten() {
    let mut scheduler = Scheduler::default();
    scheduler.push(prompt(1, 0, 10));
    scheduler.push(step(1, 10));
    assert_eq!(batch(&mut scheduler), [(1, 0, 8)]);
    assert_eq!(scheduler.rows(), 3);
    scheduler.forget(&(SessionId(1), Layers::new(0, 2)));
    assert!(scheduler.is_empty() && scheduler.rows() == 0);
    assert_eq!(batch(&mut scheduler), []);
}

#[test]
fn whoever_is_first_in_line_is_passed_over_by_one_batch_of_another_layer_range_at_most() {
    let mut scheduler = Scheduler::default();
    let elsewhere = Layers::new(2, 4);
    scheduler.push(StageJob { layers: elsewhere, ..job(1, Urgency::Replay, 0, 20) });
    for round in 0..2 {
        scheduler.push(step(2, round));
        scheduler.push(step(3, round));
        scheduler.push(prompt(4 + u64::from(round), 0, 2));
        assert_eq!(batch(&mut scheduler).first(), Some(&(2, round, 1)));
        scheduler.push(step(2, 100 + round));
        assert_eq!(batch(&mut scheduler), [(1, round * 8, 8)]);
        scheduler.forget(&(SessionId(2), Layers::new(0, 2)));
    }
}

#[test]
fn older_sessions_get_pages_first_and_what_does_not_fit_waits() {
    // Two layers, so a page of positions takes two.
    let (mut scheduler, mut pages) = (Scheduler::default(), PageTable::new(6));
    for (session, from) in [(3, 0), (2, 0)] {
        scheduler.push(prompt(session, from, 8));
        batch_of(&mut scheduler, &mut pages);
    }
    assert_eq!(pages.free(), 2);
    scheduler.push(prompt(3, 8, 12));
    scheduler.push(prompt(1, 0, 20));
    // 3 needs no page yet; 1 is older and takes the last one, so that 3 waits at the end of its own.
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(1, 0, 8)]);
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(1, 8, 8)]);
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(3, 8, 8)]);
    assert_eq!(batch_of(&mut scheduler, &mut pages), []);
    assert!(scheduler.is_starved() && !scheduler.is_empty());
    // The youngest gives its page back: the oldest goes on.
    scheduler.forget(&(SessionId(3), Layers::new(0, 2)));
    pages.shrink((SessionId(3), Layers::new(0, 2)), 0);
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(1, 16, 4)]);
    assert!(!scheduler.is_starved() && scheduler.is_empty());
}

#[test]
fn of_sessions_of_one_age_the_first_to_come_goes_first() {
    for urgency in [Urgency::Replay, Urgency::Prompt] {
        let mut scheduler = Scheduler::default();
        for session in [5, 3, 9] {
            scheduler.push(StageJob { line: Line { urgency, born_ms: 7 }, ..prompt(session, 0, 8) });
        }
        let order: Vec<_> = (0..3).flat_map(|_| batch(&mut scheduler)).collect();
        assert_eq!(order, [(5, 0, 8), (3, 0, 8), (9, 0, 8)], "{urgency:?}");
    }
}

#[test]
fn nobody_takes_a_page_that_an_older_session_lacks_whatever_its_layers() {
    let (mut scheduler, mut pages) = (Scheduler::default(), PageTable::new(3));
    let older = |start, count| StageJob {
        line: Line { urgency: Urgency::Prompt, born_ms: 1 },
        ..prompt(9, start, count)
    };
    scheduler.push(older(0, 8));
    scheduler.push(older(8, 8));
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(9, 0, 8)]);
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(9, 8, 8)]);
    // It needs a page in each of its two layers, and there is one. The younger one needs no more, as it has one layer.
    let younger = Layers::new(2, 3);
    scheduler.push(older(16, 1));
    for urgency in [Urgency::Step, Urgency::Replay, Urgency::Prompt] {
        scheduler.push(StageJob { layers: younger, ..job(4, urgency, 0, 1) });
        assert_eq!(batch_of(&mut scheduler, &mut pages), [], "{urgency:?}");
        assert!(scheduler.is_starved(), "{urgency:?}");
        scheduler.forget(&(SessionId(4), younger));
    }
}

#[test]
fn a_page_is_promised_once() {
    let (mut scheduler, mut pages) = (Scheduler::default(), PageTable::new(2));
    scheduler.push(prompt(1, 0, 4));
    scheduler.push(prompt(2, 0, 4));
    assert_eq!(batch_of(&mut scheduler, &mut pages), [(1, 0, 4)]);
    assert_eq!(batch_of(&mut scheduler, &mut pages), []);
}
