//! Who trusts whom in a swarm: the authority that the operator keeps in a Secret, its own certificate, and one for each pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use serde_json::Value;
use tokio::time::Instant;

use crate::apply::certificates::{Authority, operator_names};
use crate::apply::{Applier, hand_to_pod};
use crate::context::Created;
use crate::error::Error;
use crate::labels::{Owner, leaf};
use crate::peers::Identity;

/// The authority of a swarm and our own certificate from it.
pub struct Trust {
    /// Signs leaves.
    pub authority: Authority,
    /// Who we are to workers.
    pub identity: Arc<Identity>,
}

impl Trust {
    /// The authority that an earlier leader left, or a new one.
    ///
    /// # Errors
    /// When the API server does not answer, or its Secret cannot be used.
    pub async fn restore(owner: &Owner, applier: &Applier) -> Result<Self, Error> {
        let found = applier.secret(&owner.namespace, &owner.authority()).await?;
        let authority = match found {
            Some(secret) => Authority::load(owner, &secret.data.unwrap_or_default())?,
            None => {
                let ours = Authority::generate(owner)?;
                let there = applier.create_or_get(&ours.secret(owner)).await?;
                Authority::load(owner, &there.data.unwrap_or_default())?
            }
        };
        let leaf = authority.issue(&operator_names(owner))?;
        let identity = Arc::new(Identity {
            authority: authority.certificate().to_owned(),
            certificate: leaf.certificate,
            key: leaf.key,
        });
        Ok(Self { authority, identity })
    }

    /// Makes a worker pod called `name` and its certificate for `names`. The certificate is there before the pod, and goes with it. The pod is
    /// in `created` even when what comes after it fails.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn create_pod(
        &self,
        owner: &Owner,
        (name, role): (&str, &str),
        names: &[String],
        manifest: &Value,
        applier: &Applier,
        created: &mut Created,
    ) -> Result<(), Error> {
        let mut secret = self.authority.leaf_secret(owner, &leaf(name), role, names)?;
        applier.apply(&secret).await?;
        let made = applier.apply(manifest).await?;
        let pod: Pod = serde_json::to_value(&made)
            .and_then(serde_json::from_value)
            .map_err(|source| Error::Json { what: "the created pod", source })?;
        created.push(pod, Instant::now());
        hand_to_pod(&mut secret, made.meta());
        applier.apply(&secret).await?;
        Ok(())
    }
}
