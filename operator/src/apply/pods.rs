//! Worker pods. They are created directly: a replacement never waits for the pod it replaces to finish terminating.

use std::collections::BTreeMap;

use dunlin_crds::{NvidiaSpec, PodTemplateSpec};
use serde_json::{Value, json};

use crate::apply::network::{GRPC_PORT, HEALTH_PORT};
use crate::apply::parts::{Container, Image, Mount, apart, common_args, container, pod_spec, tls_volume};
use crate::apply::passthrough;
use crate::labels::{
    CERTIFICATE, CERTIFICATE_ROLE, EPOCH, Owner, POD_HASH, POOL, ROLE_STAGE, TEMPLATE, fingerprint, leaf,
};
use crate::spot;

/// Where a volume with models is mounted.
pub const MODELS_DIR: &str = "/models";
/// Below which each other volume with adapters is mounted, in a folder with the name of its claim.
pub const ADAPTERS_DIR: &str = "/adapters";
/// Room of the weight cache beside the pool's own figure, in bytes: logs and temporary files.
const TMP_BYTES: u64 = 64 << 20;

/// A pool as its pods see it.
#[derive(Clone, Debug)]
pub struct PoolTemplate {
    /// Name of the pool.
    pub name: String,
    /// Preemptible capacity.
    pub spot: bool,
    /// The user's node selector.
    pub node_selector: BTreeMap<String, String>,
    /// CPU request in thousandths of a core.
    pub cpu_millis: u64,
    /// CPU limit in thousandths of a core.
    pub cpu_millis_max: Option<u64>,
    /// Threads of the engine.
    pub threads: u32,
    /// The GPU that computes, if one does.
    pub nvidia: Option<NvidiaSpec>,
    /// Memory limit in bytes.
    pub memory_bytes: u64,
    /// Size limit of the weight cache, in bytes.
    pub disk_bytes: u64,
    /// The node must have so much room for it, in bytes; 0 where nothing is kept there.
    pub disk_request_bytes: u64,
    /// What pods get beside what they need.
    pub extra: PodTemplateSpec,
}

impl PoolTemplate {
    /// Requests and limits of a worker.
    #[must_use]
    pub fn resources(&self) -> Value {
        let memory = self.memory_bytes.to_string();
        let mut resources = json!({
            "requests": {"cpu": format!("{}m", self.cpu_millis), "memory": memory},
            "limits": {"memory": memory},
        });
        if let Some(millis) = self.cpu_millis_max {
            resources["limits"]["cpu"] = json!(format!("{millis}m"));
        }
        if let Some(nvidia) = &self.nvidia {
            // Requests of such resources follow from their limits.
            resources["limits"][&nvidia.resource] = json!(nvidia.count.to_string());
        }
        if self.disk_request_bytes > 0 {
            resources["requests"]["ephemeral-storage"] = json!(self.disk_request_bytes.to_string());
        }
        resources
    }

    /// Has the node keep the room free that the weight cache may take.
    pub fn request_disk(&mut self) {
        self.disk_request_bytes = self.disk_bytes;
    }

    /// What a worker may use: threads, and so much memory.
    #[must_use]
    pub fn args(&self, memory_bytes: u64) -> [String; 4] {
        ["--threads".to_owned(), self.threads.to_string(), "--memory".to_owned(), memory_bytes.to_string()]
    }

    /// What lets its pods on nodes with GPUs, which are commonly tainted so that no others run there.
    fn gpu_tolerations(&self) -> Vec<Value> {
        let tolerated = json!({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
        self.nvidia.iter().map(|_| tolerated.clone()).collect()
    }
}

/// Which nodes a pod may run on.
#[derive(Clone, Copy, Debug)]
pub enum Nodes<'a> {
    /// Those of its own pool.
    Own {
        /// Some node of the cluster carries a spot marker.
        marked: bool,
    },
    /// Those of any of these pools, rather steady ones.
    Any(&'a [PoolTemplate]),
}

/// One pod to be.
#[derive(Clone, Debug)]
pub struct WorkerPod<'a> {
    /// The swarm that owns it.
    pub owner: &'a Owner,
    /// Its name, never used before.
    pub name: &'a str,
    /// Value of its role label: which pods selectors and policies mean.
    pub role: &'a str,
    /// Image and pull settings.
    pub image: &'a Image,
    /// The pool that it is made in.
    pub pool: &'a PoolTemplate,
    /// Where it may run.
    pub nodes: Nodes<'a>,
    /// Command line.
    pub args: Vec<String>,
    /// Ports by name, beside that of health.
    pub ports: &'a [(&'a str, u16)],
    /// Requests and limits; those of the pool when absent.
    pub resources: Option<Value>,
    /// Volumes, beside certificate, cache and temporary files.
    pub mounts: Vec<Mount>,
    /// Variables of its environment as Kubernetes writes them, beside those of every worker.
    pub environment: Vec<Value>,
    /// Fingerprint of what the pod is made from.
    pub template: &'a str,
    /// Epoch of the plan that asks for it.
    pub epoch: Option<u64>,
}

