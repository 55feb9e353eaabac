//! What the tool prints and how it ends, for people, scripts and shells. Nothing here starts a swarm.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dunlin_model::random_model::{self, RandomModelSpec};
use serde_json::Value;
use tempfile::TempDir;

fn dunlin(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dunlin")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Eight layers of 4.2 MB each.
fn model(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("model");
    let spec =
        RandomModelSpec { layers: 8, hidden: 256, heads: 4, kv_heads: 4, ffn: 1024, vocab: 600, seed: 1 };
    random_model::write(&path, &spec).unwrap();
    path
}

fn plan(model: &Path, options: &[&str]) -> Output {
    dunlin(&[&["plan", "--model", model.to_str().unwrap()][..], options].concat())
}

fn json(output: &Output) -> Value {
    let out = text(&output.stdout);
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{}", text(&output.stderr)))
}

#[test]
fn a_plan_tells_who_holds_what_and_what_fits() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let options = ["--memory", "2x256MiB,192MiB", "--spot", "1,2", "--max-seq-len", "1024"];
    let shown = plan(&model, &options);
    let out = text(&shown.stdout);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    for words in [
        "8 layers on 3 machines, sequences of up to 1024 positions",
        "peer-1 spot  ███",
        "░",
        "Sessions at once",
    ] {
        assert!(out.contains(words), "no {words:?} in\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "no colours where no terminal is: {out}");

    let found = json(&plan(&model, &[&options[..], &["--output", "json"]].concat()));
    let peers = found["plan"]["peers"].as_array().unwrap();
    assert_eq!((found["fits"].as_bool(), peers.len()), (Some(true), 3));
    let mut next = 0;
    for peer in peers {
        assert_eq!(peer["layers"][0], next, "spans follow one another: {found}");
        next = peer["layers"][1].as_u64().unwrap();
        let parts = ["weight_bytes", "shadow_bytes", "kv_bytes", "journal_bytes", "other_bytes"];
        let sum: u64 = parts.iter().map(|part| peer[part].as_u64().unwrap()).sum();
        assert_eq!(Some(sum), peer["memory_bytes"].as_u64(), "parts make the whole: {peer}");
    }
    assert_eq!(next, 8);
    let sessions = found["plan"]["sessions"].as_array().unwrap();
    let counts: Vec<u64> = sessions.iter().map(|s| s["sessions"].as_u64().unwrap()).collect();
    assert!(counts.len() == 2 && counts[0] >= 2 * counts[1] && counts[1] > 0, "{sessions:?}");
    // Each alone, and both spot machines at once.
    let losses = found["plan"]["losses"].as_array().unwrap();
    assert_eq!(losses.len(), 4);
    assert!(losses[..3].iter().all(|loss| loss["unheld"] == serde_json::json!([])), "{losses:?}");
}

#[test]
fn a_plan_that_does_not_fit_says_what_is_missing_and_that_suffices() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let refused = plan(&model, &["--memory", "96MiB,96MiB", "--output", "json"]);
    assert_eq!(refused.status.code(), Some(78));
    let missing = &json(&refused)["missing"];
    let said = text(&refused.stderr);
    assert!(said.contains("do not fit into 192 MiB on 2 machines; they would with "), "{said}");
    let more = missing["more_bytes_each"].as_u64().unwrap();
    let mib = |more: u64| format!("{}", (96 << 20) + more);
    let with = |each: &str| plan(&model, &["--memory", each, "--memory", each]).status.success();
    assert!(with(&mib(more)), "{more} bytes more do not suffice");
    assert!(!with(&mib(more - (1 << 20))), "a MiB less than {more} bytes more suffices, too");
    if let Some(positions) = missing["positions_that_fit"].as_u64() {
        let shorter = plan(&model, &["--memory", "2x96MiB", "--max-seq-len", &positions.to_string()]);
        assert!(shorter.status.success(), "{positions} positions do not fit");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let model = model.to_str().unwrap();
    for (arguments, code, why) in [
        (&["plan", "--model", "/no/such", "--memory", "8GiB"][..], 78, "/no/such"),
        (&["plan", "--model", model, "--memory", "8 apples"], 2, "write it as 8GiB"),
        (&["plan"], 2, "NAME|FILE"),
        (&["plan", "smollm2", "--shadows", "2"], 78, "--shadows is not for a running swarm"),
        (&["plan", "/no/such.yaml"], 78, "/no/such.yaml"),
        (&["plan", "--model", model, "--memory", "8GiB", "-n", "lab"], 78, "for the plan of a running swarm"),
        (&["status", "--kubeconfig", "/no/such"], 1, "/no/such"),
        (&["drain"], 2, "POD|NODE"),
        (&["plan", "--model", model, "--memory", "8GiB", "--spot", "2"], 78, "there are 1 machines"),
        (&["local", "--model", "/no/such"], 78, "no such model"),
        (
            &["local", "--model", model, "--worker", "/no/worker"],
            78,
            "--worker /no/worker: there is no such file",
        ),
    ] {
        let ended = dunlin(arguments);
        let said = text(&ended.stderr);
        assert!(ended.status.code() == Some(code) && said.contains(why), "{arguments:?}: {said}");
        assert!(ended.stdout.is_empty());
    }
}

#[test]
fn shells_complete_and_help_teaches() {
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&dunlin(&["completions", shell]).stdout);
        assert!(script.contains("local-train") && script.contains("random-model"), "{shell}: {script}");
    }
    for command in [
        &["local"][..],
        &["local-train"],
        &["plan"],
        &["replay"],
        &["random-model"],
        &["bench", "decode"],
        &["bench", "average"],
        &["completions"],
        &["doctor"],
        &["status"],
        &["drain"],
        &["top"],
        &["support-bundle"],
    ] {
        let help = text(&dunlin(&[command, &["--help"]].concat()).stdout);
        let example = format!("dunlin {} ", command.join(" "));
        let taught = help.lines().any(|line| line.starts_with("  ") && line.trim().starts_with(&example));
        assert!(taught, "no example of {command:?}: {help}");
    }
    assert!(text(&dunlin(&["--help"]).stdout).contains("Exit codes:"));
}

