//! What the operator made of an `InferenceSwarm`: peers, gateways, conditions, as kubectl shows them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::{chat, wait};

/// Port of the gateways' HTTP server.
const GATEWAY_PORT: u16 = 8080;
/// How long a healthy swarm may take to be whole again.
pub const HEAL_LIMIT: Duration = Duration::from_secs(90);

/// A swarm under test.
pub struct Swarm<'a> {
    /// Where it lives.
    pub cluster: &'a Cluster,
    /// `metadata.name`.
    pub name: String,
    /// Name clients ask for.
    pub model: String,
}

/// A stage peer of the current topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Pod name.
    pub name: String,
    /// Node it runs on.
    pub node: String,
    /// First layer of its span.
    pub start: u64,
    /// One past the last layer of its span.
    pub end: u64,
}

/// A pod as far as tests care.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Pod name.
    pub name: String,
    /// Node, empty when not scheduled.
    pub node: String,
    /// Pod IP, empty when it has none.
    pub ip: String,
    /// Ready condition is True and it is not being deleted.
    pub ready: bool,
    /// On its way out: on a dead node a pod stays like that until the node is back.
    pub deleting: bool,
}

impl Swarm<'_> {
    /// Pods of `role` (`stage`, `gateway`).
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn pods(&self, role: &str) -> Result<Vec<Pod>> {
        pods(self.cluster, &self.name, role)
    }

    /// The topology the operator published last.
    ///
    /// # Errors
    /// When there is none.
    pub fn topology(&self) -> Result<Value> {
        let map = self.cluster.get(&["configmap", &format!("{}-topology", self.name)])?;
        let text = map["data"]["topology.json"].as_str().context("no topology.json in the ConfigMap")?;
        Ok(serde_json::from_str(text)?)
    }

    /// Stage peers in the order of their spans.
    ///
    /// # Errors
    /// When there is no topology.
    pub fn peers(&self) -> Result<Vec<Peer>> {
        let topology = self.topology()?;
        let mut peers: Vec<Peer> = topology["peers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|p| p["state"] == "Ready")
            .map(|p| Peer {
                name: text(&p["name"]),
                node: text(&p["node"]),
                start: p["span"]["start"].as_u64().unwrap_or(0),
                end: p["span"]["end"].as_u64().unwrap_or(0),
            })
            .filter(|p| p.end > p.start)
            .collect();
        peers.sort_by_key(|p| p.start);
        Ok(peers)
    }

    /// A peer that holds neither the first nor the last layer.
    ///
    /// # Errors
    /// When there are fewer than three stages.
    pub fn middle_peer(&self) -> Result<Peer> {
        let peers = self.peers()?;
        if peers.len() < 3 {
            bail!("{} stages, a middle one needs three: {peers:?}", peers.len());
        }
        Ok(peers[peers.len() / 2].clone())
    }

    /// The URL of a ready gateway that does not run on any of `avoid` (node names).
    ///
    /// # Errors
    /// When there is none.
    pub fn gateway(&self, avoid: &[&str]) -> Result<String> {
        Ok(gateway_url(&self.gateway_pod(avoid)?))
    }

    /// As [`Swarm::gateway`], the pod.
    ///
    /// # Errors
    /// When there is none.
    pub fn gateway_pod(&self, avoid: &[&str]) -> Result<Pod> {
        self.pods("gateway")?
            .into_iter()
            .find(|p| p.ready && !avoid.contains(&p.node.as_str()))
            .with_context(|| format!("no ready gateway outside of {avoid:?}"))
    }

    /// The swarm object.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn object(&self) -> Result<Value> {
        self.cluster.get(&["inferenceswarm", &self.name])
    }

    /// Waits until the swarm is whole: Ready, not Degraded, `peers` ready with every layer served and shadowed, every gateway answering.
    ///
    /// # Errors
    /// After [`HEAL_LIMIT`].
    pub fn wait_whole(&self, peers: u64) -> Result<()> {
        wait::until_true(&format!("swarm {} is whole with {peers} peers", self.name), HEAL_LIMIT, || {
            let object = self.object()?;
            let status = &object["status"];
            let conditions = conditions(&object);
            let whole = is_true(&conditions, "Ready")
                && !is_true(&conditions, "Degraded")
                && status["observedGeneration"] == object["metadata"]["generation"]
                && status["peers"]["ready"].as_u64() == Some(peers)
                && status["layers"]["served"] == status["layers"]["total"]
                && status["layers"]["shadowed"] == status["layers"]["total"]
                && self.peers()?.len() as u64 == peers;
            Ok((whole, status.to_string()))
        })?;
        wait::until_true("every gateway is healthy", HEAL_LIMIT, || {
            let mut pods = self.pods("gateway")?;
            pods.retain(|pod| !pod.deleting);
            for pod in &pods {
                let (status, body) = chat::get(&format!("{}/health", gateway_url(pod)))?;
                if status != 200 {
                    return Ok((false, format!("{}: {status} {body}", pod.name)));
                }
            }
            Ok((!pods.is_empty() && pods.iter().all(|p| p.ready), format!("{pods:?}")))
        })
    }

    /// Waits until the swarm is whole with `peers` peers and without any of `lost`: an answer is often complete before the operator knows of
    /// a loss, and until then the swarm looks whole.
    ///
    /// # Errors
    /// After [`HEAL_LIMIT`].
    pub fn wait_replaced(&self, lost: &[Peer], peers: u64) -> Result<()> {
        wait::until_true("the lost peers are out of the topology", HEAL_LIMIT, || {
            let there = self.peers()?;
            let gone = lost.iter().all(|l| there.iter().all(|p| p.name != l.name));
            Ok((gone, format!("{there:?}")))
        })?;
        self.wait_whole(peers)
    }

    /// Waits until condition `kind` has `status` and `reason`; returns its message.
    ///
    /// # Errors
    /// After `limit`.
    pub fn wait_condition(&self, kind: &str, status: &str, reason: &str, limit: Duration) -> Result<String> {
        wait_condition(|| self.object(), kind, status, reason, limit)
            .with_context(|| format!("inferenceswarm {}", self.name))
    }
}

