//! What happens to pods and nodes by itself: a node is found, containers start and end, deletions are carried out, dead nodes are noticed, new ones
//! are ordered, the Deployment of the gateways has its pods.

use dunlin_operator::labels::{ROLE, ROLE_GATEWAY, leaf};
use dunlin_sim::model::ReadModel;
use dunlin_swarm::timing::GRACE;
use dunlin_swarm::{NumericsClass, PeerName};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cluster::Step;
use crate::process::Stage;
use crate::world::{Event, GatewayProcess, World};

/// Kubernetes takes a node for lost when its kubelet is silent for this long.
const NODE_SILENCE_MS: u64 = 40_000;
/// The platform removes the object of a node that is gone after this long.
const NODE_GONE_MS: u64 = 90_000;
/// What a kubelet hands on of a changed ConfigMap is there after this long.
const MOUNT_MS: u64 = 60_000;
/// Weights and KV cache of the whole model find room.
const ROOM_BYTES: u64 = 64 << 20;

impl World {
    /// Time passes for everything that is not the operator's and not the network's.
    pub fn tick_cluster(&mut self) {
        self.tick_nodes();
        for name in self.cluster.pods.keys().cloned().collect::<Vec<_>>() {
            let role = self.cluster.pods[&name].pod.labels().get(ROLE).cloned();
            if role.as_deref() == Some(ROLE_GATEWAY) {
                self.tick_gateway(&name)
            } else {
                self.tick_stage(&name)
            }
        }
        self.tick_deployment();
        self.order_nodes();
        // Whoever runs without a pod has been deleted at once, and its node carries that out if it can.
        let orphans = self.stages.keys().filter(|name| !self.cluster.pods.contains_key(*name)).cloned();
        for name in orphans.collect::<Vec<_>>() {
            self.end_stage(&name, true);
        }
    }

    fn tick_nodes(&mut self) {
        for name in self.cluster.nodes.keys().cloned().collect::<Vec<_>>() {
            let machine = &self.cluster.nodes[&name];
            let Some(died_ms) = machine.died_ms else { continue };
            let since = self.now() - died_ms;
            if since >= NODE_SILENCE_MS && !machine.noticed {
                self.say(|| format!("Kubernetes finds {name} not ready"));
                self.cluster.node_unknown(&name);
            }
            if since >= NODE_GONE_MS {
                self.say(|| format!("the node {name} is removed"));
                self.cluster.forget_node(&name);
            }
        }
    }

    fn tick_stage(&mut self, name: &str) {
        let cell = &self.cluster.pods[name];
        let (step, deleted_ms) = (cell.step, cell.deleted_ms);
        let Some(node) = cell.node().map(str::to_owned) else { return self.place(name, deleted_ms) };
        if !self.cluster.is_alive(&node) {
            if !self.cluster.nodes.contains_key(&node) && self.now() % 20_000 < 250 {
                // Pods of nodes that are no more are collected.
                self.cluster.remove(name);
            }
            return;
        }
        match step {
            Step::Unplaced => {}
            Step::Starting(_) if deleted_ms.is_some() => self.cluster.remove(name),
            Step::Starting(at) if at <= self.now() && self.is_certified(name) => self.start_stage(name),
            Step::Starting(_) => {}
            Step::Started if self.stages.contains_key(name) => self.run_stage(name, deleted_ms),
            Step::Started if deleted_ms.is_some() => self.cluster.remove(name),
            Step::Started => {}
        }
    }

    fn place(&mut self, name: &str, deleted_ms: Option<u64>) {
        if deleted_ms.is_some() {
            return self.cluster.remove(name);
        }
        let pool = self.cluster.pods[name].pool().to_owned();
        match self.cluster.free_node(&pool) {
            Some(node) => {
                let starts_ms = self.now() + 1000 + self.draw(5000);
                self.say(|| format!("{name} is placed on {node}"));
                self.cluster.place(name, &node, starts_ms);
            }
            None => self.cluster.unschedulable(name),
        }
    }

