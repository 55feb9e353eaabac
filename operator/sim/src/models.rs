//! Models: of which one a pod is, and what must hold while a user changes that of the swarm. No plan has stages of two, no answer is made by two, and
//! those that run when the manifest is edited have time to end.

use dunlin_sim::model::ReadModel;
use dunlin_sim::serving::BrokenOff;
use dunlin_swarm::Topology;
use dunlin_swarm::timing::DRAIN;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::flaw::Flaw;
use crate::record::ModelChange;
use crate::world::{World, model_url};

impl World {
    /// A user edits the model's source.
    pub fn change_model(&mut self, model: u32) {
        let troubles = [
            self.outage_until_ms,
            self.flaky_until_ms,
            self.stale_until_ms,
            self.broken_until_ms,
            self.shortage_until_ms,
            self.record.harmed_until_ms,
        ];
        let (at_ms, incidents) = (self.now(), self.out.incidents);
        let is_over = troubles.into_iter().all(|until_ms| until_ms <= at_ms);
        let from_calm = is_over && self.is_as_planned() && self.operator.is_some();
        self.record.model_change = Some(ModelChange { at_ms, incidents, from_calm });
        // All of its stages go.
        self.record.harm();
        let url = model_url(model);
        self.edit(&format!("model.source is {url}"), |spec| {
            if let Some(http) = &mut spec.model.source.http {
                http.url = url;
            }
        });
    }

    /// The model of a process in the pod `name`.
    pub fn model_of(&self, name: &str) -> ReadModel {
        let mut model = told_model(&self.cluster.pods[name].pod);
        if self.scenario.flaw == Some(Flaw::TellsNoModel) {
            model.digest.clear();
        }
        model
    }

    /// It is the one that the manifest says.
    pub fn is_wanted(&self, model: &ReadModel) -> bool {
        self.swarm.spec.model.source.http.as_ref().is_some_and(|http| http.url == model.source)
    }

    /// What is wrong with the models of those that a plan names: each pod that is there was made for that of the plan.
    pub fn mixed_models(&self, topology: &Topology) -> Option<String> {
        let model_of = |name: &str| Some(told_model(&self.cluster.pods.get(name)?.pod));
        let other = topology.peers.iter().find(|peer| {
            model_of(peer.name.as_str()).is_some_and(|model| model.digest != topology.model.digest)
        })?;
        let (epoch, peer) = (topology.epoch, &other.name);
        Some(format!("epoch {epoch} has {peer}, which is of another model"))
    }

    /// Clients whose answers were broken off ask again, as they are told to. What was there when the model was changed has the time that its stages
    /// have to hand over: it is not broken off before, unless something else goes wrong.
    pub fn check_broken_off(&mut self) {
        for BrokenOff { session, source, begun_ms, at_ms } in self.net.broken_off() {
            self.out.broken_off += 1;
            self.net.ask();
            let Some(change) = self.record.model_change else {
                self.violation(format!("session {session} is broken off, and {source} is the only model"));
                continue;
            };
            let is_calm = change.from_calm && self.out.incidents == change.incidents;
            let after_ms = at_ms.saturating_sub(change.at_ms);
            if is_calm && begun_ms < change.at_ms && u128::from(after_ms) < DRAIN.as_millis() {
                self.violation(format!(
                    "session {session} is broken off {after_ms} ms after the model was changed, and was there before"
                ));
            }
        }
    }
}

/// What the container of `pod` is told of the model.
fn told_model(pod: &Pod) -> ReadModel {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let source = |container: &Container| {
        let args = container.args.as_deref().unwrap_or_default();
        args.windows(2).find(|two| two[0] == "--model-url").map(|two| two[1].clone())
    };
    let digest = |container: &Container| {
        let variables = container.env.as_deref().unwrap_or_default();
        variables.iter().find(|variable| variable.name == "DUNLIN_MODEL_DIGEST")?.value.clone()
    };
    ReadModel {
        source: container.and_then(source).unwrap_or_default(),
        digest: container.and_then(digest).unwrap_or_default(),
    }
}
