//! One name of a public type means one thing in the workspace, so that a search for it finds that.
//!
//! Counted are types that are public beyond their file's parent (`pub`, not `pub(super)`) in what ships: not in tests, and not in the simulation and
//! the end-to-end tests, which have a double of much.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod workspace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use workspace::{metadata, sources};

/// Crates that have doubles of what others have.
const DOUBLES: &[&str] = &["dunlin-sim", "dunlin-operator-sim", "dunlin-e2e"];

/// Names that still mean several things, and the files that define them below the folders of their crates. One that is resolved goes from here, and
/// none comes.
const SEVERAL: &[(&str, &[&str])] = &[
    (
        "Answer",
        &[
            "operator/peers/report.rs",
            "worker/gateway/driver.rs",
            "worker/protocol/training/conductor/machines/saving/attempt.rs",
        ],
    ),
    ("Architecture", &["crds/training/model.rs", "worker/train/config/model.rs"]),
    ("Asked", &["worker/gateway/openai/request.rs", "worker/protocol/training/mates.rs"]),
    (
        "Attempt",
        &[
            "operator/error.rs",
            "worker/protocol/frame.rs",
            "worker/protocol/training/conductor/machines/saving/attempt.rs",
            "worker/protocol/training/ids.rs",
        ],
    ),
    (
        "Averages",
        &["worker/protocol/training/conductor/machines/averages.rs", "worker/training/peer/average.rs"],
    ),
    ("Bench", &["cli/cli.rs", "worker/training/peer/engine.rs"]),
    ("Budget", &["worker/engine/memory.rs", "worker/schedule/line.rs"]),
    ("Call", &["cli/cluster/failure.rs", "worker/protocol/training/peer/mod.rs"]),
    ("Checkpoint", &["operator/peers/observation.rs", "worker/train/checkpoint/read.rs"]),
    ("Claim", &["worker/protocol/training/ids.rs", "worker/train/checkpoint/owner.rs"]),
    ("Cli", &["cli/cli.rs", "worker/cli.rs"]),
    ("Command", &["cli/cli.rs", "worker/engine/executor.rs"]),
    ("Computed", &["worker/protocol/stage/shell.rs", "worker/train/stage.rs"]),
    (
        "Decision",
        &["operator/inference/decide.rs", "operator/swarm/contract.rs", "operator/training/decide.rs"],
    ),
    ("Desired", &["operator/inference/desired.rs", "operator/training/desired.rs"]),
    ("Destination", &["worker/protocol/stage/shell.rs", "worker/train/checkpoint/destination.rs"]),
    ("Ended", &["cli/cluster/pods.rs", "worker/training/peer/engine.rs"]),
    ("Engine", &["worker/engine/executor.rs", "worker/training/peer/engine.rs"]),
    ("Evidence", &["cli/cluster/evidence/facts.rs", "operator/swarm/evidence.rs"]),
    ("Facts", &["operator/status/facts.rs", "worker/stage/loader.rs"]),
    ("Finding", &["cli/cluster/doctor/finding.rs", "operator/planner/lint.rs"]),
    ("GatewayView", &["cli/cluster/status/view.rs", "operator/observe/view.rs"]),
    ("Head", &["cli/cluster/status/view.rs", "worker/model/weights.rs"]),
    (
        "Held",
        &[
            "worker/model/training/copies.rs",
            "worker/protocol/frame.rs",
            "worker/protocol/training/message.rs",
        ],
    ),
    ("Job", &["worker/protocol/stage/shell.rs", "worker/protocol/training/peer/mod.rs"]),
    ("Key", &["operator/apply/holds.rs", "operator/observe/children.rs"]),
    ("Kind", &["crds/generated.rs", "operator/planner/rebalance/mod.rs", "operator/key.rs"]),
    ("Load", &["swarm/peer.rs", "worker/protocol/training/message.rs"]),
    ("Member", &["operator/planner/member.rs", "worker/training/peer/member.rs"]),
    ("MemberView", &["cli/cluster/status/view.rs", "worker/protocol/training/conductor/shell.rs"]),
    ("Metrics", &["operator/metrics.rs", "worker/gateway/metrics.rs"]),
    ("ModelShape", &["crds/training/model.rs", "worker/train/config/model.rs"]),
    ("ModelSource", &["crds/shared.rs", "worker/train/config/model.rs"]),
    (
        "Order",
        &["operator/peers/talk.rs", "worker/training/conductor/keeper.rs", "worker/train/data/order.rs"],
    ),
    (
        "Outcome",
        &["worker/protocol/training/conductor/machines/averages.rs", "worker/training/peer/member.rs"],
    ),
    ("Owner", &["operator/labels.rs", "worker/train/checkpoint/owner.rs"]),
    ("Pace", &["operator/planner/speed.rs", "worker/engine/pace.rs"]),
    ("PeerState", &["swarm/peer.rs", "worker/protocol/training/conductor/machines/peer.rs"]),
    ("Phase", &["operator/observe/pods.rs", "worker/protocol/training/conductor/shell.rs"]),
    ("Plan", &["cli/plan/outcome.rs", "operator/planner/rebalance/mod.rs", "operator/inference/decide.rs"]),
    ("Policy", &["operator/planner/rebalance/mod.rs", "operator/swarm/contract.rs"]),
    ("Progress", &["cli/terminal/progress.rs", "worker/stage/loader.rs", "worker/store/progress.rs"]),
    ("Question", &["cli/plan/question.rs", "operator/peers/talk.rs", "worker/wire/control.rs"]),
    ("Report", &["cli/cluster/doctor/report.rs", "operator/peers/report.rs"]),
    (
        "Role",
        &[
            "worker/model/spec.rs",
            "worker/protocol/training/message.rs",
            "worker/cli.rs",
            "worker/wire/identity.rs",
        ],
    ),
    ("Sender", &["worker/protocol/stage/sender.rs", "worker/wire/queue.rs"]),
    ("Snapshot", &["worker/gateway/driver.rs", "worker/train/stage/snapshot.rs"]),
    ("Source", &["worker/stage/loader.rs", "worker/train/data/source.rs"]),
    (
        "Stage",
        &[
            "operator/planner/rebalance/mod.rs",
            "operator/peers/observation.rs",
            "worker/train/checkpoint/write.rs",
            "worker/train/stage.rs",
        ],
    ),
    (
        "Statement",
        &["operator/status/conditions.rs", "worker/protocol/training/conductor/machines/verdict.rs"],
    ),
    ("Swarm", &["cli/cluster/swarm.rs", "operator/swarm/contract.rs"]),
    ("Telemetry", &["operator/telemetry.rs", "worker/telemetry.rs"]),
    ("Tensor", &["worker/model/gguf.rs", "worker/model/safetensors.rs", "worker/train/checkpoint/tensor.rs"]),
    ("Trust", &["operator/trust.rs", "worker/protocol/training/conductor/machines/trust.rs"]),
    ("View", &["cli/cluster/status/view.rs", "operator/planner/rebalance/mod.rs"]),
    ("Wanted", &["operator/planner/wanted.rs", "operator/roster.rs", "worker/protocol/training/serve.rs"]),
    ("Writer", &["operator/swarm/contract.rs", "worker/gateway/text.rs"]),
    ("Wrong", &["worker/protocol/training/conductor/machines/saving/attempt.rs", "worker/store/location.rs"]),
];

