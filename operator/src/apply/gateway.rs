//! Gateways: Deployment, Service and PodDisruptionBudget.

use dunlin_crds::{PodTemplateSpec, ResourcesSpec};
use serde_json::{Value, json};

use crate::apply::budget::{Guarantee, budget};
use crate::apply::network::{GRPC_PORT, HEALTH_PORT, HTTP_PORT};
use crate::apply::parts::{
    Container, Image, Mount, apart, container, model_environment, pod_spec, tls_volume,
};
use crate::apply::passthrough;
use crate::apply::pods::pod_hash;
use crate::labels::{CERTIFICATE, CERTIFICATE_ROLE, Owner, POD_HASH, ROLE_GATEWAY, leaf};
use crate::spot;

/// How long a gateway that is about to go listens on while kube-proxies take it out of the Service.
const UNLISTED_S: u32 = 3;
/// How long it may take to end when nothing runs any more.
const END_S: u32 = 5;
/// What a gateway is given when nobody says. It waits for stages most of the time, and needs a share of a busy node when a token comes.
const CPU: &str = "100m";
/// The same of memory. With a vocabulary of 49,000 tokens (SmolLM2) it holds 60 MiB, most of it the tokenizer's tables; this is for twice that.
const MEMORY: &str = "128Mi";

/// What the gateways of a swarm are made from.
#[derive(Clone, Debug)]
pub struct Gateway<'a> {
    /// The swarm that owns them.
    pub owner: &'a Owner,
    /// Image and pull settings.
    pub image: &'a Image,
    /// Pods.
    pub replicas: u32,
    /// Seconds for answers that have begun when it is told to end.
    pub drain_s: u32,
    /// Container resources as Kubernetes writes them.
    pub resources: &'a Value,
    /// What they get beside what they need.
    pub extra: &'a PodTemplateSpec,
    /// The name clients ask for.
    pub model: &'a str,
    /// Fingerprint of the model's source.
    pub digest: &'a str,
    /// Size limit of what it downloads, in bytes.
    pub cache_bytes: u64,
    /// `--model-url`, `--adapter` and the like.
    pub model_args: &'a [String],
    /// Volumes with the model and its adapters.
    pub mounts: &'a [Mount],
}

/// Requests and limits of a gateway: those that the manifest asks for, and a request of everything that it does not name. `copy_bytes`: room for
/// a copy of the model.
#[must_use]
pub fn resources(asked: Option<&ResourcesSpec>, copy_bytes: Option<u64>) -> Value {
    let mut resources = asked.cloned().unwrap_or_default();
    let copy = copy_bytes.map(|bytes| ("ephemeral-storage", bytes.to_string()));
    let needs = [("cpu", CPU.to_owned()), ("memory", MEMORY.to_owned())];
    for (name, amount) in needs.into_iter().chain(copy) {
        // Of what has a limit alone, Kubernetes requests as much.
        if !resources.limits.contains_key(name) {
            resources.requests.entry(name.to_owned()).or_insert_with(|| amount.as_str().into());
        }
    }
    json!(resources)
}

