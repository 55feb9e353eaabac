//! Events in virtual time: what the cluster, the operator and the processes do, and when.

use std::collections::BTreeMap;

use clap::Parser;
use dunlin_crds::InferenceSwarm;
use dunlin_operator::config::Config;
use dunlin_operator::error::Error;
use dunlin_sim::calendar::Calendar;
use dunlin_sim::model::{ReadModel, mix};
use dunlin_sim::serving::hosted::{Hosted, MODEL_LAYERS};
use dunlin_swarm::Topology;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::cluster::{Cluster, News};
use crate::operator::{Call, Operator};
use crate::process::Stage;
use crate::record::Record;
use crate::scenario::{Incident, Outcome, Scenario};

/// The scheduler, kubelets, the platform and this simulation's judge look this often.
pub(crate) const TICK_MS: u64 = 250;
/// The operator looks this long after something is new.
pub(crate) const DEBOUNCE_MS: u64 = 50;

pub(crate) enum Event {
    Tick,
    /// A watch of the operator's process of this term tells something.
    Watch(u64, News),
    /// A call of it arrives.
    Call(u64, Call),
    /// The answer arrives. `published`: it says that a topology is published.
    Answer {
        term: u64,
        published: bool,
        answer: Result<Value, Error>,
        to: oneshot::Sender<Result<Value, Error>>,
    },
    /// A session begins.
    Ask,
    Incident(Incident),
    /// Another process of the operator leads.
    Lead,
    /// A platform adds a node to a pool.
    Join(String),
    /// A node of a trace comes.
    Add(String),
    /// A node will stop.
    Warn(String),
    /// A node had notice a while ago, when so many incidents had happened.
    Replaced(u32),
    /// A node stops.
    Stop(String),
    Resume,
}

/// A gateway pod's process.
pub(crate) struct GatewayProcess {
    /// Which in the network.
    pub id: u64,
    /// It runs from then on.
    pub starts_ms: u64,
    pub runs: bool,
    /// Of its last start.
    pub model: ReadModel,
    /// The file with the topology is looked at then.
    pub mount_ms: u64,
    /// It ends at the latest then.
    pub ends_ms: Option<u64>,
}

pub(crate) struct World {
    pub scenario: Scenario,
    pub calendar: Calendar<Event>,
    draws: u64,
    pub clock: Clock,
    pub cluster: Cluster,
    pub net: Hosted,
    pub stages: BTreeMap<String, Stage>,
    pub gateways: BTreeMap<String, GatewayProcess>,
    pub swarm: InferenceSwarm,
    pub image: u32,
    pub operator: Option<Operator>,
    pub term: u64,
    /// Since when its last process leads.
    pub led_ms: u64,
    /// Watches tell in order.
    last_news_ms: u64,
    /// The API server answers again then.
    pub outage_until_ms: u64,
    /// All of its answers arrive again then.
    pub flaky_until_ms: u64,
    /// Watches are in time again then.
    pub stale_until_ms: u64,
    /// Containers of stages end as soon as they have started until then.
    pub broken_until_ms: u64,
    /// There are new nodes for preemptible pools again then.
    pub shortage_until_ms: u64,
    /// The operator's process ends after so many calls.
    pub calls_left: Option<u32>,
    /// Nodes that are on their way, by pool.
    pub ordered: BTreeMap<String, u32>,
    /// No sessions begin before.
    pub quiet_until_ms: u64,
    /// The last thing that went wrong is over then.
    pub last_incident_ms: u64,
    pub record: Record,
    pub out: Outcome,
}

/// Runs a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    let mut world = World::new(scenario.clone());
    while world.record.is_open() {
        world.step();
    }
    world.end()
}

