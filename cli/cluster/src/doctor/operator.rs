//! Whether anybody carries the manifest out.

use dunlin_terminal::words::span;

use super::finding::{Finding, Severity};
use crate::evidence::{ClusterEvidence, OperatorFacts};

/// An operator looks at a new swarm within so many seconds.
const FIRST_LOOK_S: i64 = 30;
/// A lease that was not renewed for so many seconds has no leader, even if the clocks of this machine and of the cluster differ somewhat.
const LEADERLESS_S: i64 = 90;

/// What is wrong with the operator.
#[must_use]
pub fn rules(evidence: &ClusterEvidence) -> Vec<Finding> {
    let (operator, swarm) = (&evidence.operator, &evidence.swarm);
    let Some(pods) = &operator.pods else { return unseen(evidence).into_iter().collect() };
    let problem = |line: String, remedy: String| Finding::new(Severity::Problem, line, remedy);
    let namespace = &operator.namespace;
    if pods.iter().all(|pod| pod.is_over()) {
        return vec![problem(
            "no operator runs in this cluster: nobody carries the manifest out or replaces lost peers".into(),
            format!(
                "install it (helm install dunlin charts/dunlin -n {namespace} --create-namespace), or start it again (kubectl -n {namespace} \
                 scale deployment/dunlin-operator --replicas=2)"
            ),
        )];
    }
    if !pods.iter().any(|pod| pod.ready) {
        let pods = pods.iter().filter(|pod| !pod.is_over());
        let why = pods.map(|pod| {
            let waiting = pod.waiting.as_ref().map(|(reason, message)| format!("{reason}: {message}"));
            let ended = pod.ended.as_ref().map(|e| format!("it ended with code {}: {}", e.code, e.words));
            let why = pod.unschedulable.clone().or(ended).or(waiting);
            format!("{}: {}", pod.told(), why.unwrap_or_else(|| "its probe fails".into()))
        });
        let line = format!("no operator is ready in namespace {namespace}: nobody carries the manifest out");
        let remedy = format!("see what it says: kubectl -n {namespace} logs deployment/dunlin-operator");
        return vec![problem(line, remedy).shown_by(why)];
    }
    if let Some(watched) = operator.watches.as_ref().filter(|watched| **watched != swarm.namespace) {
        return vec![problem(
            format!(
                "the operator in {namespace} looks only at namespace {watched}, and the swarm is in {}",
                swarm.namespace
            ),
            "apply the swarm there, or install an operator with rbac.scope=cluster".into(),
        )];
    }
    leader(operator).or_else(|| unseen(evidence)).into_iter().collect()
}

fn leader(operator: &OperatorFacts) -> Option<Finding> {
    let lease = operator.lease.as_ref()?;
    let name = format!("{}/dunlin-operator", operator.namespace);
    let why = match lease.renewed_s {
        _ if lease.holder.is_empty() => "nobody holds it".to_owned(),
        age if age > LEADERLESS_S.max(lease.lasts_s * 4) => {
            format!("{} renewed it {} ago by the clock of this machine", lease.holder, span(age))
        }
        _ => return None,
    };
    let remedy = format!(
        "see why none takes it: kubectl -n {} logs -l app.kubernetes.io/component=operator",
        operator.namespace
    );
    Some(
        Finding::new(Severity::Problem, "no operator leads: nobody carries the manifest out", remedy)
            .shown_by([format!("lease {name}: {why}")]),
    )
}

/// Nobody has looked at the swarm.
fn unseen(evidence: &ClusterEvidence) -> Option<Finding> {
    let swarm = &evidence.swarm;
    if swarm.observed.unwrap_or(-1) >= 0 || swarm.age_s <= FIRST_LOOK_S {
        return None;
    }
    let line = format!("no operator has looked at the swarm since it was made {} ago", span(swarm.age_s));
    let remedy = format!("see what the operator says: kubectl -n {} logs deployment/dunlin-operator", {
        if evidence.operator.namespace.is_empty() { "dunlin-system" } else { &evidence.operator.namespace }
    });
    Some(Finding::new(Severity::Problem, line, remedy))
}

/// Whether the definition in the cluster is of another version.
#[must_use]
pub fn schema(evidence: &ClusterEvidence) -> Option<Finding> {
    if evidence.schema_lacks.is_empty() {
        return None;
    }
    let line = format!(
        "the CustomResourceDefinition is of an older version: it lacks {}",
        evidence.schema_lacks.join(", ")
    );
    let remedy = "upgrade with the chart of one version (helm upgrade dunlin charts/dunlin), or use the dunlin of that which is installed; until \
                  then such fields of a manifest are dropped or refused";
    Some(Finding::new(Severity::Warning, line, remedy))
}
