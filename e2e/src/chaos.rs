//! Streams without pause while stages are killed and stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::chat::{self, Question};
use crate::local::Local;
use crate::losses::{self, Signal};
use crate::report::quantile;

/// What is asked and what goes wrong.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Streams at once.
    pub streams: usize,
    /// Tokens of each answer.
    pub tokens: u32,
    /// How long nothing goes wrong first.
    pub calm: Duration,
    /// How long things go wrong then.
    pub wild: Duration,
    /// A stage is killed this often.
    pub kill_every: Duration,
    /// A stage is stopped this often.
    pub silent_every: Duration,
    /// For this long.
    pub silent_for: Duration,
    /// What is hit when follows from it.
    pub seed: u64,
}

/// One of the two phases.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Answers that came whole and right.
    pub answers: usize,
    /// Tokens per second, over all streams.
    pub tokens_per_s: f64,
    /// Waits between two tokens, in ms: median, 99th of 100, longest.
    pub gap_ms: [f64; 3],
    /// Answers that ended with an error or short, in words.
    pub lost: Vec<String>,
    /// Answers with another token than undisturbed, in words.
    pub changed: Vec<String>,
    /// Requests that were told to come again later, before they had begun.
    pub later: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Nothing went wrong.
    pub calm: Phase,
    /// Everything did.
    pub wild: Phase,
    /// Stages killed.
    pub kills: usize,
    /// Stages stopped for a while.
    pub silences: usize,
    /// Sessions that went on after a disturbance, by reason.
    pub recoveries: Vec<(String, u64)>,
    /// Rows computed again.
    pub replayed_rows: u64,
}

impl Outcome {
    /// Share of the undisturbed speed.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.wild.tokens_per_s / self.calm.tokens_per_s.max(1e-9)
    }

    /// For the record.
    #[must_use]
    pub fn json(&self) -> Value {
        let phase = |p: &Phase| {
            json!({
                "answers": p.answers, "tokens_per_s": p.tokens_per_s, "gap_ms_p50_p99_max": p.gap_ms, "lost": p.lost,
                "changed": p.changed, "later_503": p.later,
            })
        };
        json!({
            "calm": phase(&self.calm), "wild": phase(&self.wild), "goodput": self.goodput(), "kills": self.kills,
            "silences": self.silences, "recoveries": self.recoveries, "replayed_rows": self.replayed_rows,
        })
    }
}

/// Runs both phases. The first answer of each stream in the calm one is what all later ones are compared with.
///
/// # Errors
/// When the swarm does not answer at all.
pub fn run(local: &Local, plan: &Plan) -> Result<Outcome> {
    let model = local.model()?;
    let questions: Vec<Question> =
        (0..plan.streams).map(|i| Question::drawn(&model, 16, plan.seed + i as u64, plan.tokens)).collect();
    let right = Mutex::new(BTreeMap::new());
    let calm = phase(local, &questions, plan.calm, &right);
    let over = AtomicBool::new(false);
    let (wild, hit) = std::thread::scope(|scope| {
        let wrecker = scope.spawn(|| wreck(local, plan, &over));
        let wild = phase(local, &questions, plan.wild, &right);
        over.store(true, Ordering::Relaxed);
        (wild, wrecker.join().unwrap_or_default())
    });
    let (recoveries, replayed_rows) = losses::recoveries(local)?;
    Ok(Outcome { calm, wild, kills: hit.0, silences: hit.1, recoveries, replayed_rows })
}