impl World {
    fn new(scenario: Scenario) -> Self {
        let mut world = Self {
            calendar: Calendar::default(),
            draws: 0,
            clock: Clock::new(),
            cluster: Cluster::default(),
            net: Hosted::new(scenario.seed, scenario.trace),
            stages: BTreeMap::new(),
            gateways: BTreeMap::new(),
            swarm: manifest(&scenario),
            image: 1,
            operator: None,
            term: 0,
            led_ms: 0,
            last_news_ms: 0,
            outage_until_ms: 0,
            flaky_until_ms: 0,
            stale_until_ms: 0,
            broken_until_ms: 0,
            shortage_until_ms: 0,
            calls_left: None,
            ordered: BTreeMap::new(),
            quiet_until_ms: 0,
            last_incident_ms: 0,
            record: Record::default(),
            out: Outcome::default(),
            scenario,
        };
        let pools: Vec<(String, u32)> =
            world.swarm.spec.pools.iter().map(|pool| (pool.name.clone(), pool.peers.min)).collect();
        for (pool, peers) in pools.into_iter().filter(|_| world.scenario.nodes.is_none()) {
            for _ in 0..peers + world.scenario.free_nodes {
                world.cluster.join(&pool, pool == "spot");
            }
        }
        world.replay();
        world.at(0, Event::Lead);
        world.at(1, Event::Tick);
        world.at(20_000, Event::Ask);
        for (at, incident) in world.scenario.plan.clone() {
            world.last_incident_ms = at;
            world.at(at, Event::Incident(incident));
        }
        world
    }

    fn step(&mut self) {
        let event = self.calendar.next_at();
        let operator = self.operator.as_ref();
        let wake = operator.and_then(Operator::looks_ms).map(|at| at.max(self.now()));
        let talk = operator.and_then(|operator| operator.talks.due_ms()).map(|at| at.max(self.now()));
        let next = [event, wake, talk].into_iter().flatten().min().unwrap_or(self.now() + TICK_MS);
        self.net.run_until(next);
        self.calendar.pass_to(next);
        if self.scenario.trace {
            self.net.tell(&mut self.out.trace);
        }
        if talk == Some(next) {
            self.ask_due();
        } else if let Some(event) = self.calendar.pop_due(next) {
            self.handle(event);
        } else {
            self.look();
        }
        self.tell_watches();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick => {
                self.tick_cluster();
                self.check();
                self.check_broken_off();
                self.at(TICK_MS, Event::Tick);
            }
            Event::Watch(term, news) => {
                if term == self.term
                    && let Some(operator) = &mut self.operator
                    && operator.see(&news)
                {
                    operator.wake_ms = operator.wake_ms.min(self.calendar.now() + DEBOUNCE_MS);
                }
            }
            Event::Call(term, call) => self.called(term, call),
            Event::Answer { term, published, answer, to } => {
                self.answered(term, published, || drop(to.send(answer)));
            }
            Event::Ask => {
                if self.now() >= self.quiet_until_ms {
                    self.net.ask();
                    self.out.sessions += 1;
                }
                if self.now() < self.last_incident_ms + 60_000 {
                    self.at(self.scenario.session_ms, Event::Ask);
                }
            }
            Event::Incident(incident) => self.incident(incident),
            Event::Lead => self.lead(),
            Event::Join(pool) => {
                let ordered = self.ordered.entry(pool.clone()).or_default();
                *ordered = ordered.saturating_sub(1);
                let node = self.cluster.join(&pool, pool == "spot");
                self.say(|| format!("{node} joins"));
            }
            Event::Add(node) => {
                self.say(|| format!("{node} joins"));
                self.cluster.join_as(&node, "spot", true);
            }
            Event::Warn(node) => {
                self.say(|| format!("fault: the node {node} will be taken"));
                self.warn(&node);
            }
            Event::Replaced(incidents) => self.check_replaced(incidents),
            Event::Stop(node) => self.stop_node(&node),
            Event::Resume => self.edit("spec.suspend is false again", |spec| spec.suspend = false),
        }
    }

    /// A process of the operator becomes the leader.
    fn lead(&mut self) {
        if self.operator.is_some() {
            return;
        }
        if self.now() < self.outage_until_ms {
            // It waits for the lists that its watches begin with.
            return self.at(self.outage_until_ms - self.now(), Event::Lead);
        }
        let image = format!("w:{}", self.image);
        let config = Config::parse_from(["dunlin-operator", "--worker-image", &image]);
        self.term += 1;
        self.led_ms = self.now();
        self.cluster.news.clear();
        let (term, flaw) = (self.term, self.scenario.flaw);
        let seed = mix(self.scenario.seed, term);
        self.operator = Some(Operator::new(config, &self.cluster, flaw, seed, self.now()));
        self.say(|| format!("operator {term} leads"));
    }

    /// Changes of the cluster are on their way to the operator.
    fn tell_watches(&mut self) {
        while let Some(news) = self.cluster.news.pop_front() {
            let late = if self.now() < self.stale_until_ms { 1000 + self.draw(4000) } else { 0 };
            let told_ms = self.now().max(self.outage_until_ms) + 2 + self.draw(40) + late;
            let arrives = told_ms.max(self.last_news_ms);
            self.last_news_ms = arrives;
            self.at(arrives - self.now(), Event::Watch(self.term, news));
        }
    }

    /// A change of the manifest.
    pub fn edit(&mut self, what: &str, change: impl FnOnce(&mut dunlin_crds::InferenceSwarmSpec)) {
        let before = self.swarm.spec.clone();
        change(&mut self.swarm.spec);
        if before != self.swarm.spec {
            *self.swarm.metadata.generation.get_or_insert_default() += 1;
            if let Some(operator) = &mut self.operator {
                operator.wake_ms = operator.wake_ms.min(self.calendar.now() + DEBOUNCE_MS);
            }
        }
        self.last_incident_ms = self.last_incident_ms.max(self.now());
        self.say(|| format!("fault: {what}"));
    }

    /// Somebody obeys a topology: there must never be two of one epoch.
    pub fn obeyed(&mut self, topology: &Topology) {
        if let Some(violation) = self.record.obeyed(topology) {
            self.violation(violation);
        }
    }

    pub fn violation(&mut self, what: String) {
        let line = format!("{} ms: {what}", self.now());
        self.out.violations.push(line);
    }

    pub fn draw(&mut self, below: u64) -> u64 {
        self.draws += 1;
        mix(self.scenario.seed, self.draws.wrapping_mul(0x5851_f42d_4c95_7f2d)) % below.max(1)
    }

    pub fn say(&mut self, text: impl FnOnce() -> String) {
        if self.scenario.trace {
            let line = format!("{:>7} ms  {}", self.now(), text());
            self.out.trace.push(line);
        }
    }

    pub fn now(&self) -> u64 {
        self.calendar.now()
    }

    pub fn at(&mut self, after_ms: u64, event: Event) {
        self.calendar.at(after_ms, event);
    }

    fn end(mut self) -> Outcome {
        self.net.tell(&mut self.out.trace);
        let served = self.net.end();
        self.out.recovered = served.recovered();
        // Of a run that was broken off, not all answers are there.
        let is_whole = self.out.violations.is_empty();
        let counts = |what: &String| is_whole || what.ends_with("other tokens");
        self.out.violations.extend(served.violations.into_iter().filter(counts));
        self.out.ended_ms = self.calendar.now();
        self.out
    }
}

