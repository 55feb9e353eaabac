//! One stage between neighbours that the test plays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use dunlin_protocol::frame::{PAGE_POSITIONS, PAGES_ROOM_AHEAD, WINDOW_ROWS};
use dunlin_protocol::stage::{Computed, Input, Output, StageJob, Urgency};
use dunlin_protocol::{
    Frame, GatewayId, Hop, Open, Recipient, Refusal, RowData, SamplingParams, Sender, SessionId, StageConfig,
    StageEffect, StageNode, Windows,
};
use dunlin_swarm::limits::FIRST_WINDOW_ROWS;
use dunlin_swarm::{Layers, NumericsClass};

const HIDDEN: usize = 2;
const ROUTE: [&str; 3] = ["a", "b", "c"];

fn node(name: &str) -> StageNode {
    let mut node = StageNode::new(StageConfig {
        name: name.into(),
        hidden: HIDDEN,
        arithmetic: NumericsClass::FIRST,
        positions_max: 4096,
        windows: Windows::default(),
        pages: 10_000,
        sessions_max: 16,
        journal_bytes_max: 1 << 20,
        lease_ms: 10_000,
    });
    node.set_held(vec![Layers::new(0, 4)]);
    node
}

/// A route of `a`, `b`, `c` with two layers each.
fn open(session: u64, index: u32, prompt: u32, max_len: u32) -> Open {
    let hop = |(i, name): (usize, &str)| Hop {
        peer: name.into(),
        addr: format!("{name}:1"),
        layers: Layers::new(2 * i as u32, 2 * i as u32 + 2),
        from: 0,
    };
    Open {
        session: SessionId(session),
        attempt: 1,
        gateway: GatewayId { name: "g".into(), incarnation: 1 },
        index,
        route: ROUTE.into_iter().enumerate().map(hop).collect(),
        tokens: Arc::new((0..prompt).collect()),
        prompt_len: prompt,
        max_len,
        sampling: Arc::new(SamplingParams::default()),
        eos: Arc::default(),
        adapter: None,
        arithmetic: Some(NumericsClass::FIRST),
        born_ms: 0,
    }
}

/// Whoever may send a frame does.
fn say(node: &mut StageNode, frame: Frame, out: &mut Vec<StageEffect>) {
    let from = match &frame {
        Frame::Open(open) if open.index == 0 => Sender::Gateway(open.gateway.clone()),
        Frame::Room { index, .. } => Sender::Peer(ROUTE[*index as usize].into()),
        Frame::Token { .. } => Sender::Peer("c".into()),
        _ => Sender::Peer("a".into()),
    };
    node.frame(&from, frame, 100, out);
}

#[derive(Default)]
struct Happened {
    jobs: Vec<StageJob>,
    rows: Vec<(u32, u32)>,
    room: Vec<u32>,
    refused: Vec<Refusal>,
    freed: Vec<SessionId>,
}

/// What the shell is told.
fn happened(out: &mut Vec<StageEffect>) -> Happened {
    let mut seen = Happened::default();
    for effect in out.drain(..) {
        match effect {
            StageEffect::Compute(job) => seen.jobs.push(job),
            StageEffect::Free { session, .. } => seen.freed.push(session),
            StageEffect::Send { frame: Frame::Rows { start, count, .. }, .. } => {
                seen.rows.push((start, count))
            }
            StageEffect::Send { frame: Frame::Refused { reason, .. }, .. } => seen.refused.push(reason),
            StageEffect::Send { to, frame: Frame::Room { until, .. } } => {
                assert_eq!(to, Recipient::Upstream("a".into()));
                seen.room.push(until);
            }
            StageEffect::Forbidden { from, rule } => panic!("{from:?}: {rule}"),
            StageEffect::Send { .. } | StageEffect::Truncate { .. } => {}
        }
    }
    seen
}

/// The engine does a job.
fn done(job: &StageJob) -> Computed {
    let StageJob { session, attempt, layers, start, count, .. } = *job;
    let output = Output::Rows(RowData::new(vec![0.0; count as usize * HIDDEN]));
    Computed { session, attempt, layers, start, count, output }
}

fn given(jobs: &[StageJob]) -> u32 {
    jobs.iter().map(|job| job.count).sum()
}

