//! More requests at once than there is room for, and nobody lost.

use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};

use crate::chat::{self, Question};
use crate::local::Local;
use crate::losses;
use crate::report::quantile;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Load {
    /// Requests at once.
    pub requests: usize,
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens of each answer.
    pub tokens: u32,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Answers that came whole.
    pub whole: usize,
    /// Requests that were told to come again later (429).
    pub later: usize,
    /// Anything else, in words.
    pub failed: Vec<String>,
    /// Sessions that went on after a disturbance, by reason.
    pub recoveries: Vec<(String, u64)>,
    /// Rows computed again.
    pub replayed_rows: u64,
    /// Longest wait between two tokens of an answer, in ms, over all answers: median, 99th of 100, longest.
    pub gap_ms: [f64; 3],
    /// Until the first token, in ms: median and 99th of 100.
    pub first_ms: [f64; 2],
    /// From the first request to the last answer, in seconds.
    pub took_s: f64,
}

impl Outcome {
    /// For the record.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "whole": self.whole, "later_429": self.later, "failed": self.failed, "recoveries": self.recoveries,
            "replayed_rows": self.replayed_rows, "gap_ms_p50_p99_max": self.gap_ms, "first_token_ms_p50_p99": self.first_ms,
            "took_s": self.took_s,
        })
    }
}

/// Asks everything at once.
///
/// # Errors
/// When the swarm does not answer at all.
pub fn run(local: &Local, load: &Load) -> Result<Outcome> {
    let model = local.model()?;
    let before = losses::recoveries(local)?;
    let started = Instant::now();
    let answers: Vec<Result<chat::Answer>> = std::thread::scope(|scope| {
        let ask = |i: usize| {
            let question = Question::drawn(&model, load.prompt, i as u64, load.tokens);
            scope.spawn(move || chat::ask(&local.url, &question))
        };
        let threads: Vec<_> = (0..load.requests).map(ask).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked"))))
            .collect()
    });
    let took_s = started.elapsed().as_secs_f64();
    let (recoveries, replayed_rows) = losses::recoveries(local)?;
    let earlier = |reason: &str| before.0.iter().find(|(r, _)| r == reason).map_or(0, |(_, n)| *n);
    let mut outcome = Outcome {
        recoveries: recoveries
            .into_iter()
            .map(|(r, n)| (r.clone(), n - earlier(&r)))
            .filter(|(_, n)| *n > 0)
            .collect(),
        replayed_rows: replayed_rows - before.1,
        took_s,
        ..Outcome::default()
    };
    let (mut gaps, mut firsts) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(answer) if answer.ids.len() == load.tokens as usize => {
                outcome.whole += 1;
                gaps.push(1e3 * answer.stall_s(0));
                firsts.extend(answer.arrived_s.first().map(|s| 1e3 * s));
            }
            Ok(answer) => outcome.failed.push(format!("{} of {} tokens", answer.ids.len(), load.tokens)),
            Err(error) if format!("{error:#}").contains("HTTP 429") => outcome.later += 1,
            Err(error) => outcome.failed.push(format!("{error:#}")),
        }
    }
    outcome.gap_ms = [0.5, 0.99, 1.0].map(|q| quantile(&gaps, q));
    outcome.first_ms = [0.5, 0.99].map(|q| quantile(&firsts, q));
    Ok(outcome)
}
