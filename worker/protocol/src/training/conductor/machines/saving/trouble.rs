//! The destination of checkpoints takes nothing, or cannot be read.
//!
//! That ends no run: what was trained is in the memory of the peers. It is said, and tried again with pauses that double from a second to a
//! minute. Where one machine can write and another cannot, the machine is named.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

/// First and longest pause after an attempt that came to nothing.
const PAUSE_MS: (u64, u64) = (1_000, 60_000);

/// What is wrong, since when.
pub struct Trouble {
    since_ms: u64,
    attempts: u32,
    /// Of the last attempt.
    why: String,
    not_before_ms: u64,
    /// Machines that could not write: their last writer, and what it said.
    machines: BTreeMap<String, (PeerName, String)>,
}

impl Trouble {
    pub fn new(now_ms: u64) -> Self {
        Self {
            since_ms: now_ms,
            attempts: 0,
            why: String::new(),
            not_before_ms: now_ms,
            machines: BTreeMap::new(),
        }
    }

    /// An attempt came to nothing; it counts once, whoever says so.
    pub fn again(&mut self, now_ms: u64, why: String) {
        if now_ms >= self.not_before_ms {
            let pause = PAUSE_MS.0 << self.attempts.min(16);
            self.not_before_ms = now_ms + pause.min(PAUSE_MS.1);
            self.attempts = self.attempts.saturating_add(1);
        }
        self.why = why;
    }

    /// Is it too early for the next attempt?
    pub fn pauses(&self, now_ms: u64) -> bool {
        now_ms < self.not_before_ms
    }

    /// What to say once `what` has worked.
    pub fn end(self, now_ms: u64, what: &str) -> String {
        let seconds = now_ms.saturating_sub(self.since_ms).div_ceil(1000);
        format!("{what}, after {seconds} s and {} attempts that failed", self.attempts)
    }

    /// What the last attempt came to nothing for.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Attempts that came to nothing so far.
    pub fn attempts(&self) -> usize {
        self.attempts as usize
    }

    /// Could this machine not write?
    pub fn is_on(&self, host: &str) -> bool {
        self.machines.contains_key(host)
    }

    /// A peer could not write.
    pub fn refused(&mut self, name: PeerName, host: String, why: String) {
        self.machines.insert(host, (name, why));
    }

    /// What to say of machines that could not write, once `writers` (name, machine) could: then it is not the destination that is wrong.
    pub fn blame<'a>(&self, writers: impl Iterator<Item = (&'a PeerName, &'a str)> + Clone) -> Vec<String> {
        let named = |name: &PeerName, host: &str| match host {
            "" => name.to_string(),
            host => format!("{name} on {host}"),
        };
        let mut notes = Vec::new();
        for (host, (name, why)) in &self.machines {
            // Whose machine is not known stands for itself.
            let same = |(n, h): &(&PeerName, &str)| if host.is_empty() { *n == name } else { h == host };
            let mut others = writers.clone().filter(|w| !same(w));
            if let Some((able, on)) = others.next().filter(|_| !writers.clone().any(|w| same(&w))) {
                let (first, second) = (named(name, host), named(able, on));
                notes.push(format!(
                    "{first} could not write a checkpoint and {second} could: see to {first} ({why})"
                ));
            }
        }
        notes
    }
}
