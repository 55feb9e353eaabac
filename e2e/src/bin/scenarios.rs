//! Runs the scenarios on a cluster of their own: `scenarios [FILTER...]`.
//!
//! `--attach NAME` uses a cluster that is already up with the swarm applied (and leaves it up); `--keep` leaves a
//! new one up. Prints one line per scenario and closes with "N passed, N failed".
#![allow(clippy::print_stdout, reason = "a test driver reports on standard output")]

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use dunlin_e2e::cluster::Cluster;
use dunlin_e2e::swarm::Swarm;
use dunlin_e2e::{deploy, scenarios};
use serde_json::Value;

#[derive(Parser)]
struct Args {
    /// Only scenarios whose name contains one of these.
    filter: Vec<String>,
    /// Use this running cluster.
    #[arg(long)]
    attach: Option<String>,
    /// Leave the cluster up.
    #[arg(long)]
    keep: bool,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 4)]
    nodes: u32,
    /// The scenarios that take long instead of those of every test run.
    #[arg(long)]
    long: bool,
    /// List the names and stop.
    #[arg(long)]
    list: bool,
}

#[expect(clippy::too_many_lines, reason = "from the arguments to the exit code")]
fn main() -> Result<()> {
    let args = Args::parse();
    let all = if args.long { scenarios::long() } else { scenarios::all() };
    let chosen: Vec<_> = all
        .into_iter()
        .filter(|s| args.filter.is_empty() || args.filter.iter().any(|f| s.name.contains(f.as_str())))
        .collect();
    if args.list {
        chosen.iter().for_each(|s| println!("{}", s.name));
        return Ok(());
    }
    let started = Instant::now();
    let cluster = match &args.attach {
        Some(name) => Cluster::attach(name, args.nodes),
        None => {
            let mut cluster = Cluster::up(&format!("e2e{}", std::process::id()), args.nodes)?;
            if args.keep {
                cluster.keep();
            }
            cluster
        }
    };
    let swarm = prepare(&cluster, args.attach.is_some()).context("no swarm to test")?;
    let bench = scenarios::bench(&cluster, swarm)?;
    println!(
        "cluster {} serves {} after {:.0} s",
        cluster.name(),
        bench.swarm.name,
        started.elapsed().as_secs_f64()
    );
    let mut passed = 0;
    let mut troubles = Vec::new();
    for scenario in &chosen {
        let started = Instant::now();
        let outcome =
            bench.heal().context("healing before the scenario").and_then(|()| (scenario.run)(&bench));
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("ok    {:<60} {seconds:6.1} s", scenario.name);
            }
            Err(error) => {
                println!("FAIL  {:<60} {seconds:6.1} s\n      {error:#}", scenario.name);
                evidence(&cluster);
                troubles.push(format!("{}: {error:#}", scenario.name));
            }
        }
    }
    if !troubles.is_empty() {
        println!(
            "--- containers that are not ready\n{}",
            not_ready(&cluster).unwrap_or_else(|e| format!("{e:#}"))
        );
    }
    // Last, and short: whoever sees only the end of a long log sees the reasons.
    for trouble in &troubles {
        println!("FAIL  {}", trouble.chars().take(200).collect::<String>());
    }
    if !troubles.is_empty() {
        kubelets(&cluster).unwrap_or_else(|e| println!("{e:#}"));
    }
    println!("{passed} passed, {} failed", troubles.len());
    drop(bench);
    drop(cluster);
    std::process::exit(i32::from(!troubles.is_empty()));
}

fn prepare(cluster: &Cluster, attached: bool) -> Result<Swarm<'_>> {
    if !attached {
        deploy::load_images(cluster, &deploy::image_dir())?;
        deploy::enforce_restricted(cluster)?;
        deploy::install_chart(cluster, &[])?;
        deploy::start_model_server(cluster)?;
    }
    let swarm = deploy::apply_example_swarm(cluster)?;
    swarm.wait_whole(scenarios::PEERS)?;
    Ok(swarm)
}

/// What one wants to see when a scenario failed.
fn evidence(cluster: &Cluster) {
    let looks: [&[&str]; 8] = [
        &["get", "nodes,pods,isw", "-A", "-o", "wide"],
        &["get", "isw", "-A", "-o", "jsonpath={range .items[*]}{.metadata.name}: {.status}{\"\\n\"}{end}"],
        &["get", "events", "-A", "--sort-by=.lastTimestamp"],
        &[
            "logs",
            "-n",
            deploy::OPERATOR_NAMESPACE,
            "-l",
            "app.kubernetes.io/component=operator",
            "--tail=40",
        ],
        &["logs", "-l", "dunlin.dev/role=gateway", "--tail=40", "--prefix"],
        &["logs", "-l", "dunlin.dev/role=stage", "--tail=40", "--prefix"],
        &["get", "tsw", "-A", "-o", "jsonpath={range .items[*]}{.metadata.name}: {.status}{\"\\n\"}{end}"],
        &["logs", "-l", "dunlin.dev/kind=TrainingSwarm", "--tail=30", "--prefix", "--max-log-requests=20"],
    ];
    for look in looks {
        match cluster.kubectl(look) {
            Ok(text) => {
                let lines: Vec<&str> = text.lines().collect();
                println!(
                    "--- kubectl {}\n{}",
                    look.join(" "),
                    lines[lines.len().saturating_sub(60)..].join("\n")
                );
            }
            Err(error) => println!("--- kubectl {}: {error:#}", look.join(" ")),
        }
    }
}

/// What the kubelets say last of pods that are not ready, as an event may say nothing of what they wait for.
fn kubelets(cluster: &Cluster) -> Result<()> {
    for pod in pods_not_ready(cluster)? {
        let (Some(name), Some(node)) = (pod["metadata"]["name"].as_str(), pod["spec"]["nodeName"].as_str())
        else {
            continue;
        };
        for line in cluster.node_log(node, "kubelet", name, 3)? {
            println!("{node} kubelet: {}", line.chars().take(400).collect::<String>());
        }
    }
    Ok(())
}

fn containers(pod: &Value) -> &[Value] {
    pod["status"]["containerStatuses"].as_array().map_or(&[], Vec::as_slice)
}

/// Pods without containers yet, or with one that is not ready.
fn pods_not_ready(cluster: &Cluster) -> Result<Vec<Value>> {
    let mut pods = cluster.get(&["pods", "-A"])?["items"].as_array().cloned().unwrap_or_default();
    pods.retain(|pod| containers(pod).is_empty() || containers(pod).iter().any(|c| c["ready"] != true));
    Ok(pods)
}

/// Every container that is not ready with how it ended last and the end of what it said, and its pod's events.
fn not_ready(cluster: &Cluster) -> Result<String> {
    let mut text = String::new();
    for pod in pods_not_ready(cluster)? {
        let (name, namespace) = (
            pod["metadata"]["name"].as_str().unwrap_or(""),
            pod["metadata"]["namespace"].as_str().unwrap_or(""),
        );
        for container in containers(&pod) {
            text += &format!("{name}: state {}; before {}\n", container["state"], container["lastState"]);
        }
        for look in [
            vec!["logs", "-n", namespace, name, "--previous", "--tail=8"],
            vec!["logs", "-n", namespace, name, "--tail=8"],
            vec!["events", "-n", namespace, "--for", &format!("pod/{name}")],
        ] {
            let said = cluster.kubectl(&look).unwrap_or_else(|error| format!("{error:#}"));
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].iter().map(|l| l.chars().take(300).collect());
            text += &format!("kubectl {}:\n{}\n", look.join(" "), last.collect::<Vec<String>>().join("\n"));
        }
    }
    Ok(text)
}