impl WorkerPod<'_> {
    /// The pod as it is sent to the API server.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let mut pod = self.unmarked();
        pod["metadata"]["labels"][POD_HASH] = json!(self.hash());
        pod
    }

    /// Fingerprint of what the pod is, whatever its name and whichever plan asks for it.
    #[must_use]
    pub fn hash(&self) -> String {
        // Whether there are nodes with spot markers at the moment is nothing that anybody has changed.
        let nodes = match self.nodes {
            Nodes::Own { .. } => Nodes::Own { marked: true },
            any @ Nodes::Any(_) => any,
        };
        pod_hash(&WorkerPod { name: "", nodes, ..self.clone() }.unmarked()["spec"], &self.pool.extra)
    }

    /// A spec that says on which nodes it may run.
    fn placed_spec(&self) -> Value {
        let mut affinity = json!({"podAntiAffinity": apart(self.owner, self.role)});
        let (nodes, tolerations, selector) = match self.nodes {
            Nodes::Own { marked } => (
                spot::node_affinity(self.pool.spot, &self.pool.node_selector, marked),
                [spot::tolerations(self.pool.spot), self.pool.gpu_tolerations()].concat(),
                Some(&self.pool.node_selector),
            ),
            Nodes::Any(pools) => {
                let selectors = pools.iter().map(|p| &p.node_selector).collect::<Vec<_>>();
                (Some(spot::any_of(&selectors)), spot::tolerations(true), None)
            }
        };
        if let Some(nodes) = nodes {
            affinity["nodeAffinity"] = nodes;
        }
        let mut spec = pod_spec(self.image, affinity, &tolerations);
        if let Some(selector) = selector.filter(|s| !s.is_empty()) {
            spec["nodeSelector"] = json!(selector);
        }
        if let Some(class) = self.pool.nvidia.as_ref().and_then(|nvidia| nvidia.runtime_class_name.as_ref()) {
            spec["runtimeClassName"] = json!(class);
        }
        spec
    }

    /// The manifest without its fingerprint.
    fn unmarked(&self) -> Value {
        let mut metadata = self.owner.metadata(self.name, self.role);
        metadata["labels"][POOL] = json!(self.pool.name);
        metadata["labels"][TEMPLATE] = json!(self.template);
        metadata["labels"][CERTIFICATE] = json!(CERTIFICATE_ROLE);
        if let Some(epoch) = self.epoch {
            metadata["labels"][EPOCH] = json!(epoch.to_string());
        }
        metadata["annotations"] = json!({
            // Neither autoscaler should move a peer for tidiness; reclaims and drains of real need go through all the same.
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
            "argocd.argoproj.io/ignore-restart-policy": "true",
        });
        let mut spec = self.placed_spec();
        // A name is one life of a peer: a container that ends is replaced by another pod, never restarted.
        spec["restartPolicy"] = json!("Never");
        let port =
            |(name, port): &(&str, u16)| json!({"name": name, "containerPort": port, "protocol": "TCP"});
        let ports = self.ports.iter().chain(&[("health", HEALTH_PORT)]).map(port).collect::<Vec<_>>();
        // What is temporary may be large, and this disk is sized by the pool.
        let mut environment = vec![json!({"name": "TMPDIR", "value": "/var/cache/dunlin"})];
        environment.extend_from_slice(&self.environment);
        spec["containers"] = json!([container(&Container {
            name: self.role,
            image: self.image,
            args: self.args.clone(),
            environment,
            ports: json!(ports),
            resources: self.resources.clone().unwrap_or_else(|| self.pool.resources()),
            mounts: json!([{"name": "cache", "mountPath": "/var/cache/dunlin"}]),
        })]);
        spec["volumes"] = json!([
            tls_volume(&leaf(self.name)),
            {"name": "cache", "emptyDir": {"sizeLimit": self.pool.disk_bytes.to_string()}},
            {"name": "tmp", "emptyDir": {"sizeLimit": TMP_BYTES.to_string()}},
        ]);
        for mount in &self.mounts {
            mount.add(&mut spec);
        }
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        passthrough::add(&self.pool.extra, &mut pod);
        pod
    }
}

/// Fingerprint of a pod with this `spec`, into which `extra` has gone. Labels that the operator gives or a swarm hands down change no pod.
pub(super) fn pod_hash(spec: &Value, extra: &PodTemplateSpec) -> String {
    fingerprint(&json!([spec, extra.labels, extra.annotations]))
}

