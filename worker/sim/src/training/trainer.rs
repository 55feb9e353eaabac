//! What a trainer does.

use std::collections::BTreeMap;

use dunlin_protocol::training::{
    CallId, CallKind, CallOutcome, Hello, Mate, ToTrainer, TrainerCore, TrainerEffect, TrainingRole,
};
use dunlin_swarm::PeerName;

use super::events::{Answer, Asked, Event, Up};
use super::numbers::ARITHMETIC;
use super::trainer_shell::TrainerShell;
use super::world::World;
use crate::serving::model::mix;

impl World {
    pub(super) fn join_trainer(&mut self) {
        self.made += 1;
        let name = PeerName(format!("t{}", self.made));
        self.say(|| format!("{name} starts"));
        let trainer = TrainerShell {
            core: TrainerCore::new(
                mix(self.scenario.seed, u64::from(self.made)),
                self.scenario.forward_ms_max,
            ),
            stream: None,
            retired: false,
            tensors: BTreeMap::new(),
            calls: BTreeMap::new(),
        };
        self.trainers.insert(name.clone(), trainer);
        self.at(1, Event::Connect(name));
    }

    pub(super) fn trainer_connected(&mut self, name: &PeerName, stream: u64) {
        let mut out = Vec::new();
        let Some(trainer) = self.trainers.get_mut(name) else { return };
        trainer.stream = Some(stream);
        trainer.core.connected(&mut out);
        let me = Mate { name: name.clone(), addr: name.to_string(), host: String::new() };
        let role = TrainingRole::Trainer { data: String::new() };
        self.up(name, Some(stream), Up::Hello(Hello { me, arithmetic: Some(ARITHMETIC), role }));
        self.trainer_effects(name, out);
    }

    pub(super) fn trainer_hears(&mut self, name: &PeerName, message: ToTrainer) {
        let mut out = Vec::new();
        let now = self.now();
        let Some(trainer) = self.trainers.get_mut(name).filter(|t| !t.retired) else { return };
        trainer.core.hear(message, now, &mut out);
        self.trainer_effects(name, out);
    }

    pub(super) fn trainer_tick(&mut self, name: &PeerName) {
        let mut out = Vec::new();
        let now = self.now();
        let Some(trainer) = self.trainers.get_mut(name).filter(|t| !t.retired) else { return };
        trainer.core.tick(now, &mut out);
        self.trainer_effects(name, out);
    }

    pub(super) fn answer_arrives(&mut self, name: &PeerName, id: CallId, answer: Answer) {
        let mut out = Vec::new();
        let now = self.now();
        let Some(trainer) = self.trainers.get_mut(name) else { return };
        let Some((_, call)) = trainer.calls.remove(&id) else { return };
        let text = format!("{name}: call {id} ended: {answer:?}");
        let outcome = match answer {
            Answer::Tensors(tensor, loss) => {
                let kept = trainer.tensors.entry((call.step, call.microbatch)).or_default();
                match call.kind {
                    CallKind::Forward => {
                        kept.inputs.resize(call.stage as usize + 2, 0);
                        kept.inputs[call.stage as usize + 1] = tensor;
                    }
                    CallKind::Backward => kept.above = tensor,
                    CallKind::Loss => {}
                }
                CallOutcome::Answered { loss }
            }
            Answer::Refused => CallOutcome::Refused,
            Answer::Stale => CallOutcome::Stale,
            Answer::Broken => CallOutcome::Broken,
            Answer::Failed(what) => CallOutcome::Failed(what),
        };
        trainer.core.ended(id, outcome, now, &mut out);
        self.say(|| text);
        self.trainer_effects(name, out);
    }

    fn trainer_effects(&mut self, name: &PeerName, effects: Vec<TrainerEffect>) {
        for effect in effects {
            let Some(trainer) = self.trainers.get_mut(name) else { return };
            match effect {
                TrainerEffect::Call { id, peer, call } => {
                    let kept = trainer.tensors.entry((call.step, call.microbatch)).or_default();
                    if call.stage == 0 {
                        kept.inputs.resize(1.max(kept.inputs.len()), 0);
                        kept.inputs[0] = self.scenario.shape.tokens(call.step, call.microbatch);
                    }
                    let input = kept.inputs.get(call.stage as usize).copied();
                    let above = kept.above;
                    trainer.calls.insert(id, (peer.name.clone(), call));
                    let Some(input) = input else {
                        self.violation(format!("{name} has no input for {call:?}"));
                        return;
                    };
                    self.say(|| format!("{name} calls {}, call {id}: {call:?}", peer.name));
                    let asked = Asked { trainer: name.clone(), id, call, input, above };
                    let after = self.latency();
                    self.at(after, Event::Call { peer: peer.name, asked });
                }
                TrainerEffect::Abandon { id } => {
                    if let Some((peer, _)) = trainer.calls.remove(&id) {
                        let after = self.latency();
                        self.at(after, Event::HangUp { peer, trainer: name.clone(), id });
                    }
                }
                TrainerEffect::Forget { step, microbatch } => {
                    trainer.tensors.remove(&(step, microbatch));
                }
                TrainerEffect::Tell(report) => {
                    let stream = trainer.stream;
                    self.up(name, stream, Up::Trainer(report));
                }
                TrainerEffect::Retire => {
                    trainer.retired = true;
                    let stream = trainer.stream.take();
                    if let Some(stream) = stream {
                        self.break_stream(stream, false);
                    }
                }
            }
        }
    }

    /// Its calls hang up, one after the other.
    pub(super) fn kill_trainer(&mut self, name: &PeerName) {
        let Some(trainer) = self.trainers.remove(name) else { return };
        self.say(|| format!("{name} is killed"));
        if let Some(stream) = trainer.stream {
            self.break_stream(stream, false);
        }
        for (id, (peer, _)) in trainer.calls {
            let after = self.notice();
            self.at(after, Event::HangUp { peer, trainer: name.clone(), id });
        }
        let after = 100 + self.draw(1500);
        self.at(after, Event::JoinTrainer);
    }
}
