//! Pods in the making. A pod is made first, and then the Secret with its certificate, which the pod owns: whatever fails in between, nothing is
//! left behind that nobody deletes. A pod waits for its Secret; one that is missing is made in the next pass, by this operator or another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dunlin_wire::Role;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::Value;
use tokio::time::Instant;

use crate::apply::Applier;
use crate::apply::certificates::{files, leaf_secret, names};
use crate::apply::hand_to_pod;
use crate::apply::holds::{HoldKey, Holds};
use crate::deletion::Deletion;
use crate::error::Error;
use crate::key::SwarmKey;
use crate::labels::{Owner, leaf, pod_name, role_label};
use crate::observe::{Caches, PodPhase, WorkerView};
use crate::roster::Creation;
use crate::status::events::SwarmEvent;
use crate::trust::{LOOK, Trust, YOUNG, is_old};

/// A pod that the watch has not shown for this long after its creation is gone.
const UNSEEN_MAX: Duration = Duration::from_secs(30);

/// What is remembered about pods in the making.
#[derive(Default)]
pub struct Making {
    /// Pods just created, until the watch shows them.
    made: Vec<(Pod, Instant)>,
    /// Names of pods to be, by pool and generation of the manifest: an attempt of which nothing is known is repeated under the same name.
    names: BTreeMap<(String, u64), String>,
    /// The refusal that there was an Event about, by pool.
    refused: BTreeMap<String, String>,
    /// Pods whose Secret is there.
    certified: BTreeSet<String>,
    /// When the certificates of old pods were looked at.
    looked: BTreeMap<String, Instant>,
}

impl Making {
    /// Pods that the watch has not shown yet; the others are forgotten.
    pub fn unseen(&mut self, caches: &Caches, swarm: &SwarmKey, now: Instant) -> Vec<Pod> {
        let (namespace, children) = (&swarm.namespace, caches.children(swarm));
        self.made.retain(|(pod, at)| {
            !caches.has_pod(namespace, &pod.name_any()) && now.duration_since(*at) < UNSEEN_MAX
        });
        self.names.retain(|_, name| !caches.has_pod(namespace, name));
        let made = |name: &str| self.made.iter().any(|(pod, _)| pod.name_any() == name);
        let deleted = |name: &str| children.is_deleted(&("Secret".to_owned(), leaf(name)));
        self.certified.retain(|name| (caches.has_pod(namespace, name) || made(name)) && !deleted(name));
        self.looked.retain(|name, _| caches.has_pod(namespace, name));
        self.made.iter().map(|(pod, _)| pod.clone()).collect()
    }

    /// A pod is deleted: it is no longer to be expected, if the watch has not shown it yet.
    fn forget(&mut self, name: &str) {
        self.made.retain(|(pod, _)| pod.name_any() != name);
    }

    fn name(&mut self, owner: &Owner, pool: &str, generation: u64, random: u64) -> String {
        self.names.retain(|(_, of), _| *of == generation);
        let name = self.names.entry((pool.to_owned(), generation));
        name.or_insert_with(|| pod_name(&owner.name, pool, random)).clone()
    }
}

/// Makes pods and their certificates.
pub struct Maker<'a> {
    /// Their swarm.
    pub owner: &'a Owner,
    /// `metadata.generation` of it.
    pub generation: i64,
    /// The authority that signs their certificates.
    pub trust: &'a Trust,
    /// Writes.
    pub applier: &'a Applier,
    /// Remembers.
    pub making: &'a mut Making,
    /// Writes that failed.
    pub holds: &'a mut Holds,
}

/// Stands for the Secrets of all pods.
fn secrets() -> HoldKey {
    ("Secret".to_owned(), "of pods".to_owned())
}

