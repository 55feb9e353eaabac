//! One peer of every stage writes its files, then the manifest makes them a checkpoint.

use std::collections::BTreeMap;

use dunlin_swarm::PeerName;

use super::attempt::{SavingAttempt, WriterOutcome, Written, Wrong};
use super::{AGAIN_MS, Confirmation, Destination, Saving};
use crate::training::conductor::shell::{ConductorEffect, Phase};
use crate::training::conductor::turn::Turn;
use crate::training::ids::{StageId, Step};
use crate::training::message::{Mate, ToPeer};

impl Saving {
    /// The peer to write a stage, of those that can: one on a machine that could write so far, if there is one. After failures it is another one each time.
    pub fn writer_of<'a>(&self, able: &[&'a Mate]) -> Option<&'a Mate> {
        let Some(trouble) = &self.trouble else { return able.first().copied() };
        let elsewhere = able.iter().find(|mate| !trouble.is_on(&mate.host));
        elsewhere.or(able.get(trouble.attempts() % able.len().max(1))).copied()
    }

    /// The peers to work out what the writer of a stage must write, of those that can: one on another machine if there is one. If some have differed, it is all others.
    pub fn checkers_of<'a>(&self, able: &[&'a Mate], writer: &Mate) -> Vec<&'a Mate> {
        let mut others: Vec<&Mate> = able.iter().copied().filter(|mate| mate.name != writer.name).collect();
        others.sort_by_key(|mate| !mate.host.is_empty() && mate.host == writer.host);
        others.truncate(if self.differed > 0 { others.len() } else { 1 });
        others
    }

    /// Peers write the state after a step, and others say what they must write.
    pub fn begin(
        &mut self,
        turn: &mut Turn<'_>,
        step: Step,
        writers: BTreeMap<StageId, Mate>,
        checkers: Vec<(StageId, Mate)>,
    ) {
        for writer in writers.values() {
            turn.tell(&writer.name, ToPeer::Save { step, check: false });
        }
        for (_, checker) in &checkers {
            turn.tell(&checker.name, ToPeer::Save { step, check: true });
        }
        self.due = false;
        self.under_way = Some(SavingAttempt::new(step, writers, checkers));
    }

    /// The step of the attempt that is under way.
    pub fn under_way(&self) -> Option<Step> {
        self.under_way.as_ref().map(SavingAttempt::step)
    }

    /// The manifest of this step is being written.
    pub fn seals(&self) -> Option<Step> {
        self.under_way.as_ref().filter(|attempt| attempt.seals()).map(SavingAttempt::step)
    }

    /// Is a peer to write, or to say what is to be written?
    pub fn waits_for(&self, name: &PeerName) -> bool {
        self.under_way.as_ref().is_some_and(|attempt| attempt.waits_for(name))
    }

    /// Nobody writes any longer. A manifest that is being written may yet become complete.
    pub fn forget(&mut self) {
        if let Some(attempt) = self.under_way.take_if(|attempt| !attempt.seals()) {
            (self.destination, self.abandoned) = (Destination::Unready, Some(attempt.step()));
        }
    }

    /// A writer or checker is done. Says who was found to be wrong then, and `None` when nobody waited for it.
    pub fn written(
        &mut self,
        turn: &mut Turn<'_>,
        phase: &Phase,
        name: &PeerName,
        step: Step,
        answer: WriterOutcome,
    ) -> Option<Wrong> {
        let attempt = self.under_way.as_mut().filter(|attempt| attempt.step() == step)?;
        if !attempt.answered(name, answer) {
            return None;
        }
        match attempt.written() {
            Written::Open => Some(Wrong::default()),
            Written::All(Some(records), wrong) => {
                attempt.seal();
                turn.push(ConductorEffect::Seal { step, records });
                Some(wrong)
            }
            Written::All(None, wrong) => {
                self.give_up(turn, step);
                Some(wrong)
            }
            Written::Missing(refused) => {
                self.give_up(turn, step);
                for (name, host, why) in refused {
                    self.in_trouble(turn, phase, why.clone());
                    if let Some(trouble) = &mut self.trouble {
                        trouble.refused(name, host, why);
                    }
                }
                Some(Wrong::default())
            }
        }
    }

    /// What was written of `step` is of no use.
    fn give_up(&mut self, turn: &mut Turn<'_>, step: Step) {
        self.not_before_ms = turn.now_ms + AGAIN_MS;
        self.under_way = None;
        self.due = true;
        self.destination = Destination::Unready;
        turn.push(ConductorEffect::Discard { step });
    }

    /// The manifest is written, or why not. True when there is a new checkpoint.
    pub fn sealed(&mut self, turn: &mut Turn<'_>, phase: &Phase, step: Step, error: Option<String>) -> bool {
        let Some(attempt) = self.under_way.take_if(|attempt| attempt.step() == step) else { return false };
        if let Some(why) = error {
            turn.note(format!("the checkpoint of step {step} is not complete: {why}"));
            self.give_up(turn, step);
            self.in_trouble(turn, phase, why);
            return false;
        }
        self.known.completed(step);
        self.differed = 0;
        self.confirmation = Confirmation::Open;
        if let Some(trouble) = &self.trouble {
            for note in trouble.blame(attempt.writers()) {
                turn.note(note);
            }
        }
        self.trouble_is_over(turn, &format!("the checkpoint of step {step} is written"));
        true
    }
}
