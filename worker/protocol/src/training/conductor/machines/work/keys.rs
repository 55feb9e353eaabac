//! Who adds which microbatch to the sums of which stage.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::Work;
use crate::training::conductor::turn::Turn;
use crate::training::ids::{Microbatch, StageId, Step};
use crate::training::ledger::{Claimed, Ledger, Released};
use crate::training::message::{Contribution, Held, ToPeer};

impl Work {
    /// A peer of a stage wants to add a microbatch to the sums of an open step.
    pub fn claim(
        &mut self,
        now_ms: u64,
        name: &PeerName,
        stage: StageId,
        (step, microbatch): (Step, Microbatch),
    ) -> Claimed {
        let ledger = self.ledger(step, stage);
        ledger.map_or(Claimed::Refused, |ledger| ledger.claim(microbatch, name, now_ms))
    }

    /// A peer does not add what it has claimed.
    pub fn unclaim(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        stage: StageId,
        (step, microbatch): (Step, Microbatch),
    ) {
        let Some(ledger) = self.ledger(step, stage) else { return };
        if let Some(next) = ledger.unclaim(microbatch, name, turn.now_ms) {
            turn.tell(&next, ToPeer::Grant { step, microbatch, granted: true });
        } else if ledger.is_open(microbatch) {
            self.bring_back(step, microbatch);
        }
    }

    /// A peer has added what it had claimed, so many milliseconds after that.
    pub fn done(
        &mut self,
        turn: &mut Turn<'_>,
        name: &PeerName,
        stage: StageId,
        step: Step,
        contribution: &Contribution,
    ) -> Option<u64> {
        let microbatch = contribution.microbatch;
        let ledger = self.ledger(step, stage)?;
        let since_ms = ledger.claimed_ms(microbatch, name)?;
        for peer in ledger.done(contribution, name).into_iter().flatten() {
            turn.tell(&peer, ToPeer::Grant { step, microbatch, granted: false });
        }
        Some(turn.now_ms.saturating_sub(since_ms))
    }

    /// What `name` had of `stage` in one step is open again.
    pub fn release(&mut self, turn: &mut Turn<'_>, step: Step, stage: StageId, name: &PeerName) {
        let now_ms = turn.now_ms;
        self.release_by(turn, (step, stage), |ledger| ledger.release(name, now_ms));
    }

    /// The same of these microbatches, which `name` had added.
    pub fn release_some(
        &mut self,
        turn: &mut Turn<'_>,
        at: (Step, StageId),
        name: &PeerName,
        microbatches: &[Microbatch],
    ) {
        self.release_by(turn, at, |ledger| ledger.release_some(name, microbatches));
    }

    fn release_by(
        &mut self,
        turn: &mut Turn<'_>,
        (step, stage): (Step, StageId),
        release: impl FnOnce(&mut Ledger) -> Released,
    ) {
        let Some(index) = self.index(step) else { return };
        let of_step = &mut self.open[index];
        let Released { undone, open, granted } = release(&mut of_step.ledgers[stage as usize]);
        of_step.redone += undone;
        self.redone += u64::from(undone);
        for (peer, microbatch) in granted {
            turn.tell(&peer, ToPeer::Grant { step, microbatch, granted: true });
        }
        for microbatch in open {
            self.bring_back(step, microbatch);
        }
    }

    /// What `name` waits for at a stage it does not get any longer.
    pub fn refuse_waiting(&mut self, turn: &mut Turn<'_>, stage: StageId, name: &PeerName) {
        for (step, open) in (self.step..).zip(&mut self.open) {
            for microbatch in open.ledgers[stage as usize].refuse_waiting(name) {
                turn.tell(name, ToPeer::Grant { step, microbatch, granted: false });
            }
        }
    }

    /// What `from` had added to a step at a stage is in the sums of `to`.
    pub fn transfer(&mut self, step: Step, stage: StageId, from: &PeerName, to: &PeerName) {
        if let Some(ledger) = self.ledger(step, stage) {
            ledger.transfer(from, to);
        }
    }

    /// Enters what a peer has added and is adding to the steps that are open; what was in a step before those is in its update. False when
    /// somebody else has some of it: then nothing is entered.
    pub fn restore(&mut self, now_ms: u64, name: &PeerName, held: &Held) -> bool {
        let entered = (held.step..).zip(&held.sums).all(|(step, sums)| {
            let oldest = self.step;
            let Some(ledger) = self.ledger(step, held.stage) else { return step < oldest };
            sums.done.iter().all(|c| ledger.restore(c, name))
                && sums.adding.iter().all(|&m| ledger.claim(m, name, now_ms) == Claimed::Granted)
        });
        if !entered {
            for open in &mut self.open {
                open.ledgers[held.stage as usize].release(name, now_ms);
            }
        }
        entered
    }

    /// Once everybody's is entered: what is added already, or being added, is to be driven only when it is lost.
    pub fn restored(&mut self) {
        let count = self.config.microbatches;
        for open in &mut self.open {
            let ledgers = &open.ledgers;
            open.todo.retain(|m| *m >= count || ledgers.iter().any(|ledger| ledger.is_open(*m)));
        }
    }

    /// Is every microbatch of the oldest step added at a stage?
    pub fn is_complete(&self, stage: StageId) -> bool {
        self.open[0].ledgers[stage as usize].complete()
    }

    /// Everybody who has added something to the oldest step at a stage.
    pub fn holders(&self, stage: StageId) -> BTreeSet<PeerName> {
        self.open[0].ledgers[stage as usize].holders()
    }

    /// What a peer of a stage has added to the oldest step that it has added anything to.
    pub fn contributions(&self, name: &PeerName, stage: StageId) -> Option<(Step, Vec<Contribution>)> {
        let mut all = self.ledgers(stage).map(|(step, ledger)| (step, ledger.of(name)));
        all.find(|(_, contributions)| !contributions.is_empty())
    }

    /// Has a peer of a stage claimed what it has not added yet?
    pub fn is_busy(&self, name: &PeerName, stage: StageId) -> bool {
        self.ledgers(stage).any(|(_, ledger)| ledger.is_busy(name))
    }

    /// Peers that keep a microbatch from others for longer than so many milliseconds, which are those of a stage.
    pub fn overdue(&self, now_ms: u64, limit_ms: impl Fn(StageId) -> u64) -> BTreeSet<PeerName> {
        let ledgers = self.open.iter().flat_map(|open| (0..).zip(&open.ledgers));
        ledgers.flat_map(|(stage, ledger)| ledger.overdue(now_ms, limit_ms(stage))).collect()
    }
}
