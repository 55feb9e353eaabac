//! Who trusts whom in a swarm: the authority that the operator keeps in a Secret, its own certificate, and one for each pod.

use std::sync::Arc;

use dunlin_wire::{Authority, Role, TlsFiles};
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use serde_json::Value;
use tokio::time::Instant;

use crate::apply::certificates::{
    CertificateError, authority_secret, generate, leaf_secret, load, operator_names,
};
use crate::apply::{Applier, hand_to_pod};
use crate::context::Created;
use crate::error::Error;
use crate::labels::{Owner, leaf};

/// The authority of a swarm and our own certificate from it.
pub struct Trust {
    /// Signs leaves.
    pub authority: Authority,
    /// Who we are to workers.
    pub identity: Arc<TlsFiles>,
}

impl Trust {
    /// The authority that an earlier leader left, or a new one.
    ///
    /// # Errors
    /// When the API server does not answer, or its Secret cannot be used.
    pub async fn restore(owner: &Owner, applier: &Applier) -> Result<Self, Error> {
        let found = applier.secret(&owner.namespace, &owner.authority()).await?;
        let authority = match found {
            Some(secret) => load(owner, &secret.data.unwrap_or_default())?,
            None => {
                let ours = generate(owner)?;
                let there = applier.create_or_get(&authority_secret(owner, &ours)).await?;
                load(owner, &there.data.unwrap_or_default())?
            }
        };
        let identity = issue(&authority, Role::Operator, &operator_names(owner))?;
        Ok(Self { authority, identity: Arc::new(identity) })
    }

    /// A certificate with `role` for `names`.
    ///
    /// # Errors
    /// When a name is none.
    pub fn issue(&self, role: Role, names: &[String]) -> Result<TlsFiles, Error> {
        issue(&self.authority, role, names)
    }

    /// Makes a worker pod called `name`, labelled `label`, and its certificate with `role` for `names`. The certificate is there before the pod,
    /// and goes with it. The pod is in `created` even when what comes after it fails.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn create_pod(
        &self,
        owner: &Owner,
        (name, label, role): (&str, &str, Role),
        names: &[String],
        manifest: &Value,
        applier: &Applier,
        created: &mut Created,
    ) -> Result<(), Error> {
        let mut secret = leaf_secret(owner, &leaf(name), label, &self.issue(role, names)?);
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

fn issue(authority: &Authority, role: Role, names: &[String]) -> Result<TlsFiles, Error> {
    Ok(authority.issue(role, names).map_err(CertificateError::from)?)
}
