//! The operator's calls, one after the other: each takes time, may fail, be done without an answer, or be the last one before the process ends.

use dunlin_operator::api::ApiVerb;
use dunlin_operator::apply::topology;
use dunlin_operator::error::Error;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::flaw::Flaw;
use crate::objects::key;
use crate::operator::{Call, Step};
use crate::world::{Event, World};

/// A call arrives within so long, and so does its answer.
const CALL_MS: u64 = 10;

impl World {
    /// The operator looks, if it is there.
    pub fn look(&mut self) {
        if let Some(operator) = &mut self.operator {
            operator.begin(&self.swarm);
            self.go_on();
        }
    }

    /// The pass goes on until it calls again, or is over.
    fn go_on(&mut self) {
        let Some(mut operator) = self.operator.take() else { return };
        let step = operator.go_on(&self.swarm, &mut self.clock, self.calendar.now());
        self.operator = Some(operator);
        match step {
            None => {}
            Some(Step::Calls(call)) => {
                self.check_order(&call.verb);
                let after = 1 + self.draw(CALL_MS);
                self.at(after, Event::Call(self.term, call));
                self.count_call();
            }
            Some(Step::Ended { pause_ms, failure: Some(failure) }) => {
                if let Error::Plan(finding) = &failure {
                    self.violation(format!("the plan breaks a rule: {finding}"));
                }
                let sentence = failure.sentence();
                self.say(|| format!("the operator could not: {sentence}; again in {pause_ms} ms"));
            }
            Some(Step::Ended { .. }) => {}
        }
    }

    /// The process may end here: what it has asked for arrives all the same.
    fn count_call(&mut self) {
        let Some(left) = &mut self.calls_left else { return };
        if let Some(fewer) = left.checked_sub(1) {
            *left = fewer;
            return;
        }
        self.say(|| "fault: the operator's process ended in the middle of a pass".to_owned());
        (self.calls_left, self.operator) = (None, None);
        let after = 1000 + self.draw(20_000);
        self.at(after, Event::Lead);
    }

    /// A call arrives, of the operator of this term.
    pub fn called(&mut self, term: u64, call: Call) {
        let Call { action, verb, answer: to } = call;
        let flaky = self.now() < self.flaky_until_ms;
        let timeout = || Error::Timeout { action: action.clone(), limit_s: 10 };
        let is_publication =
            matches!(&verb, ApiVerb::Create(o) | ApiVerb::Apply(o) if o["kind"] == "ConfigMap");
        let mut answer = if self.now() < self.outage_until_ms || flaky && self.draw(3) == 0 {
            Err(timeout())
        } else {
            let done = self.perform(&action, verb);
            if flaky && self.draw(3) == 0 { Err(timeout()) } else { done }
        };
        if is_publication && answer.is_err() && self.scenario.flaw == Some(Flaw::HandsOut) {
            answer = Ok(json!({"metadata": {"resourceVersion": "0"}}));
        }
        let after = 1 + self.draw(CALL_MS);
        let published = is_publication && answer.is_ok();
        self.at(after, Event::Answer { term, published, answer, to });
    }

    /// The answer arrives, if somebody waits for it.
    pub fn answered(&mut self, term: u64, published: bool, send: impl FnOnce()) {
        if term != self.term || self.operator.is_none() {
            return;
        }
        if let (Some(operator), Some(topology)) = (&mut self.operator, &self.cluster.published)
            && published
        {
            operator.so_far.published(topology.epoch);
            operator.talks.published(topology);
        }
        send();
        self.go_on();
    }

    /// What the API server makes of a call.
    fn perform(&mut self, action: &str, verb: ApiVerb) -> Result<Value, Error> {
        let refused = |code: u16| {
            let reason = if code == 409 { "Conflict" } else { "Invalid" };
            let status = kube::core::Status { code, reason: reason.into(), ..kube::core::Status::default() };
            Error::api(action.to_owned(), kube::Error::Api(Box::new(status)))
        };
        match verb {
            ApiVerb::Get { kind, name, .. } => {
                let mut found = self.cluster.objects.get(kind, &name);
                if kind == "ConfigMap" && self.scenario.flaw == Some(Flaw::Forgets) && !found.is_null() {
                    found["data"] = Value::Null;
                }
                Ok(found)
            }
            ApiVerb::Create(object) => {
                let kept = self.cluster.objects.create(object).map_err(refused)?;
                self.kept(&kept);
                Ok(kept)
            }
            ApiVerb::Apply(object) if object["kind"] == "Pod" => Ok(self.make(object)),
            ApiVerb::Apply(object) => {
                let kept = self.cluster.objects.apply(object).map_err(refused)?;
                self.kept(&kept);
                Ok(kept)
            }
            ApiVerb::Delete { name, uid, now, .. } => {
                self.say(|| format!("{name} is deleted{}", if now { " at once" } else { "" }));
                self.record.deleted();
                self.cluster.delete(&name, &uid, now, self.now());
                Ok(Value::Null)
            }
            ApiVerb::Status { mut body, .. } => {
                let status = serde_json::from_value(body["status"].take());
                self.tell_status(status.expect("the operator's status is one"));
                Ok(Value::Null)
            }
            ApiVerb::Tell { event, .. } => {
                self.say(|| format!("{}: {}", event.reason, event.note.as_deref().unwrap_or_default()));
                Ok(Value::Null)
            }
        }
    }

    fn tell_status(&mut self, status: dunlin_crds::InferenceSwarmStatus) {
        let before = self.swarm.status.take().unwrap_or_default();
        if let Some(plan) = status.plan.as_ref().filter(|_| status.epoch != before.epoch) {
            self.say(|| format!("epoch {}: {}", status.epoch, plan.summary));
        }
        self.swarm.status = Some(status);
    }

    fn make(&mut self, object: Value) -> Value {
        let pod: Pod = serde_json::from_value(object).expect("the operator's manifest is one of a pod");
        let name = pod.name_any();
        if !self.cluster.pods.contains_key(&name) {
            self.say(|| format!("{name} is made"));
            self.out.pods += 1;
            self.record.made();
        }
        serde_json::to_value(self.cluster.make(pod)).unwrap_or_default()
    }

    /// An object is there that others go by.
    fn kept(&mut self, object: &Value) {
        match key(object).0.as_str() {
            "ConfigMap" => {
                let map = serde_json::from_value(object.clone()).ok();
                let Some(topology) = map.as_ref().and_then(topology::read) else { return };
                let violations = [self.record.published(&topology), self.mixed_models(&topology)];
                violations.into_iter().flatten().for_each(|violation| self.violation(violation));
                self.out.epoch = topology.epoch;
                self.cluster.published = Some(topology);
            }
            "Deployment" => {
                let mut template = object["spec"]["template"].clone();
                template["metadata"]["namespace"] = object["metadata"]["namespace"].clone();
                let template =
                    serde_json::from_value(template).expect("the operator's template is one of pods");
                let replicas = object["spec"]["replicas"].as_u64().unwrap_or_default();
                self.cluster.gateways = Some((u32::try_from(replicas).unwrap_or(u32::MAX), template));
            }
            _ => {}
        }
    }
}