    /// There is a Secret with the certificate of `holder`, without which no container starts.
    fn is_certified(&self, holder: &str) -> bool {
        self.cluster.objects.has("Secret", &leaf(holder))
    }

    fn start_stage(&mut self, name: &str) {
        let image = |pod: &Pod| pod.spec.as_ref()?.containers.first()?.image.clone();
        let image = image(&self.cluster.pods[name].pod).unwrap_or_default();
        let version = image.rsplit(':').next().and_then(|version| version.parse().ok());
        let arithmetic = version.and_then(NumericsClass::from_number).unwrap_or(NumericsClass::FIRST);
        let header_ms = 300 + self.draw(2000);
        let layer_ms = self.scenario.layer_ms / 2 + self.draw(self.scenario.layer_ms);
        let model = self.model_of(name);
        let stage = Stage::new(self.now(), header_ms, layer_ms, ROOM_BYTES, arithmetic, model.clone());
        self.cluster.start(name);
        if self.now() < self.broken_until_ms {
            self.say(|| format!("{name} ends as soon as it has started"));
            return self.cluster.ended(name, 1);
        }
        self.stages.insert(name.to_owned(), stage);
        self.net.start_peer(&name.into(), arithmetic, model);
        self.say(|| format!("{name} runs"));
    }

    fn run_stage(&mut self, name: &str, deleted_ms: Option<u64>) {
        let (now, peer) = (self.now(), PeerName::from(name));
        let in_use = self.net.in_use(&peer);
        let busy = self.net.is_busy(&peer);
        let Some(stage) = self.stages.get_mut(name) else { return };
        let held = stage.pass(&in_use, now);
        if deleted_ms.is_some() {
            stage.drain(true, now);
        }
        let drains_until_ms = stage.drains_until_ms;
        if let Some(held) = held {
            self.say(|| {
                format!("{name} has {}", held.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            });
            self.net.hold(&peer, held);
        }
        let Some(until_ms) = drains_until_ms else { return };
        self.net.drain(&peer);
        let killed = deleted_ms.is_some_and(|at| now >= at + GRACE.as_millis() as u64);
        if !busy || now >= until_ms || killed {
            self.say(|| format!("{name} has ended"));
            self.end_stage(name, true);
            self.cluster.ended(name, 0);
        }
    }

    /// The process of a stage ends.
    pub fn end_stage(&mut self, name: &str, resets: bool) {
        if self.stages.remove(name).is_some() {
            self.net.end_peer(&name.into(), resets);
        }
    }

    /// A node stops, and all that runs on it.
    pub fn stop_node(&mut self, node: &str) {
        let now = self.now();
        let Some(machine) = self.cluster.nodes.get_mut(node).filter(|machine| machine.died_ms.is_none())
        else {
            return;
        };
        machine.died_ms = Some(now);
        self.say(|| format!("fault: the node {node} stops"));
        self.record.harm();
        self.last_incident_ms = self.last_incident_ms.max(now);
        let on_it = self.cluster.pods.iter().filter(|(_, cell)| cell.node() == Some(node));
        let names: Vec<String> = on_it.map(|(name, _)| name.clone()).collect();
        for name in names {
            // Half of the time somebody on the way tells that it is gone; else only its silence does.
            let resets = self.draw(2) == 0;
            self.net.excuse(&name.as_str().into());
            self.end_stage(&name, resets);
        }
    }

    fn tick_gateway(&mut self, name: &str) {
        let now = self.now();
        let deleted_ms = self.cluster.pods[name].deleted_ms;
        if !self.gateways.contains_key(name) {
            let (id, starts_ms) = (self.cluster.number(), now + 500 + self.draw(3000));
            let process = GatewayProcess {
                id,
                starts_ms,
                runs: false,
                model: ReadModel::default(),
                mount_ms: starts_ms,
                ends_ms: None,
            };
            self.gateways.insert(name.to_owned(), process);
        }
        let (published, model) = (self.cluster.published.clone(), self.model_of(name));
        let drain_ms = 1000 * u64::from(self.swarm.spec.gateway.drain_seconds);
        let is_certified = self.is_certified(&format!("{}-gateway", self.swarm.name_any()));
        let Some(gateway) = self.gateways.get_mut(name) else { return };
        let id = gateway.id;
        if !gateway.runs && gateway.starts_ms <= now && is_certified {
            gateway.runs = true;
            (gateway.mount_ms, gateway.model) = (now, model.clone());
            self.net.start_gateway(id, model);
            self.cluster.start(name);
        }
        let Some(gateway) = self.gateways.get_mut(name).filter(|gateway| gateway.runs) else {
            if deleted_ms.is_some() {
                self.gateways.remove(name);
                self.cluster.remove(name);
            }
            return;
        };
        let reads = gateway.mount_ms <= now;
        if reads {
            gateway.mount_ms = now + MOUNT_MS;
        }
        let ends_ms = deleted_ms.map(|_| *gateway.ends_ms.get_or_insert(now + drain_ms));
        if let Some(topology) = published.filter(|_| reads) {
            self.obeyed(&topology);
            self.net.push(id, topology);
        }
        if self.now() % 2000 < 250 {
            let is_ready = self.net.is_ready(id);
            self.cluster.probe(name, is_ready);
        }
        if let Some(ends_ms) = ends_ms {
            self.net.close_gateway(id);
            if self.net.sessions_of(id) == 0 || now >= ends_ms {
                self.net.end_gateway(id);
                self.gateways.remove(name);
                self.cluster.remove(name);
            }
        }
    }

    /// As a Deployment that never has fewer than it should, and at most one more.
    fn tick_deployment(&mut self) {
        let Some((replicas, template)) = self.cluster.gateways.clone() else { return };
        let hash = |pod: &Pod| pod.labels().get(dunlin_operator::labels::POD_HASH).cloned();
        let wanted = hash(&template);
        let there = self.cluster.pods.iter().filter(|(_, cell)| {
            cell.deleted_ms.is_none() && cell.pod.labels().get(ROLE).is_some_and(|role| role == ROLE_GATEWAY)
        });
        let there: Vec<(String, bool, bool)> = there
            .map(|(name, cell)| {
                let conditions = cell.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
                let ready =
                    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
                (name.clone(), hash(&cell.pod) == wanted, ready)
            })
            .collect();
        let (replicas, new) = (replicas as usize, there.iter().filter(|(_, new, _)| *new).count());
        let ready = there.iter().filter(|(_, _, ready)| *ready).count();
        let goes =
            there.iter().find(|(_, new, ready)| !new && !ready).or(there.iter().find(|(_, new, _)| !new));
        let surplus = there.iter().find(|_| there.len() > replicas && new > replicas);
        if new < replicas && there.len() <= replicas {
            let mut pod = template;
            pod.metadata.name = Some(format!("s-gateway-{}", self.cluster.number()));
            pod.metadata.owner_references = None;
            self.cluster.make(pod);
        } else if let Some((name, ..)) =
            surplus.or(goes.filter(|(_, _, is_ready)| !is_ready || ready > replicas || replicas == 0))
        {
            let uid = self.cluster.pods[name].pod.uid().unwrap_or_default();
            self.cluster.delete(name, &uid, false, self.now());
        }
    }

    /// An autoscaler orders nodes for pods that find none, while there are any.
    fn order_nodes(&mut self) {
        if self.scenario.nodes.is_some() {
            return;
        }
        let pools: Vec<String> = self.swarm.spec.pools.iter().map(|pool| pool.name.clone()).collect();
        for pool in pools {
            let waits = |cell: &&crate::cluster::PodCell| {
                cell.pool() == pool && cell.step == Step::Unplaced && cell.deleted_ms.is_none()
            };
            let waiting = self.cluster.pods.values().filter(waits).count() as u32;
            let short = pool == "spot" && self.now() < self.shortage_until_ms;
            while self.ordered.get(&pool).copied().unwrap_or(0) < waiting && !short {
                *self.ordered.entry(pool.clone()).or_default() += 1;
                let after = 8000 + self.draw(20_000);
                self.at(after, Event::Join(pool.clone()));
            }
        }
    }
}
