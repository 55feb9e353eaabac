//! A streaming OpenAI client that keeps every token id with the moment it arrived.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use serde_json::{Value, json};

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Model name as served.
    pub model: String,
    /// What the user says.
    pub text: String,
    /// What is continued instead: a text, or tokens as they are.
    pub prompt: Option<Value>,
    /// Exactly this many tokens are generated (`ignore_eos`).
    pub tokens: u32,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// Seed of the sampler.
    pub seed: u64,
}

impl Question {
    /// A greedy question of fixed length.
    #[must_use]
    pub fn greedy(model: &str, text: &str, tokens: u32) -> Self {
        let (model, text) = (model.to_owned(), text.to_owned());
        Self { model, text, prompt: None, tokens, temperature: 0.0, seed: 0 }
    }

    /// A greedy continuation of a text, of fixed length: a model that was trained from nothing has no chat template.
    #[must_use]
    pub fn continued(model: &str, text: &str, tokens: u32) -> Self {
        Self { prompt: Some(json!(text)), ..Self::greedy(model, "", tokens) }
    }

    /// A greedy question of fixed length whose prompt is `len` tokens drawn from `seed`.
    #[must_use]
    pub fn drawn(model: &str, len: usize, seed: u64, tokens: u32) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let token = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            1000 + (state >> 33) as u32 % 20_000
        };
        let prompt = Some(std::iter::repeat_with(token).take(len).collect());
        Self { prompt, ..Self::greedy(model, "", tokens) }
    }

    fn path(&self) -> &'static str {
        if self.prompt.is_some() { "/v1/completions" } else { "/v1/chat/completions" }
    }

    fn body(&self) -> Value {
        let (key, what) = match &self.prompt {
            Some(prompt) => ("prompt", prompt.clone()),
            None => ("messages", json!([{"role": "user", "content": self.text}])),
        };
        json!({
            "model": self.model,
            key: what,
            "max_tokens": self.tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": true,
            "stream": true,
            "return_token_ids": true,
        })
    }
}

/// What came of a question.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Token ids in order.
    pub ids: Vec<u64>,
    /// Their text.
    pub text: String,
    /// Seconds since the request was sent at which each of `ids` arrived.
    pub arrived_s: Vec<f64>,
    /// `finish_reason` of the last chunk.
    pub finish: Option<String>,
}

impl Answer {
    /// The longest wait between two tokens from token `from` on, in seconds.
    #[must_use]
    pub fn stall_s(&self, from: usize) -> f64 {
        self.arrived_s.windows(2).skip(from.saturating_sub(1)).map(|w| w[1] - w[0]).fold(0.0, f64::max)
    }

    /// Tokens per second over the tokens `from..to`.
    #[must_use]
    pub fn rate(&self, from: usize, to: usize) -> f64 {
        match (self.arrived_s.get(from), self.arrived_s.get(to.saturating_sub(1))) {
            (Some(a), Some(b)) if b > a => (to - 1 - from) as f64 / (b - a),
            _ => 0.0,
        }
    }
}

/// A gateway does not begin with an answer: what it says instead. Errors of [`Stream`] and [`ask`] can be cast to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRefusal {
    /// HTTP status, never 200.
    pub status: u16,
    /// Seconds of its `Retry-After`, if it has one.
    pub retry_after_s: Option<u64>,
    /// Its body.
    pub body: String,
}

impl fmt::Display for HttpRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}: {}", self.status, self.body)
    }
}

impl std::error::Error for HttpRefusal {}

enum Event {
    Tokens { ids: Vec<u64>, text: String, at: Instant },
    Finish(String),
    End,
    Failed(Error),
}

/// A running stream.
pub struct Stream {
    events: Receiver<Event>,
    started: Instant,
    answer: Answer,
    ended: bool,
}

/// No answer goes without a token for longer than this.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