/// Names of public types that `text` defines outside of its tests.
fn defined(text: &str) -> BTreeSet<String> {
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    shipped
        .lines()
        .filter_map(|line| {
            let (kind, rest) = line.strip_prefix("pub ")?.split_once(' ')?;
            let is_type = matches!(kind, "struct" | "enum" | "trait" | "type" | "union");
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            is_type.then(|| rest[..end].to_owned())
        })
        .collect()
}

#[test]
fn a_name_of_a_public_type_means_one_thing() {
    let metadata = metadata();
    let root = Path::new(metadata["workspace_root"].as_str().unwrap());
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap().iter().filter(|p| p["source"].is_null()) {
        if DOUBLES.contains(&package["name"].as_str().unwrap()) {
            continue;
        }
        let source = Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("src");
        for (file, text) in sources(&source) {
            let is_test = file.split(['/', '.', '_']).any(|part| part == "tests" || part == "testing");
            let place = source.parent().unwrap().strip_prefix(root).unwrap().join(&file);
            for name in defined(&text).into_iter().filter(|_| !is_test) {
                files.entry(name).or_default().insert(place.to_str().unwrap().to_owned());
            }
        }
    }
    assert!(files.len() > 300, "only {} types were found", files.len());
    let found: BTreeMap<&str, BTreeSet<&str>> = files
        .iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| (name.as_str(), places.iter().map(String::as_str).collect()))
        .collect();
    let known: BTreeMap<&str, BTreeSet<&str>> =
        SEVERAL.iter().map(|(name, places)| (*name, places.iter().copied().collect())).collect();
    let new = found.iter().filter(|(name, places)| known.get(*name) != Some(places));
    let new =
        new.map(|(name, places)| format!("`{name}` means something in each of {places:?}: rename it in one"));
    let gone = known.keys().filter(|name| !found.contains_key(*name));
    let gone = gone.map(|name| format!("`{name}` means one thing now: take it out of SEVERAL"));
    let complaints: Vec<String> = new.chain(gone).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn definitions_are_read_right() {
    let text = "pub struct A<T>(T);\npub(super) struct B;\nstruct C;\npub enum D {\n    E,\n}\npub type F = u8;\npub fn g() {}\n\
                #[cfg(test)]\nmod tests {\npub struct H;\n}\n";
    assert_eq!(defined(text), BTreeSet::from(["A", "D", "F"].map(str::to_owned)));
}
