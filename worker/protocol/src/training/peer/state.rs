//! The state of a stage: how it comes, what an update makes of it, and how it ends.

use super::super::message::{FetchFailure, PeerReport, StageId, StateDigest, Step};
use super::{Call, Job, PeerEffect, PeerNode, Refused, RequestId};

impl PeerNode {
    /// The engine has updated.
    pub fn applied(&mut self, step: Step, state: StateDigest, out: &mut Vec<PeerEffect>) {
        if !std::mem::take(&mut self.applying) {
            return;
        }
        self.state = state.clone();
        self.advance_to(step, out);
        let scale = self.scale.unwrap_or(1.0);
        out.push(PeerEffect::Tell(PeerReport::Applied { step, scale, state }));
        if std::mem::take(&mut self.told_to_clear) {
            self.clear(out);
            self.tell_ready(out);
        }
        self.next(out);
    }

    /// The state of a stage is complete; sums are empty.
    pub fn ready(&mut self, stage: StageId, step: Step, state: StateDigest, out: &mut Vec<PeerEffect>) {
        if self.stage != Some(stage) || self.serving {
            return;
        }
        self.serving = true;
        self.state = state.clone();
        // Before the claims: those that come earlier do not count.
        out.push(PeerEffect::Tell(PeerReport::Ready { stage, step, state }));
        self.advance_to(step, out);
        self.next(out);
    }

    /// It cannot be had.
    pub fn fetch_failed(
        &mut self,
        stage: StageId,
        failure: FetchFailure,
        why: String,
        out: &mut Vec<PeerEffect>,
    ) {
        if self.stage == Some(stage) && !self.serving {
            self.stage = None;
            self.refuse_all(out);
            out.push(PeerEffect::Tell(PeerReport::FetchFailed { stage, failure, why }));
        }
    }

    /// Claims made before this have no answer to come.
    pub(super) fn tell_ready(&mut self, out: &mut Vec<PeerEffect>) {
        let Some(stage) = self.stage else { return };
        let (step, state) = (self.step, self.state.clone());
        out.push(PeerEffect::Tell(PeerReport::Ready { stage, step, state }));
        self.rights.clear();
        let waiting: Vec<Call> = self.queue.values().copied().collect();
        for call in waiting {
            self.ask(&call, out);
        }
    }

    pub(super) fn advance_to(&mut self, step: Step, out: &mut Vec<PeerEffect>) {
        self.step = step;
        self.done = self.done.split_off(&(step, 0));
        self.rights = self.rights.split_off(&(step, 0));
        self.averaged.clear();
        self.rounds.clear();
        let stale: Vec<RequestId> =
            self.queue.iter().filter(|(_, c)| c.step < step).map(|(&request, _)| request).collect();
        for request in stale {
            self.queue.remove(&request);
            out.push(PeerEffect::Refuse(request, Refused::Stale));
        }
        let waiting: Vec<Call> = self.queue.values().copied().collect();
        for call in waiting {
            self.ask(&call, out);
        }
    }

    pub(super) fn refuse_all(&mut self, out: &mut Vec<PeerEffect>) {
        for (request, _) in std::mem::take(&mut self.queue) {
            out.push(PeerEffect::Refuse(request, Refused::NotServing));
        }
    }

    /// Memory has changed by itself: nothing here is to be trusted, and nobody gets any of it.
    pub fn corrupt(&mut self, what: String, out: &mut Vec<PeerEffect>) {
        self.stop_serving(out);
        self.corrupt = Some(what.clone());
        out.push(PeerEffect::Tell(PeerReport::Corrupt { what }));
    }

    pub(super) fn stop_serving(&mut self, out: &mut Vec<PeerEffect>) {
        self.serving = false;
        self.stage = None;
        self.running = None;
        self.refuse_all(out);
    }

    /// What is being computed of a step, or one before, is added to sums that are emptied behind it.
    pub(super) fn give_up_running(&mut self, step: Step) {
        if let Some(running) = self.running.as_mut().filter(|r| r.call.step <= step) {
            running.counts = false;
        }
    }

    pub(super) fn clear(&mut self, out: &mut Vec<PeerEffect>) {
        self.give_up_running(Step::MAX);
        self.done.clear();
        self.rights.clear();
        self.averaged.clear();
        self.rounds.clear();
        self.generation += 1;
        out.push(PeerEffect::Run(Job::Clear));
    }

    pub(super) fn start_over(&mut self, stage: StageId, out: &mut Vec<PeerEffect>) {
        if self.serving {
            out.push(PeerEffect::Run(Job::Check));
        }
        self.clear(out);
        if self.stage != Some(stage) {
            self.refuse_all(out);
        }
        self.stage = Some(stage);
        self.serving = false;
        self.applying = false;
        self.told_to_clear = false;
        self.scale = None;
    }
}