impl Stream {
    /// Sends `question` to `url` (`http://host:port`) and returns at once.
    #[must_use]
    pub fn start(url: &str, question: &Question) -> Self {
        let (sender, events) = channel();
        let url = format!("{url}{}", question.path());
        let body = question.body().to_string();
        let started = Instant::now();
        std::thread::spawn(move || {
            let end = match read(&url, &body, &mut |event| sender.send(event).is_ok()) {
                Ok(()) => Event::End,
                Err(error) => Event::Failed(error),
            };
            // The receiver may have been dropped: the stream was abandoned on purpose.
            let _ = sender.send(end);
        });
        Self { events, started, answer: Answer::default(), ended: false }
    }

    /// Reads until `count` tokens have arrived.
    ///
    /// # Errors
    /// When the stream fails or ends before.
    pub fn read_tokens(&mut self, count: usize) -> Result<()> {
        while self.answer.ids.len() < count {
            if self.ended {
                bail!("the stream ended after {} of {count} tokens", self.answer.ids.len());
            }
            self.step()?;
        }
        Ok(())
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// When the stream fails.
    pub fn finish(mut self) -> Result<Answer> {
        while !self.ended {
            self.step()?;
        }
        Ok(self.answer)
    }

    /// The tokens so far.
    #[must_use]
    pub fn so_far(&self) -> &Answer {
        &self.answer
    }

    fn step(&mut self) -> Result<()> {
        match self.events.recv_timeout(SILENCE_LIMIT) {
            Ok(Event::Tokens { ids, text, at }) => {
                let at_s = at.duration_since(self.started).as_secs_f64();
                self.answer.arrived_s.extend(ids.iter().map(|_| at_s));
                self.answer.ids.extend(ids);
                self.answer.text.push_str(&text);
            }
            Ok(Event::Finish(reason)) => self.answer.finish = Some(reason),
            Ok(Event::End) => self.ended = true,
            Ok(Event::Failed(error)) => {
                return Err(error.context(format!("after {} tokens", self.answer.ids.len())));
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("no token for {} s after {} tokens", SILENCE_LIMIT.as_secs(), self.answer.ids.len())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the reader stopped"),
        }
        Ok(())
    }
}

/// Asks and reads the whole answer.
///
/// # Errors
/// When the request fails or the stream breaks.
pub fn ask(url: &str, question: &Question) -> Result<Answer> {
    Stream::start(url, question).finish()
}

/// `GET path`; status and body.
///
/// # Errors
/// When no HTTP answer comes within 5 s.
pub fn get(url: &str) -> Result<(u16, String)> {
    let agent = agent(Some(Duration::from_secs(5)));
    let mut response = agent.get(url).call()?;
    let status = response.status().as_u16();
    Ok((status, response.body_mut().read_to_string()?))
}

fn agent(limit: Option<Duration>) -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(limit).build().into()
}

fn read(url: &str, body: &str, send: &mut dyn FnMut(Event) -> bool) -> Result<()> {
    let mut response =
        agent(None).post(url).header("content-type", "application/json").send(body).context("request")?;
    let status = response.status().as_u16();
    if status != 200 {
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after_s = retry_after.and_then(|seconds| seconds.parse().ok());
        let body = response.body_mut().read_to_string().unwrap_or_default();
        return Err(HttpRefusal { status, retry_after_s, body }.into());
    }
    let mut finished = false;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.context("stream broken")?;
        let Some(data) = line.strip_prefix("data:") else { continue };
        let at = Instant::now();
        if data.trim() == "[DONE]" {
            if !finished {
                bail!("[DONE] before a finish_reason");
            }
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(data).with_context(|| format!("no JSON: {data}"))?;
        if let Some(error) = chunk.get("error") {
            bail!("{error}");
        }
        let choice = &chunk["choices"][0];
        let ids: Vec<u64> =
            choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        let text =
            choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned();
        if (!ids.is_empty() || !text.is_empty()) && !send(Event::Tokens { ids, text, at }) {
            return Ok(());
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            finished = true;
            send(Event::Finish(reason.to_owned()));
        }
    }
    bail!("the connection closed before [DONE]")
}
