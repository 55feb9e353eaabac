//! The status of a swarm that serves: made by one function of what was found and the time.

use dunlin_crds::{InferenceSwarm, InferenceSwarmStatus, LayersStatus, PeersStatus, PlanStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::conditions::{ServingFacts, conditions};
use super::decide::InferenceDecision;
use super::desired::InferenceDesired;
use super::state::ServingState;
use crate::config::Config;
use crate::labels::{ROLE_STAGE, pool_selector};
use crate::pools::scaled;
use crate::status::events::{SwarmEvent, TurnReasons, changes};
use crate::status::facts::InferenceFacts;
use crate::swarm::{Reporter, SwarmStatus};

/// What Events call the turns of a swarm.
pub const SERVING: TurnReasons = TurnReasons { ready: "SwarmReady", not_ready: "SwarmNotReady" };

impl SwarmStatus for InferenceSwarmStatus {
    fn conditions(&mut self) -> (&mut Vec<Condition>, &mut Option<i64>) {
        (&mut self.conditions, &mut self.observed_generation)
    }

    fn peers(&self) -> &PeersStatus {
        &self.peers
    }
}

impl Reporter for InferenceSwarm {
    fn unseen(desired: &InferenceDesired) -> InferenceFacts<ServingFacts> {
        let kind = ServingFacts { gateways_desired: desired.gateways, ..ServingFacts::default() };
        InferenceFacts::unseen(desired.generation, desired.suspended, desired.peers(), kind)
    }

    fn next_status(
        &self,
        before: &InferenceSwarmStatus,
        desired: &InferenceDesired,
        decision: &InferenceDecision,
        state: &ServingState,
        config: &Config,
    ) -> InferenceSwarmStatus {
        let (facts, serving) = (&decision.facts, &decision.facts.kind);
        let gateway = format!(
            "{}-gateway.{}.{}",
            self.name_any(),
            self.namespace().unwrap_or_default(),
            config.service_domain
        );
        // Without a new plan the last one is still what the workers follow.
        let plan = decision.plan.summary.clone().map(|summary| PlanStatus { summary });
        InferenceSwarmStatus {
            observed_generation: Some(facts.generation),
            conditions: conditions(facts, &before.conditions, before.observed_generation, Timestamp::now()),
            model: Some(desired.model.clone()),
            epoch: state.epoch(),
            layers: LayersStatus {
                total: serving.layers,
                served: serving.served,
                shadowed: serving.shadowed,
                display: format!("{}/{}", serving.served, serving.layers),
            },
            peers: facts.peers(decision.ready_by_kind),
            capacity_percent: percent(facts.peers_ready, desired.peers()),
            url: Some(format!("http://{gateway}/v1")),
            plan: plan.or_else(|| before.plan.clone()),
            replicas: facts.replicas,
            selector: scaled(&desired.pools).map(|pool| pool_selector(&self.name_any(), ROLE_STAGE, pool)),
        }
    }

    fn turns(before: &InferenceSwarmStatus, after: &InferenceSwarmStatus) -> Vec<SwarmEvent> {
        changes(&before.conditions, &after.conditions, SERVING)
    }
}

fn percent(part: u32, whole: u32) -> u32 {
    let percent = u64::from(part) * 100 / u64::from(whole.max(1));
    u32::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::key::Kind;
    use crate::swarm::first_status;
    use crate::testing::{self, config, kstatus, object};

    fn swarm(generation: i64) -> InferenceSwarm {
        let value = json!({
            "apiVersion": "dunlin.dev/v1alpha1",
            "kind": "InferenceSwarm",
            "metadata": {"name": "s", "namespace": "default", "uid": "1-2-3", "generation": generation},
            "spec": {
                "model": {"source": {"http": {"url": "http://models/m.gguf"}}},
                "pools": [{
                    "name": "spot",
                    "peers": {"min": 3, "max": 6},
                    "device": {"cpu": {"cores": 1}},
                    "memory": {"host": "512Mi"},
                }],
            },
        });
        serde_json::from_value(value).unwrap()
    }

    fn status(before: &InferenceSwarmStatus, facts: &InferenceFacts<ServingFacts>) -> InferenceSwarmStatus {
        let (swarm, config) = (swarm(facts.generation), config());
        let desired = InferenceDesired::new(&swarm, &config);
        let decision = InferenceDecision { facts: facts.clone(), ..InferenceDecision::default() };
        swarm.next_status(before, &desired, &decision, &ServingState::default(), &config)
    }

    #[test]
    #[ignore = "needs kstatus, which is written in Go: make test-kstatus"]
    #[expect(clippy::too_many_lines, reason = "a table of states")]
    fn kstatus_reads_each_state_as_it_is_meant() {
        let whole = testing::whole();
        let nothing = whole.clone().with(|f| {
            f.kind.layers = 0;
            f.kind.served = 0;
            f.kind.shadowed = 0;
            f.peers_ready = 0;
            f.kind.gateways_ready = 0;
        });
        let trouble = Some(("ModelInvalid".to_owned(), "no GGUF".to_owned()));
        let serves = status(&InferenceSwarmStatus::default(), &whole);
        let config = config();
        let swarm = swarm(1);
        let created = first_status(&swarm, &InferenceDesired::new(&swarm, &config), &config);
        let ask = |generation, deleting, status: &InferenceSwarmStatus| {
            kstatus(&object(Kind::Inference, generation, deleting, status))
        };
        assert_eq!(
            kstatus(&object(Kind::Inference, 1, false, &testing::unseen(Kind::Inference))),
            "InProgress"
        );
        assert_eq!(ask(1, false, &created), "InProgress");
        assert_eq!(ask(2, false, &serves), "InProgress", "an edit that nobody has seen");
        assert_eq!(ask(1, true, &serves), "Terminating");
        for (state, facts, expected) in [
            ("creating", nothing.clone(), "InProgress"),
            ("ready", whole.clone(), "Current"),
            (
                "degraded",
                whole.clone().with(|f| {
                    f.peers_ready = 2;
                    f.kind.shadowed = 20;
                }),
                "Current",
            ),
            (
                "edited",
                whole.clone().with(|f| {
                    f.generation = 2;
                    f.peers_desired = 5;
                }),
                "InProgress",
            ),
            ("stalled", nothing.with(|f| f.trouble = trouble.clone()), "Failed"),
            ("stalled while it serves", whole.clone().with(|f| f.trouble = trouble), "Failed"),
            (
                "suspending",
                whole.clone().with(|f| {
                    f.generation = 2;
                    f.suspended = true;
                }),
                "InProgress",
            ),
            (
                "suspended",
                whole.with(|f| {
                    f.generation = 2;
                    f.suspended = true;
                    f.pods = 0;
                }),
                "Current",
            ),
        ] {
            let found = status(&serves, &facts);
            assert_eq!(ask(facts.generation, false, &found), expected, "{state}: {found:?}");
        }
    }
}
