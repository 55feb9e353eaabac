//! One pass of the operator: it looks, and what it decided is done, call by call. Each call may fail, be done without an answer, or be the last one
//! before the process ends.

use dunlin_crds::InferenceSwarm;
use dunlin_operator::error::Error;
use dunlin_operator::labels::pod_name;
use dunlin_operator::swarm::{Policy, Reporter};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::operator::{Looked, Operator};
use crate::world::{Event, World};

/// Why a pass ended early.
enum Failure {
    /// As the operator calls it.
    Known(Error),
    /// The process has ended.
    Over,
}

/// While pods of an earlier leader have not been heard yet.
const UNHEARD_MS: u64 = 1000;

impl World {
    /// The operator looks, if it is there.
    pub fn look(&mut self) {
        let Some(mut operator) = self.operator.take() else { return };
        match self.pass(&mut operator) {
            Ok(pause_ms) => {
                operator.failures = 0;
                operator.wake_ms = self.now + pause_ms - pause_ms / 4 * self.draw(1000) / 1000;
            }
            Err(Failure::Known(error)) => {
                operator.failures += 1;
                let pause = error.backoff(operator.failures, self.draw(1000));
                operator.wake_ms = self.now + pause.as_millis() as u64;
                self.say(|| format!("the operator could not: {}", error.sentence()));
            }
            Err(Failure::Over) => {
                self.say(|| "fault: the operator's process ended in the middle of a pass".to_owned());
                self.calls_left = None;
                let after = 1000 + self.draw(20_000);
                return self.at(after, Event::Lead);
            }
        }
        self.operator = Some(operator);
    }

