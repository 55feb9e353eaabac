//! Whose an object is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;

use crate::key::{Kind, SwarmKey};
use crate::labels::{KIND, SWARM};

/// The swarm in the object's owner references.
#[must_use]
pub fn owned_by<K: ResourceExt>(object: &K) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.api_version.starts_with("dunlin.dev/"))
}

/// The swarm that an object belongs to: its owner, else what its labels say.
#[must_use]
pub fn swarm_of<K: ResourceExt>(object: &K) -> Option<SwarmKey> {
    if let Some(owner) = owned_by(object) {
        let (kind, namespace) = (Kind::parse(&owner.kind)?, object.namespace()?);
        return Some(SwarmKey { kind, namespace, name: owner.name.clone() });
    }
    let labels = object.labels();
    let kind = Kind::parse(labels.get(KIND)?)?;
    Some(SwarmKey { kind, namespace: object.namespace()?, name: labels.get(SWARM)?.clone() })
}
