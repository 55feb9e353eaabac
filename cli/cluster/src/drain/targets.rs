//! Which pods are moved.

use anyhow::{Result, bail};
use dunlin_crds::names::{ROLE_GATEWAY, SWARM};
use dunlin_terminal::print::note;
use dunlin_terminal::words::count;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::cluster::{Cluster, LIST_MAX, if_there};
use crate::failure::ApiCall;
use crate::pods::PodFacts;

/// What is moved.
pub(super) enum Targets {
    /// The pod that was named.
    One(Box<Pod>),
    /// All pods of swarms on a node.
    Node(Vec<Pod>),
}

/// The pod called `target`, or those of swarms on the node of that name, which takes no new ones from now on.
pub(super) async fn targets(cluster: &Cluster, target: &str) -> Result<Targets> {
    if let Some(namespace) = &cluster.namespace
        && let Some(pod) = cluster.get::<Pod>(target).await?
    {
        if !pod.labels().contains_key(SWARM) {
            bail!(
                "pod {target} in {namespace} is of no swarm: use `kubectl drain` or `kubectl delete` for others"
            );
        }
        return Ok(Targets::One(Box::new(pod)));
    }
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let call = |verb| ApiCall { verb, resource: "nodes", namespace: None };
    let node = if_there(nodes.get(target).await).map_err(|e| call("get").failed(&e))?;
    if node.is_none() {
        let place = cluster.namespace.as_deref().map_or(String::new(), |n| format!(" in namespace {n}"));
        bail!(
            "there is neither a pod {target}{place} nor a node of that name: `dunlin status` lists peers and nodes"
        );
    }
    let params =
        ListParams::default().labels(SWARM).fields(&format!("spec.nodeName={target}")).limit(LIST_MAX);
    let pods = cluster.api::<Pod>().list(&params).await;
    let list = ApiCall { verb: "list", resource: "pods", namespace: cluster.namespace.as_deref() };
    let mut pods = pods.map_err(|e| list.failed(&e))?.items;
    pods.retain(|pod| !PodFacts::of(pod, 0).is_over());
    // Gateways may take minutes to finish their answers: nobody waits for them.
    pods.sort_by_key(|pod| PodFacts::of(pod, 0).role == ROLE_GATEWAY);
    let by_hand = format!(
        "with somebody else's `kubectl cordon {target}`, `dunlin drain POD` moves its peers one by one"
    );
    nodes.cordon(target).await.map_err(|e| call("patch").failed(&e).and(&by_hand))?;
    note(format!(
        "node {target} takes no new pods (`kubectl uncordon {target}` ends that); {} of swarms to move",
        count(pods.len(), "pod")
    ));
    Ok(Targets::Node(pods))
}
