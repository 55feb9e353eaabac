//! Names and labels of everything the operator makes: stable, because users select by them.

use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_wire::Role;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::key::{Kind, SwarmKey};

pub use dunlin_crds::names::{
    EPOCH, KIND, MANAGER, OURS, POD_HASH, POOL, ROLE, ROLE_CONDUCTOR, ROLE_GATEWAY, ROLE_PEER, ROLE_STAGE,
    ROLE_TRAINER, SWARM, TEMPLATE,
};

/// What the certificate of a pod says beside its name: [`CERTIFICATE_ROLE`]. Pods of operators before there were roles do not have the label.
pub const CERTIFICATE: &str = "dunlin.dev/certificate";
/// It says the role.
pub const CERTIFICATE_ROLE: &str = "role";

/// The label of pods with `role`.
#[must_use]
pub fn role_label(role: Role) -> &'static str {
    match role {
        // No pod of a swarm has it.
        Role::Operator => "operator",
        Role::Gateway => ROLE_GATEWAY,
        Role::Stage => ROLE_STAGE,
        Role::Conductor => ROLE_CONDUCTOR,
        Role::Peer => ROLE_PEER,
        Role::Trainer => ROLE_TRAINER,
    }
}

/// The swarm whose children are built: what all of them have in common.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Kind of the swarm.
    pub kind: Kind,
    /// Namespace of the swarm and its children.
    pub namespace: String,
    /// Name of the swarm.
    pub name: String,
    /// UID of the swarm.
    pub uid: String,
    /// Labels of the swarm that its children have, too.
    pub inherited: BTreeMap<String, String>,
}

impl Owner {
    /// The swarm `key`, which is `object`. Its labels with one of `keys` are for its children, too.
    #[must_use]
    pub fn new(key: &SwarmKey, object: &impl ResourceExt, keys: &[String]) -> Self {
        let inherits = |key: &&String| keys.contains(key) && !key.starts_with(OURS);
        let labels = object.labels().iter().filter(|(key, _)| inherits(key));
        Self {
            kind: key.kind,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: object.uid().unwrap_or_default(),
            inherited: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }

    /// Stands for any swarm called `name`, as far as its pods are the same.
    #[must_use]
    pub fn any(kind: Kind, name: String) -> Self {
        Self { kind, namespace: String::new(), name, uid: String::new(), inherited: BTreeMap::new() }
    }

    /// Which swarm it is.
    #[must_use]
    pub fn key(&self) -> SwarmKey {
        SwarmKey { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Labels of a child with `role`; `""` for what belongs to no role. What is inherited never takes the place of one that says what it is.
    #[must_use]
    pub fn labels(&self, role: &str) -> BTreeMap<String, String> {
        let mut labels = self.inherited.clone();
        labels.extend([
            (SWARM.to_owned(), self.name.clone()),
            (KIND.to_owned(), self.kind.name().to_owned()),
            ("app.kubernetes.io/name".to_owned(), "dunlin".to_owned()),
            ("app.kubernetes.io/instance".to_owned(), self.name.clone()),
            ("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned()),
        ]);
        if !role.is_empty() {
            labels.insert(ROLE.to_owned(), role.to_owned());
            labels.insert("app.kubernetes.io/component".to_owned(), role.to_owned());
        }
        labels
    }

    /// What selects the pods of `role`: only labels that never change.
    #[must_use]
    pub fn selector(&self, role: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(SWARM.to_owned(), self.name.clone()), (ROLE.to_owned(), role.to_owned())])
    }

    /// Metadata of a child: owned by the swarm, so that deleting the swarm deletes it.
    #[must_use]
    pub fn metadata(&self, name: &str, role: &str) -> Value {
        json!({
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(role),
            "ownerReferences": [self.reference()],
        })
    }

    fn reference(&self) -> Value {
        json!({
            "apiVersion": "dunlin.dev/v1alpha1",
            "kind": self.kind.name(),
            "name": self.name,
            "uid": self.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        })
    }

    /// Gateway Deployment, Service and PodDisruptionBudget.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("{}-gateway", self.name)
    }

    /// ConfigMap with the topology.
    #[must_use]
    pub fn topology(&self) -> String {
        dunlin_crds::names::topology(&self.name)
    }

    /// Service in front of the conductor.
    #[must_use]
    pub fn conductor(&self) -> String {
        format!("{}-conductor", self.name)
    }

    /// ConfigMap with the training run.
    #[must_use]
    pub fn training(&self) -> String {
        format!("{}-training", self.name)
    }

    /// Secret with the swarm's certificate authority: swarms of two kinds may have one name.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.kind {
            Kind::Inference => format!("{}-ca", self.name),
            Kind::Training => format!("{}.training-ca", self.name),
        }
    }
}

