//! What trainers ask, and what of it is added to the sums.

use super::super::ids::StepAttempt;
use super::super::message::{Contribution, PeerReport};
use super::{Call, CallKind, Job, PeerEffect, PeerNode, Refused, RequestId, Right, Running};

impl PeerNode {
    /// A trainer calls.
    pub fn call(&mut self, request: RequestId, call: Call, out: &mut Vec<PeerEffect>) {
        if self.stage != Some(call.stage) {
            out.push(PeerEffect::Refuse(request, Refused::NotServing));
        } else if call.step < self.step || call.attempt < self.attempt {
            out.push(PeerEffect::Refuse(request, Refused::Stale));
        } else if self.queue.len() >= self.config.calls_max {
            out.push(PeerEffect::Refuse(request, Refused::Busy));
        } else {
            self.attempt_begins(call.attempt, out);
            self.queue.insert(request, call);
            self.ask(&call, out);
            self.next(out);
        }
    }

    /// Calls of earlier attempts are of no use to anybody.
    pub(super) fn attempt_begins(&mut self, attempt: StepAttempt, out: &mut Vec<PeerEffect>) {
        if attempt <= self.attempt {
            return;
        }
        self.attempt = attempt;
        let old = self.queue.iter().filter(|(_, call)| call.attempt < attempt);
        for request in old.map(|(&request, _)| request).collect::<Vec<_>>() {
            self.queue.remove(&request);
            out.push(PeerEffect::Refuse(request, Refused::Stale));
        }
    }

    /// The caller is gone. What it claimed is free for others.
    pub fn hang_up(&mut self, request: RequestId, out: &mut Vec<PeerEffect>) {
        let Some(call) = self.queue.remove(&request) else { return };
        let same = |other: &Call| (other.kind, other.key()) == (CallKind::Backward, call.key());
        let wanted = self.queue.values().any(same) || self.running.as_ref().is_some_and(|r| same(&r.call));
        // A claim without an answer stays: were it given up and made again, the first answer would be taken for the second.
        let unused = self.rights.get(&call.key()) == Some(&Right::Granted);
        if call.kind == CallKind::Backward && unused && !wanted && !self.done.contains_key(&call.key()) {
            self.rights.remove(&call.key());
            let (step, microbatch) = call.key();
            out.push(PeerEffect::Tell(PeerReport::Released { step, microbatch }));
        }
    }

    /// Asks for the right to add, once per key, as early as possible: the answer comes while the call waits.
    pub(super) fn ask(&mut self, call: &Call, out: &mut Vec<PeerEffect>) {
        let wants = call.kind == CallKind::Backward && self.can_compute(call) && self.serving;
        if wants && !self.done.contains_key(&call.key()) && !self.rights.contains_key(&call.key()) {
            self.rights.insert(call.key(), Right::Asked);
            let Call { step, microbatch, attempt, .. } = *call;
            out.push(PeerEffect::Tell(PeerReport::Claim { step, microbatch, attempt }));
        }
    }

    /// The oldest call that can be computed.
    pub(super) fn next(&mut self, out: &mut Vec<PeerEffect>) {
        if self.running.is_some() || self.applying || !self.serving {
            return;
        }
        let can = |call: &Call| {
            self.can_compute(call)
                && (call.kind != CallKind::Backward
                    || self.done.contains_key(&call.key())
                    || matches!(self.rights.get(&call.key()), Some(Right::Granted | Right::Refused)))
        };
        let Some((&request, &call)) = self.queue.iter().find(|(_, call)| can(call)) else { return };
        self.queue.remove(&request);
        let accumulate = call.kind == CallKind::Backward
            && !self.done.contains_key(&call.key())
            && self.rights.get(&call.key()) == Some(&Right::Granted);
        if accumulate {
            self.add_to_sums();
        }
        self.running = Some(Running { request, call, counts: accumulate });
        // The memory that earlier answers were computed with is compared when sums are given to an average.
        let check = call.step <= self.step && !self.rounds.is_empty();
        if accumulate && call.step == self.step {
            self.sums_change(out);
        }
        out.push(PeerEffect::Run(Job::Compute { request, call, accumulate, check }));
    }

    /// The engine has computed a call, in `took_us` microseconds without what came before; the shell answers it. At the last stage there
    /// is a loss.
    pub fn computed(
        &mut self,
        request: RequestId,
        outcome: Result<Option<f64>, String>,
        took_us: u64,
        out: &mut Vec<PeerEffect>,
    ) {
        let Some(running) = self.running.take_if(|r| r.request == request) else { return };
        let (step, microbatch) = (running.call.step, running.call.microbatch);
        match outcome {
            // The conductor hears of it before the caller does.
            Ok(loss) if running.counts => {
                let contribution = Contribution { microbatch, loss };
                self.done.insert((step, microbatch), contribution.clone());
                out.push(PeerEffect::Tell(PeerReport::Done { step, contribution, took_us }));
                out.push(PeerEffect::Reply(request));
            }
            Ok(_) => {
                out.push(PeerEffect::Reply(request));
                // The peer that has the key may be lost: the next call asks again.
                if self.rights.get(&(step, microbatch)) == Some(&Right::Refused) {
                    self.rights.remove(&(step, microbatch));
                    let waiting: Vec<Call> = self.queue.values().copied().collect();
                    for call in waiting {
                        self.ask(&call, out);
                    }
                }
            }
            // The caller asks somebody else, who may claim it.
            Err(what) => {
                if running.counts {
                    self.rights.remove(&(step, microbatch));
                    out.push(PeerEffect::Tell(PeerReport::Released { step, microbatch }));
                }
                out.push(PeerEffect::Refuse(request, Refused::Failed(what)));
            }
        }
        self.next(out);
    }
}