#[test]
fn kubectl_finds_the_same_tool_under_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = folder.path().join("kubectl-dunlin");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_dunlin"), &plugin).unwrap();
    let said = |arguments: &[&str]| {
        let output = Command::new(&plugin).args(arguments).output().unwrap();
        (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    };
    let (code, help) = said(&["--help"]);
    assert!(code == Some(0) && help.contains("Usage: kubectl dunlin "), "{help}");
    for command in ["doctor", "status", "plan", "drain", "top", "support-bundle", "local"] {
        assert!(help.lines().any(|line| line.trim().starts_with(command)), "no {command}: {help}");
    }
    let (code, help) = said(&["drain"]);
    assert!(code == Some(2) && help.contains("kubectl dunlin drain"), "{help}");
    assert!(text(&dunlin(&["--help"]).stdout).contains("Usage: dunlin "));
}

#[test]
fn a_manifest_is_planned_with_the_model_that_lies_here() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(&folder);
    let manifest = folder.path().join("swarm.yaml");
    let swarm = "\
kind: InferenceSwarm
apiVersion: dunlin.dev/v1alpha1
metadata: {name: m}
spec:
  model: {source: {volume: {claimName: models, path: m}}, maxSequenceLength: 512}
  pools: [{name: spot, peers: {min: 3, max: 6}, device: {cpu: {cores: 1}}, memory: {host: 256Mi}}]
";
    std::fs::write(&manifest, swarm).unwrap();
    let manifest = manifest.to_str().unwrap();
    let refused = dunlin(&["plan", manifest]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(text(&refused.stderr).contains("give its file with --model"), "{}", text(&refused.stderr));
    let found = json(&dunlin(&["plan", manifest, "--model", model.to_str().unwrap(), "-o", "json"]));
    let peers = found["plan"]["peers"].as_array().unwrap();
    let names: Vec<&str> = peers.iter().filter_map(|peer| peer["name"].as_str()).collect();
    assert_eq!(names, ["spot-1", "spot-2", "spot-3"], "{found}");
    assert!(peers.iter().all(|peer| peer["spot"] == true && peer["memory_bytes"] == 256 << 20), "{found}");
    assert_eq!(found["plan"]["positions"], 512);
}

#[test]
fn long_work_says_nothing_to_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let written =
        dunlin(&["random-model", "--layers", "2", "--hidden", "64", "--out", out.to_str().unwrap()]);
    assert!(
        written.status.success() && written.stdout.is_empty() && written.stderr.is_empty(),
        "{written:?}"
    );
    let trace = folder.path().join("trace.csv");
    std::fs::write(&trace, "0,add,a\n0,add,b\n60000,remove,a\n120000,add,c\n").unwrap();
    let options = ["--stages", "1", "--fluid", "--seeds", "2", "--output", "json"];
    let replayed = dunlin(&[&["replay", "--trace", trace.to_str().unwrap()][..], &options[..]].concat());
    assert!(json(&replayed)["share_of_optimal"].is_number() && replayed.stderr.is_empty(), "{replayed:?}");
}