/// What `/scale` and autoscalers select the pods of `pool` by that have `role` in the swarm `name`.
#[must_use]
pub fn pool_selector(name: &str, role: &str, pool: &str) -> String {
    format!("{SWARM}={name},{ROLE}={role},{POOL}={pool}")
}

/// Secret with the certificate of `holder` (a worker pod or the gateway Deployment).
#[must_use]
pub fn leaf(holder: &str) -> String {
    format!("{holder}-tls")
}

/// A fresh pod name `<swarm>-<pool>-<random5>`, within the 63 characters of a DNS label.
#[must_use]
pub fn pod_name(swarm: &str, pool: &str, random: u64) -> String {
    // The alphabet of the API server's own generateName: no vowels, no look-alikes.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = random;
    let mut suffix = String::with_capacity(5);
    for _ in 0..5 {
        let index = usize::try_from(rest % ALPHABET.len() as u64).unwrap_or(0);
        suffix.push(char::from(ALPHABET[index]));
        rest /= ALPHABET.len() as u64;
    }
    let stem: String = format!("{swarm}-{pool}").chars().take(57).collect();
    format!("{}-{suffix}", stem.trim_end_matches(['-', '.']))
}

/// 16 hex digits that change when `value` does, for a label. Stable across processes and versions of the operator.
#[must_use]
pub fn fingerprint(value: &Value) -> String {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(value.to_string().as_bytes());
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// Where random numbers come from.
pub type Chance = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A random number from the process's hash seed: good for names and jitter, not for keys.
#[must_use]
pub fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_names_are_dns_labels_with_five_random_characters() {
        assert_eq!(pod_name("smollm2", "spot", 0), "smollm2-spot-bbbbb");
        let long = pod_name(&"s".repeat(50), &"p".repeat(30), 12_345);
        assert_eq!(long.len(), 63);
        assert_ne!(pod_name("a", "b", 1), pod_name("a", "b", 2));
    }

    #[test]
    fn children_inherit_the_labels_that_are_asked_for_and_none_that_says_what_they_are() {
        let mut swarm = crate::testing::training_swarm(1);
        let labels = [
            ("team", "search"),
            ("tier", "gold"),
            ("dunlin.dev/pool", "theirs"),
            ("app.kubernetes.io/name", "theirs"),
        ];
        swarm.metadata.labels = Some(labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let key = SwarmKey { kind: Kind::Training, namespace: "default".into(), name: "tiny".into() };
        let keys = ["team", "absent", "dunlin.dev/pool", "app.kubernetes.io/name"].map(str::to_owned);
        let owner = Owner::new(&key, &swarm, &keys);
        let metadata = owner.metadata("tiny-x", ROLE_PEER);
        let found = &metadata["labels"];
        assert_eq!((&found["team"], &found["app.kubernetes.io/name"]), (&json!("search"), &json!("dunlin")));
        assert!(found.get("tier").is_none() && found.get(POOL).is_none() && found.get("absent").is_none());
        assert_eq!(Owner::new(&key, &swarm, &[]).inherited, BTreeMap::new());
        assert!(!owner.selector(ROLE_PEER).contains_key("team"), "what may change selects nothing");
    }

    #[test]
    fn selectors_are_a_subset_of_labels() {
        let owner = crate::testing::owner();
        let labels = owner.labels(ROLE_STAGE);
        for (key, value) in owner.selector(ROLE_STAGE) {
            assert_eq!(labels.get(&key), Some(&value));
        }
    }
}