/// Every stream asks its question again and again until time is up, and reads the last answer to its end.
fn phase(
    local: &Local,
    questions: &[Question],
    time: Duration,
    right: &Mutex<BTreeMap<usize, Vec<u64>>>,
) -> Phase {
    let started = Instant::now();
    let streams: Vec<(Phase, Vec<f64>, usize)> = std::thread::scope(|scope| {
        let stream =
            |(i, question)| scope.spawn(move || one_stream(local, i, question, started + time, right));
        let threads: Vec<_> = questions.iter().enumerate().map(stream).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_default()).collect()
    });
    let took_s = started.elapsed().as_secs_f64();
    let (mut all, mut gaps, mut tokens) = (Phase::default(), Vec::new(), 0);
    for (one, own_gaps, own_tokens) in streams {
        all.answers += one.answers;
        all.later += one.later;
        all.lost.extend(one.lost);
        all.changed.extend(one.changed);
        gaps.extend(own_gaps);
        tokens += own_tokens;
    }
    all.tokens_per_s = tokens as f64 / took_s;
    all.gap_ms = [0.5, 0.99, 1.0].map(|q| quantile(&gaps, q));
    all
}

/// What one stream saw: counts, waits between its tokens in ms, and tokens of right answers.
fn one_stream(
    local: &Local,
    i: usize,
    question: &Question,
    until: Instant,
    right: &Mutex<BTreeMap<usize, Vec<u64>>>,
) -> (Phase, Vec<f64>, usize) {
    let (mut seen, mut gaps, mut tokens) = (Phase::default(), Vec::new(), 0);
    while Instant::now() < until {
        let answer = match chat::ask(&local.url, question) {
            Ok(answer) => answer,
            Err(error) => {
                let error = format!("{error:#}");
                if error.contains("HTTP 503") || error.contains("HTTP 429") {
                    seen.later += 1;
                    std::thread::sleep(Duration::from_millis(200));
                } else {
                    seen.lost.push(format!("stream {i}: {error}"));
                }
                continue;
            }
        };
        gaps.extend(answer.arrived_s.windows(2).map(|w| 1e3 * (w[1] - w[0])));
        let mut known = right.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = known.entry(i).or_insert_with(|| answer.ids.clone());
        if answer.ids.len() != question.tokens as usize {
            seen.lost.push(format!("stream {i}: {} of {} tokens", answer.ids.len(), question.tokens));
        } else if answer.ids == *expected {
            seen.answers += 1;
            tokens += answer.ids.len();
        } else {
            let at = answer.ids.iter().zip(&*expected).position(|(a, b)| a != b);
            seen.changed.push(format!("stream {i}: token {at:?} differs"));
        }
    }
    (seen, gaps, tokens)
}

/// Kills and stops stages in turn until it is over; how many of each.
fn wreck(local: &Local, plan: &Plan, over: &AtomicBool) -> (usize, usize) {
    let started = Instant::now();
    let (mut kills, mut silences) = (0, 0);
    let (mut kill_at, mut silent_at) = (plan.kill_every / 2, plan.silent_every / 2);
    let mut stopped: Option<(u64, Instant)> = None;
    let mut draw = plan.seed;
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        if let Some((pid, _)) = stopped.filter(|(_, until)| Instant::now() >= *until) {
            // It may have been killed in the meantime.
            let _ = losses::signal(pid, Signal::Continue);
            stopped = None;
        }
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let victim = || {
            let stages: Vec<u64> = local
                .processes()
                .ok()?
                .into_iter()
                .filter(|(name, _)| name != "gateway")
                .map(|(_, pid)| pid)
                .collect();
            stages.get((draw >> 33) as usize % stages.len().max(1)).copied()
        };
        if started.elapsed() >= kill_at {
            kill_at += plan.kill_every;
            kills += usize::from(victim().is_some_and(|pid| losses::signal(pid, Signal::Kill).is_ok()));
        } else if started.elapsed() >= silent_at && stopped.is_none() {
            silent_at += plan.silent_every;
            if let Some(pid) = victim().filter(|pid| losses::signal(*pid, Signal::Stop).is_ok()) {
                silences += 1;
                stopped = Some((pid, Instant::now() + plan.silent_for));
            }
        }
    }
    if let Some((pid, _)) = stopped {
        // A stopped process could not end when the swarm does.
        let _ = losses::signal(pid, Signal::Continue);
    }
    (kills, silences)
}
