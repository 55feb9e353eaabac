//! The conductor: which step it is, who serves which stage, and when a step is complete.
//!
//! It carries no tensors and keeps nothing on disk: after a restart it asks the peers what they hold ([`gather`]). One file per concern:
//!
//! * [`shell`] what happens, and what is to be done
//! * [`roster`] who is there and what stage each serves · [`leaving`] going in peace · [`mates`] which others each gives values to
//! * [`moves`] which stage a peer should serve
//! * [`step`] work and keys · [`commit`] averages, the decision
//! * [`states`] what peers say of their states · [`expel`] what becomes of those that are wrong
//! * [`patience`] how long somebody may keep others waiting
//! * [`gather`] beginning, and beginning again from what peers have · [`restore`] beginning from a checkpoint
//! * [`checkpoints`] what there is to go on from · [`save`] writing more
//!
//! And what it keeps, in [`machines`] of which each is alone with its state.

mod checkpoints;
mod commit;
mod expel;
mod gather;
mod leaving;
mod machines;
mod mates;
mod moves;
mod patience;
mod restore;
mod roster;
mod save;
#[cfg(test)]
mod save_tests;
mod shell;
mod states;
mod step;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;
mod turn;

use std::sync::Arc;

use dunlin_swarm::{NumericsClass, PeerName};

use super::ids::{LIFE_BITS, Step};
use super::message::{Hello, PeerReport, ToPeer, ToTrainer, TrainingRole};
use machines::averages::Averages;
use machines::doubts::Doubts;
use machines::gathering::Gathering;
use machines::measured::Measured;
use machines::membership::Membership;
use machines::saving::{Saving, WriterOutcome};
use machines::trust::{PeerTrust, Standing};
use machines::usual::Usual;
use machines::work::Work;
pub use shell::{
    Checkpoints, Committed, ConductorConfig, ConductorEffect, ConductorEvent, Expelled, MemberView, Moved,
    Phase, Totals,
};
use turn::Turn;

/// The ledger of a run.
pub struct Conductor {
    config: Arc<ConductorConfig>,
    phase: Phase,
    averages: Averages,
    peers: Membership,
    work: Work,
    gathering: Gathering,
    saving: Saving,
    suspend: bool,
    measured: Measured,
    usual: Usual,
    trust: PeerTrust,
    doubts: Doubts,
}

impl Conductor {
    /// A conductor that knows nobody. Of a run that saves, it waits for [`ConductorEvent::Checkpoints`] before anybody begins with anything.
    #[must_use]
    pub fn new(config: ConductorConfig) -> Self {
        let config = Arc::new(config);
        Self {
            phase: Phase::Gathering,
            averages: Averages::new(config.stages, config.tied, config.incarnation << LIFE_BITS),
            peers: Membership::new(config.stages),
            work: Work::new(config.clone()),
            gathering: Gathering::default(),
            saving: Saving::new(config.saves),
            suspend: false,
            measured: Measured::new(config.stages, config.fetch_ms),
            usual: Usual::default(),
            trust: PeerTrust::default(),
            doubts: Doubts::default(),
            config,
        }
    }

    /// Where the run is.
    #[must_use]
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Updates decided so far.
    #[must_use]
    pub fn step(&self) -> Step {
        self.work.step()
    }