/// Pods of the swarm `name` (of inference or training) with `role`, without those that are over: the pods of a node that was shut down stay
/// in the list as `Succeeded` or `Failed` for as long as nobody removes them, and count for no Deployment.
///
/// # Errors
/// When the API server does not answer.
pub fn pods(cluster: &Cluster, name: &str, role: &str) -> Result<Vec<Pod>> {
    let selector = format!("dunlin.dev/swarm={name},dunlin.dev/role={role}");
    let list = cluster.get(&["pods", "-l", &selector])?;
    Ok(list["items"].as_array().into_iter().flatten().filter(|item| !is_over(item)).map(pod).collect())
}

/// Have all containers of the pod `item` ended for good?
#[must_use]
pub fn is_over(item: &Value) -> bool {
    item["status"]["phase"] == "Succeeded" || item["status"]["phase"] == "Failed"
}

/// Waits until condition `kind` of an object has `status` and `reason`; returns its message. `look`: the object.
///
/// # Errors
/// After `limit`.
pub fn wait_condition(
    look: impl Fn() -> Result<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    limit: Duration,
) -> Result<String> {
    wait::until(&format!("{kind}={status} {reason}"), limit, || {
        let conditions = conditions(&look()?);
        let Some(condition) = conditions.get(kind) else { bail!("{conditions:?}") };
        if condition["status"] == status && condition["reason"] == reason {
            return Ok(Some(text(&condition["message"])));
        }
        bail!("{condition}")
    })
}

/// The URL of a gateway pod.
#[must_use]
pub fn gateway_url(pod: &Pod) -> String {
    format!("http://{}:{GATEWAY_PORT}", pod.ip)
}

/// Conditions of an object by type.
#[must_use]
pub fn conditions(object: &Value) -> BTreeMap<String, Value> {
    let list = object["status"]["conditions"].as_array().into_iter().flatten();
    list.map(|c| (text(&c["type"]), c.clone())).collect()
}

fn is_true(conditions: &BTreeMap<String, Value>, kind: &str) -> bool {
    conditions.get(kind).is_some_and(|c| c["status"] == "True")
}

fn pod(item: &Value) -> Pod {
    let ready = item["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    Pod {
        name: text(&item["metadata"]["name"]),
        node: text(&item["spec"]["nodeName"]),
        ip: text(&item["status"]["podIP"]),
        ready: ready && item["metadata"]["deletionTimestamp"].is_null(),
        deleting: !item["metadata"]["deletionTimestamp"].is_null(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