    /// Whether a call arrives, and whether its answer does.
    fn call(&mut self, action: &str) -> Result<bool, Failure> {
        if let Some(left) = &mut self.calls_left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => return Err(Failure::Over),
            }
        }
        let flaky = self.now < self.flaky_until_ms;
        match () {
            () if self.now < self.outage_until_ms => Err(timeout(action)),
            () if flaky && self.draw(3) == 0 => Err(timeout(action)),
            () => Ok(!(flaky && self.draw(3) == 0)),
        }
    }

    fn pass(&mut self, operator: &mut Operator) -> Result<u64, Failure> {
        if operator.published.is_none() {
            match self.call("read the topology") {
                Ok(true) => operator.recover(self.cluster.published.clone()),
                Ok(false) | Err(Failure::Known(_)) if operator.has_looked() => {}
                Ok(false) => return Err(timeout("read the topology")),
                Err(failure) => return Err(failure),
            }
        }
        let epoch_before = operator.state.epoch();
        let at = self.time();
        let looked = match operator.look(&self.swarm, at, self.now) {
            Ok(looked) => looked,
            Err(finding) => {
                self.violation(format!("the plan breaks a rule: {finding}"));
                return Err(Failure::Known(Error::Plan(finding)));
            }
        };
        if let Some(summary) =
            looked.decision.plan.summary.as_ref().filter(|_| operator.state.epoch() != epoch_before)
        {
            let epoch = operator.state.epoch();
            self.say(|| format!("epoch {epoch}: {summary}"));
        }
        for event in &looked.decision.events {
            self.say(|| format!("{}: {}", event.reason, event.note));
        }
        let written = self.write(operator, &looked);
        if looked.decision.unheard > 0 {
            return written.map(|()| UNHEARD_MS);
        }
        let before = self.swarm.status.clone().unwrap_or_default();
        let status = self.swarm.next_status(
            &before,
            &looked.desired,
            &looked.decision,
            &operator.state,
            &operator.config,
        );
        if status != before && self.call("write the status")? {
            self.swarm.status = Some(status);
        }
        written?;
        Ok(InferenceSwarm::pause(&looked.decision, &operator.state).as_millis() as u64)
    }

    /// Everything, most urgent first.
    fn write(&mut self, operator: &mut Operator, looked: &Looked) -> Result<(), Failure> {
        let published = self.publish(operator);
        let is_conflict = |failure: &Failure| matches!(failure, Failure::Known(error) if error.is_conflict());
        if matches!(published, Err(Failure::Over)) {
            return published;
        }
        if !published.as_ref().is_err_and(is_conflict) {
            operator.order(&looked.view, self.now);
        }
        published?;
        self.deploy(looked)?;
        for (_, creation) in &looked.decision.create {
            let pool = &creation.pool;
            let random = self.draw(u64::MAX);
            let name = operator.names.entry(pool.name.clone());
            let name = name.or_insert_with(|| pod_name("s", &pool.name, random)).clone();
            let (marked, epoch) = (looked.view.spot_nodes_marked, Some(operator.state.epoch()));
            let manifest = looked.desired.stage(&looked.owner, &name, pool, marked, epoch).manifest();
            let heard = self.call("create a pod")?;
            let pod: Pod = serde_json::from_value(manifest).expect("the operator's manifest is one of a pod");
            let made = self.make(pod);
            if !heard {
                return Err(timeout("create a pod"));
            }
            operator.names.remove(&pool.name);
            operator.made.push((made, self.now));
        }
        for deletion in looked.view.strays.iter().chain(&looked.decision.delete) {
            let heard = self.call("delete a pod")?;
            let (name, at_once) = (&deletion.name, deletion.now);
            self.say(|| format!("{name} is deleted{}", if at_once { " at once" } else { "" }));
            self.record.deleted();
            self.cluster.delete(name, &deletion.uid, at_once, self.now);
            if !heard {
                return Err(timeout("delete a pod"));
            }
        }
        Ok(())
    }

    fn make(&mut self, pod: Pod) -> Pod {
        let name = pod.name_any();
        if !self.cluster.pods.contains_key(&name) {
            self.say(|| format!("{name} is made"));
            self.out.pods += 1;
            self.record.made();
        }
        self.cluster.make(pod)
    }

    /// The topology, as the successor of what is known to be published.
    fn publish(&mut self, operator: &mut Operator) -> Result<(), Failure> {
        let Some(topology) = operator.state.topology.clone() else { return Ok(()) };
        if operator.written.as_ref() == Some(&topology) && operator.published.is_some() {
            return Ok(());
        }
        let Some(replaces) = operator.published.take() else { return Err(Failure::Known(Error::Unread)) };
        let heard = self.call("publish the topology")?;
        let there = self.cluster.published.as_ref().map(|(version, _)| *version);
        if there != replaces {
            return Err(conflict());
        }
        let version = self.cluster.number();
        if let Some(violation) = self.record.published(&topology) {
            self.violation(violation);
        }
        self.out.epoch = topology.epoch;
        self.cluster.published = Some((version, topology.clone()));
        if !heard {
            return Err(timeout("publish the topology"));
        }
        (operator.published, operator.written) = (Some(Some(version)), Some(topology.clone()));
        operator.given = Some(topology);
        Ok(())
    }

    /// The Deployment of the gateways.
    fn deploy(&mut self, looked: &Looked) -> Result<(), Failure> {
        let replicas = looked.desired.gateways;
        let known = self.cluster.gateways.as_ref();
        let hash = |pod: &Pod| pod.labels().get(dunlin_operator::labels::POD_HASH).cloned();
        let is_new = known.is_none_or(|(count, pod)| {
            *count != replicas || hash(pod).as_deref() != Some(looked.desired.gateway_hash.as_str())
        });
        if !is_new {
            return Ok(());
        }
        let manifest = looked.desired.gateway(&looked.owner).manifests().pop().unwrap_or_default();
        let mut template = manifest["spec"]["template"].clone();
        template["metadata"]["namespace"] = manifest["metadata"]["namespace"].clone();
        let heard = self.call("apply the Deployment")?;
        let template = serde_json::from_value(template).expect("the operator's template is one of pods");
        self.cluster.gateways = Some((replicas, template));
        if heard { Ok(()) } else { Err(timeout("apply the Deployment")) }
    }
}

fn timeout(action: &str) -> Failure {
    Failure::Known(Error::Timeout { action: action.to_owned(), limit_s: 10 })
}

fn conflict() -> Failure {
    let status = kube::core::Status { code: 409, reason: "Conflict".into(), ..kube::core::Status::default() };
    Failure::Known(Error::api("publish the topology".into(), kube::Error::Api(Box::new(status))))
}
