//! Nodes as a watch tells of them. Pure: events in, names of nodes that changed out.
//!
//! A node that is gone is kept as one that is not ready for as long as somebody has pods on it: Kubernetes collects those later. What is
//! deleted while the watch is interrupted is never told; it is missing in the list that the watch begins anew with.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use super::pods::{NodeView, node};

/// All nodes that the watch has told of.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    views: BTreeMap<String, NodeView>,
    /// Those that carry a spot marker.
    spot: BTreeSet<String>,
    /// Deleted, and kept for the pods on them.
    gone: BTreeSet<String>,
    /// Names in the list that is being read after an interruption.
    listed: Option<BTreeSet<String>>,
}

impl Nodes {
    /// The node `name`.
    pub fn get(&self, name: &str) -> Option<&NodeView> {
        self.views.get(name)
    }

    /// Some node of the cluster carries a spot marker.
    pub fn is_spot_marked(&self) -> bool {
        !self.spot.is_empty()
    }

    /// Takes what the watch says; the names of nodes that are another than before.
    pub fn take(&mut self, event: &Event<Node>) -> Vec<String> {
        match event {
            Event::Init => {
                self.listed = Some(BTreeSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed.get_or_insert_default().insert(object.name_any());
                self.see(object)
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let missing: Vec<String> =
                    self.views.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                missing.into_iter().filter_map(|name| self.lose(name)).collect()
            }
            Event::Apply(object) => self.see(object),
            Event::Delete(object) => self.lose(object.name_any()).into_iter().collect(),
        }
    }

    /// Forgets nodes that are gone and on which, as `occupied` says, nobody has pods any more.
    pub fn forget_gone(&mut self, occupied: impl Fn(&str) -> bool) {
        let views = &mut self.views;
        self.gone.retain(|name| {
            let keep = occupied(name);
            if !keep {
                views.remove(name);
            }
            keep
        });
    }

    fn see(&mut self, object: &Node) -> Vec<String> {
        let new = node(object);
        let name = new.name.clone();
        self.gone.remove(&name);
        if new.spot {
            self.spot.insert(name.clone());
        } else {
            self.spot.remove(&name);
        }
        let changed = self.views.insert(name.clone(), new.clone()).is_none_or(|old| old != new);
        changed.then_some(name).into_iter().collect()
    }

    fn lose(&mut self, name: String) -> Option<String> {
        let gone = NodeView { name: name.clone(), ready: false, ..NodeView::default() };
        let changed = self.views.insert(name.clone(), gone).is_none_or(|old| old.ready);
        self.gone.insert(name.clone());
        self.spot.remove(&name);
        changed.then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str) -> Node {
        let status = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status,
        });
        serde_json::from_value(object).unwrap()
    }

    fn ready(nodes: &Nodes) -> Vec<(&str, bool)> {
        nodes.views.values().map(|n| (n.name.as_str(), n.ready)).collect()
    }

    fn list(nodes: &mut Nodes, names: &[&str]) -> Vec<String> {
        let mut changed = nodes.take(&Event::Init);
        changed.extend(names.iter().flat_map(|name| nodes.take(&Event::InitApply(object(name)))));
        changed.extend(nodes.take(&Event::InitDone));
        changed
    }

    #[test]
    fn what_is_missing_in_a_new_list_is_gone() {
        let mut nodes = Nodes::default();
        assert_eq!(list(&mut nodes, &["a", "b", "c"]), ["a", "b", "c"]);
        assert_eq!(list(&mut nodes, &["a", "c"]), ["b"]);
        assert_eq!(ready(&nodes), [("a", true), ("b", false), ("c", true)]);
        assert!(list(&mut nodes, &["a", "c"]).is_empty(), "that is known by now");
        // Another node of its name is one again.
        assert_eq!(list(&mut nodes, &["a", "b", "c"]), ["b"]);
        nodes.forget_gone(|_| false);
        assert_eq!(ready(&nodes).len(), 3);
    }

    #[test]
    fn a_list_that_breaks_off_and_begins_again_loses_nobody() {
        let mut nodes = Nodes::default();
        list(&mut nodes, &["a", "b"]);
        nodes.take(&Event::Init);
        nodes.take(&Event::InitApply(object("a")));
        assert!(list(&mut nodes, &["a", "b"]).is_empty());
    }

    #[test]
    fn the_gone_are_kept_as_long_as_somebody_has_pods_on_them() {
        let mut nodes = Nodes::default();
        list(&mut nodes, &["a", "b"]);
        assert_eq!(nodes.take(&Event::Delete(object("a"))), ["a"]);
        assert_eq!(list(&mut nodes, &[]), ["b"]);
        nodes.forget_gone(|name| name == "a");
        assert_eq!(ready(&nodes), [("a", false)]);
        nodes.forget_gone(|_| false);
        assert!(nodes.views.is_empty());
    }
}
