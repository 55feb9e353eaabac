//! How many pods of a role evictions must leave. Pure.

use dunlin_swarm::Topology;
use serde_json::{Value, json};

use crate::labels::Owner;

/// What a budget guarantees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// At least so many pods are there.
    Available(u32),
    /// At most so many of those that are wanted are not.
    Unavailable(u32),
}

/// The PodDisruptionBudget `name` of the pods with `role`. A pod that is not Ready may always go: it guards nothing.
#[must_use]
pub fn budget(owner: &Owner, name: &str, role: &str, guarantee: Guarantee) -> Value {
    let (field, count) = match guarantee {
        Guarantee::Available(count) => ("minAvailable", count),
        Guarantee::Unavailable(count) => ("maxUnavailable", count),
    };
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": owner.metadata(name, role),
        "spec": {
            field: count,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": owner.selector(role)},
        },
    })
}

/// Stages that evictions must leave: all but one, so that the next one goes when the place of the last is taken. Those of the plan, and not
/// those that are wanted: where there are no nodes for more, the plan gets along with fewer after a while, and a drain goes on. A swarm of one
/// peer is no reason to keep a node.
///
/// `plan`: what is published; `gap`: it has a place that nobody has taken yet; `ready`: stages that serve or could.
#[must_use]
pub fn stages_kept(wanted: u32, plan: Option<&Topology>, gap: bool, ready: u32) -> u32 {
    let whole = match plan.filter(|_| !gap) {
        Some(plan) => {
            let placed = plan.peers.iter().filter(|peer| !peer.span.is_empty()).count();
            u32::try_from(placed).unwrap_or(u32::MAX).max(ready).min(wanted)
        }
        None => wanted,
    };
    whole.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use dunlin_swarm::{Layers, TopologyPeer};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;

    use super::*;
    use crate::labels::ROLE_STAGE;
    use crate::testing::{assert_typed, owner};

    #[test]
    fn a_budget_selects_the_pods_of_its_role_and_frees_those_that_are_not_ready() {
        for (guarantee, field) in
            [(Guarantee::Available(2), "minAvailable"), (Guarantee::Unavailable(2), "maxUnavailable")]
        {
            let budget = budget(&owner(), "smollm2-stage", ROLE_STAGE, guarantee);
            assert_typed::<PodDisruptionBudget>(&budget);
            assert_eq!(
                (&budget["spec"][field], &budget["metadata"]["name"]),
                (&json!(2), &json!("smollm2-stage"))
            );
            assert_eq!(budget["spec"]["selector"]["matchLabels"], json!(owner().selector(ROLE_STAGE)));
            assert_eq!(budget["spec"]["unhealthyPodEvictionPolicy"], "AlwaysAllow");
        }
    }

    #[test]
    fn one_stage_at_a_time_may_be_evicted_and_no_drain_waits_for_ever() {
        // The last one has no place yet.
        let plan = |placed: u32| Topology {
            peers: (0..=placed)
                .map(|i| TopologyPeer { span: Layers::new(i, placed.min(i + 1)), ..TopologyPeer::default() })
                .collect(),
            ..Topology::default()
        };
        assert_eq!(stages_kept(3, None, false, 0), 2, "before there is a plan");
        assert_eq!(stages_kept(3, Some(&plan(3)), false, 3), 2);
        assert_eq!(stages_kept(3, Some(&plan(2)), true, 2), 2, "a place is to be taken");
        assert_eq!(stages_kept(3, Some(&plan(2)), false, 2), 1, "nobody came, two do without");
        assert_eq!(stages_kept(4, Some(&plan(4)), false, 4), 3, "a newcomer without a place counts");
        assert_eq!(stages_kept(2, Some(&plan(3)), false, 3), 1, "one is to go anyway");
        assert_eq!((stages_kept(1, Some(&plan(1)), false, 1), stages_kept(0, None, false, 0)), (0, 0));
    }
}
