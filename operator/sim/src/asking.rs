//! What the operator asks workers, and what they answer.

use dunlin_operator::peers::WorkerState;
use dunlin_operator::peers::report::WorkerReport;
use dunlin_operator::peers::talk::WorkerQuestion;
use dunlin_swarm::Topology;

use crate::world::{DEBOUNCE_MS, LAYERS, World};

impl World {
    /// Questions of the operator that are due.
    pub fn ask_due(&mut self) {
        let Some(mut operator) = self.operator.take() else { return };
        for (name, question) in operator.talks.due(self.now()) {
            let answer = self.answer(&name, &question);
            if operator.talks.hear(&name, &question, answer, self.clock.at(self.now())) {
                operator.wake_ms = operator.wake_ms.min(self.now() + DEBOUNCE_MS);
            }
        }
        self.operator = Some(operator);
    }

    /// What a worker answers, if it does.
    fn answer(&mut self, name: &str, question: &WorkerQuestion) -> Option<WorkerReport> {
        let topology = match question {
            WorkerQuestion::Take(_, json) => Topology::parse(json).ok(),
            _ => None,
        };
        if let Some(gateway) = self.gateways.get(name).filter(|gateway| gateway.runs) {
            let id = gateway.id;
            if let Some(topology) = topology {
                self.obeyed(&topology);
                self.net.push(id, topology);
            }
            let state = if self.net.is_ready(id) { WorkerState::Ready } else { WorkerState::Loading };
            let (epoch, model_digest, lost) = self
                .net
                .known(id)
                .map(|(known, lost)| (known.epoch, known.model.digest.clone(), lost))
                .unwrap_or_default();
            let needed = self.net.needed(id);
            let report = WorkerReport { state, epoch, model_digest, lost, needed, ..WorkerReport::default() };
            return Some(report);
        }
        let now = self.now();
        let stage = self.stages.get_mut(name).filter(|stage| stage.unreachable_until_ms <= now)?;
        if *question == WorkerQuestion::Drain {
            stage.drain(false, now);
        }
        let obeys = topology.filter(|topology| stage.assign(name, topology));
        let report = stage.report(LAYERS, now);
        if let Some(topology) = obeys {
            self.obeyed(&topology);
        }
        Some(report)
    }
}
