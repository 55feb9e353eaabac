//! What is written is compared: a second peer of every stage works out what the files must be, without writing any. A checkpoint of which that differs is
//! none: who goes back to it would go on with other values.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_swarm::PeerName;

use super::Conductor;
use super::machines::verdict::{Statement, Verdict, judge};
use super::saving::{Outcome, UnderWay, Writer};
use super::turn::Turn;
use crate::training::ids::{StageId, Step};

/// When nobody can tell who is wrong, it is written again so often.
const DIFFER_MAX: u32 = 2;

/// Which of the peers that wrote, or said what was to be written, are wrong.
pub(super) struct Wrong {
    odd: BTreeSet<PeerName>,
    /// Stages of which nobody can tell.
    tied: Vec<(StageId, Vec<PeerName>)>,
}

impl Wrong {
    pub(super) fn names(&self, name: &PeerName) -> bool {
        self.odd.contains(name)
    }

    pub(super) fn is_tied(&self) -> bool {
        !self.tied.is_empty()
    }
}

impl UnderWay {
    /// Compares what there is of every stage.
    pub(super) fn compare(&self) -> Wrong {
        let mut wrong = Wrong { odd: BTreeSet::new(), tied: Vec::new() };
        for (stage, writer) in &self.writers {
            let checkers = self.checkers.iter().filter(|(s, _)| s == stage).map(|(_, checker)| checker);
            let said: BTreeMap<PeerName, Statement<&str>> =
                std::iter::once(writer).chain(checkers).filter_map(statement).collect();
            match judge(&said, |a, b| a == b) {
                Verdict::Agreed => {}
                Verdict::Odd(names) => wrong.odd.extend(names),
                Verdict::Tied => wrong.tied.push((*stage, said.into_keys().collect())),
            }
        }
        wrong
    }
}

fn statement(writer: &Writer) -> Option<(PeerName, Statement<&str>)> {
    let Outcome::Written(record) = &writer.outcome else { return None };
    Some((writer.name.clone(), Statement { host: writer.host.clone(), says: record, copied: false }))
}

impl Conductor {
    /// The peers that work out what the writer of a stage must write: another member, on another machine if there is one. If some have
    /// differed, it is all others.
    pub(super) fn checkers_of(&self, stage: StageId, writer: &PeerName) -> Vec<PeerName> {
        let host = |name: &PeerName| self.peers.get(name).map(|p| p.mate.host.as_str()).unwrap_or_default();
        let current = |name: &&PeerName| self.peers.get(*name).is_some_and(|p| p.step == self.work.step());
        let same = |name: &&PeerName| !host(name).is_empty() && host(name) == host(writer);
        let mut others: Vec<&PeerName> =
            self.members_of(stage).filter(current).filter(|name| *name != writer).collect();
        others.sort_by_key(same);
        let count = if self.saving.differed > 0 { others.len() } else { 1 };
        others.into_iter().take(count).cloned().collect()
    }

    /// Peers do not agree on what a checkpoint is.
    pub(super) fn disagree(&mut self, turn: &mut Turn<'_>, step: Step, wrong: Wrong) {
        if !wrong.odd.is_empty() {
            let why = format!("what it has for the checkpoint of step {step} is not what most others have");
            self.expel(turn, wrong.odd, &why);
        }
        let Some((stage, names)) = wrong.tied.first() else { return };
        let names: Vec<&str> = names.iter().map(PeerName::as_str).collect();
        let what = format!(
            "{} have different values of stage {stage} for the checkpoint of step {step}",
            names.join(" and ")
        );
        self.saving.differed += 1;
        if self.saving.differed > DIFFER_MAX {
            self.saving.differed = 0;
            self.tied(turn, &what);
        } else {
            turn.note(format!("{what}: it is written again, and all others of the stage are asked"));
        }
    }
}
