//! What a busy, a slow and an ending process do to answers: real processes, sockets and signals. Needs the model of e2e/fetch-model.sh.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod tool;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dunlin_e2e::chaos::{self, Plan};
use dunlin_e2e::chat::{self, Question, Stream};
use dunlin_e2e::local::{self, Local};
use dunlin_e2e::losses::{self, Signal};
use dunlin_e2e::overload::{self, Load};
use tool::dunlin;

const PEERS: usize = 3;

fn start() -> Local {
    let local = Local::start(dunlin(), &local::cached_model().unwrap(), PEERS as u32, 1).unwrap();
    losses::wait_whole(&local, PEERS, Duration::from_secs(60)).unwrap();
    local
}

fn drawn(local: &Local, seed: u64, tokens: u32) -> Question {
    Question::drawn(&local.model().unwrap(), 16, seed, tokens)
}

#[test]
fn streams_go_on_through_kills_and_silences() {
    let local = start();
    let plan = Plan {
        streams: 6,
        tokens: 60,
        calm: Duration::from_secs(8),
        wild: Duration::from_secs(40),
        kill_every: Duration::from_secs(9),
        silent_every: Duration::from_secs(40),
        silent_for: Duration::from_secs(4),
        seed: 7,
    };
    let outcome = chaos::run(&local, &plan).unwrap();
    let bad =
        [&outcome.wild.lost[..], &outcome.wild.changed, &outcome.calm.lost, &outcome.calm.changed].concat();
    assert_eq!(bad, Vec::<String>::new());
    assert!(outcome.kills >= 3 && outcome.silences == 1 && outcome.wild.answers > 20, "{}", outcome.json());
    assert!(!outcome.recoveries.is_empty(), "they hit running answers");
}

#[test]
fn more_requests_than_there_is_room_for_disturb_no_answer() {
    let local = start();
    let outcome = overload::run(&local, &Load { requests: 120, prompt: 32, tokens: 8 }).unwrap();
    assert_eq!((outcome.whole + outcome.later, &outcome.failed), (120, &Vec::new()), "{}", outcome.json());
    assert_eq!((&outcome.recoveries, outcome.replayed_rows), (&Vec::new(), 0), "{}", outcome.json());
}

#[test]
fn answers_leave_a_stage_that_crawls() {
    let local = start();
    let question = drawn(&local, 5, 150);
    let undisturbed = chat::ask(&local.url, &question).unwrap();
    let (_, pid) = losses::stages(&local).unwrap()[1];
    let over = AtomicBool::new(false);
    let (answer, took) = std::thread::scope(|scope| {
        // It runs for a tenth of the time, a hundredth of a second each.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                losses::signal(pid, Signal::Stop).unwrap();
                std::thread::sleep(Duration::from_millis(90));
                losses::signal(pid, Signal::Continue).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let started = Instant::now();
        let answer = chat::ask(&local.url, &question);
        over.store(true, Ordering::Relaxed);
        (answer, started.elapsed())
    });
    assert_eq!(answer.unwrap().ids, undisturbed.ids);
    let (reasons, _) = losses::recoveries(&local).unwrap();
    assert!(reasons.iter().any(|(reason, _)| reason == "Slow"), "{reasons:?} in {took:?}");
}

#[test]
fn a_gateway_that_has_to_end_says_so_on_every_stream() {
    let local = start();
    let mut stream = Stream::start(&local.url, &drawn(&local, 1, 3000));
    stream.read_tokens(5).unwrap();
    losses::signal(local.processes().unwrap()["gateway"], Signal::Terminate).unwrap();
    let error = format!("{:#}", stream.finish().unwrap_err());
    assert!(error.contains("server_error") && error.contains("the gateway is about to end"), "{error}");
}
