//! What all swarms of a cluster share: the operator, the nodes, the CustomResourceDefinitions.

use dunlin_crds::generated::{self, ResourceKind};
use dunlin_crds::names::MANAGER;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt};

use super::facts::{LeaseFacts, NodeFacts, OperatorFacts};
use super::schema;
use crate::cluster::{Cluster, listed};
use crate::failure::{ApiCall, CallFailure};
use crate::pods::PodFacts;

/// Selects the operator's pods.
pub const OPERATOR_PODS: &str = "app.kubernetes.io/name=dunlin,app.kubernetes.io/component=operator";
/// Where the operator is when nothing else is known: what the installation guide says.
pub const OPERATOR_NAMESPACE: &str = "dunlin-system";
/// What says which namespace an operator looks at.
const WATCHES: &str = "DUNLIN_WATCH_NAMESPACE";

/// What all swarms share.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Who carries manifests out.
    pub operator: OperatorFacts,
    /// All nodes; `None` when they may not be read.
    pub nodes: Option<Vec<Node>>,
    /// Fields that the definition of each kind lacks.
    pub schema_lacks: Vec<(ResourceKind, Vec<String>)>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

/// Asks for it.
pub async fn surroundings(cluster: &Cluster, now_s: i64) -> Surroundings {
    let mut unread = Vec::new();
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let (operator, nodes, schemas) =
        tokio::join!(operator(cluster, now_s), listed(&nodes, "", None), schemas(cluster));
    let nodes = nodes.map_err(|why| unread.push(why.to_string())).ok();
    let operator = operator.map_err(|why| unread.push(why)).unwrap_or_default();
    let schema_lacks = schemas.map_err(|why| unread.push(why)).unwrap_or_default();
    Surroundings { operator, nodes, schema_lacks, unread }
}

async fn operator(cluster: &Cluster, now_s: i64) -> Result<OperatorFacts, String> {
    let everywhere: Result<Vec<Pod>, CallFailure> =
        listed(&Api::all(cluster.client.clone()), OPERATOR_PODS, None).await;
    let pods = match everywhere {
        Ok(pods) => pods,
        // Who may not look everywhere may often look where the operator is by default. It need not be there.
        Err(why) => {
            let there: Vec<Pod> =
                cluster.of(OPERATOR_NAMESPACE).list(OPERATOR_PODS).await.unwrap_or_default();
            if there.is_empty() {
                return Err(format!("the operator: {why}"));
            }
            there
        }
    };
    let namespace =
        pods.first().and_then(ResourceExt::namespace).unwrap_or_else(|| OPERATOR_NAMESPACE.to_owned());
    let environment =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.containers.first()?.env.as_ref()).flatten();
    let watches = environment.into_iter().find(|e| e.name == WATCHES).and_then(|e| e.value.clone());
    let lease = cluster.of(&namespace).get::<Lease>(MANAGER).await.ok().flatten();
    Ok(OperatorFacts {
        pods: Some(pods.iter().map(|pod| PodFacts::of(pod, now_s)).collect()),
        namespace,
        watches: watches.filter(|namespace| !namespace.is_empty()),
        lease: lease.and_then(|lease| lease.spec).map(|spec| LeaseFacts {
            holder: spec.holder_identity.unwrap_or_default(),
            renewed_s: spec.renew_time.map_or(i64::MAX, |at| now_s - at.0.as_second()),
            lasts_s: i64::from(spec.lease_duration_seconds.unwrap_or(0)),
        }),
    })
}

async fn schemas(cluster: &Cluster) -> Result<Vec<(ResourceKind, Vec<String>)>, String> {
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut lacks = Vec::new();
    for (name, kind) in [
        ("inferenceswarms.dunlin.dev", ResourceKind::Inference),
        ("trainingswarms.dunlin.dev", ResourceKind::Training),
    ] {
        let call = ApiCall {
            verb: "get",
            resource: "customresourcedefinitions.apiextensions.k8s.io",
            namespace: None,
        };
        let theirs = definitions.get(name).await.map_err(|e| call.failed(&e).to_string())?;
        let theirs = serde_json::to_value(theirs).unwrap_or_default();
        let ours = generated::definition(kind)
            .map_err(|e| format!("the schema of {name} cannot be written: {e}"))?;
        lacks.push((kind, schema::lacks(&ours, &theirs)));
    }
    Ok(lacks)
}

/// A node.
#[must_use]
pub fn node(node: &Node) -> NodeFacts {
    let conditions: Vec<_> = node.status.iter().flat_map(|s| s.conditions.iter().flatten()).collect();
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    let pressed = conditions.iter().filter(|c| c.type_.ends_with("Pressure") && c.status == "True");
    let is_ready = ready.is_none_or(|c| c.status == "True");
    NodeFacts {
        name: node.name_any(),
        ready: is_ready,
        cordoned: node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false),
        pressures: pressed.map(|c| c.type_.clone()).collect(),
        message: ready.filter(|_| !is_ready).and_then(|c| c.message.clone()).unwrap_or_default(),
    }
}
