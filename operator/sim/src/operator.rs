//! The operator's process around its own decisions: what it has seen, whom it talks to, what it remembers. All of it ends with the process.
//!
//! What decides is dunlin-operator: views from watched objects, whom to ask, what is decided, what becomes of a topology that was published. The
//! order of a pass is that of `swarm/pass.rs` and `swarm/write.rs` there, without certificates and without what no decision follows from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dunlin_crds::InferenceSwarm;
use dunlin_operator::apply::topology::reconciled;
use dunlin_operator::config::Config;
use dunlin_operator::inference::desired::InferenceDesired;
use dunlin_operator::inference::state::ServingState;
use dunlin_operator::key::{Kind, SwarmKey};
use dunlin_operator::labels::Owner;
use dunlin_operator::observe::{Caches, SwarmView};
use dunlin_operator::peers::report::WorkerReport;
use dunlin_operator::peers::talk::WorkerQuestion;
use dunlin_operator::peers::{Target, WorkerOrder, WorkerRecord};
use dunlin_operator::swarm::contract::DecisionOf;
use dunlin_operator::swarm::{Evidence, Policy, SwarmKind};
use dunlin_operator::targets::targets;
use dunlin_swarm::Topology;
use dunlin_wire::TlsFiles;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::cluster::{Cluster, News};
use crate::flaw::Flaw;

/// A pod that the watch has not shown for this long after its creation is gone.
const UNSEEN_MAX_MS: u64 = 30_000;

/// A conversation with a worker or gateway.
#[derive(Debug)]
pub(crate) struct Talk {
    addr: String,
    pub answer: WorkerRecord,
    order: Option<WorkerOrder>,
    acknowledged: WorkerOrder,
    /// The next question is asked then.
    pub due_ms: u64,
}

impl Talk {
    /// What is asked now.
    pub fn question(&self) -> WorkerQuestion {
        self.order.as_ref().map_or(WorkerQuestion::Status, |order| order.question(&self.acknowledged))
    }

    /// The worker has answered.
    pub fn acknowledge(&mut self, question: &WorkerQuestion) {
        if *question != WorkerQuestion::Status
            && let Some(order) = &self.order
        {
            self.acknowledged = order.clone();
        }
    }
}

/// One life of the operator's process, as the leader.
pub(crate) struct Operator {
    pub config: Config,
    pub caches: Caches,
    pub state: ServingState,
    pub talks: BTreeMap<String, Talk>,
    /// When it first looked.
    since: Option<Instant>,
    /// The version that the next topology replaces, or that there is none; `None` when it must be read first.
    pub published: Option<Option<u64>>,
    /// What was written last.
    pub written: Option<Topology>,
    /// The newest topology that is known to be published: what everybody is handed.
    pub given: Option<Topology>,
    /// Pods just made, until a watch shows them.
    pub made: Vec<(Pod, u64)>,
    /// Names of pods to be, by pool: an attempt of which nothing is known is repeated under the same name.
    pub names: BTreeMap<String, String>,
    /// Passes that failed in a row.
    pub failures: u32,
    /// It looks again then.
    pub wake_ms: u64,
    flaw: Option<Flaw>,
}

/// What one look came to.
pub(crate) struct Looked {
    pub owner: Owner,
    pub desired: InferenceDesired,
    pub view: SwarmView,
    pub decision: DecisionOf<InferenceSwarm>,
}

pub(crate) fn key() -> SwarmKey {
    SwarmKey { kind: Kind::Inference, namespace: "default".into(), name: "s".into() }
}

impl Operator {
    /// One that has just become the leader, and has seen all of `cluster` once.
    pub fn new(config: Config, cluster: &Cluster, flaw: Option<Flaw>, now: u64) -> Self {
        let operator = Self {
            config,
            caches: Caches::default(),
            state: ServingState::default(),
            talks: BTreeMap::new(),
            since: None,
            published: None,
            written: None,
            given: None,
            made: Vec::new(),
            names: BTreeMap::new(),
            failures: 0,
            wake_ms: now,
            flaw,
        };
        for news in cluster.list() {
            operator.see(&news);
        }
        operator
    }

    /// A watch says something; whether the swarm is to be looked at again.
    pub fn see(&self, news: &News) -> bool {
        let concerned = match news {
            News::Pod(event) => self.caches.take_pod(event),
            News::Node(event) => self.caches.take_node(event),
        };
        !concerned.is_empty()
    }

