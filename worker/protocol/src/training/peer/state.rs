//! The state of a stage: how it comes, what an update makes of it, and how it ends.

use super::super::ids::{StageId, Step};
use super::super::message::{FetchFailure, PeerReport, StateDigest};
use super::{Call, Job, PeerEffect, PeerNode, Refused, RequestId};

impl PeerNode {
    /// The engine has updated.
    pub fn applied(&mut self, step: Step, state: StateDigest, out: &mut Vec<PeerEffect>) {
        if !std::mem::take(&mut self.applying) {
            return;
        }
        self.state = state.clone();
        self.copied = false;
        self.advance_to(step, out);
        let scale = self.scale.unwrap_or(1.0);
        out.push(PeerEffect::Tell(PeerReport::Applied { step, scale, state }));
        if std::mem::take(&mut self.told_to_clear) {
            self.clear(out);
            self.tell_ready(out);
        }
        self.next(out);
    }

    /// The state of a stage is complete; sums are empty. `from`: the step of the state that was here and was only brought up to date, unless all of it has come from
    /// elsewhere.
    pub fn ready(
        &mut self,
        stage: StageId,
        step: Step,
        state: StateDigest,
        from: Option<Step>,
        out: &mut Vec<PeerEffect>,
    ) {
        if self.stage != Some(stage) || self.serving {
            return;
        }
        self.serving = true;
        self.copied = match from {
            None => true,
            Some(from) => self.copied && from == step,
        };
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
        self.sums_change(out);
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

#[cfg(test)]
mod tests {
    use dunlin_swarm::NumericsClass;

    use super::super::super::ids::Step;
    use super::super::super::message::{Fetch, Held, Mate, StageStart, StateDigest, ToPeer, TrainingRole};
    use super::super::{PeerConfig, PeerNode};

    fn held(node: &mut PeerNode) -> Held {
        match node.connected(&mut Vec::new()).role {
            TrainingRole::Peer { held: Some(held) } => held,
            other => panic!("{other:?}"),
        }
    }

    /// A conductor without memory hears whether a state is what a peer has come to, or what others had.
    #[test]
    fn a_state_is_a_copy_until_an_update_is_made_here() {
        let me = Mate { name: "a".into(), addr: String::new(), host: String::new() };
        let config = PeerConfig {
            microbatches: 4,
            delayed_updates: false,
            calls_max: 8,
            arithmetic: NumericsClass::FIRST,
        };
        let (mut node, mut out) = (PeerNode::new(me, config), Vec::new());
        let digest = StateDigest::default;
        let fetch = |step| ToPeer::Fetch(Fetch { stage: 0, step, mates: Vec::new(), whole: false });
        let apply = |node: &mut PeerNode, step: Step| {
            node.hear(ToPeer::Apply { step, scale: 1.0, prove: false }, &mut Vec::new());
            node.applied(step + 1, StateDigest::default(), &mut Vec::new());
        };
        node.hear(ToPeer::Load(StageStart { stage: 0, step: 0, checkpoint: false }), &mut out);
        node.ready(0, 0, digest(), None, &mut out);
        assert!(held(&mut node).copied);
        apply(&mut node, 0);
        assert!(!held(&mut node).copied);
        // It has the step already, or follows.
        for (from, step) in [(1, 1), (1, 2)] {
            node.hear(fetch(step), &mut out);
            node.ready(0, step, digest(), Some(from), &mut out);
            assert!(!held(&mut node).copied, "from {from} to {step}");
        }
        // Nobody has the updates any more.
        node.hear(fetch(5), &mut out);
        node.ready(0, 5, digest(), None, &mut out);
        assert!(held(&mut node).copied);
        node.hear(fetch(5), &mut out);
        node.ready(0, 5, digest(), Some(5), &mut out);
        assert!(held(&mut node).copied, "still a copy");
        apply(&mut node, 5);
        assert!(!held(&mut node).copied);
    }
}