#[test]
fn a_first_hop_computes_no_more_than_the_next_one_takes_and_a_window() {
    let (mut a, mut out) = (node("a"), Vec::new());
    say(&mut a, Frame::Open(open(1, 0, 2000, 2100)), &mut out);
    let mut seen = happened(&mut out);
    assert_eq!(
        given(&seen.jobs),
        FIRST_WINDOW_ROWS + WINDOW_ROWS,
        "tokens that nobody takes are not computed"
    );
    for job in seen.jobs.drain(..) {
        assert_eq!(job.line.urgency, Urgency::Prompt);
        a.computed(done(&job), 0, &mut out);
    }
    let seen = happened(&mut out);
    assert_eq!(
        (given(&seen.jobs), seen.rows),
        (0, vec![(0, FIRST_WINDOW_ROWS)]),
        "no more is sent than there is room for"
    );
    let room = |until| Frame::Room { session: SessionId(1), attempt: 1, index: 1, until };
    say(&mut a, room(FIRST_WINDOW_ROWS + 128), &mut out);
    let seen = happened(&mut out);
    assert_eq!((given(&seen.jobs), seen.rows), (128, vec![(FIRST_WINDOW_ROWS, 128)]));
    say(&mut a, room(FIRST_WINDOW_ROWS + 128), &mut out);
    say(&mut a, room(7), &mut out);
    assert!(out.is_empty(), "said twice it is the same room, and it never shrinks");
}

#[test]
fn a_hop_says_when_it_has_room_and_ignores_what_it_has_none_for() {
    let (mut b, mut out) = (node("b"), Vec::new());
    say(&mut b, Frame::Open(open(1, 1, 2000, 2100)), &mut out);
    happened(&mut out);
    let rows = |start: u32, count: u32| Frame::Rows {
        session: SessionId(1),
        attempt: 1,
        index: 1,
        start,
        count,
        data: RowData::new(vec![0.0; count as usize * HIDDEN]),
    };
    say(&mut b, rows(0, FIRST_WINDOW_ROWS + 1), &mut out);
    assert!(out.is_empty(), "there is no room for the last of them");
    say(&mut b, rows(0, 100), &mut out);
    say(&mut b, rows(100, FIRST_WINDOW_ROWS - 100), &mut out);
    let seen = happened(&mut out);
    assert_eq!(given(&seen.jobs), FIRST_WINDOW_ROWS);
    let held = b.held().into_values().flatten().next().unwrap();
    assert_eq!((held.have, held.waiting), (0, FIRST_WINDOW_ROWS));
    // A batch of the engine may take other pieces than came.
    let mut at = 0;
    for count in [100, 28, 128] {
        let job =
            StageJob { start: at, count, input: Input::Rows(RowData::default()), ..seen.jobs[0].clone() };
        b.computed(done(&job), 0, &mut out);
        at += count;
    }
    assert_eq!(happened(&mut out).room, [WINDOW_ROWS + 128, WINDOW_ROWS + 256]);
}

#[test]
fn rows_that_the_next_hop_does_not_take_stand_in_no_line() {
    let (mut a, mut out) = (node("a"), Vec::new());
    say(&mut a, Frame::Open(open(1, 0, 2000, 2100)), &mut out);
    let held = |a: &StageNode| a.held().into_values().flatten().next().unwrap();
    assert_eq!((held(&a).have, held(&a).waiting), (0, FIRST_WINDOW_ROWS + WINDOW_ROWS));
    for job in happened(&mut out).jobs {
        a.computed(done(&job), 0, &mut out);
    }
    // The engine has nothing to do for it, however busy it is: if nothing goes on, that is for the next hop to explain.
    assert_eq!((held(&a).have, held(&a).waiting), (FIRST_WINDOW_ROWS + WINDOW_ROWS, 0));
}

#[test]
fn rows_that_wait_take_the_memory_of_journals() {
    let (mut b, mut out) = (node("b"), Vec::new());
    let rows = |session: u64, count: u32| Frame::Rows {
        session: SessionId(session),
        attempt: 1,
        index: 1,
        start: 0,
        count,
        data: RowData::new(vec![0.0; count as usize * HIDDEN]),
    };
    let row = HIDDEN * size_of::<f32>();
    b.set_journal_bytes_max(200 * row);
    say(&mut b, Frame::Open(open(1, 1, 150, 2100)), &mut out);
    say(&mut b, rows(1, 150), &mut out);
    for job in happened(&mut out).jobs {
        b.computed(done(&job), 0, &mut out);
    }
    assert_eq!(happened(&mut out).rows, [(0, 150)]);
    assert_eq!(b.journal_bytes(), 150 * row);
    say(&mut b, Frame::Open(open(2, 1, 100, 2100)), &mut out);
    say(&mut b, rows(2, 50), &mut out);
    assert_eq!(b.journal_bytes(), 150 * row, "there is room for both");
    let Frame::Rows { session, attempt, index, data, .. } = rows(2, 1) else { unreachable!() };
    say(&mut b, Frame::Rows { session, attempt, index, start: 50, count: 1, data }, &mut out);
    assert_eq!(b.journal_bytes(), 0);
}