impl Maker<'_> {
    /// Makes a pod from the manifest that `manifest` gives for a name, tells so, and returns it.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn create(
        &mut self,
        role: Role,
        creation: &Creation,
        manifest: impl Fn(&str) -> Value,
        events: &mut Vec<SwarmEvent>,
    ) -> Result<Pod, Error> {
        let pool = creation.pool.name.as_str();
        let refused = |source| Error::Pod { pool: pool.to_owned(), source: Box::new(source) };
        let (key, of) = (("Pod".to_owned(), pool.to_owned()), self.generation.unsigned_abs());
        let now = Instant::now();
        self.holds.check(&key, of, now).map_err(refused)?;
        // One that gets no certificate would wait in vain.
        self.holds.check(&secrets(), of, now)?;
        let name = self.making.name(self.owner, pool, of, self.applier.draw());
        let went = self.applier.create_pod(&manifest(&name)).await;
        let went = self.holds.note(key, of, went, Instant::now(), self.applier.draw()).map_err(refused);
        let pod = match went {
            Ok(pod) => pod,
            Err(failure) => {
                let sentence = failure.sentence();
                // Once for each reason, not for each attempt.
                if failure.is_refusal() && self.making.refused.get(pool) != Some(&sentence) {
                    events.push(SwarmEvent::refused(&sentence));
                    self.making.refused.insert(pool.to_owned(), sentence);
                }
                return Err(failure);
            }
        };
        self.making.refused.remove(pool);
        self.making.names.remove(&(pool.to_owned(), of));
        events.push(SwarmEvent::created(role, &name, creation.replaces));
        self.making.made.push((pod.clone(), Instant::now()));
        Ok(pod)
    }

    /// Makes the Secret with the certificate of the pod `name`, unless it is there.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn certify(&mut self, name: &str, uid: &str, role: Role) -> Result<(), Error> {
        if self.making.certified.contains(name) {
            return Ok(());
        }
        let of = self.generation.unsigned_abs();
        self.holds.check(&secrets(), of, Instant::now())?;
        let certificate = self.trust.issue(role, &names(self.owner, role, name))?;
        let mut secret = leaf_secret(self.owner, &leaf(name), role_label(role), &certificate);
        hand_to_pod(&mut secret, name, uid);
        let went = self.applier.create_secret(&secret).await;
        self.holds.note(secrets(), of, went, Instant::now(), self.applier.draw())?;
        self.making.certified.insert(name.to_owned());
        Ok(())
    }

    /// The same for a pod of an earlier pass, which may have none yet (one whose container has started has), or one that is to be renewed.
    ///
    /// # Errors
    /// The API server's refusal, the last one as long as it rests.
    pub async fn certify_if_due(&mut self, pod: &WorkerView, role: Role) -> Result<(), Error> {
        let waits = matches!(pod.phase, PodPhase::Pending(_)) && !pod.deleting;
        if waits { self.certify(&pod.name, &pod.uid, role).await } else { self.renew_if_old(pod, role).await }
    }

    /// Puts a later certificate into the Secret of a pod that has lived for long. The kubelet hands it on, and the worker uses it as it is.
    async fn renew_if_old(&mut self, pod: &WorkerView, role: Role) -> Result<(), Error> {
        let now = Instant::now();
        let looked = self.making.looked.get(&pod.name).is_some_and(|at| now.duration_since(*at) < LOOK);
        if pod.deleting || pod.phase != PodPhase::Running || is_young(pod) || looked {
            return Ok(());
        }
        self.making.looked.insert(pod.name.clone(), now);
        let found = self.applier.secret(&self.owner.namespace, &leaf(&pod.name)).await?;
        let old = found.and_then(|secret| files(&secret.data?)).filter(is_old);
        let Some(old) = old else { return Ok(()) };
        let renewed = self.trust.renew(&old, role, &names(self.owner, role, &pod.name))?;
        let mut secret = leaf_secret(self.owner, &leaf(&pod.name), role_label(role), &renewed);
        hand_to_pod(&mut secret, &pod.name, &pod.uid);
        self.applier.apply(&secret).await.map(drop)
    }
}

fn is_young(pod: &WorkerView) -> bool {
    let age = |made: Timestamp| Duration::try_from(Timestamp::now().duration_since(made)).unwrap_or_default();
    pod.made.is_none_or(|made| age(made) < YOUNG)
}

/// Deletes pods of a swarm.
///
/// # Errors
/// Every failure that is no refusal of the API server.
pub async fn delete(
    applier: &Applier,
    owner: &Owner,
    deletions: &[Deletion],
    making: &mut Making,
    refusals: &mut Refusals,
) -> Result<(), Error> {
    for pod in deletions {
        let went = applier.delete_pod(&owner.namespace, &pod.name, &pod.uid, pod.now).await;
        if refusals.pass(went)?.is_some() {
            making.forget(&pod.name);
        }
    }
    Ok(())
}

/// Goes on after a refusal, which concerns one object; anything else concerns the API server, and ends the pass.
#[derive(Default)]
pub struct Refusals(Option<Error>);

impl Refusals {
    /// What was made, if it was not refused.
    ///
    /// # Errors
    /// Every failure that is no refusal of the API server.
    pub fn pass<T>(&mut self, went: Result<T, Error>) -> Result<Option<T>, Error> {
        match went {
            Ok(made) => Ok(Some(made)),
            Err(failure) if failure.is_refusal() => {
                self.0.get_or_insert(failure);
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The first refusal.
    ///
    /// # Errors
    /// When there was one.
    pub fn end(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), Err)
    }
}
