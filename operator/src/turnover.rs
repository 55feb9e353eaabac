//! Pods of one role over time: who waits for a node for long, who was lost, and whether new ones end before they serve. Pure but for what it
//! remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::WorkerView;
use crate::roster::{Readiness, Roster};

/// Peers for which the scheduler finds no node for this long run in another pool with room.
pub const FALLBACK_PATIENCE: Duration = Duration::from_secs(30);
/// Longest pause before pods that end before they serve are made again.
const CRASH_PAUSE_MAX: Duration = Duration::from_secs(60);
/// The same when they say that another start does not help. A user may mend what it is without a word to Kubernetes: data on a volume, say.
const MENDING_PAUSE: Duration = Duration::from_secs(300);

/// What is remembered about the pods of one role.
#[derive(Clone, Debug, Default)]
pub struct Turnover {
    /// Since when a pod that has not served yet was seen without a node.
    unplaced: BTreeMap<String, Instant>,
    /// Pods that ended before they served.
    crashed: Option<Crashes>,
    /// Lost pods that were told about already.
    lost: BTreeSet<String>,
    /// Pods that have served: nobody asks them any more once they are lost.
    served: BTreeSet<String>,
}

/// Pods in a row that ended before they served.
#[derive(Clone, Debug)]
struct Crashes {
    times: u32,
    last: Instant,
    /// What the last of them that said something said.
    words: Option<String>,
    /// It said that another start does not help.
    needs_user: bool,
    /// What they were made from. Others may do better.
    edition: String,
    /// Pods that served when the last of them ended: that they go on says nothing about new ones.
    others: BTreeSet<String>,
}

impl Crashes {
    fn pause(&self) -> Duration {
        match self.times {
            _ if self.needs_user => MENDING_PAUSE,
            // The first replacement is immediate: one failed container says little.
            0 | 1 => Duration::ZERO,
            times => Duration::from_secs(1_u64 << times.min(10)).min(CRASH_PAUSE_MAX),
        }
    }
}

/// What a pod was made from, in a word.
pub type EditionOf<'a> = &'a dyn Fn(&WorkerView) -> String;

/// A pod that was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostPod {
    /// Name of the pod.
    pub name: String,
    /// Why it is thought to be.
    pub why: String,
}

impl Turnover {
    /// Peers that found no node for long, until they serve, or could if they were needed: so nothing runs to and fro between pools while a node
    /// comes up.
    pub fn unplaced(
        &mut self,
        workers: &BTreeMap<String, WorkerView>,
        served: &dyn Fn(&str) -> bool,
        now: Instant,
    ) -> BTreeSet<String> {
        let late = |since: &Instant| now.duration_since(*since) >= FALLBACK_PATIENCE;
        for worker in workers.values().filter(|w| w.unplaced) {
            self.unplaced.entry(worker.name.clone()).or_insert(now);
        }
        // One that got its node in time was never short of any.
        self.unplaced.retain(|name, since| {
            workers.get(name).is_some_and(|w| w.unplaced || late(since)) && !served(name)
        });
        self.unplaced.iter().filter(|(_, since)| late(since)).map(|(name, _)| name.clone()).collect()
    }

    /// Tells about each loss once, and counts pods that ended before they served.
    pub fn losses(
        &mut self,
        roster: &Roster,
        workers: &BTreeMap<String, WorkerView>,
        served: &dyn Fn(&str) -> bool,
        edition_of: EditionOf<'_>,
        now: Instant,
    ) -> Vec<LostPod> {
        let mut losses = Vec::new();
        self.lost.retain(|name| workers.contains_key(name));
        self.served.retain(|name| workers.contains_key(name));
        self.served.extend(workers.keys().filter(|name| served(name)).cloned());
        let ready = roster.readiness.iter().filter(|(name, s)| **s == Readiness::Ready && served(name));
        let serving: BTreeSet<String> = ready.map(|(name, _)| name.clone()).collect();
        self.crashed = self.crashed.take().filter(|crashes| serving.is_subset(&crashes.others));
        for (name, readiness) in &roster.readiness {
            let Readiness::Lost(why) = readiness else { continue };
            if !self.lost.insert(name.clone()) {
                continue;
            }
            let worker = &workers[name];
            // A pod that was asked to go and went is not lost.
            if !worker.deleting || worker.node_gone {
                let words = worker.last_error.clone();
                let why = words.iter().fold(why.clone(), |why, words| format!("{why}: {words}"));
                losses.push(LostPod { name: name.clone(), why });
                if (!self.served.contains(name) || worker.needs_user) && !worker.node_gone {
                    let before = self.crashed.take();
                    let times = before.as_ref().map_or(0, |b| b.times).saturating_add(1);
                    let words = words.or(before.and_then(|b| b.words));
                    let (needs_user, edition) = (worker.needs_user, edition_of(worker));
                    let others = serving.clone();
                    self.crashed = Some(Crashes { times, last: now, words, needs_user, edition, others });
                }
            }
        }
        losses
    }

    /// New pods of `edition` must wait: the last ones ended before they served, or one has just said that another start does not help.
    #[must_use]
    pub fn holds_creation(
        &self,
        edition: &str,
        edition_of: EditionOf<'_>,
        workers: &BTreeMap<String, WorkerView>,
        now: Instant,
    ) -> bool {
        let news = |w: &WorkerView| w.needs_user && edition_of(w) == edition && !self.lost.contains(&w.name);
        self.pauses(edition, now) || workers.values().any(news)
    }

    fn pauses(&self, edition: &str, now: Instant) -> bool {
        self.crashes_of(edition).is_some_and(|c| now.duration_since(c.last) < c.pause())
    }

    fn crashes_of(&self, edition: &str) -> Option<&Crashes> {
        self.crashed.as_ref().filter(|c| c.edition == edition)
    }

    /// For users, while pods must wait: why. `who`: the pods, in the plural.
    #[must_use]
    pub fn held(&self, who: &str, edition: &str, now: Instant) -> Option<String> {
        let crashes = self.crashes_of(edition).filter(|_| self.pauses(edition, now))?;
        let why = crashes.words.as_deref().unwrap_or("see their logs");
        Some(format!("{who} end before they are ready ({why}); they are made again with growing pauses"))
    }

    /// What the user has to fix before pods of `edition` can serve, in their own words.
    #[must_use]
    pub fn to_mend(&self, edition: &str) -> Option<&str> {
        self.crashes_of(edition).filter(|c| c.needs_user)?.words.as_deref()
    }
}