/// `a` has computed a thousand rows of a sequence, one by one.
fn after_a_thousand_rows(windows: Windows) -> (StageNode, Vec<StageEffect>) {
    let (mut a, mut out) = (node("a"), Vec::new());
    a.set_model(HIDDEN, 4096, windows);
    say(&mut a, Frame::Open(open(1, 0, 1, 2100)), &mut out);
    let job = happened(&mut out).jobs.remove(0);
    for position in 0..1000 {
        a.computed(done(&StageJob { start: position, count: 1, ..job.clone() }), 0, &mut out);
        let token = Frame::Token {
            session: SessionId(1),
            attempt: 1,
            position: position + 1,
            token: 7,
            logprob: 0.0,
            top: Vec::new(),
            finish: None,
        };
        say(&mut a, token, &mut out);
        let room = Frame::Room { session: SessionId(1), attempt: 1, index: 1, until: position + WINDOW_ROWS };
        say(&mut a, room, &mut out);
    }
    happened(&mut out);
    (a, out)
}

/// The next attempt with it, which begins at `from`.
fn again(attempt: u32, from: u32) -> Frame {
    let again = open(1, 0, 1001, 2100);
    let mut route = again.route.clone();
    route[0].from = from;
    Frame::Open(Open { attempt, prompt_len: 1, route, ..again })
}

/// Whose rows before that position the engine may have given back, because they are behind the window.
#[test]
fn a_segment_that_cannot_begin_so_early_says_that_it_has_nothing() {
    let (mut a, mut out) = after_a_thousand_rows(Windows::new([Some(32); 6]));
    say(&mut a, again(2, 800), &mut out);
    assert!(happened(&mut out).refused.is_empty(), "256 rows are kept behind the window");
    // It has been at 1001, wherever it is now.
    say(&mut a, again(3, 700), &mut out);
    let seen = happened(&mut out);
    assert_eq!((seen.refused, seen.freed), (vec![Refusal::NeedReplay { have: 0 }], vec![SessionId(1)]));
    say(&mut a, again(4, 0), &mut out);
    let seen = happened(&mut out);
    assert!(seen.refused.is_empty() && seen.jobs[0].start == 0);
    let (mut a, mut out) = after_a_thousand_rows(Windows::default());
    say(&mut a, again(2, 700), &mut out);
    assert!(happened(&mut out).refused.is_empty(), "without windows everything is there");
}

#[test]
fn a_lost_neighbour_gets_a_thousand_generated_rows_in_few_frames() {
    let (mut a, mut out) = after_a_thousand_rows(Windows::default());
    say(&mut a, again(2, 1000), &mut out);
    let mut rows = happened(&mut out).rows;
    for until in [384, 512, 640, 768, 896, 1024, 1152] {
        say(&mut a, Frame::Room { session: SessionId(1), attempt: 2, index: 1, until }, &mut out);
        rows.extend(happened(&mut out).rows);
    }
    assert_eq!(rows.iter().map(|(_, count)| count).sum::<u32>(), 1000);
    assert!(rows.len() <= 7, "{rows:?}");
}

#[test]
fn a_sequence_that_the_engine_could_not_compute_is_refused() {
    let (mut a, mut out) = (node("a"), Vec::new());
    say(&mut a, Frame::Open(open(1, 0, 10, 4096)), &mut out);
    assert_eq!(happened(&mut out).jobs.len(), 1);
    say(&mut a, Frame::Open(open(2, 0, 10, 4097)), &mut out);
    let seen = happened(&mut out);
    let [Refusal::BadRequest { message }] = &seen.refused[..] else { panic!("{:?}", seen.refused) };
    assert!(
        message.contains("4097") && message.contains("4096") && message.contains("--max-seq-len"),
        "{message}"
    );
    assert!(seen.jobs.is_empty());
}

#[test]
fn a_session_of_other_arithmetic_is_refused_by_name() {
    let (mut a, mut out) = (node("a"), Vec::new());
    let other = Open { arithmetic: NumericsClass::from_number(2), ..open(1, 0, 10, 100) };
    say(&mut a, Frame::Open(other.clone()), &mut out);
    let seen = happened(&mut out);
    assert!(
        seen.jobs.is_empty() && seen.refused == [Refusal::OtherArithmetic { own: NumericsClass::FIRST }],
        "{:?}",
        seen.refused
    );
    // Of a gateway that does not say it, links decide.
    say(&mut a, Frame::Open(Open { arithmetic: None, ..other }), &mut out);
    assert_eq!(happened(&mut out).jobs.len(), 1);
}

