//! Pods as a watch tells of them, by swarm and by node: who asks about one swarm looks at its pods alone. Pure: events in, swarms to look at
//! again out.
//!
//! What is deleted while the watch is interrupted is never told; it is missing in the list that the watch begins anew with. Only when that is
//! complete, swarms are told: everybody who has pods in it, or had some before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use super::owner::swarm_of;
use crate::key::SwarmKey;

/// Namespace and name.
type PodKey = (String, String);

/// All pods of swarms that the watch has told of.
#[derive(Debug, Default)]
pub(super) struct Pods {
    of: BTreeMap<SwarmKey, BTreeMap<String, Arc<Pod>>>,
    on: BTreeMap<String, BTreeSet<PodKey>>,
    /// Where each is in the maps above: its swarm and its node, if it has one.
    places: BTreeMap<PodKey, (SwarmKey, Option<String>)>,
    /// The list that is being read.
    listed: Option<Listed>,
    /// Pods that were looked at.
    #[cfg(test)]
    pub visits: std::sync::atomic::AtomicUsize,
}

/// What a list has so far.
#[derive(Debug, Default)]
struct Listed {
    pods: BTreeSet<PodKey>,
    swarms: BTreeSet<SwarmKey>,
}

impl Pods {
    /// Takes what the watch says; the swarms to look at again.
    pub fn take(&mut self, event: &Event<Pod>) -> BTreeSet<SwarmKey> {
        match event {
            Event::Init => {
                self.listed = Some(Listed::default());
                BTreeSet::new()
            }
            Event::InitApply(pod) => {
                let concerned = self.see(pod);
                let listed = self.listed.get_or_insert_default();
                listed.pods.insert(key(pod));
                listed.swarms.extend(concerned);
                BTreeSet::new()
            }
            Event::InitDone => {
                let Listed { pods, mut swarms } = self.listed.take().unwrap_or_default();
                let missing: Vec<PodKey> =
                    self.places.keys().filter(|key| !pods.contains(*key)).cloned().collect();
                swarms.extend(missing.iter().filter_map(|key| self.lose(key)));
                swarms
            }
            Event::Apply(pod) => self.see(pod),
            Event::Delete(pod) => self.lose(&key(pod)).into_iter().collect(),
        }
    }

    /// Those of `swarm`, by name.
    pub fn of(&self, swarm: &SwarmKey) -> impl Iterator<Item = &Pod> {
        self.of.get(swarm).into_iter().flat_map(BTreeMap::values).map(|pod| {
            #[cfg(test)]
            self.visits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            pod.as_ref()
        })
    }

    /// The swarms with pods on the node `name`.
    pub fn swarms_on(&self, name: &str) -> impl Iterator<Item = &SwarmKey> {
        self.on.get(name).into_iter().flatten().filter_map(|key| self.places.get(key)).map(|(swarm, _)| swarm)
    }

    /// Whether there is this pod.
    pub fn has(&self, namespace: &str, name: &str) -> bool {
        self.places.contains_key(&(namespace.to_owned(), name.to_owned()))
    }

    /// Its swarm now, and the one that it belonged to before if that is another.
    fn see(&mut self, pod: &Pod) -> BTreeSet<SwarmKey> {
        let key = key(pod);
        let mut concerned: BTreeSet<SwarmKey> = self.lose(&key).into_iter().collect();
        let Some(swarm) = swarm_of(pod) else { return concerned };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        if let Some(node) = &node {
            self.on.entry(node.clone()).or_default().insert(key.clone());
        }
        self.of.entry(swarm.clone()).or_default().insert(key.1.clone(), Arc::new(pod.clone()));
        self.places.insert(key, (swarm.clone(), node));
        concerned.insert(swarm);
        concerned
    }

    /// The swarm that it belonged to.
    fn lose(&mut self, key: &PodKey) -> Option<SwarmKey> {
        let (swarm, node) = self.places.remove(key)?;
        if let Some(pods) = self.of.get_mut(&swarm) {
            pods.remove(&key.1);
            if pods.is_empty() {
                self.of.remove(&swarm);
            }
        }
        if let Some(node) = node
            && let Some(pods) = self.on.get_mut(&node)
        {
            pods.remove(key);
            if pods.is_empty() {
                self.on.remove(&node);
            }
        }
        Some(swarm)
    }
}

