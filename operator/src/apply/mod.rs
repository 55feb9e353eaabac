//! Writes what a plan asks for: server-side apply with one field manager, only where something changed.
//!
//! * [`parts`] (what pods are made of), [`pods`], [`gateway`], [`network`], [`budget`], [`certificates`], [`topology`], [`passthrough`] build manifests and do no IO
//! * [`Applier`] sends them · [`holds`] what failed rests before it is sent again

pub mod budget;
pub mod certificates;
pub mod gateway;
pub mod holds;
pub mod network;
pub mod parts;
pub mod passthrough;
pub mod pods;
pub mod topology;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::DynamicObject;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::api::{ApiServer, ApiVerb, is_code, read};
use crate::apply::holds::{HoldKey, Holds};
use crate::error::Error;
use crate::labels::Chance;
use crate::metrics::OperatorMetrics;
use crate::observe::{Seen, version};

/// An unchanged object is written again after this long, whatever the watches say.
const REFRESH: Duration = Duration::from_secs(3600);

/// What was written last, by kind and name, and what could not be.
#[derive(Default)]
pub struct Applied {
    written: BTreeMap<HoldKey, Written>,
    /// Writes that failed.
    pub holds: Holds,
}

/// One object as it was written.
struct Written {
    fingerprint: u64,
    /// The resourceVersion that the write gave it.
    version: String,
    at: Instant,
}

impl Applied {
    /// Whether `object` differs from what was written, or was written long ago.
    #[must_use]
    pub fn is_due(&self, object: &Value, now: Instant) -> bool {
        self.written.get(&key(object)).is_none_or(|written| {
            written.fingerprint != fingerprint(object) || now.duration_since(written.at) >= REFRESH
        })
    }

    /// `object` has just been written, and has become `version`.
    pub fn remember(&mut self, object: &Value, version: String, now: Instant) {
        self.written.insert(key(object), Written { fingerprint: fingerprint(object), version, at: now });
    }

    /// The object `key`, of which only somebody else's writes matter, has just been found or made like this.
    pub fn found(&mut self, key: HoldKey, version: String, now: Instant) {
        self.written.insert(key, Written { fingerprint: 0, version, at: now });
    }

    /// Forgets what somebody else has changed or deleted since, and says what that is.
    pub fn forget_touched(&mut self, seen: &Seen, now: Instant) -> Vec<HoldKey> {
        let touched = self.written.iter().filter(|(key, w)| seen.is_another(key, &w.version, w.at, now));
        let touched: Vec<HoldKey> = touched.map(|(key, _)| key.clone()).collect();
        self.written.retain(|key, _| !touched.contains(key));
        touched
    }
}

