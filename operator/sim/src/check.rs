//! What must hold, at every moment and in the end.

use std::collections::BTreeSet;

use dunlin_operator::error::BACKOFF_MAX;
use dunlin_operator::labels::{ROLE, ROLE_STAGE};
use kube::ResourceExt;

use crate::scenario::Incident;
use crate::world::{LAYERS, World};

/// When nothing is wrong with the cluster any more, every layer is served again within this time: a dead node is noticed (40 s), a peer that found
/// no node is made elsewhere (30 s), a node is ordered (28 s), a pod starts (6 s), the header is read and six layers (38 s), and the operator
/// looks (5 s, three times).
const UNSERVED_MAX_MS: u64 = 165_000;
/// Everything is as planned within this time, and so much more for each peer: changes replace them one after the other.
const SETTLES_MS: u64 = 300_000;
const SETTLES_PEER_MS: u64 = 90_000;
/// Peers may still read what nobody needs yet when all that is asked for is there; and what an API server whose answers were lost has not taken yet is
/// tried again soon.
const STEADY_MS: u64 = 70_000;
/// A swarm that has settled stays as it is for this long: two looks without a trigger.
const QUIET_MS: u64 = 130_000;
/// Pods that end as soon as they have started are made again with growing pauses.
const PAUSES_MS: u64 = 120_000;
/// A new leader has heard everybody by then.
const LEADS_MS: u64 = 30_000;
/// Answers that run or wait then are given after that, also if two peers have to give all those of a swarm that had more.
const ANSWERS_MS: u64 = 600_000;
/// Stages have heard by then that an answer is over.
const CLOSED_MS: u64 = 1000;

impl World {
    /// Looks at everything from outside.
    pub fn check(&mut self) {
        self.check_served();
        self.check_pods();
        let as_planned = self.is_as_planned();
        let harmed = self.now() < self.record.harmed_until_ms;
        self.record.unharmed |= as_planned && !harmed && self.has_capacity();
        let as_planned = as_planned && self.now() > self.last_incident_ms && self.operator.is_some();
        let (made, deleted, epoch) = (self.record.made, self.record.deleted, self.record.epoch);
        match self.record.settled {
            None if as_planned => {
                self.out.settled_ms = self.now() - self.last_incident_ms;
                self.record.settled = Some((self.now(), made, deleted, epoch));
                self.say(|| "everything is as planned".to_owned());
            }
            None => {
                let peers = u64::from(self.peers_max());
                if self.now() > self.last_incident_ms + SETTLES_MS + SETTLES_PEER_MS * peers {
                    let status = self.swarm.status.clone().unwrap_or_default();
                    let said: Vec<String> = status
                        .conditions
                        .iter()
                        .map(|c| format!("{} {} ({}: {})", c.type_, c.status, c.reason, c.message))
                        .collect();
                    self.violation(format!("the swarm does not settle: {}", said.join("; ")));
                    self.record.over = true;
                }
            }
            Some((since_ms, before_made, before_deleted, before_epoch)) => {
                let same =
                    (before_made, before_deleted, before_epoch) == (made, deleted, epoch) && as_planned;
                if !same && self.now() < since_ms + STEADY_MS {
                    self.record.settled = None;
                } else if !same {
                    let conditions = if as_planned { "" } else { ", and it is not as planned any more" };
                    self.violation(format!(
                        "a swarm that had settled goes on: {} pods more made, {} deleted, epoch {before_epoch} became {epoch}{conditions}",
                        made - before_made,
                        deleted - before_deleted
                    ));
                    self.record.over = true;
                }
                self.check_over();
            }
        }
    }

    fn check_over(&mut self) {
        let Some((since, ..)) = self.record.settled else { return };
        let (now_ms, quiet_ms) = (self.now(), since + QUIET_MS);
        if self.net.unfinished() > 0 && now_ms < quiet_ms + ANSWERS_MS {
            self.record.answered_ms = None;
            return;
        }
        let answered_ms = *self.record.answered_ms.get_or_insert(now_ms);
        if now_ms >= quiet_ms.max(answered_ms + CLOSED_MS) {
            self.record.over = true;
        }
    }

    /// Layers of the swarm's model that nobody has who runs.
    fn unserved(&self) -> BTreeSet<u32> {
        let ours = self.stages.values().filter(|stage| self.is_wanted(&stage.model));
        let held: BTreeSet<u32> = ours.flat_map(|stage| stage.held()).copied().collect();
        (0..LAYERS).filter(|layer| !held.contains(layer)).collect()
    }

    fn check_served(&mut self) {
        let missing = self.unserved();
        if missing.is_empty() || self.swarm.spec.suspend || !self.has_capacity() {
            self.record.unserved_since_ms = None;
            return;
        }
        if self.record.unharmed {
            self.violation(format!("nobody has the layers {missing:?} any more, although nothing was lost"));
            self.record.over = true;
        }
        let since = *self.record.unserved_since_ms.get_or_insert(self.now());
        let without_reason_ms = self.now().saturating_sub(since.max(self.last_incident_ms));
        self.out.unserved_ms_max = self.out.unserved_ms_max.max(without_reason_ms);
        if without_reason_ms > UNSERVED_MAX_MS {
            self.violation(format!("for {without_reason_ms} ms nobody has the layers {missing:?}"));
            self.record.over = true;
        }
    }