    /// Counts of the whole run.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (lost, moves) = self.peers.lost_and_moved();
        Totals { redone: self.work.redone().1, lost, moves, expelled: self.trust.expelled_ever() }
    }

    /// The newest complete checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Step> {
        self.saving.newest()
    }

    /// The loss of the validation after the last update, summed over its tokens, once it is complete.
    #[must_use]
    pub fn final_validation(&self) -> Option<f64> {
        let complete = self.work.is_over() && self.work.is_validated();
        self.work.validation().filter(|_| complete)
    }

    /// Peers that were expelled, the newest last; as many as are remembered.
    #[must_use]
    pub fn expelled(&self) -> impl ExactSizeIterator<Item = &Expelled> + DoubleEndedIterator {
        self.trust.expelled()
    }

    /// Peers that serve each stage.
    #[must_use]
    pub fn members(&self) -> Vec<Vec<PeerName>> {
        (0..self.config.stages).map(|stage| self.peers.of(stage).cloned().collect()).collect()
    }

    /// The same with their machines and speeds.
    #[must_use]
    pub fn member_views(&self) -> Vec<Vec<MemberView>> {
        let view = |name: &PeerName| self.peers.get(name).map(|peer| peer.view(name));
        (0..self.config.stages).map(|stage| self.peers.of(stage).filter_map(view).collect()).collect()
    }

    /// Something happens.
    pub fn handle(&mut self, now_ms: u64, event: ConductorEvent, out: &mut Vec<ConductorEffect>) {
        let turn = &mut Turn::new(now_ms, out);
        match event {
            ConductorEvent::Connected(hello) => self.connected(turn, hello),
            ConductorEvent::Gone(name) => self.gone(turn, &name),
            ConductorEvent::Peer(name, report) => {
                if self.peers.all().contains_key(&name) {
                    self.peer_report(turn, &name, report);
                }
            }
            ConductorEvent::Trainer(name, report) => self.trainer_report(turn, &name, report),
            ConductorEvent::Checkpoints(found) => self.found(turn, found),
            ConductorEvent::Unread(why) => self.saving.unread(turn, &self.phase, why),
            ConductorEvent::Prepared(error) => self.saving.prepared(turn, &self.phase, error),
            ConductorEvent::Sealed { step, error } => {
                if self.saving.sealed(turn, &self.phase, step, error) {
                    self.follow_newest(turn);
                }
            }
            ConductorEvent::Confirmed { step, error } => {
                if step == self.work.step() {
                    self.saving.confirmed(turn, &self.phase, error);
                }
            }
            // What becomes of the destination of a run that is over is no longer its business.
            ConductorEvent::Refused(_) if matches!(self.phase, Phase::Finished | Phase::Suspended) => {}
            ConductorEvent::Refused(why) => self.fail(turn, why),
            ConductorEvent::Woke => self.woke(turn),
            ConductorEvent::Suspend => self.suspend = true,
            ConductorEvent::Tick => self.tick(turn),
        }
        self.advance(turn);
    }

    fn connected(&mut self, turn: &mut Turn<'_>, hello: Hello) {
        let name = hello.me.name.clone();
        // A new stream of somebody we know replaces the old one.
        self.gone(turn, &name);
        if let Some(why) = self.why_not(&hello) {
            turn.note(format!("{name} is turned away: {why}"));
            match hello.role {
                TrainingRole::Peer { .. } => turn.tell(&name, ToPeer::Expelled { why }),
                TrainingRole::Trainer { .. } => turn.tell_trainer(&name, ToTrainer::Refused { why }),
            }
            turn.drop_stream(&name);
            return;
        }
        let held = self.believable(&hello);
        match hello.role {
            TrainingRole::Trainer { .. } => {
                self.work.trainer_joins(name.clone());
                let roster = self.roster();
                turn.tell_trainer(&name, roster);
            }
            TrainingRole::Peer { .. } => self.peer_joins(turn, hello.me, held),
        }
    }

    /// Why a process cannot take part.
    fn why_not(&self, hello: &Hello) -> Option<String> {
        let (ours, theirs) = (self.config.arithmetic, hello.arithmetic);
        match self.trust.standing(&hello.me.name) {
            Standing::Expelled { why } => Some(why.to_owned()),
            Standing::Trusted if theirs != Some(ours) => Some(format!(
                "it computes with version {} of the arithmetic, this run with {ours}: give all processes the same image",
                NumericsClass::number_of(theirs)
            )),
            Standing::Trusted => None,
        }
    }

    fn peer_report(&mut self, turn: &mut Turn<'_>, name: &PeerName, report: PeerReport) {
        if self.phase == Phase::Gathering && !self.peers.hear_gathering(name, &report) {
            return;
        }
        if !matches!(report, PeerReport::Claim { .. } | PeerReport::Leaving { .. }) {
            self.peers.hear_from(turn.now_ms, name);
        }
        match report {
            PeerReport::Claim { step, microbatch, attempt } => {
                self.claim(turn, name, (step, microbatch, attempt));
            }
            PeerReport::Released { step, microbatch } => {
                if let Some(stage) = self.peers.serving_stage(name) {
                    self.work.unclaim(turn, name, stage, (step, microbatch));
                }
            }
            PeerReport::Done { step, contribution, took_us } => {
                self.done(turn, name, step, &contribution, took_us);
            }
            // What it has computed in the open steps is not to be trusted.
            PeerReport::Corrupt { what } => self.disown(turn, [name.clone()], &what),
            PeerReport::Averaged { step, shard, round, squares } => {
                self.averaged(turn, name, (step, shard, round), squares);
            }
            PeerReport::AverageFailed { step, shard, round, why, mate } => {
                self.average_failed(turn, name, (step, shard, round), &why, mate);
            }
            PeerReport::Applied { step, state, .. } => self.applied(turn, name, step, state),
            PeerReport::Ready { stage, step, state } => self.ready(turn, name, stage, step, state),
            PeerReport::FetchFailed { stage, failure, why } => {
                self.fetch_failed(turn, name, stage, failure, &why);
            }
            PeerReport::Wrong { mate, what } => {
                turn.note(format!("{name} got from {mate} what is not right: {what}"));
            }
            PeerReport::Taken { step, from } => self.taken(turn, name, step, &from),
            PeerReport::TakeFailed { step, from } => self.take_failed(turn, step, &from),
            PeerReport::Leaving { within_ms } => self.doomed(turn, name, within_ms),
            PeerReport::Saved { step, record } => {
                self.written(turn, name, step, WriterOutcome::Written(record));
            }
            PeerReport::SaveFailed { step, failure, why } => {
                self.save_failed(turn, name, step, failure, &why);
            }
        }
    }

    /// The run is at this step, before which an update of this scale was made if that is known. All keys are open.
    fn begin_at(&mut self, step: Step, scale: Option<f32>) {
        self.work.begin_at(step, scale);
        self.averages.begin_step();
    }

    /// Everything that has become possible.
    fn advance(&mut self, turn: &mut Turn<'_>) {
        if self.phase == Phase::Gathering {
            self.try_begin(turn);
        }
        if self.live() {
            self.judge_states(turn);
        }
        if self.phase == Phase::Running {
            self.try_hand_over(turn);
            self.admit_parked();
            self.start_averages(turn);
            self.try_commit(turn);
        }
        self.try_end(turn);
        self.tell_roster(turn);
        if self.live() {
            self.give_work(turn);
        }
    }

    fn tick(&mut self, turn: &mut Turn<'_>) {
        let mut overdue = self.overdue(turn.now_ms);
        overdue.extend(self.quiet(turn.now_ms));
        for name in overdue {
            self.give_up(turn, &name, "it does not do what others wait for");
        }
        self.leave_in_time(turn);
        if self.live() {
            self.work.drive_late(turn.now_ms, self.usual.flight_ms_max(self.config.claim_ms_max));
        }
        self.give_up_lost_stages(turn);
        self.settle(turn);
    }

    /// Is there something that the loss of a stage would set back?
    fn live(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Finishing)
    }

    fn fail(&mut self, turn: &mut Turn<'_>, why: String) {
        turn.note(why.clone());
        self.phase = Phase::Failed(why);
    }
}