fn key(object: &Value) -> HoldKey {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn fingerprint(object: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.to_string().hash(&mut hasher);
    hasher.finish()
}

/// The only writer of objects other than the swarm's status.
#[derive(Clone)]
pub struct Applier {
    api: Arc<dyn ApiServer>,
    metrics: Arc<OperatorMetrics>,
    chance: Chance,
}

impl Applier {
    /// Writes through `api`. Names and pauses follow from `chance`.
    #[must_use]
    pub fn new(api: Arc<dyn ApiServer>, metrics: Arc<OperatorMetrics>, chance: Chance) -> Self {
        Self { api, metrics, chance }
    }

    /// A random number, for names and pauses.
    #[must_use]
    pub fn draw(&self) -> u64 {
        (self.chance)()
    }

    /// Applies `object` unless it was written like this a short while ago, or could not be.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn ensure(&self, applied: &mut Applied, object: &Value) -> Result<(), Error> {
        if applied.is_due(object, Instant::now()) {
            let version = self.put(applied, object, fingerprint(object)).await?;
            applied.remember(object, version, Instant::now());
        }
        Ok(())
    }

    /// Applies `object` unless that failed a short while ago; the version that it becomes. `of`: what it says, which is tried at once when it is
    /// something else.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn put(&self, applied: &mut Applied, object: &Value, of: u64) -> Result<String, Error> {
        let key = key(object);
        applied.holds.check(&key, of, Instant::now())?;
        let went = self.apply(object).await;
        Ok(version(&applied.holds.note(key, of, went, Instant::now(), self.draw())?.metadata))
    }

    /// Makes the pod of `manifest`. Its name is chosen anew for each pod, so it is left out of the API server's words: they then stay the same
    /// as long as the reason does.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn create_pod(&self, manifest: &Value) -> Result<Pod, Error> {
        let (_, name) = key(manifest);
        let made = self.ask("create a pod".into(), ApiVerb::Apply(manifest.clone())).await;
        let pod = made.map_err(|failure| nameless(failure, &name))?;
        self.metrics.applied.inc();
        Ok(pod)
    }

    /// Creates the Secret `object`; one of its name is as good.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn create_secret(&self, object: &Value) -> Result<(), Error> {
        let (_, name) = key(object);
        let action = "create the Secret of a pod".to_owned();
        match self.api.call(action, ApiVerb::Create(object.clone())).await {
            Err(Error::Api { source, .. }) if is_code(&source, 409) => Ok(()),
            other => other.map(drop).map_err(|failure| nameless(failure, &name)),
        }
    }

    /// Applies `object` and returns what the server made of it.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn apply(&self, object: &Value) -> Result<DynamicObject, Error> {
        let (kind, name) = key(object);
        let written = self.ask(format!("apply {kind} {name}"), ApiVerb::Apply(object.clone())).await?;
        self.metrics.applied.inc();
        Ok(written)
    }

    /// Publishes `object` on top of what was `version`, `None` when there was nothing; returns what it became.
    ///
    /// # Errors
    /// A conflict when somebody else has published since; the API server's refusal.
    pub async fn publish(&self, object: &Value, version: Option<&str>) -> Result<ObjectMeta, Error> {
        let (kind, name) = key(object);
        let mut object = object.clone();
        let verb = match version {
            None => ApiVerb::Create(object),
            Some(version) => {
                object["metadata"]["resourceVersion"] = Value::from(version);
                ApiVerb::Apply(object)
            }
        };
        let written: DynamicObject = self.ask(format!("publish {kind} {name}"), verb).await?;
        self.metrics.applied.inc();
        Ok(written.metadata)
    }

    /// Creates the Secret `object`, or returns the one that is there: whoever comes first makes the authority.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn create_or_get(&self, object: &Value) -> Result<Secret, Error> {
        let (_, name) = key(object);
        match self.ask(format!("create Secret {name}"), ApiVerb::Create(object.clone())).await {
            Err(conflict) if conflict.is_conflict() => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
                self.secret(namespace, &name).await?.ok_or(conflict)
            }
            other => other,
        }
    }

    /// The Secret `name`, if there is one.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
        self.get("Secret", namespace, name).await
    }

    /// The ConfigMap `name`, if there is one.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, Error> {
        self.get("ConfigMap", namespace, name).await
    }

    /// Deletes a pod; `now` without waiting for its node to confirm, for nodes that are gone. One that is gone already is fine.
    ///
    /// # Errors
    /// The API server's refusal.
    pub async fn delete_pod(&self, namespace: &str, name: &str, uid: &str, now: bool) -> Result<(), Error> {
        let (action, uid) = (format!("delete Pod {name}"), uid.to_owned());
        let verb = ApiVerb::Delete { namespace: namespace.to_owned(), name: name.to_owned(), uid, now };
        match self.api.call(action, verb).await {
            Err(Error::Api { source, .. }) if is_code(&source, 404) || is_code(&source, 409) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, Error> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.ask(format!("get {kind} {name}"), ApiVerb::Get { kind, namespace, name }).await
    }

    /// Calls, and reads the answer.
    async fn ask<T: DeserializeOwned>(&self, action: String, verb: ApiVerb) -> Result<T, Error> {
        read(&action, self.api.call(action.clone(), verb).await?)
    }
}

/// `failure` without the random end of `name`, which the API server repeats.
fn nameless(failure: Error, name: &str) -> Error {
    let stem = name.rsplit_once('-').map_or(name, |(stem, _)| stem);
    match failure {
        Error::Api { action, source, attempt } => match source.as_ref() {
            kube::Error::Api(status) => {
                let mut status = status.clone();
                status.message = status.message.replace(name, &format!("{stem}-…"));
                Error::Api { action, source: Arc::new(kube::Error::Api(status)), attempt }
            }
            _ => Error::Api { action, source, attempt },
        },
        other => other,
    }
}

/// Makes the pod an object's only owner, so that the object goes with it.
pub fn hand_to_pod(object: &mut Value, name: &str, uid: &str) {
    object["metadata"]["ownerReferences"] = serde_json::json!([{
        "apiVersion": "v1",
        "kind": "Pod",
        "name": name,
        "uid": uid,
    }]);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn an_object_is_due_when_new_changed_or_old() {
        let mut applied = Applied::default();
        let object = json!({"kind": "Service", "metadata": {"name": "a"}, "spec": {"x": 1}});
        let changed = json!({"kind": "Service", "metadata": {"name": "a"}, "spec": {"x": 2}});
        let now = Instant::now();
        assert!(applied.is_due(&object, now));
        applied.remember(&object, String::new(), now);
        assert!(!applied.is_due(&object, now));
        assert!(applied.is_due(&changed, now));
        assert!(applied.is_due(&object, now + REFRESH));
    }
}
