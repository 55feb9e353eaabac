//! A checkpoint that is being written: who writes, and whether that is right.
//!
//! What is written is compared: others of every stage work out what the files must be, without writing any. A checkpoint of which that differs is none: who goes back to it would go on with
//! other values.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use crate::training::conductor::machines::verdict::{Statement, Verdict, judge};
use crate::training::ids::{StageId, Step};
use crate::training::message::Mate;

/// Who writes, and how far they are.
pub struct SavingAttempt {
    step: Step,
    writers: BTreeMap<StageId, Writer>,
    /// Others of the same stages, who say what should have been written.
    checkers: Vec<(StageId, Writer)>,
    /// The manifest is being written.
    seals: bool,
}

/// A peer that writes, or works out what to write.
struct Writer {
    name: PeerName,
    host: String,
    /// `None` as long as it has not answered.
    answer: Option<WriterOutcome>,
}

/// What comes of a writer.
pub enum WriterOutcome {
    /// What is in its files, for the manifest.
    Written(String),
    /// The destination does not take them.
    Refused(String),
    /// It has not written them, through no fault of the destination.
    Missed,
}

/// What has come of all of them.
pub enum Written {
    /// Somebody has not answered yet.
    Open,
    /// Files are missing. These could not write theirs: name, machine, and what it said.
    Missing(Vec<(PeerName, String, String)>),
    /// The records of all stages, if nothing speaks against them, and who is wrong.
    All(Option<Vec<String>>, Wrong),
}

/// Which of the peers that wrote, or said what was to be written, are wrong.
#[derive(Default)]
pub struct Wrong {
    /// They differ from most machines.
    pub odd: BTreeSet<PeerName>,
    /// Stages of which nobody can tell.
    pub tied: Vec<(StageId, Vec<PeerName>)>,
}

impl Writer {
    fn of(mate: Mate) -> Self {
        Self { name: mate.name, host: mate.host, answer: None }
    }

    fn record(&self) -> Option<&String> {
        match &self.answer {
            Some(WriterOutcome::Written(record)) => Some(record),
            _ => None,
        }
    }

    fn statement(&self) -> Option<(PeerName, Statement<&String>)> {
        Some((self.name.clone(), Statement { host: self.host.clone(), says: self.record()?, copied: false }))
    }
}

impl SavingAttempt {
    /// These write the state after a step, and those say what must be written.
    pub fn new(step: Step, writers: BTreeMap<StageId, Mate>, checkers: Vec<(StageId, Mate)>) -> Self {
        let of = |(stage, mate)| (stage, Writer::of(mate));
        let (writers, checkers) =
            (writers.into_iter().map(of).collect(), checkers.into_iter().map(of).collect());
        Self { step, writers, checkers, seals: false }
    }

    /// The state after this many updates.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Is the manifest being written?
    pub fn seals(&self) -> bool {
        self.seals
    }

    /// The manifest is being written.
    pub fn seal(&mut self) {
        self.seals = true;
    }

    /// Writers and their machines.
    pub fn writers(&self) -> impl Iterator<Item = (&PeerName, &str)> + Clone {
        self.writers.values().map(|w| (&w.name, w.host.as_str()))
    }

    /// Is a peer to write, or to say what is to be written?
    pub fn waits_for(&self, name: &PeerName) -> bool {
        let mut all = self.writers.values().chain(self.checkers.iter().map(|(_, checker)| checker));
        all.any(|w| w.name == *name && w.answer.is_none())
    }

    /// A writer or checker is done. False when nobody waits for it.
    pub fn answered(&mut self, name: &PeerName, answer: WriterOutcome) -> bool {
        let checkers = self.checkers.iter_mut().map(|(_, checker)| checker);
        let mut all = self.writers.values_mut().chain(checkers);
        let Some(writer) = all.find(|w| w.name == *name && w.answer.is_none()) else { return false };
        writer.answer = Some(answer);
        true
    }

    /// What has come of it so far.
    pub fn written(&self) -> Written {
        if self.writers.values().any(|w| w.answer.is_none()) {
            return Written::Open;
        }
        let Some(records) = self.writers.values().map(|w| w.record().cloned()).collect() else {
            let refused = |w: &Writer| match &w.answer {
                Some(WriterOutcome::Refused(why)) => Some((w.name.clone(), w.host.clone(), why.clone())),
                _ => None,
            };
            return Written::Missing(self.writers.values().filter_map(refused).collect());
        };
        if self.checkers.iter().any(|(_, checker)| checker.answer.is_none()) {
            return Written::Open;
        }
        let wrong = self.compare();
        // What was to be compared, and was not, may be wrong as well.
        let compared = self.checkers.iter().all(|(_, checker)| checker.record().is_some());
        let right = self.writers.values().all(|w| !wrong.odd.contains(&w.name)) && wrong.tied.is_empty();
        Written::All(Some(records).filter(|_| compared && right), wrong)
    }

    /// Compares what there is of every stage.
    fn compare(&self) -> Wrong {
        let mut wrong = Wrong::default();
        for (stage, writer) in &self.writers {
            let checkers = self.checkers.iter().filter(|(s, _)| s == stage).map(|(_, checker)| checker);
            let said: BTreeMap<PeerName, Statement<&String>> =
                std::iter::once(writer).chain(checkers).filter_map(Writer::statement).collect();
            match judge(&said, |a, b| a == b) {
                Verdict::Agreed => {}
                Verdict::Odd(names) => wrong.odd.extend(names),
                Verdict::Tied => wrong.tied.push((*stage, said.into_keys().collect())),
            }
        }
        wrong
    }
}
