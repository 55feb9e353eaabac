//! What there is to know about a swarm.

use serde::Serialize;

use crate::pods::PodFacts;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClusterEvidence {
    /// The object.
    pub swarm: SwarmFacts,
    /// Who carries its manifest out.
    pub operator: OperatorFacts,
    /// Its pods.
    pub pods: Vec<PodFacts>,
    /// All nodes; `None` when they may not be read.
    pub nodes: Option<Vec<NodeFacts>>,
    /// What happened of late to the swarm, its pods and what makes them, newest first. Only warnings.
    pub events: Vec<EventFacts>,
    /// Quotas of its namespace that are used up.
    pub quotas: Vec<QuotaFacts>,
    /// Claims that its manifest names and that cannot be mounted.
    pub claims: Vec<ClaimFacts>,
    /// Secrets that its manifest or its pods name and that are not there.
    pub secrets_missing: Vec<String>,
    /// What its gateways say.
    pub gateways: Vec<GatewayFacts>,
    /// Fields that this program knows and the CustomResourceDefinition of the cluster does not.
    pub schema_lacks: Vec<String>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// The object.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SwarmFacts {
    /// `inferenceswarm/smollm2`.
    pub id: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// Generation of the manifest.
    pub generation: i64,
    /// The one that the operator speaks about.
    pub observed: Option<i64>,
    /// Seconds since it was made.
    pub age_s: i64,
    /// `spec.suspend`.
    pub suspended: bool,
    /// Type, status, reason and message of each condition.
    pub conditions: Vec<ConditionFacts>,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ConditionFacts {
    /// `Ready`.
    pub kind: String,
    /// `True`.
    pub status: String,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Seconds since the status changed.
    pub since_s: i64,
}

impl SwarmFacts {
    /// The condition `kind`.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&ConditionFacts> {
        self.conditions.iter().find(|c| c.kind == kind)
    }

    /// Whether the condition `kind` is True.
    #[must_use]
    pub fn is(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|c| c.status == "True")
    }
}

/// Who carries manifests out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OperatorFacts {
    /// Its pods; `None` when they may not be read.
    pub pods: Option<Vec<PodFacts>>,
    /// Where they run.
    pub namespace: String,
    /// The only namespace that it looks at; `None` for all of them.
    pub watches: Option<String>,
    /// Who leads; `None` when there is no lease, or it may not be read.
    pub lease: Option<LeaseFacts>,
}

/// Who leads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LeaseFacts {
    /// Empty when nobody does.
    pub holder: String,
    /// Seconds since it was renewed.
    pub renewed_s: i64,
    /// After so many seconds another one takes over.
    pub lasts_s: i64,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its kubelet reports in time.
    pub ready: bool,
    /// No new pods go there.
    pub cordoned: bool,
    /// `MemoryPressure`, `DiskPressure`, `PIDPressure`, as far as they are True.
    pub pressures: Vec<String>,
    /// What the kubelet says when the node is not ready.
    pub message: String,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EventFacts {
    /// `Pod smollm2-spot-abcde`.
    pub about: String,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// How often.
    pub count: i32,
    /// Seconds since it last did.
    pub ago_s: i64,
}

/// A quota that is used up.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QuotaFacts {
    /// Name of the ResourceQuota.
    pub name: String,
    /// `pods`, `requests.memory`.
    pub resource: String,
    /// What is used of it.
    pub used: String,
    /// What may be used.
    pub hard: String,
}

/// A claim that cannot be mounted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClaimFacts {
    /// Its name.
    pub name: String,
    /// `Pending`, `Lost`; empty when there is none of that name.
    pub phase: String,
    /// Its storage class; empty for the default one.
    pub class: String,
}

/// What a gateway says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GatewayFacts {
    /// Its pod.
    pub pod: String,
    /// Why it would not answer a request.
    pub not_ready: Option<String>,
    /// Peers of its plan that it does not reach.
    pub unreached: Vec<String>,
    /// Why it cannot be asked itself.
    pub silent: Option<String>,
}