/// Command line of a stage that serves `model_args`.
#[must_use]
pub fn stage_args(pool: &PoolTemplate, model_args: &[String]) -> Vec<String> {
    let (listen, cache) = (format!("0.0.0.0:{GRPC_PORT}"), "/var/cache/dunlin".to_owned());
    let mut args = common_args(ROLE_STAGE);
    args.extend(["--listen".to_owned(), listen, "--cache".to_owned(), cache]);
    // It divides all of it by itself, and says what room that leaves for layers.
    args.extend(pool.args(pool.memory_bytes));
    if pool.nvidia.is_some() {
        args.extend(["--device".to_owned(), "nvidia".to_owned()]);
    }
    args.extend_from_slice(model_args);
    args
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::testing::{assert_restricted, assert_typed, image, owner, pool};

    fn manifest(spot: bool, selector: &[(&str, &str)]) -> Value {
        manifest_with(spot, selector, None)
    }

    fn manifest_with(spot: bool, selector: &[(&str, &str)], model_claim: Option<&str>) -> Value {
        let mut pool = pool("spot", spot);
        pool.node_selector = selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let model_args = ["--model-url".to_owned(), "http://models/m.gguf".to_owned()];
        WorkerPod {
            owner: &owner(),
            name: "smollm2-spot-x7x7x",
            role: ROLE_STAGE,
            image: &image(),
            pool: &pool,
            nodes: Nodes::Own { marked: true },
            args: stage_args(&pool, &model_args),
            ports: &[("grpc", GRPC_PORT)],
            resources: None,
            mounts: model_claim
                .map(|claim| Mount::claim("models", MODELS_DIR, claim, true))
                .into_iter()
                .collect(),
            environment: vec![],
            template: "abc",
            epoch: Some(3),
        }
        .manifest()
    }

    #[test]
    fn the_pod_is_valid_restricted_and_owned() {
        let pod = manifest(true, &[]);
        assert_typed::<Pod>(&pod);
        assert_restricted(&pod["spec"]);
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        assert_eq!(pod["metadata"]["ownerReferences"][0]["controller"], true);
        assert_eq!(pod["metadata"]["labels"][EPOCH], "3");
        assert_eq!(pod["spec"]["volumes"][0]["secret"]["secretName"], "smollm2-spot-x7x7x-tls");
    }

    #[test]
    fn the_user_selects_nodes_or_the_platform_markers_do() {
        assert!(manifest(true, &[])["spec"]["affinity"].get("nodeAffinity").is_some());
        let selected = manifest(true, &[("cloud.google.com/gke-spot", "true")]);
        assert!(selected["spec"]["affinity"].get("nodeAffinity").is_none());
        assert_eq!(selected["spec"]["nodeSelector"]["cloud.google.com/gke-spot"], "true");
    }

    #[test]
    fn a_model_on_a_volume_is_mounted_for_reading() {
        let pod = manifest_with(true, &[], Some("weights"));
        assert_typed::<Pod>(&pod);
        assert_restricted(&pod["spec"]);
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.last().unwrap()["persistentVolumeClaim"]["claimName"], "weights");
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        assert_eq!(
            (&mounts.last().unwrap()["mountPath"], &mounts.last().unwrap()["readOnly"]),
            (&json!("/models"), &json!(true))
        );
    }

    #[test]
    fn a_peer_with_a_gpu_asks_for_it_and_computes_on_nothing_else() {
        let nvidia = json!({"resource": "nvidia.com/mig-3g.40gb", "runtimeClassName": "nvidia"});
        let pool = PoolTemplate { nvidia: serde_json::from_value(nvidia).unwrap(), ..pool("gpu", true) };
        let pod = WorkerPod {
            owner: &owner(),
            name: "smollm2-gpu-x7x7x",
            role: ROLE_STAGE,
            image: &image(),
            pool: &pool,
            nodes: Nodes::Own { marked: true },
            args: stage_args(&pool, &[]),
            ports: &[],
            resources: None,
            mounts: Vec::new(),
            environment: Vec::new(),
            template: "abc",
            epoch: None,
        };
        let manifest = pod.manifest();
        assert_typed::<Pod>(&manifest);
        assert_restricted(&manifest["spec"]);
        let container = &manifest["spec"]["containers"][0];
        assert_eq!(container["resources"]["limits"]["nvidia.com/mig-3g.40gb"], "1");
        assert_eq!(container["resources"]["requests"].get("nvidia.com/mig-3g.40gb"), None);
        assert_eq!(manifest["spec"]["runtimeClassName"], "nvidia");
        assert!(container["args"].to_string().contains(r#""--device","nvidia""#));
        assert!(manifest["spec"]["tolerations"].to_string().contains("nvidia.com/gpu"));
        // Nothing of it reaches pods of other pools.
        let without =
            WorkerPod { pool: &PoolTemplate { nvidia: None, ..pool.clone() }, ..pod.clone() }.manifest();
        assert!(!without["spec"]["tolerations"].to_string().contains("nvidia"));
        assert_eq!(without["spec"]["containers"][0]["resources"]["limits"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn the_worker_is_told_its_name_and_model() {
        let args = manifest(false, &[])["spec"]["containers"][0]["args"].to_string();
        for part in ["\"stage\"", "$(POD_NAME)", "--model-url", "--memory"] {
            assert!(args.contains(part), "{args}");
        }
    }
}
