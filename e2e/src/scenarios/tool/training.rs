//! A training run as the tool shows it; a peer of it is moved away.

use anyhow::{Context, Result, ensure};

use super::program::{dunlin, json, text};
use crate::scenarios::bench::Bench;
use crate::scenarios::training::{BIBLE, LIMIT, Run};

/// The run, as the tool is given it.
const NAME: &str = "tsw/bible";

/// (what is replaced in the example, by what): small steps, more than are made meanwhile.
const CHANGES: &[(&str, &str)] = &[
    ("hiddenSize: 128", "hiddenSize: 64"),
    ("ffn: 352", "ffn: 176"),
    ("sequenceLength: 128", "sequenceLength: 64"),
    ("\n  steps: 1000", "\n  steps: 20000"),
];

pub(super) fn run(bench: &Bench<'_>) -> Result<()> {
    let run = Run::start(bench.cluster, BIBLE, CHANGES)?;
    let result = shown(bench, &run).and_then(|()| moved(bench, &run));
    run.remove()?;
    result
}

fn shown(bench: &Bench<'_>, run: &Run<'_>) -> Result<()> {
    run.training.wait_step(5, LIMIT)?;
    run.whole()?;
    let views = json(bench, &["status", NAME])?;
    let view = &views[0];
    ensure!(view["kind"] == "TrainingSwarm" && view["ready"] == true, "{view}");
    ensure!(view["step"].as_u64() >= Some(5) && view["steps"] == 20_000 && view["loss"].is_f64(), "{view}");
    let stages = view["stages"].as_array().context("no stages")?;
    let members: Vec<_> = stages.iter().flat_map(|s| s["members"].as_array().into_iter().flatten()).collect();
    ensure!(stages.len() == 4 && members.len() == 8, "4 stages of 2 peers: {view}");
    let known = members
        .iter()
        .all(|m| m["state"] == "ready" && m["rows_per_s"].as_f64() > Some(0.0) && m["node"] != "");
    ensure!(known, "not all peers are known: {view}");
    let roles: Vec<_> = view["others"].as_array().into_iter().flatten().map(|m| &m["role"]).collect();
    ensure!(
        roles.iter().any(|role| *role == "conductor") && roles.iter().any(|role| *role == "trainer"),
        "{view}"
    );
    ensure!(view["silent"].is_null() && view["unread"] == serde_json::json!([]), "{view}");

    let shown = text(&dunlin(bench, &["status", NAME])?);
    ensure!(
        shown.contains("step ") && shown.contains(" of 20000, loss ") && shown.contains("checkpoint"),
        "{shown}"
    );
    let rows = json(bench, &["top", NAME])?;
    let rows = rows.as_array().context("no rows")?;
    let fast = rows.iter().all(|row| row["rows_per_s"].as_f64() > Some(0.0));
    ensure!(rows.len() == 8 && fast, "{rows:?}");
    let doctor = dunlin(bench, &["doctor", NAME])?;
    ensure!(doctor.status.success() && text(&doctor).contains("is Ready"), "{}", text(&doctor));
    let plan = dunlin(bench, &["plan", NAME])?;
    ensure!(
        plan.status.code() == Some(1) && text(&plan).contains("has no plan: its conductor"),
        "{}",
        text(&plan)
    );
    Ok(())
}

/// With notice nothing is computed again.
fn moved(bench: &Bench<'_>, run: &Run<'_>) -> Result<()> {
    let before = run.training.status()?;
    let node = run.node_of_peers_only()?;
    let peers = run.training.pods("train-peer")?;
    let peer = peers.iter().find(|peer| peer.node == node).context("no peer there")?;
    let drained = dunlin(bench, &["drain", &peer.name])?;
    let said = text(&drained);
    ensure!(
        drained.status.success() && said.contains(&format!("pod {} has left {node}", peer.name)),
        "{said}"
    );
    let step = before["step"].as_u64().unwrap_or(0);
    let after = run.training.wait_step(step + 10, LIMIT).context("after a drain")?;
    for what in ["redone", "lost"] {
        ensure!(
            after[what] == before[what],
            "a drain with notice, and {what} is not what it was: {before} / {after}"
        );
    }
    run.whole().map(drop)
}