impl Gateway<'_> {
    /// All objects, in the order in which they are applied.
    #[must_use]
    pub fn manifests(&self) -> Vec<Value> {
        let budget = budget(self.owner, &self.owner.gateway(), ROLE_GATEWAY, Guarantee::Unavailable(1));
        vec![self.service(), budget, self.deployment()]
    }

    fn service(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.owner.metadata(&self.owner.gateway(), ROLE_GATEWAY),
            "spec": {
                "selector": self.owner.selector(ROLE_GATEWAY),
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
        })
    }

    fn deployment(&self) -> Value {
        let mut template = self.pod_template();
        template["metadata"]["labels"][POD_HASH] = json!(pod_hash(&template["spec"], self.extra));
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.owner.metadata(&self.owner.gateway(), ROLE_GATEWAY),
            "spec": {
                "replicas": self.replicas,
                "revisionHistoryLimit": 2,
                "selector": {"matchLabels": self.owner.selector(ROLE_GATEWAY)},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": template,
            },
        })
    }

    /// Fingerprint of what the pods are, by which one knows who is of the present Deployment.
    #[must_use]
    pub fn hash(&self) -> String {
        pod_hash(&self.pod_template()["spec"], self.extra)
    }

    fn pod_template(&self) -> Value {
        let mut labels = self.owner.labels(ROLE_GATEWAY);
        labels.insert(CERTIFICATE.to_owned(), CERTIFICATE_ROLE.to_owned());
        let affinity = json!({
            "podAntiAffinity": apart(self.owner, ROLE_GATEWAY),
            "nodeAffinity": spot::prefer_steady(),
        });
        let mut spec = pod_spec(self.image, affinity, &spot::tolerations(true));
        spec["containers"] = json!([container(&Container {
            name: "gateway",
            image: self.image,
            args: self.args(),
            environment: vec![model_environment(self.digest)],
            ports: json!([
                {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
                {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"},
                {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
            ]),
            resources: self.resources.clone(),
            mounts: json!([
                {"name": "topology", "mountPath": "/etc/dunlin/topology", "readOnly": true},
                {"name": "cache", "mountPath": "/var/cache/dunlin"},
            ]),
        })]);
        spec["terminationGracePeriodSeconds"] = json!(UNLISTED_S + self.drain_s + END_S);
        // Clients stop being sent here before the gateway stops listening.
        spec["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": UNLISTED_S}}});
        spec["volumes"] = json!([
            tls_volume(&leaf(&self.owner.gateway())),
            // Optional: a gateway may start before the first plan.
            {"name": "topology", "configMap": {"name": self.owner.topology(), "optional": true}},
            {"name": "cache", "emptyDir": {"sizeLimit": self.cache_bytes.to_string()}},
            {"name": "tmp", "emptyDir": {"sizeLimit": (64_u64 << 20).to_string()}},
        ]);
        for mount in self.mounts {
            mount.add(&mut spec);
        }
        let mut template = json!({"metadata": {"labels": labels}, "spec": spec});
        passthrough::add(self.extra, &mut template);
        template
    }

    fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = [
            "gateway",
            "--name",
            "$(POD_NAME)",
            "--http",
            &format!("0.0.0.0:{HTTP_PORT}"),
            "--listen",
            &format!("0.0.0.0:{GRPC_PORT}"),
            "--health",
            &format!("0.0.0.0:{HEALTH_PORT}"),
            "--tls-dir",
            "/etc/dunlin/tls",
            "--topology",
            "/etc/dunlin/topology/topology.json",
            "--cache",
            "/var/cache/dunlin",
            "--model-name",
            self.model,
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(["--drain-s".to_owned(), self.drain_s.to_string()]);
        args.extend_from_slice(self.model_args);
        args
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;

    use super::*;
    use crate::testing::{assert_restricted, assert_typed, image, owner};

    #[test]
    fn gateways_request_what_they_use_and_manifests_win() {
        let of = |asked: Value| resources(serde_json::from_value(asked).ok().as_ref(), None);
        assert_eq!(of(Value::Null), json!({"requests": {"cpu": "100m", "memory": "128Mi"}}));
        // A request above the limit would be refused.
        let limited = json!({"requests": {"cpu": "2"}, "limits": {"memory": "64Mi", "cpu": "3"}});
        assert_eq!(of(limited.clone()), limited);
        let more = json!({"requests": {"memory": "1Gi"}});
        assert_eq!(of(more), json!({"requests": {"cpu": "100m", "memory": "1Gi"}}));
        let copy = resources(None, Some(1 << 30));
        assert_eq!(copy["requests"]["ephemeral-storage"], "1073741824");
    }

    #[test]
    fn gateways_are_valid_restricted_and_behind_port_80() {
        let (owner, image, resources) = (owner(), image(), json!({"requests": {"cpu": "100m"}}));
        let gateway = Gateway {
            owner: &owner,
            image: &image,
            replicas: 2,
            drain_s: 120,
            resources: &resources,
            extra: &PodTemplateSpec::default(),
            model: "m",
            digest: "d",
            cache_bytes: 1 << 30,
            model_args: &[],
            mounts: &[Mount::claim("adapters-0", "/adapters/b", "b", true)],
        };
        let all = gateway.manifests();
        assert_typed::<Service>(&all[0]);
        assert_typed::<PodDisruptionBudget>(&all[1]);
        assert_typed::<Deployment>(&all[2]);
        assert_eq!(all[0]["spec"]["ports"][0]["port"], 80);
        assert_eq!(all[2]["spec"]["replicas"], 2);
        let spec = &all[2]["spec"]["template"]["spec"];
        assert_restricted(spec);
        let unlisted_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
        let args = spec["containers"][0]["args"].as_array().unwrap();
        let told = args.iter().position(|arg| arg == "--drain-s").and_then(|i| args[i + 1].as_str()).unwrap();
        assert_eq!(told, "120");
        assert!(unlisted_s + 120 < spec["terminationGracePeriodSeconds"].as_u64().unwrap());
        let selector = &all[2]["spec"]["selector"]["matchLabels"];
        for (key, value) in selector.as_object().unwrap() {
            assert_eq!(&all[2]["spec"]["template"]["metadata"]["labels"][key], value);
        }
    }
}
