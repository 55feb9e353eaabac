//! Somebody who may read little asks the tool, and is given one right after the other.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::program::{dunlin_as, text};
use crate::cluster::Cluster;
use crate::scenarios::bench::Bench;

/// Who asks.
const WHO: &str = "eve";
/// The exit code for what stays until somebody changes something.
const NEEDS_USER: i32 = 78;

/// A kubeconfig with which the administrator acts as [`WHO`].
fn kubeconfig(cluster: &Cluster) -> Result<PathBuf> {
    let admin = cluster.kubeconfig()?;
    let config = std::fs::read_to_string(&admin)?;
    let with = "user: {client-certificate-data";
    ensure!(config.contains(with), "the kubeconfig has changed");
    let path = admin.with_file_name("eve.kubeconfig");
    std::fs::write(&path, config.replace(with, &format!("user: {{as: {WHO}, client-certificate-data")))?;
    Ok(path)
}

/// Gives [`WHO`] these rights in the namespace of the swarm, each a group, a resource and verbs.
fn give(cluster: &Cluster, rights: &[(&str, &str, &[&str])]) -> Result<()> {
    let rules: Vec<Value> = rights
        .iter()
        .map(
            |(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs}),
        )
        .collect();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": WHO, "namespace": "default"}, "rules": rules,
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": WHO, "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": WHO},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": WHO}],
    });
    cluster.apply(&role.to_string())?;
    cluster.apply(&binding.to_string()).map(drop)
}

pub(super) fn missing(bench: &Bench<'_>) -> Result<()> {
    let result = asks(bench);
    bench.cluster.kubectl(&["delete", "role,rolebinding", WHO, "--ignore-not-found"])?;
    result
}

fn asks(bench: &Bench<'_>) -> Result<()> {
    let config = kubeconfig(bench.cluster)?;
    let swarm = bench.swarm.name.as_str();
    let peer = bench.swarm.middle_peer()?;
    // What a command says, and that it ends with `code`.
    let says = |args: &[&str], code: i32, words: &[&str]| -> Result<()> {
        let output = dunlin_as(&config, args)?;
        let said = text(&output);
        ensure!(output.status.code() == Some(code), "{args:?}: {}: {said}", output.status);
        let missing = words.iter().find(|words| !said.contains(**words));
        ensure!(missing.is_none(), "{args:?} does not say {missing:?}: {said}");
        Ok(())
    };
    for command in ["status", "doctor", "top", "plan", "support-bundle"] {
        says(&[command, swarm], NEEDS_USER, &["the verb list on inferenceswarms.dunlin.dev"])?;
    }

    let swarms = ("dunlin.dev", "inferenceswarms", &["list"][..]);
    give(bench.cluster, &[swarms])?;
    says(
        &["status", swarm],
        0,
        &["Ready (Serving", "30 layers, 30 held", "not looked at:", "the verb list on pods"],
    )?;
    says(&["status"], 0, &["Ready (Serving", "the verb list on trainingswarms.dunlin.dev"])?;
    says(
        &["doctor", swarm],
        0,
        &["is Ready", "not looked at:", "the verb list on pods", "the verb list on nodes"],
    )?;
    says(&["top", swarm], NEEDS_USER, &["the verb list on pods"])?;
    says(&["plan", swarm], NEEDS_USER, &["the verb get on configmaps", "`dunlin status` shows"])?;
    says(&["drain", &peer.name], NEEDS_USER, &["the verb get on pods"])?;

    let pods = ("", "pods", &["get", "list"][..]);
    give(bench.cluster, &[swarms, pods])?;
    says(
        &["status", swarm],
        0,
        &["2 of 2 gateways ready", "the verb get on configmaps", "the verb get on pods/proxy"],
    )?;
    says(&["top", swarm], 0, &[&peer.name, "not asked: you may not get pods/proxy"])?;
    says(&["drain", &peer.name], NEEDS_USER, &["the verb get on configmaps", "--force"])?;

    give(bench.cluster, &[swarms, pods, ("", "configmaps", &["get"])])?;
    says(
        &["plan", swarm],
        0,
        &["nobody moves", "not asked, and taken as planned: you may not get pods/proxy"],
    )?;
    says(&["drain", &peer.name], NEEDS_USER, &["the verb create on pods/eviction"])?;
    says(&["drain", &peer.node], NEEDS_USER, &["the verb get on nodes"])?;
    let there = bench.swarm.pods("stage")?;
    let there = there.iter().find(|pod| pod.name == peer.name).context("the peer is gone")?;
    ensure!(there.ready, "somebody without the right has moved {peer:?}");
    Ok(())
}
