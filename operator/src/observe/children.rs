//! Objects that the operator made for swarms, as watches tell of them. Pure: events in, swarms to look at again out.
//!
//! What matters is the version that an object has: when it is another than the one that we wrote, somebody else has written since, or has
//! deleted it, and it is written again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::runtime::watcher::Event;
use tokio::time::Instant;

use super::owner::swarm_of;
use crate::key::SwarmKey;

/// Kind and name.
pub type ChildKey = (String, String);

/// That something was deleted is remembered this long,
const DELETED_MAX: Duration = Duration::from_secs(60);
/// and longer as long as it is not more than this.
const DELETIONS_MAX: usize = 1024;
/// A watch shows what was written within this long; an object that it then does not show, or shows as another, is another.
const LAG_MAX: Duration = Duration::from_secs(30);
/// Objects of kinds that are not watched are written again after this long.
const UNWATCHED_MAX: Duration = Duration::from_secs(300);

/// What the watches say of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its version; `None` when it was deleted.
    version: Option<String>,
    /// What it says is wrong with it.
    failure: Option<String>,
    /// When the watch said so.
    seen: Instant,
}

/// Which object it is and what it says: by its generation, which its status does not change, where it has one.
#[must_use]
pub fn version(meta: &ObjectMeta) -> String {
    let uid = meta.uid.as_deref().unwrap_or_default();
    match meta.generation {
        Some(generation) => format!("{uid}/{generation}"),
        None => format!("{uid}:{}", meta.resource_version.as_deref().unwrap_or_default()),
    }
}

/// All objects of swarms, of the kinds that are watched.
#[derive(Debug, Default)]
pub(super) struct Children {
    of: BTreeMap<SwarmKey, BTreeMap<ChildKey, Child>>,
    /// Kinds that are watched, and whether they have been listed once.
    kinds: BTreeMap<&'static str, bool>,
    /// Deletions since those of long ago were forgotten.
    deleted: usize,
    /// What is in the list that a watch begins anew with.
    listed: BTreeMap<&'static str, BTreeSet<(SwarmKey, String)>>,
}

impl Children {
    /// Objects of `kind` are watched.
    pub fn watch(&mut self, kind: &'static str) {
        self.kinds.insert(kind, false);
    }

    /// Takes what the watch of `kind` says; the swarms of which an object is another than before. `failure`: what an object says is wrong with it.
    pub fn take<K: ResourceExt>(
        &mut self,
        kind: &'static str,
        event: &Event<K>,
        failure: impl Fn(&K) -> Option<String>,
    ) -> BTreeSet<SwarmKey> {
        let now = Instant::now();
        match event {
            Event::Init => {
                self.listed.insert(kind, BTreeSet::new());
                BTreeSet::new()
            }
            Event::InitApply(object) => {
                if let Some(swarm) = swarm_of(object) {
                    self.listed.entry(kind).or_default().insert((swarm, object.name_any()));
                }
                self.see(kind, object, failure(object), now).into_iter().collect()
            }
            Event::Apply(object) => self.see(kind, object, failure(object), now).into_iter().collect(),
            Event::Delete(object) => {
                let lost = swarm_of(object).filter(|swarm| self.lose(swarm, kind, &object.name_any(), now));
                lost.into_iter().collect()
            }
            Event::InitDone => {
                self.kinds.insert(kind, true);
                let listed = self.listed.remove(kind).unwrap_or_default();
                let missing = self.of.iter().flat_map(|(swarm, objects)| {
                    let of_kind = objects.keys().filter(|(of, _)| of == kind);
                    of_kind.map(|(_, name)| (swarm.clone(), name.clone()))
                });
                let missing: Vec<_> = missing.filter(|object| !listed.contains(object)).collect();
                let lost = missing.into_iter().filter(|(swarm, name)| self.lose(swarm, kind, name, now));
                lost.map(|(swarm, _)| swarm).collect()
            }
        }
    }

    /// What is known of the objects of `swarm`.
    pub fn of(&self, swarm: &SwarmKey) -> Seen {
        Seen { objects: self.of.get(swarm).cloned().unwrap_or_default(), kinds: self.kinds.clone() }
    }

    fn see<K: ResourceExt>(
        &mut self,
        kind: &'static str,
        object: &K,
        failure: Option<String>,
        now: Instant,
    ) -> Option<SwarmKey> {
        let swarm = swarm_of(object)?;
        let key = (kind.to_owned(), object.name_any());
        let version = Some(version(object.meta()));
        let objects = self.of.entry(swarm.clone()).or_default();
        let old = objects.get(&key).filter(|old| old.version == version);
        if old.is_some_and(|old| old.failure == failure) {
            return None;
        }
        // A failure is no other version.
        let seen = old.map_or(now, |old| old.seen);
        objects.insert(key, Child { version, failure, seen });
        Some(swarm)
    }

    fn lose(&mut self, swarm: &SwarmKey, kind: &'static str, name: &str, now: Instant) -> bool {
        self.deleted += 1;
        if self.deleted > DELETIONS_MAX {
            self.forget_deleted(now);
        }
        let Some(objects) = self.of.get_mut(swarm) else { return false };
        let lost =
            objects.get_mut(&(kind.to_owned(), name.to_owned())).filter(|child| child.version.is_some());
        let told = lost.is_some();
        if let Some(child) = lost {
            *child = Child { version: None, failure: None, seen: now };
        }
        told
    }

