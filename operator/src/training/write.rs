//! Carries out a decision about a run: its objects, new pods, deletions, in the order in which they are needed.

use dunlin_wire::Role;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::{Decision, Post};
use super::desired::Desired;
use super::memory::Memory;
use crate::apply::budget::{Guarantee, budget};
use crate::apply::certificates::{conductor_names, worker_names};
use crate::apply::network::{self, GRPC_PORT, HTTP_PORT};
use crate::apply::pods::{Mount, Nodes, PoolTemplate, WorkerPod, common_args};
use crate::context::Context;
use crate::error::Error;
use crate::labels::{Owner, ROLE_CONDUCTOR, ROLE_PEER, ROLE_TRAINER};
use crate::making::{Maker, Papers, Refusals, delete};
use crate::observe::SwarmView;
use crate::status::events::Happening;

/// Key of the run in its ConfigMap and name of the file that pods mount.
const KEY: &str = "training.json";
/// Where pods mount it.
const CONFIG_DIR: &str = "/etc/dunlin/training";

/// Everything, most urgent first. A refusal concerns one object: the others are written all the same.
pub(super) async fn all(
    owner: &Owner,
    desired: &Desired,
    view: &SwarmView,
    decision: &Decision,
    context: &Context,
    memory: &mut Memory,
    happenings: &mut Vec<Happening>,
) -> Result<(), Error> {
    let mut refusals = Refusals::default();
    let mut objects =
        network::policies(owner, &context.config.namespace, context.config.reach(&desired.outside));
    objects.extend([service(owner), disruption_budget(owner, desired)]);
    if decision.configure {
        objects.push(config_map(owner, &desired.config));
    }
    for object in objects {
        refusals.pass(context.applier.ensure(&mut memory.applied, &object).await)?;
    }
    if let Some(trust) = &memory.trust {
        let mut maker = Maker {
            owner,
            generation: decision.facts.generation,
            trust,
            applier: &context.applier,
            making: &mut memory.making,
            holds: &mut memory.applied.holds,
        };
        crew(&mut maker, desired, view, decision, &mut refusals, happenings).await?;
    }
    for deletions in [&view.strays, &decision.delete] {
        delete(&context.applier, owner, deletions, &mut refusals).await?;
    }
    refusals.end()
}

/// New pods, and certificates of those that wait for theirs.
async fn crew(
    maker: &mut Maker<'_>,
    desired: &Desired,
    view: &SwarmView,
    decision: &Decision,
    refusals: &mut Refusals,
    happenings: &mut Vec<Happening>,
) -> Result<(), Error> {
    let (owner, pools) = (maker.owner, desired.templates());
    for (post, creation) in &decision.create {
        let manifest = |name: &str| {
            pod(*post, owner, name, desired, &creation.pool, &pools, view.spot_nodes_marked).manifest()
        };
        let (pool, noun) = (&creation.pool.name, post.noun());
        let went = maker.create(pool, noun, creation.replaces, manifest, happenings).await;
        if let Some(pod) = refusals.pass(went)? {
            let went = maker.certify(&pod.name_any(), &pod.uid().unwrap_or_default(), papers(*post)).await;
            refusals.pass(went)?;
        }
    }
    for (post, crew) in
        [(Post::Conductor, &view.conductors), (Post::Peer, &view.workers), (Post::Trainer, &view.trainers)]
    {
        for pod in crew.values() {
            refusals.pass(maker.certify_if_due(pod, papers(post)).await)?;
        }
    }
    Ok(())
}

/// What the certificate of a pod says.
fn papers(post: Post) -> Papers {
    let as_worker = |owner: &Owner, name: &str| worker_names(owner, name).to_vec();
    match post {
        Post::Conductor => Papers { label: ROLE_CONDUCTOR, role: Role::Conductor, names: conductor_names },
        Post::Peer => Papers { label: ROLE_PEER, role: Role::Peer, names: as_worker },
        Post::Trainer => Papers { label: ROLE_TRAINER, role: Role::Trainer, names: as_worker },
    }
}

/// The Service under which pods find the conductor, whichever it is, and people its page.
fn service(owner: &Owner) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owner.metadata(&owner.conductor(), ROLE_CONDUCTOR),
        "spec": {
            "selector": owner.selector(ROLE_CONDUCTOR),
            "ports": [
                {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP"},
                {"name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
            ],
        },
    })
}

/// Drains leave a peer for each stage, but never wait for ever: where there are no more peers than that, one may go.
fn disruption_budget(owner: &Owner, desired: &Desired) -> Value {
    let kept = desired.stages.min(desired.peers().saturating_sub(1));
    budget(owner, &format!("{}-{ROLE_PEER}", owner.name), ROLE_PEER, Guarantee::Available(kept))
}

fn config_map(owner: &Owner, config: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owner.metadata(&owner.training(), ""),
        "data": {KEY: config.to_string()},
    })
}