    /// It has read what is published, or that nothing is.
    pub fn recover(&mut self, found: Option<(u64, Topology)>) {
        let version = found.as_ref().map(|(version, _)| *version);
        let found = found.map(|(_, topology)| topology).filter(|_| self.flaw != Some(Flaw::Forgets));
        self.given = self.given.take().into_iter().chain(found.clone()).max_by_key(|known| known.epoch);
        self.state.topology = reconciled(self.state.topology.take(), found);
        self.published = Some(version);
    }

    /// It has looked before, and can do without reading what is published.
    pub fn has_looked(&self) -> bool {
        self.since.is_some()
    }

    /// Looks and decides.
    ///
    /// # Errors
    /// The finding of the plan's own check.
    pub fn look(&mut self, swarm: &InferenceSwarm, at: Instant, now: u64) -> Result<Looked, String> {
        let (key, uid) = (key(), swarm.uid().unwrap_or_default());
        let owner = Owner::new(&key, swarm, &self.config.inherited_labels);
        let desired = swarm.desired(&self.config);
        let caches = &self.caches;
        self.made.retain(|(pod, made_ms)| {
            !caches.has_pod(&key.namespace, &pod.name_any()) && now - made_ms < UNSEEN_MAX_MS
        });
        self.names.retain(|_, name| !caches.has_pod(&key.namespace, name));
        let unseen: Vec<Pod> = self.made.iter().map(|(pod, _)| pod.clone()).collect();
        let view = self.caches.view(&key, &uid, &unseen);
        self.follow(&owner, &view, now);
        let answers: BTreeMap<String, WorkerRecord> =
            self.talks.iter().map(|(name, talk)| (name.clone(), talk.answer.clone())).collect();
        let since = *self.since.get_or_insert(at);
        let (view, answers) = match self.flaw {
            Some(flaw) => flaw.shown(view, answers, self.state.topology.as_ref()),
            None => (view, answers),
        };
        let silence = self.config.silence_max();
        let evidence = Evidence { view: &view, answers: &answers, since, now: at, silence };
        let (decision, state) = InferenceSwarm::decide(&desired, &evidence, self.state.clone())?;
        self.state = state;
        Ok(Looked { owner, desired, view, decision })
    }

    /// Talks to exactly those that are worth it.
    fn follow(&mut self, owner: &Owner, view: &SwarmView, now: u64) {
        let nobody = TlsFiles { authority: String::new(), certificate: String::new(), key: String::new() };
        let targets: Vec<Target> = targets(owner, view, &Arc::new(nobody));
        let there: BTreeSet<(&String, &String)> = targets.iter().map(|t| (&t.name, &t.addr)).collect();
        self.talks.retain(|name, talk| there.contains(&(name, &talk.addr)));
        for target in &targets {
            self.talks.entry(target.name.clone()).or_insert_with(|| Talk {
                addr: target.addr.clone(),
                answer: WorkerRecord::default(),
                order: None,
                acknowledged: WorkerOrder::default(),
                due_ms: now,
            });
        }
    }

    /// Everybody's newest order: it is given at once.
    pub fn order(&mut self, view: &SwarmView, now: u64) {
        let decided = self.state.topology.as_ref().filter(|_| self.flaw == Some(Flaw::HandsOut));
        let Some(topology) = decided.or(self.given.as_ref()) else { return };
        let json: Arc<str> = serde_json::to_string(topology).unwrap_or_default().into();
        let order = |drain| WorkerOrder {
            topology: Some((topology.epoch, Arc::clone(&json))),
            drain,
            suspend: false,
        };
        let workers = view.workers.values().map(|w| (&w.name, order(w.needs_drain())));
        for (name, order) in workers.chain(view.gateways.keys().map(|name| (name, order(false)))) {
            if let Some(talk) = self.talks.get_mut(name)
                && talk.order.as_ref() != Some(&order)
            {
                (talk.order, talk.due_ms) = (Some(order), now);
            }
        }
    }

    /// An answer, or that there is none; whether that is news.
    pub fn hear(&mut self, name: &str, answer: Option<WorkerReport>, at: Instant) -> bool {
        let silence: Duration = self.config.silence_max();
        let Some(talk) = self.talks.get_mut(name) else { return false };
        match answer {
            Some(report) => talk.answer.take(report, silence, at),
            None => talk.answer.is_silent(at, silence),
        }
    }
}