    /// Forgets what was deleted long ago, and swarms of which nothing is left.
    fn forget_deleted(&mut self, now: Instant) {
        self.deleted = 0;
        self.of.retain(|_, objects| {
            objects
                .retain(|_, child| child.version.is_some() || now.duration_since(child.seen) < DELETED_MAX);
            !objects.is_empty()
        });
    }
}

/// The objects of one swarm at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    objects: BTreeMap<ChildKey, Child>,
    kinds: BTreeMap<&'static str, bool>,
}

impl Seen {
    /// Whether the object `key`, which we wrote at `at` as `ours`, is another by now, or gone.
    #[must_use]
    pub fn is_another(&self, key: &ChildKey, ours: &str, at: Instant, now: Instant) -> bool {
        let since = now.duration_since(at);
        match (self.kinds.get(key.0.as_str()), self.objects.get(key)) {
            // Nobody watches it, or may.
            (None | Some(false), _) => since >= UNWATCHED_MAX,
            (Some(true), Some(child)) if child.version.as_deref() == Some(ours) => false,
            // It may have been said of what was there before.
            (Some(true), Some(child)) => child.seen > at || since >= LAG_MAX,
            (Some(true), None) => since >= LAG_MAX,
        }
    }

    /// What the object `key` says is wrong with it.
    #[must_use]
    pub fn failure(&self, key: &ChildKey) -> Option<&str> {
        self.objects.get(key)?.failure.as_deref()
    }

    /// Whether the object `key` was deleted.
    #[must_use]
    pub fn is_deleted(&self, key: &ChildKey) -> bool {
        self.objects.get(key).is_some_and(|child| child.version.is_none())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::Resource;
    use serde_json::json;

    use super::*;
    use crate::key::Kind;
    use crate::labels::{KIND, SWARM};

    const AT: &str = "Service";

    fn service(name: &str, uid: &str, version: &str) -> Service {
        let labels = json!({SWARM: "m", KIND: "InferenceSwarm"});
        let metadata = json!({"name": name, "namespace": "default", "uid": uid, "resourceVersion": version, "labels": labels});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn swarm() -> SwarmKey {
        SwarmKey { kind: Kind::Inference, namespace: "default".into(), name: "m".into() }
    }

    fn key() -> ChildKey {
        (AT.to_owned(), "m-gateway".to_owned())
    }

    fn take(children: &mut Children, event: &Event<Service>) -> BTreeSet<SwarmKey> {
        children.take(AT, event, |_| None)
    }

    fn watched() -> Children {
        let mut children = Children::default();
        children.watch(AT);
        take(&mut children, &Event::Init);
        take(&mut children, &Event::InitDone);
        children
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_else_wrote_or_deleted_is_another_and_what_we_wrote_is_not() {
        let mut children = watched();
        let ours = |version: &str| self::version(service("m-gateway", "u", version).meta());
        let another = |children: &Children, version: &str, at: Instant| {
            children.of(&swarm()).is_another(&key(), &ours(version), at, Instant::now())
        };
        let second = || tokio::time::advance(Duration::from_secs(1));
        let written = Instant::now();
        assert!(!another(&children, "1", written), "the watch is late");
        second().await;
        let told = take(&mut children, &Event::Apply(service("m-gateway", "u", "1")));
        assert_eq!(told, BTreeSet::from([swarm()]));
        assert!(!another(&children, "1", written));
        second().await;
        take(&mut children, &Event::Apply(service("m-gateway", "u", "2")));
        assert!(another(&children, "1", written));
        // We write again, and the watch tells late of what was before.
        let written = Instant::now() + Duration::from_millis(1);
        second().await;
        assert!(!another(&children, "3", written));
        take(&mut children, &Event::Apply(service("m-gateway", "u", "3")));
        assert!(!another(&children, "3", written));
        second().await;
        assert_eq!(take(&mut children, &Event::Delete(service("m-gateway", "u", "4"))).len(), 1);
        assert!(another(&children, "3", written) && children.of(&swarm()).is_deleted(&key()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_in_a_new_list_was_deleted() {
        let mut children = watched();
        take(&mut children, &Event::Apply(service("m-gateway", "u", "1")));
        take(&mut children, &Event::Apply(service("other", "u", "1")));
        assert!(take(&mut children, &Event::Init).is_empty());
        assert!(take(&mut children, &Event::InitApply(service("other", "u", "1"))).is_empty());
        assert_eq!(take(&mut children, &Event::InitDone), BTreeSet::from([swarm()]));
        assert!(children.of(&swarm()).is_deleted(&key()));
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_that_nobody_watches_are_written_again_now_and_then() {
        let children = watched();
        let key = ("Secret".to_owned(), "m-ca".to_owned());
        let (at, seen) = (Instant::now(), children.of(&swarm()));
        assert!(!seen.is_another(&key, "x", at, at + UNWATCHED_MAX / 2));
        assert!(seen.is_another(&key, "x", at, at + UNWATCHED_MAX));
    }

    #[test]
    fn a_status_is_no_other_version_where_there_is_a_generation() {
        let meta = |generation, version: &str| ObjectMeta {
            uid: Some("u".into()),
            generation,
            resource_version: Some(version.into()),
            ..ObjectMeta::default()
        };
        assert_eq!(version(&meta(Some(3), "1")), version(&meta(Some(3), "2")));
        assert_ne!(version(&meta(None, "1")), version(&meta(None, "2")));
        assert_ne!(version(&meta(Some(3), "1")), version(&meta(Some(4), "1")));
    }
}