    /// Some seconds after a node had notice, and nothing else happened: what must go is replaced before it goes. `incidents`: as many as then.
    pub fn check_replaced(&mut self, incidents: u32) {
        let troubled_ms = self.outage_until_ms.max(self.flaky_until_ms).max(self.stale_until_ms);
        let pauses_ms = if self.broken_until_ms > 0 { self.broken_until_ms + PAUSES_MS } else { 0 };
        let leads = self.operator.is_some() && self.now() > self.led_ms + LEADS_MS;
        let tried_ms = troubled_ms + BACKOFF_MAX.as_millis() as u64;
        let calm = leads && self.out.incidents == incidents && self.now() > tried_ms.max(pauses_ms);
        if !calm || self.swarm.spec.suspend {
            return;
        }
        let doomed =
            |node: &str| self.cluster.nodes.get(node).is_none_or(|m| m.notice || m.died_ms.is_some());
        let stays = self.cluster.pods.values().filter(|cell| {
            cell.pod.labels().get(ROLE).is_some_and(|role| role == ROLE_STAGE)
                && cell.deleted_ms.is_none()
                && matches!(cell.phase(), "Pending" | "Running")
                && !cell.node().is_some_and(doomed)
        });
        let (stay, peers) = (stays.count() as u32, self.peers());
        if stay < peers {
            self.violation(format!(
                "a node has had notice for a while, and only {stay} of {peers} peers stay"
            ));
            self.record.over = true;
        }
    }

    /// There are nodes for all peers, or will be.
    fn has_capacity(&self) -> bool {
        let alive = self.cluster.nodes.values().filter(|machine| machine.died_ms.is_none()).count();
        self.scenario.nodes.is_none() || alive as u32 >= self.peers()
    }

    fn peers(&self) -> u32 {
        self.swarm.spec.pools.iter().map(|pool| pool.peers.min).sum()
    }

    fn peers_max(&self) -> u32 {
        let wanted = self.scenario.plan.iter().map(|(_, incident)| match incident {
            Incident::Replicas(peers) => *peers,
            _ => 0,
        });
        let spot = wanted.max().unwrap_or(0).max(self.scenario.peers);
        spot + self.scenario.spare + self.scenario.steady.map_or(0, |peers| peers + 1)
    }

    /// Pods are made for what is wanted, for what is lost and for what is changed, and not over and over.
    fn check_pods(&mut self) {
        let all = self.peers_max();
        let for_incidents: u32 = self
            .scenario
            .plan
            .iter()
            .map(|(_, incident)| match incident {
                Incident::Kill
                | Incident::Vanish
                | Incident::Notice(_)
                | Incident::Cutoff
                | Incident::Unheard => 3,
                Incident::Broken => 12,
                Incident::Image(_)
                | Incident::Memory
                | Incident::Model(_)
                | Incident::Suspend
                | Incident::Replicas(_) => all + 3,
                _ => 4,
            })
            .sum();
        let for_nodes = self.scenario.nodes.as_ref().map_or(0, |nodes| 3 * nodes.len() as u32);
        let allowed = all + for_incidents + for_nodes;
        if self.record.made > allowed {
            let made = self.record.made;
            self.violation(format!("{made} pods were made, where {allowed} would do"));
            self.record.over = true;
        }
    }

    /// The status says so, and so it is.
    pub fn is_as_planned(&self) -> bool {
        let status = self.swarm.status.clone().unwrap_or_default();
        let is = |kind: &str, wanted: &str| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == kind);
            condition.is_some_and(|c| {
                c.status == wanted && c.observed_generation == self.swarm.metadata.generation
            })
        };
        let serves = is("Ready", "True") && self.unserved().is_empty();
        if !self.has_capacity() {
            return serves;
        }
        let stages = self
            .cluster
            .pods
            .values()
            .filter(|cell| cell.pod.labels().get(ROLE).is_some_and(|r| r == ROLE_STAGE));
        let (running, others): (Vec<_>, Vec<_>) =
            stages.partition(|cell| cell.runs() && cell.deleted_ms.is_none());
        let gateways = self.gateways.values().filter(|gateway| gateway.runs && gateway.ends_ms.is_none());
        let doomed = self.cluster.nodes.values().any(|machine| machine.notice && machine.died_ms.is_none());
        serves
            && !doomed
            && self.stages.len() as u32 == self.peers()
            && is("Degraded", "False")
            && is("Reconciling", "False")
            && running.len() as u32 == self.peers()
            && others.is_empty()
            && self.stages.values().all(|stage| self.is_wanted(&stage.model))
            && gateways.clone().count() as u32 == self.swarm.spec.gateway.replicas
            && gateways.clone().all(|gateway| self.is_wanted(&gateway.model))
    }
}