#[test]
fn a_session_is_let_in_only_while_there_are_pages_for_it_and_the_youngest_gives_its_own_back() {
    let (mut a, mut out) = (node("a"), Vec::new());
    // Two layers each.
    let pages = 2 * (100 + PAGES_ROOM_AHEAD).div_ceil(PAGE_POSITIONS);
    a.set_pages(2 * pages + 1);
    for (session, born_ms) in [(1, 50), (2, 10)] {
        say(&mut a, Frame::Open(Open { born_ms, ..open(session, 0, 100, 4000) }), &mut out);
        let job = happened(&mut out).jobs.remove(0);
        a.computed(done(&job), 100, &mut out);
    }
    assert_eq!(a.spare_pages(), 1);
    happened(&mut out);
    say(&mut a, Frame::Open(open(3, 0, 100, 4000)), &mut out);
    assert_eq!(happened(&mut out).refused, [Refusal::NoPages]);
    // An answer that has begun elsewhere is let in, and with it somebody may have to go.
    say(&mut a, Frame::Open(Open { prompt_len: 50, born_ms: 30, ..open(4, 0, 100, 4000) }), &mut out);
    assert_eq!(happened(&mut out).jobs.len(), 1);
    a.starved(true, &mut out);
    let seen = happened(&mut out);
    assert_eq!((seen.refused, seen.freed), (vec![Refusal::NoPages], vec![SessionId(1)]));
    // What is left is older than the one that waits.
    a.starved(true, &mut out);
    assert!(out.is_empty() && a.session_count() == 2);
}

#[test]
fn sessions_are_kept_for_as_long_as_their_gateway_says_or_as_the_stage_would() {
    let (mut a, mut out) = (node("a"), Vec::new());
    let gateway = |name: &str| GatewayId { name: name.into(), incarnation: 1 };
    for (session, name) in [(1, "patient"), (2, "brief"), (3, "silent")] {
        say(&mut a, Frame::Open(Open { gateway: gateway(name), ..open(session, 0, 10, 20) }), &mut out);
    }
    a.heard(&gateway("patient"), Some(60_000), 1_000);
    a.heard(&gateway("brief"), Some(2_000), 1_000);
    a.heard(&gateway("silent"), None, 1_000);
    happened(&mut out);
    for (now_ms, left) in [(2_999, 3), (3_000, 2), (10_999, 2), (11_000, 1), (60_999, 1), (61_000, 0)] {
        a.tick(now_ms, &mut out);
        assert_eq!(a.session_count(), left, "after {now_ms} ms");
    }
}

#[test]
fn however_a_session_ends_here_its_pages_are_given_back() {
    let opened = || {
        let (mut a, mut out) = (node("a"), Vec::new());
        say(&mut a, Frame::Open(open(1, 0, 10, 20)), &mut out);
        happened(&mut out);
        (a, out)
    };
    let (mut a, mut out) = opened();
    let gateway = Sender::Gateway(open(1, 0, 10, 20).gateway);
    a.frame(&gateway, Frame::Close { session: SessionId(1), attempt: 1 }, 100, &mut out);
    assert_eq!((happened(&mut out).freed, a.session_count()), (vec![SessionId(1)], 0), "it is closed");
    let (mut a, mut out) = opened();
    a.tick(20_000, &mut out);
    assert_eq!((happened(&mut out).freed, a.session_count()), (vec![SessionId(1)], 0), "its lease is over");
    let (mut a, mut out) = opened();
    let mut elsewhere = Open { attempt: 2, ..open(1, 0, 10, 20) };
    elsewhere.route[0].layers = Layers::new(0, 1);
    say(&mut a, Frame::Open(elsewhere), &mut out);
    assert_eq!(happened(&mut out).freed, [SessionId(1)], "it has other layers here");
    assert_eq!(a.layers_in_use(), [Layers::new(0, 1)]);
}

#[test]
fn what_goes_no_further_is_told_once_an_attempt_and_the_next_one_begins_without_it() {
    let (mut a, mut out) = (node("a"), Vec::new());
    let attempt = |attempt| Frame::Open(Open { attempt, ..open(1, 0, 10, 20) });
    say(&mut a, attempt(1), &mut out);
    let job = happened(&mut out).jobs.remove(0);
    let reason = Refusal::NonFinite { layer: 1 };
    a.computed(Computed { output: Output::Failed(reason.clone()), ..done(&job) }, 0, &mut out);
    assert_eq!(happened(&mut out).refused, [reason]);
    assert_eq!(a.held().into_values().flatten().next().unwrap().have, 0);
    a.link_down(&"b".into(), &mut out);
    assert!(out.is_empty(), "the gateway knows");
    say(&mut a, attempt(2), &mut out);
    let cut = StageEffect::Truncate { session: SessionId(1), layers: job.layers, to: 0 };
    assert!(out.contains(&cut), "{out:?}");
    happened(&mut out);
    a.link_down(&"b".into(), &mut out);
    assert_eq!(happened(&mut out).refused, [Refusal::LinkDown { to: "b".into() }]);
}