fn key(pod: &Pod) -> PodKey {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::key::Kind;
    use crate::labels::{KIND, ROLE, SWARM};

    fn swarm(name: &str) -> SwarmKey {
        SwarmKey { kind: Kind::Inference, namespace: "default".into(), name: name.into() }
    }

    fn pod(of: &str, name: &str, node: &str) -> Pod {
        let labels = json!({SWARM: of, KIND: "InferenceSwarm", ROLE: "stage"});
        let metadata = json!({"name": name, "namespace": "default", "labels": labels});
        serde_json::from_value(json!({"metadata": metadata, "spec": {"containers": [], "nodeName": node}}))
            .unwrap()
    }

    fn names(pods: &Pods, of: &str) -> Vec<String> {
        pods.of(&swarm(of)).map(ResourceExt::name_any).collect()
    }

    fn on(pods: &Pods, node: &str) -> Vec<String> {
        pods.swarms_on(node).map(|swarm| swarm.name.clone()).collect()
    }

    #[test]
    fn who_asks_about_one_swarm_or_node_looks_at_its_pods_alone() {
        let mut pods = Pods::default();
        for of in 0..1000 {
            for i in 0..16 {
                let node = format!("n{}", of / 2);
                pods.take(&Event::Apply(pod(&format!("s{of}"), &format!("s{of}-{i}"), &node)));
            }
        }
        assert_eq!(names(&pods, "s500").len(), 16);
        assert_eq!(pods.visits.load(std::sync::atomic::Ordering::Relaxed), 16);
        assert_eq!(pods.swarms_on("n250").count(), 32);
        assert!(pods.has("default", "s7-3") && !pods.has("other", "s7-3"));
    }

    #[test]
    fn a_pod_that_moves_or_changes_its_labels_is_in_one_place() {
        let mut pods = Pods::default();
        pods.take(&Event::Apply(pod("a", "p", "n1")));
        assert_eq!(pods.take(&Event::Apply(pod("a", "p", "n2"))), BTreeSet::from([swarm("a")]));
        assert_eq!((on(&pods, "n1"), on(&pods, "n2")), (vec![], vec!["a".to_owned()]));
        let both = BTreeSet::from([swarm("a"), swarm("b")]);
        assert_eq!(pods.take(&Event::Apply(pod("b", "p", "n2"))), both);
        assert_eq!((names(&pods, "a"), names(&pods, "b")), (vec![], vec!["p".to_owned()]));
        let mut nobody = pod("b", "p", "n2");
        nobody.metadata.labels = None;
        assert_eq!(pods.take(&Event::Apply(nobody)), BTreeSet::from([swarm("b")]));
        assert!(pods.of.is_empty() && pods.on.is_empty() && pods.places.is_empty());
    }

    #[test]
    fn a_swarm_whose_last_pod_is_missing_in_a_new_list_is_looked_at_again() {
        let mut pods = Pods::default();
        pods.take(&Event::Apply(pod("a", "p", "n1")));
        pods.take(&Event::Apply(pod("b", "q", "n1")));
        assert!(pods.take(&Event::Init).is_empty());
        assert!(pods.take(&Event::InitApply(pod("b", "q", "n1"))).is_empty());
        assert_eq!(names(&pods, "a"), ["p"], "the list may break off");
        assert_eq!(pods.take(&Event::InitDone), BTreeSet::from([swarm("a"), swarm("b")]));
        assert_eq!((names(&pods, "a"), names(&pods, "b")), (vec![], vec!["q".to_owned()]));
        assert_eq!(pods.take(&Event::Delete(pod("b", "q", "n1"))), BTreeSet::from([swarm("b")]));
        assert!(pods.take(&Event::Delete(pod("b", "q", "n1"))).is_empty());
    }
}
