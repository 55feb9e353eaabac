//! What goes wrong, and what users change.

use dunlin_crds::names;
use kube::ResourceExt;

use crate::scenario::Incident;
use crate::world::{Event, World};

/// What must go has a replacement this long after its notice.
const REPLACED_MS: u64 = 10_000;

impl World {
    /// It happens now.
    pub fn incident(&mut self, incident: Incident) {
        self.last_incident_ms = self.last_incident_ms.max(self.now());
        self.out.incidents += 1;
        match incident {
            Incident::Kill => self.kill(),
            Incident::Vanish => {
                if let Some(node) = self.some_node() {
                    self.stop_node(&node);
                }
            }
            Incident::Notice(seconds) => self.give_notice(seconds * 1000),
            Incident::Restart => self.restart(),
            Incident::Cut => {
                self.calls_left = Some(self.draw(8) as u32);
                // There is a pass to be cut off in.
                self.kill();
            }
            Incident::Gateway => self.restart_gateway(),
            Incident::Cutoff | Incident::Unheard => self.cut_off(incident == Incident::Cutoff),
            Incident::Conflict => {
                self.cluster.objects.touch("ConfigMap", &names::topology(&self.swarm.name_any()));
                self.say(|| "fault: somebody else has written what is published".to_owned());
                self.kill();
            }
            Incident::Outage | Incident::Flaky | Incident::Stale | Incident::Broken | Incident::Shortage => {
                self.trouble(incident)
            }
            Incident::Shadows(shadows) => {
                self.edit(&format!("redundancy.shadows is {shadows}"), |spec| {
                    spec.redundancy.shadows = shadows
                });
            }
            Incident::Replicas(peers) => self.edit(&format!("peers.min is {peers}"), |spec| {
                if let Some(pool) = spec.pools.first_mut() {
                    let spare = pool.peers.max - pool.peers.min;
                    (pool.peers.min, pool.peers.max) = (peers, peers + spare);
                }
            }),
            Incident::Memory => self.edit("memory.host is another", |spec| {
                for pool in &mut spec.pools {
                    let (usual, more) = ("512Mi".into(), "1Gi".into());
                    pool.memory.host = if pool.memory.host == usual { more } else { usual };
                }
            }),
            Incident::Image(arithmetic) => {
                self.image = arithmetic;
                self.say(|| format!("fault: the image is w:{arithmetic}"));
                self.restart();
            }
            Incident::Model(model) => self.change_model(model),
            Incident::Suspend => self.suspend(),
        }
    }

    fn suspend(&mut self) {
        // Who suspends a swarm ends what it serves: nobody asks from a while before on.
        if self.quiet_until_ms < self.now() {
            self.quiet_until_ms = self.now() + 60_000;
            self.last_incident_ms = self.last_incident_ms.max(self.now() + 100_000);
            return self.at(40_000, Event::Incident(Incident::Suspend));
        }
        self.record.harm();
        self.edit("spec.suspend is true", |spec| spec.suspend = true);
        let after = 2000 + self.draw(60_000);
        self.quiet_until_ms = self.now() + after;
        self.last_incident_ms = self.last_incident_ms.max(self.quiet_until_ms);
        self.at(after, Event::Resume);
    }

    /// A stage that runs.
    fn some_stage(&mut self) -> Option<String> {
        let names: Vec<String> = self.stages.keys().cloned().collect();
        let index = self.draw(names.len() as u64) as usize;
        names.get(index).cloned()
    }

    /// A node of a preemptible pool that works, rather one with a pod.
    fn some_node(&mut self) -> Option<String> {
        let nodes = self.cluster.nodes.iter().filter(|(_, m)| m.died_ms.is_none() && m.pool == "spot");
        let (busy, free): (Vec<String>, Vec<String>) = nodes
            .map(|(name, _)| name.clone())
            .partition(|name| self.cluster.pods.values().any(|cell| cell.node() == Some(name)));
        let nodes = if busy.is_empty() { free } else { busy };
        let index = self.draw(nodes.len() as u64) as usize;
        nodes.get(index).cloned()
    }

    fn kill(&mut self) {
        let Some(name) = self.some_stage() else { return };
        self.say(|| format!("fault: the container of {name} fails"));
        self.record.harm();
        self.net.excuse(&name.as_str().into());
        self.end_stage(&name, true);
        self.cluster.ended(&name, 137);
    }

