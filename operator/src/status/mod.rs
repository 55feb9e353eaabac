//! What users read of a swarm: what is told about it ([`facts`]), [`conditions`], [`events`] and the status, of which [`write`] is the only writer.

pub mod conditions;
pub mod events;
pub mod facts;

use std::fmt::Debug;

use kube::api::{Api, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::apply::call;
use crate::error::Error;
use crate::key::SwarmKey;
use crate::labels::MANAGER;

/// Writes `status` of the swarm `key`. The only writer of a status.
///
/// # Errors
/// The API server's refusal.
pub async fn write<K>(client: &Client, key: &SwarmKey, status: &impl Serialize) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
    let body = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status});
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&body);
    let action = format!("write the status of {} {}", key.kind.name(), key.name);
    match call(action, api.patch_status(&key.name, &params, &patch)).await {
        // Deleted meanwhile: nobody will read it.
        Err(Error::Api { source, .. }) if crate::apply::is_code(&source, 404) => Ok(()),
        other => other.map(drop),
    }
}