/// The pod `name` of `post` in `pool`. `pools`: those of peers; `marked`: some node of the cluster carries a spot marker.
pub(super) fn pod<'a>(
    post: Post,
    owner: &'a Owner,
    name: &'a str,
    desired: &'a Desired,
    pool: &'a PoolTemplate,
    pools: &'a [PoolTemplate],
    marked: bool,
) -> WorkerPod<'a> {
    let (listen, http) = (format!("0.0.0.0:{GRPC_PORT}"), format!("0.0.0.0:{HTTP_PORT}"));
    let conductor = format!("{}:{GRPC_PORT}", owner.conductor());
    let told = |role: &str, more: &[(&str, String)]| {
        let mut args = common_args(role);
        args.extend(["--config".to_owned(), format!("{CONFIG_DIR}/{KEY}")]);
        args.extend(more.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
        args
    };
    const FRONT: &[(&str, u16)] = &[("grpc", GRPC_PORT), ("http", HTTP_PORT)];
    let (role, nodes, args, ports, mounts) = match post {
        Post::Conductor => {
            let args = told(ROLE_CONDUCTOR, &[("--listen", listen), ("--http", http)]);
            (ROLE_CONDUCTOR, Nodes::Any(pools), args, FRONT, &desired.mounts.conductor)
        }
        Post::Peer => {
            let mut args = told(ROLE_PEER, &[("--listen", listen), ("--conductor", conductor)]);
            // The rest is for buffers and the process itself.
            args.extend(pool.args(pool.memory_bytes / 8 * 7));
            args.extend(["--disk".to_owned(), pool.disk_bytes.to_string()]);
            (ROLE_PEER, Nodes::Own { marked }, args, &FRONT[..1], &desired.mounts.peers)
        }
        Post::Trainer => {
            let args = told(ROLE_TRAINER, &[("--conductor", conductor)]);
            (ROLE_TRAINER, Nodes::Any(pools), args, &FRONT[..0], &desired.mounts.trainers)
        }
    };
    let config = Mount {
        name: "training".to_owned(),
        path: CONFIG_DIR.to_owned(),
        source: json!({"configMap": {"name": owner.training()}}),
        read_only: true,
    };
    WorkerPod {
        owner,
        name,
        role,
        image: &desired.image,
        pool,
        nodes,
        args,
        ports,
        resources: if post == Post::Trainer { desired.trainer_resources.clone() } else { None },
        mounts: [config].into_iter().chain(mounts.iter().cloned()).collect(),
        template: &desired.template,
        epoch: None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;

    use super::*;
    use crate::labels::Kind;
    use crate::testing::{assert_restricted, assert_typed, config, training_swarm};

    fn owner() -> Owner {
        Owner { kind: Kind::Training, name: "tiny".into(), ..crate::testing::owner() }
    }

    fn made(post: Post) -> Value {
        let (owner, desired) = (owner(), Desired::new(&training_swarm(1), &config()));
        let pool = match post {
            Post::Conductor => &desired.conductor[0],
            Post::Peer => &desired.pools[0],
            Post::Trainer => &desired.trainers[0],
        };
        let pools = desired.templates();
        let manifest = pod(post, &owner, "tiny-x", &desired, &pool.template, &pools, true).manifest();
        assert_typed::<Pod>(&manifest);
        assert_restricted(&manifest["spec"]);
        assert_eq!(manifest["spec"]["restartPolicy"], "Never");
        assert_eq!(manifest["metadata"]["labels"]["dunlin.dev/kind"], "TrainingSwarm");
        assert_eq!(manifest["metadata"]["ownerReferences"][0]["kind"], "TrainingSwarm");
        manifest
    }

    fn args(pod: &Value) -> String {
        let args = pod["spec"]["containers"][0]["args"].as_array().unwrap();
        args.iter().map(|a| a.as_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn paths(pod: &Value) -> Vec<&str> {
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        mounts.iter().map(|m| m["mountPath"].as_str().unwrap()).collect()
    }

    #[test]
    fn each_role_is_told_what_it_needs() {
        let common = "--name $(POD_NAME) --health 0.0.0.0:9090 --tls-dir /etc/dunlin/tls --config /etc/dunlin/training/training.json";
        let (conductor, peer, trainer) = (made(Post::Conductor), made(Post::Peer), made(Post::Trainer));
        assert_eq!(args(&conductor), format!("conductor {common} --listen 0.0.0.0:7070 --http 0.0.0.0:8080"));
        assert_eq!(
            args(&peer),
            format!(
                "train-peer {common} --listen 0.0.0.0:7070 --conductor tiny-conductor:7070 --threads 1 --memory {} --disk {}",
                (256_u64 << 20) / 8 * 7,
                10_u64 << 30
            )
        );
        assert_eq!(args(&trainer), format!("trainer {common} --conductor tiny-conductor:7070"));
        let own = ["/etc/dunlin/tls", "/tmp", "/var/cache/dunlin", "/etc/dunlin/training"];
        assert_eq!(paths(&trainer), own);
        let with_checkpoints: Vec<&str> = own.into_iter().chain(["/checkpoints"]).collect();
        assert_eq!(paths(&peer), with_checkpoints);
        assert_eq!(paths(&conductor), with_checkpoints);
    }

    #[test]
    fn only_peers_are_bound_to_their_pool() {
        let required = |pod: &Value| {
            let affinity = &pod["spec"]["affinity"]["nodeAffinity"];
            affinity.get("requiredDuringSchedulingIgnoredDuringExecution").is_some()
        };
        assert!(required(&made(Post::Peer)));
        assert!(!required(&made(Post::Conductor)) && !required(&made(Post::Trainer)));
    }

    #[test]
    fn objects_are_valid_and_a_drain_never_waits_for_ever() {
        let mut swarm = training_swarm(1);
        assert_typed::<Service>(&service(&owner()));
        let desired = Desired::new(&swarm, &config());
        let budget = disruption_budget(&owner(), &desired);
        assert_typed::<PodDisruptionBudget>(&budget);
        assert_eq!(budget["spec"]["minAvailable"], 2);
        swarm.spec.pools[0].peers.min = 2;
        let tight = disruption_budget(&owner(), &Desired::new(&swarm, &config()));
        assert_eq!(tight["spec"]["minAvailable"], 1);
        let map = config_map(&owner(), &desired.config);
        assert_typed::<ConfigMap>(&map);
        let text = map["data"]["training.json"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), desired.config);
    }
}
