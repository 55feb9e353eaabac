//! What trainers ask of a peer in virtual time, and what it computes for them.

use dunlin_protocol::training::driver::DriverEvent;
use dunlin_protocol::training::{Call, CallId, CallKind, Job};
use dunlin_swarm::PeerName;

use super::engine::duration;
use super::events::{Answer, Asked, Event};
use super::flaw::Flaw;
use super::numbers::{Keys, Sums};
use super::peer_shell::Work;
use super::world::World;

impl World {
    pub(super) fn call_arrives(&mut self, name: &PeerName, asked: Asked) {
        let request = self.count();
        let Some(peer) = self.peers.get_mut(name).filter(|p| !p.retired) else {
            let after = self.latency();
            let (trainer, id) = (asked.trainer, asked.id);
            self.at(after, Event::Answer { from: name.clone(), trainer, id, answer: Answer::Broken });
            return;
        };
        if peer.silent {
            return;
        }
        let call = asked.call;
        peer.requests.insert(request, asked);
        self.drive(name, DriverEvent::Called(request, call));
    }

    pub(super) fn hang_up(&mut self, name: &PeerName, trainer: &PeerName, id: CallId) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let asked = peer.requests.iter().find(|(_, a)| a.id == id && a.trainer == *trainer);
        let Some(request) = asked.map(|(r, _)| *r) else { return };
        if !peer.silent {
            // What the engine has been given is computed all the same, and needs its inputs.
            let given = |w: &Work| matches!(w, Work::Job(Job::Compute { request: r, .. }) if *r == request);
            if !peer.engine.iter().any(given) {
                peer.requests.remove(&request);
            }
            self.drive(name, DriverEvent::HungUp(request));
        }
    }

    pub(super) fn answer(&mut self, name: &PeerName, asked: Asked, answer: Answer) {
        let after = self.latency();
        self.at(after, Event::Answer { from: name.clone(), trainer: asked.trainer, id: asked.id, answer });
    }

    pub(super) fn compute(&mut self, name: &PeerName, request: u64, call: Call, accumulate: bool) {
        let shape = self.scenario.shape;
        let Some(peer) = self.peers.get_mut(name) else { return };
        let validates = call.microbatch >= shape.microbatches;
        let ahead = call.step.checked_sub(peer.step);
        let weights = match (ahead, shape.delayed_updates) {
            (Some(0), true) if !validates => peer.state.before,
            (Some(1), true) if !validates => peer.state.now,
            (Some(0), _) => peer.state.now,
            // It was told to update while it computed: nobody waits for this.
            (None, _) => peer.state.now,
            (Some(_), _) => {
                let at = peer.step;
                self.violation(format!("{name} computes {call:?} and is at {at}"));
                return;
            }
        };
        let took_us = 1000 * duration(call.kind, peer.slowness);
        let asked = peer.requests.remove(&request);
        if let Some(asked) = asked.clone()
            && peer.flaw.take_if(|flaw| *flaw == Flaw::Refuses).is_some()
        {
            peer.answers.insert(request, (asked, Answer::Broken));
            let what = "a value that is not finite".to_owned();
            return self.drive(name, DriverEvent::Computed { request, outcome: Err(what), took_us });
        }
        let (mut loss, mut tensor, mut added) = (None, 0, None);
        if let Some(asked) = &asked {
            match call.kind {
                CallKind::Forward => tensor = shape.forward(asked.input, &weights),
                CallKind::Loss => loss = Some(shape.loss(asked.input, &weights)),
                CallKind::Backward => {
                    let back = shape.backward(call.stage, asked.input, asked.above, &weights);
                    (tensor, loss) = (back.input, back.loss);
                    if accumulate {
                        let text = format!(
                            "{name} adds {call:?} for {}: input {:x}, above {:x}, {}",
                            asked.trainer, asked.input, asked.above, back.own
                        );
                        added = Some(text);
                        let keys = Keys::from([((call.step, call.microbatch, call.stage), 1)]);
                        peer.add(call.step, &Sums { own: back.own, shared: back.shared, keys });
                    }
                }
            }
        }
        if let Some(text) = added {
            *self.out.added.entry(name.clone()).or_insert(0) += 1;
            self.say(|| text);
        } else if asked.is_none() {
            self.say(|| format!("{name} has no inputs of {call:?}"));
        }
        if let (Some(asked), Some(peer)) = (asked, self.peers.get_mut(name)) {
            peer.answers.insert(request, (asked, Answer::Tensors(tensor, loss)));
        }
        self.drive(name, DriverEvent::Computed { request, outcome: Ok(loss), took_us });
    }
}
