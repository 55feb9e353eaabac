//! Conversations between the operator and workers.

#![allow(clippy::disallowed_types, reason = "a pass has them at hand, and whoever asks meanwhile")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dunlin_operator::key::SwarmKey;
use dunlin_operator::peers::report::WorkerReport;
use dunlin_operator::peers::talk::WorkerQuestion;
use dunlin_operator::peers::{Conversations, Target, WorkerOrder, WorkerRecord};
use dunlin_swarm::{Epoch, Topology};
use tokio::time::Instant;

use crate::flaw::Flaw;

/// Pause between questions to one worker.
const INTERVAL_MS: u64 = 1000;

/// A conversation with a worker or gateway.
#[derive(Debug, Default)]
struct Talk {
    addr: String,
    answer: WorkerRecord,
    order: Option<WorkerOrder>,
    acknowledged: WorkerOrder,
    /// The next question is asked then; 0: as soon as possible.
    due_ms: u64,
}

#[derive(Debug, Default)]
struct Known {
    talks: BTreeMap<String, Talk>,
    /// What was published last.
    topology: Option<Topology>,
    /// Orders that were given, and repeated.
    orders: u64,
}

/// All conversations of a leader with workers of the one swarm.
#[derive(Clone, Debug)]
pub(crate) struct Talks {
    known: Arc<Mutex<Known>>,
    silence: Duration,
    flaw: Option<Flaw>,
}

impl Conversations for Talks {
    fn follow(&self, _swarm: &SwarmKey, targets: Vec<Target>) {
        let talks = &mut self.lock().talks;
        talks.retain(|name, talk| targets.iter().any(|t| t.name == *name && t.addr == talk.addr));
        for Target { name, addr, .. } in targets {
            talks.entry(name).or_insert_with(|| Talk { addr, ..Talk::default() });
        }
    }

    fn forget(&self, _swarm: &SwarmKey) {
        self.lock().talks.clear();
    }

    fn answers(&self, _swarm: &SwarmKey) -> BTreeMap<String, WorkerRecord> {
        let known = self.lock();
        let answers = known.talks.iter().map(|(name, talk)| (name.clone(), talk.answer.clone()));
        let mut answers = answers.collect();
        if let (Some(Flaw::TrustsPods), Some(topology)) = (self.flaw, &known.topology) {
            Flaw::trust(&mut answers, topology);
        }
        answers
    }

    fn order(&self, _swarm: &SwarmKey, name: &str, order: WorkerOrder) {
        let mut known = self.lock();
        known.orders += 1;
        if let Some(talk) = known.talks.get_mut(name).filter(|talk| talk.order.as_ref() != Some(&order)) {
            (talk.order, talk.due_ms) = (Some(order), 0);
        }
    }
}

impl Talks {
    pub fn new(silence: Duration, flaw: Option<Flaw>) -> Self {
        Self { known: Arc::default(), silence, flaw }
    }

    /// When somebody is asked next.
    pub fn due_ms(&self) -> Option<u64> {
        self.lock().talks.values().map(|talk| talk.due_ms).min()
    }

    /// Orders that were given, and repeated.
    pub fn orders(&self) -> u64 {
        self.lock().orders
    }

    /// Who has not been told of a topology of this epoch or a newer one.
    pub fn untold(&self, epoch: Epoch) -> Option<String> {
        let known = self.lock();
        let told = |talk: &Talk| talk.order.as_ref()?.topology.as_ref().map(|(told, _)| *told);
        known.talks.iter().find(|(_, talk)| told(talk) < Some(epoch)).map(|(name, _)| name.clone())
    }

    /// `topology` is published.
    pub fn published(&self, topology: &Topology) {
        self.lock().topology = Some(topology.clone());
    }

    /// Whom to ask what now.
    pub fn due(&self, now: u64) -> Vec<(String, WorkerQuestion)> {
        let mut known = self.lock();
        let due = known.talks.iter_mut().filter(|(_, talk)| talk.due_ms <= now);
        due.map(|(name, talk)| {
            talk.due_ms = now + INTERVAL_MS;
            let order = talk.order.as_ref();
            let question = order.map_or(WorkerQuestion::Status, |order| order.question(&talk.acknowledged));
            (name.clone(), question)
        })
        .collect()
    }

    /// An answer, or that there is none; whether that is news.
    pub fn hear(
        &self,
        name: &str,
        question: &WorkerQuestion,
        answer: Option<WorkerReport>,
        at: Instant,
    ) -> bool {
        let mut known = self.lock();
        let Some(talk) = known.talks.get_mut(name) else { return false };
        let Some(report) = answer else { return talk.answer.is_silent(at, self.silence) };
        if *question != WorkerQuestion::Status
            && let Some(order) = &talk.order
        {
            talk.acknowledged = order.clone();
        }
        talk.answer.take(report, self.silence, at)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