/// Where a model is.
pub(crate) fn model_url(model: u32) -> String {
    format!("http://models/m{model}.gguf")
}

/// The swarm as its user wants it.
fn manifest(scenario: &Scenario) -> InferenceSwarm {
    let pool = |name: &str, kind: &str, min: u32, max: u32| {
        json!({
            "name": name,
            "capacityType": kind,
            "peers": {"min": min, "max": max.max(1)},
            "device": {"cpu": {"cores": 1}},
            "memory": {"host": "512Mi"},
        })
    };
    let peers = scenario.peers;
    let mut pools = vec![pool("spot", "Spot", peers, peers + scenario.spare)];
    pools.extend(scenario.steady.map(|steady| pool("steady", "OnDemand", steady, steady + 1)));
    let swarm = json!({
        "apiVersion": "dunlin.dev/v1alpha1",
        "kind": "InferenceSwarm",
        "metadata": {"name": "s", "namespace": "default", "uid": "1-2-3", "generation": 1},
        "spec": {
            "model": {"source": {"http": {"url": model_url(0)}}},
            "pools": pools,
            "redundancy": {"shadows": scenario.shadows},
            "gateway": {"replicas": scenario.gateways},
        },
    });
    serde_json::from_value(swarm).expect("the manifest above is one")
}

/// Layers of the model.
pub(crate) const LAYERS: u32 = MODEL_LAYERS;
