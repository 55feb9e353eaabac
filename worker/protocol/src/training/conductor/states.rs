//! What peers say of their states, and whether all that should have the same have it.
//!
//! Peers of a stage at one step have the same state, bit for bit, so who has another computes or remembers wrongly. When nobody can tell who is wrong, all go back to a checkpoint.

use std::collections::BTreeSet;

use dunlin_swarm::PeerName;

use super::Conductor;
use super::machines::peer::Place;
use super::machines::trust::TIES_MAX;
use super::machines::verdict::{Statement, Verdict};
use super::turn::Turn;
use crate::training::ids::{StageId, Step};
use crate::training::message::{Held, Hello, StateDigest, TrainingRole};

/// A root is proved every so many steps in any case.
const PROVED_EVERY: Step = 16;

impl Conductor {
    /// Is a hello one that can be of this run? What peers hold is what they say: what cannot be is not believed.
    pub(super) fn believable(&self, hello: &Hello) -> Option<Held> {
        let TrainingRole::Peer { held: Some(held) } = &hello.role else { return None };
        let config = &self.config;
        let known = |m: &u32| *m < config.microbatches;
        let sums = held.sums.iter().all(|sums| {
            let mut done: Vec<u32> =
                sums.done.iter().map(|c| c.microbatch).chain(sums.adding.iter().copied()).collect();
            let all = done.len();
            done.sort_unstable();
            done.dedup();
            done.len() == all && done.iter().all(known)
        });
        let shards = held.stage < config.stages && {
            let own = self.averages.of_stage(held.stage);
            held.averaged.keys().all(|shard| own.contains(shard))
        };
        let open = if config.delayed_updates { 2 } else { 1 };
        (sums && shards && held.sums.len() <= open && held.step <= config.steps).then(|| held.clone())
    }

    /// A peer says what its state is, which it has made itself, or has copied from others.
    pub(super) fn hear_state(
        &mut self,
        name: &PeerName,
        at: (StageId, Step),
        state: StateDigest,
        copied: bool,
    ) {
        self.trust.hear(
            self.work.step(),
            at,
            name,
            Statement { host: self.peers.host(name), says: state, copied },
        );
    }

    /// Have all that serve a stage made the last update, and have the same state?
    pub(super) fn is_agreed(&self, stage: StageId) -> bool {
        let current = |name: &PeerName| self.peers.get(name).is_some_and(|p| p.step == self.work.step());
        self.peers.of(stage).all(current) && self.trust.verdict((stage, self.work.step())) == Verdict::Agreed
    }

    /// Have all said what they have, who serve a stage or are about to?
    fn have_all_said(&self, stage: StageId) -> bool {
        let serves = [Place::Member { stage }, Place::Clearing { stage }];
        let heard: BTreeSet<&PeerName> = self.trust.heard((stage, self.work.step())).collect();
        let mut all = self.peers.all().iter().filter(|(_, p)| serves.contains(&p.place));
        all.all(|(name, p)| p.step == self.work.step() && heard.contains(name))
    }

    /// Compares what the peers of every stage say, once all of them have made the last update.
    pub(super) fn judge_states(&mut self, turn: &mut Turn<'_>) {
        let step = self.work.step();
        let verdict = |stage| (stage, self.trust.verdict((stage, step)));
        let said = (0..self.config.stages).filter(|stage| self.have_all_said(*stage));
        match said.map(verdict).find(|(_, verdict)| *verdict != Verdict::Agreed) {
            Some((stage, Verdict::Odd(names))) => {
                self.trust.disregard((stage, step), &names);
                let why = format!("its state of stage {stage} after step {step} is not that of most others");
                self.disown(turn, names, &why);
            }
            Some((stage, Verdict::Tied)) => {
                let names: Vec<&str> = self.trust.heard((stage, step)).map(PeerName::as_str).collect();
                let who = names.join(" and ");
                self.tied(turn, &format!("{who} have different states of stage {stage} after step {step}"));
            }
            Some((_, Verdict::Agreed)) | None => {}
        }
    }

    /// Something is wrong, and nobody can tell who: everybody goes back to the newest checkpoint.
    pub(super) fn tied(&mut self, turn: &mut Turn<'_>, what: &str) {
        if !self.trust.tie(self.work.step()) {
            return self.fail(turn, format!(
                    "{what}, and nobody can tell who is wrong. All went back {TIES_MAX} times, and it came to that again: these machines do not compute the same. Replace one of \
                     them, or give the stage a third peer on another machine, and go on from the last checkpoint"
                ));
        }
        turn.note(format!("{what}, and nobody can tell who is wrong: all go back"));
        self.restore(turn);
    }

    /// Is the root of the state after this step to be said? It costs a second a gigabyte, so not always: before a checkpoint, when somebody is about to get the
    /// state, and now and then.
    pub(super) fn proves(&self, after: Step) -> bool {
        let every = self.config.checkpoint_every;
        let saves = self.config.saves
            && (after >= self.config.steps || self.suspend || (every > 0 && after.is_multiple_of(every)));
        let comes = self.peers.any(|p| matches!(p.place, Place::Fetching { .. } | Place::Parked { .. }));
        saves || comes || after.is_multiple_of(PROVED_EVERY)
    }
}
