//! What users read of a swarm: what is told about it ([`facts`]), [`conditions`], [`events`] and the status, of which [`write`] is the only writer.

pub mod conditions;
pub mod events;
pub mod facts;

use kube::Resource;
use serde::Serialize;
use serde_json::json;

use crate::api::{ApiServer, ApiVerb, is_code};
use crate::error::Error;
use crate::key::SwarmKey;

/// Writes `status` of the swarm `key`. The only writer of a status.
///
/// # Errors
/// The API server's refusal.
pub async fn write<K: Resource<DynamicType = ()>>(
    api: &dyn ApiServer,
    key: &SwarmKey,
    status: &impl Serialize,
) -> Result<(), Error> {
    let body = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status});
    let action = format!("write the status of {} {}", key.kind.name(), key.name);
    match api.call(action, ApiVerb::Status { key: key.clone(), body }).await {
        // Deleted meanwhile: nobody will read it.
        Err(Error::Api { source, .. }) if is_code(&source, 404) => Ok(()),
        other => other.map(drop),
    }
}