    fn give_notice(&mut self, after_ms: u64) {
        let Some(node) = self.some_node().filter(|node| !self.cluster.nodes[node].notice) else { return };
        self.say(|| format!("fault: the node {node} will be taken in {} s", after_ms / 1000));
        self.warn(&node);
        self.last_incident_ms = self.last_incident_ms.max(self.now() + after_ms);
        self.at(after_ms, Event::Stop(node));
        self.at(REPLACED_MS, Event::Replaced(self.out.incidents));
    }

    /// The platform will take a node, and says so.
    pub fn warn(&mut self, node: &str) {
        self.cluster.notice(node);
        self.record.harm();
        let on_it = self.cluster.pods.iter().filter(|(_, cell)| cell.node() == Some(node));
        on_it.for_each(|(name, _)| self.net.excuse(&name.as_str().into()));
    }

    fn restart(&mut self) {
        if self.operator.take().is_some() {
            self.say(|| "fault: the operator's process ends".to_owned());
            let after = 500 + self.draw(20_000);
            self.last_incident_ms = self.last_incident_ms.max(self.now() + after);
            self.at(after, Event::Lead);
        }
    }

    fn restart_gateway(&mut self) {
        let running = self.gateways.iter().filter(|(_, gateway)| gateway.runs && gateway.ends_ms.is_none());
        let names: Vec<String> = running.map(|(name, _)| name.clone()).collect();
        let index = self.draw(names.len() as u64) as usize;
        let Some(name) = names.get(index).cloned() else { return };
        self.say(|| format!("fault: the container of {name} ends and is started again"));
        let (id, after) = (self.cluster.number(), 500 + self.draw(3000));
        if let Some(gateway) = self.gateways.get_mut(&name) {
            self.net.end_gateway(gateway.id);
            (gateway.id, gateway.runs, gateway.starts_ms) = (id, false, self.calendar.now() + after);
        }
        self.cluster.probe(&name, false);
    }

    /// `from_all`: from gateways and other stages; otherwise from the operator.
    fn cut_off(&mut self, from_all: bool) {
        let Some(name) = self.some_stage() else { return };
        let for_ms = 500 + self.draw(20_000);
        self.last_incident_ms = self.last_incident_ms.max(self.now() + for_ms);
        let whom = if from_all { "nobody but the operator reaches" } else { "the operator does not reach" };
        self.say(|| format!("fault: for {for_ms} ms {whom} {name}"));
        self.record.harm_until(self.now() + for_ms + REPLACED_MS);
        self.net.excuse(&name.as_str().into());
        if from_all {
            self.net.silence(&name.as_str().into(), for_ms);
        } else if let Some(stage) = self.stages.get_mut(&name) {
            stage.unreachable_until_ms = self.calendar.now() + for_ms;
        }
    }

    fn trouble(&mut self, incident: Incident) {
        let until_ms =
            self.now() + 1000 + self.draw(if incident == Incident::Shortage { 240_000 } else { 40_000 });
        self.last_incident_ms = self.last_incident_ms.max(until_ms);
        let what = match incident {
            Incident::Outage => {
                self.outage_until_ms = until_ms;
                "the API server answers nobody"
            }
            Incident::Flaky => {
                self.flaky_until_ms = until_ms;
                "answers of the API server are lost"
            }
            Incident::Stale => {
                self.stale_until_ms = until_ms;
                "watches are late"
            }
            Incident::Broken => {
                self.broken_until_ms = until_ms;
                "containers of stages end as soon as they have started"
            }
            _ => {
                self.shortage_until_ms = until_ms;
                "there are no new preemptible nodes"
            }
        };
        self.say(|| format!("fault: until {until_ms} ms {what}"));
        if incident == Incident::Shortage
            && let Some(node) = self.some_node()
        {
            self.stop_node(&node);
        } else {
            self.kill();
        }
    }

    /// Nodes of a trace come and go.
    pub fn replay(&mut self) {
        let Some(nodes) = self.scenario.nodes.clone() else { return };
        for (at_ms, node, joins) in nodes {
            self.last_incident_ms = self.last_incident_ms.max(at_ms);
            if joins {
                self.at(at_ms, Event::Add(node));
            } else {
                if self.scenario.notice_ms > 0 {
                    self.at(at_ms.saturating_sub(self.scenario.notice_ms), Event::Warn(node.clone()));
                }
                self.at(at_ms, Event::Stop(node));
            }
        }
    }
}
