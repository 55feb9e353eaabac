//! A whole training run as real processes: what it prints, what its checkpoints are, and that SIGKILLs change no bit of the weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod run;
mod tool;

use std::path::{Path, PathBuf};

use dunlin_e2e::store::Store;
use dunlin_e2e::training::weights;
use dunlin_model::{Adapter, ModelFile};
use run::{Run, signal};
use serde_json::{Value, json};

fn kill(pid: u64) {
    signal(pid, libc::SIGKILL);
}

fn numbers(steps: &[Value]) -> Vec<u64> {
    steps.iter().map(|s| s["step"].as_u64().unwrap()).collect()
}

/// With updates that are delayed or not.
fn updates(delayed: bool) -> impl Fn(&mut Value) {
    move |config| config["optimizer"]["delayedUpdates"] = json!(delayed)
}

/// The reference: one stage, one peer, nothing goes wrong.
fn undisturbed(delayed: bool) -> Vec<(String, Vec<u8>)> {
    let run = Run::new(&format!("undisturbed-{delayed}"));
    let (steps, last) = run.start_with(1, 1, updates(delayed)).finish().unwrap();
    assert_eq!(numbers(&steps), (0..24).collect::<Vec<_>>());
    assert_eq!((last["redone"].as_u64(), last["lost"].as_u64()), (Some(0), Some(0)));
    let loss = |i: usize| steps[i]["loss"].as_f64().unwrap();
    assert!(loss(0) > 5.0 && loss(23) < loss(0) - 1.0, "it learns: {} -> {}", loss(0), loss(23));
    assert!(steps.iter().all(|s| s["tokens_per_second"].as_f64().is_some()), "{}", steps[0]);
    let measured: Vec<_> = steps.iter().filter(|s| s.get("validation_loss").is_some()).collect();
    assert!(measured.len() >= 2, "validation every 8 steps: {measured:?}");
    assert_eq!(last["checkpoint"]["step"], 24, "{last}");
    run.weights(24)
}

#[test]
fn kills_of_peers_conductor_and_trainer_change_no_bit_of_the_weights() {
    kills_change_no_bit(false);
}

#[test]
fn kills_change_no_bit_of_the_weights_when_updates_are_delayed() {
    kills_change_no_bit(true);
}

fn kills_change_no_bit(delayed: bool) {
    let expected = undisturbed(delayed);
    let run = Run::new(&format!("killed-{delayed}"));
    let mut training = run.start_with(2, 4, updates(delayed));
    let (peers, conductor, trainer) =
        (training.pids("peer"), training.pids("conductor"), training.pids("trainer"));
    assert_eq!((peers.len(), conductor.len(), trainer.len()), (4, 1, 2), "{}", training.swarm);
    let mut seen = Vec::new();
    while let Some(line) = training.line().unwrap() {
        match line.get("step").and_then(Value::as_u64) {
            Some(step) => {
                seen.push(step);
                match step {
                    3 => kill(peers[0]),
                    8 => kill(peers[2]),
                    13 => trainer.iter().for_each(|pid| kill(*pid)),
                    17 => kill(conductor[0]),
                    _ => {}
                }
            }
            None => assert_eq!(line["checkpoint"]["step"], 24, "{line}"),
        }
    }
    // A new conductor does not know the steps of the one before; no step comes twice.
    assert!(seen.windows(2).all(|w| w[0] < w[1]), "a step came back: {seen:?}");
    assert_eq!(seen.last(), Some(&23));
    assert!(run.weights(24) == expected, "weights differ from those of a run that nothing happened to");
}

#[test]
fn delayed_updates_are_others_and_a_run_that_is_stopped_goes_on_to_the_same() {
    let straight = Run::new("straight-delayed");
    straight.start_with(2, 2, updates(true)).finish().unwrap();
    let usual = Run::new("straight-usual");
    usual.start_with(2, 2, updates(false)).finish().unwrap();
    // The first two steps are both computed with the first values.
    assert!(straight.weights(8) != usual.weights(8));
    let stopped = Run::new("stopped-delayed");
    let until = |steps: u64| {
        move |config: &mut Value| {
            updates(true)(config);
            config["steps"] = json!(steps);
        }
    };
    stopped.start_with(1, 1, until(10)).finish().unwrap();
    let (steps, _) = stopped.start_with(2, 3, until(24)).finish().unwrap();
    assert_eq!(numbers(&steps), (10..24).collect::<Vec<_>>(), "it goes on where it was");
    assert!(stopped.weights(24) == straight.weights(24), "going on from a checkpoint changes the weights");
}

#[test]
fn a_run_that_is_stopped_goes_on_from_its_checkpoint_to_the_same_weights_on_other_stages() {
    let straight = Run::new("straight");
    straight.start(3, 3).finish().unwrap();
    let stopped = Run::new("stopped");
    let (steps, _) = stopped.start_with(1, 1, |config| config["steps"] = json!(10)).finish().unwrap();
    assert_eq!(numbers(&steps), (0..10).collect::<Vec<_>>());
    let (steps, last) = stopped.start(2, 3).finish().unwrap();
    assert_eq!(numbers(&steps), (10..24).collect::<Vec<_>>(), "it goes on where it was");
    assert_eq!(last["checkpoint"]["step"], 24);
    assert!(stopped.weights(24) == straight.weights(24), "going on from a checkpoint changes the weights");
}

#[test]
fn checkpoints_go_to_a_server_that_takes_put_and_the_run_goes_on_from_there() {
    let straight = Run::new("local");
    straight.start(2, 2).finish().unwrap();

    let run = Run::new("put");
    let store = Store::start(&run.folder, Some("Bearer of the run")).unwrap();
    let destination = format!("{}/checkpoints", store.url);
    let headers = run.folder.join("headers");
    std::fs::create_dir(&headers).unwrap();
    std::fs::write(headers.join("Authorization"), "Bearer of the run\n").unwrap();
    let to_store = |steps: u64| {
        let destination = json!({"url": destination, "headers": headers});
        move |config: &mut Value| {
            config["checkpoint"] = json!({"everySteps": 4, "keep": 2, "destination": destination});
            config["steps"] = json!(steps);
        }
    };
    let (_, last) = run.start_with(2, 2, to_store(14)).finish().unwrap();
    assert_eq!(last["checkpoint"]["path"], format!("{destination}/step-00000014"));
    let list = std::fs::read_to_string(run.checkpoints().join("latest.json")).unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    // One is written at a time, so of 4, 8 and 12 some may have been passed over.
    let kept: Vec<u64> = list["steps"].as_array().unwrap().iter().map(|s| s.as_u64().unwrap()).collect();
    assert!(kept.len() == 2 && kept[0] == 14 && [4, 8, 12].contains(&kept[1]), "the two newest: {list}");
    for entry in std::fs::read_dir(run.checkpoints()).unwrap().map(|e| e.unwrap().path()) {
        let step = entry.file_name().and_then(|n| n.to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
        if let Some(step) = step.filter(|step| !kept.contains(step)) {
            let left: Vec<_> = std::fs::read_dir(&entry).unwrap().collect();
            assert!(left.is_empty(), "files of the checkpoint of step {step}, which is not kept: {left:?}");
        }
    }

    // The newest is damaged: the run goes on from the one before, on another number of stages.
    std::fs::remove_file(run.checkpoints().join("step-00000014/model-00002-of-00002.safetensors")).unwrap();
    let (steps, _) = run.start_with(1, 1, to_store(24)).finish().unwrap();
    assert_eq!(numbers(&steps), (kept[1]..24).collect::<Vec<_>>());
    assert!(run.weights(24) == straight.weights(24), "weights differ from those of a run with a folder");
    let puts = store.requests().iter().filter(|r| r.starts_with("PUT")).count();
    assert!(puts > 20, "{puts} files were put");
}

/// An adapter is trained over the last checkpoint of another run, through kills; what it leaves is an adapter of that model, and no model.
#[test]
fn an_adapter_is_trained_through_kills_to_the_same_bits() {
    let base = Run::new("base");
    // A model that knows next to nothing: an adapter finds at least how often each byte comes.
    base.start_with(2, 2, |config| config["steps"] = json!(4)).finish().unwrap();
    let base = base.checkpoints().join("step-00000004");
    let server = Store::start(&base, None).unwrap();
    let adapters = [
        ("lora", json!({"lora": {"rank": 4, "alpha": 8.0, "targets": ["Query", "Value", "Up", "Down"]}})),
        // No stage but the first has anything to train.
        ("prompt", json!({"prompt": {"tokens": 6}})),
    ];
    for (name, adapter) in adapters {
        let change = |config: &mut Value| {
            // Undisturbed from the folder, through kills from a server.
            let straight = config["stages"] == 1;
            config["model"] = json!({"checkpoint": if straight { json!(base) } else { json!(server.url) }});
            config["adapter"] = adapter.clone();
            config["optimizer"]["learningRate"] = json!(0.02);
        };
        let straight = Run::new(&format!("{name}-straight"));
        let (steps, last) = straight.start_with(1, 1, change).finish().unwrap();
        let loss = |line: &Value| line["validation_loss"].as_f64().unwrap();
        let (before, after) = (loss(&steps[0]), loss(&last));
        assert!(after < before - 0.01, "{name} learns: {before} -> {after}");
        assert_eq!(last["checkpoint"]["step"], 24, "{last}");
        let run = Run::new(&format!("{name}-killed"));
        let mut training = run.start_with(2, 4, change);
        let peers = training.pids("peer");
        while let Some(line) = training.line().unwrap() {
            match line["step"].as_u64() {
                Some(3) => kill(peers[0]),
                Some(9) => kill(peers[3]),
                _ => {}
            }
        }
        assert!(
            run.weights(24) == straight.weights(24),
            "{name}: values differ from those of an undisturbed run"
        );
        let folder = run.checkpoints().join("step-00000024");
        let model = ModelFile::open_path(&base).unwrap();
        let opened = Adapter::open(&folder, model.config()).unwrap();
        assert_eq!(opened.prompt_rows(), if name == "prompt" { 6 } else { 0 });
        assert!(!folder.join("config.json").exists(), "nobody should take it for a model");
        let tokenizer = |folder: &Path| std::fs::read(folder.join("tokenizer.json")).unwrap();
        assert!(tokenizer(&folder) == tokenizer(&base), "the model's tokenizer lies beside its adapter");
    }
}

/// The environment has a server that checks signatures and keeps the bucket `checkpoints` as a folder, and its keys.
#[test]
#[ignore = "needs a server of S3's API: make test-s3"]
fn s3_checkpoints_go_to_a_bucket_and_the_run_goes_on_from_there() {
    let straight = Run::new("without-bucket");
    straight.start(2, 2).finish().unwrap();

    let run = Run::new("bucket");
    let url = std::env::var("DUNLIN_S3_URL").unwrap();
    let folder = PathBuf::from(std::env::var("DUNLIN_S3_FOLDER").unwrap()).join("checkpoints/runs/local");
    let to_bucket = |steps: u64| {
        let s3 = json!({"endpoint": url, "bucket": "checkpoints", "prefix": "runs/local"});
        move |config: &mut Value| {
            config["checkpoint"] = json!({"everySteps": 4, "keep": 2, "destination": {"s3": s3}});
            config["steps"] = json!(steps);
        }
    };
    let (_, last) = run.start_with(2, 2, to_bucket(14)).finish().unwrap();
    assert_eq!(last["checkpoint"]["path"], "s3://checkpoints/runs/local/step-00000014");
    let (steps, _) = run.start_with(1, 1, to_bucket(24)).finish().unwrap();
    assert_eq!(numbers(&steps), (14..24).collect::<Vec<_>>());
    let trained = weights(&folder.join("step-00000024")).unwrap();
    assert!(trained == straight.weights(24), "weights differ from those of a run with a folder");
    let kept = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
    let kept = kept.filter(|path| path.join("training.json").exists()).count();
    assert_eq!(kept, 2, "older checkpoints are deleted");
}

#[test]
fn nothing_outlives_the_supervisor() {
    let run = Run::new("outlives");
    let mut training = run.start_with(2, 2, |config| config["steps"] = json!(100_000));
    training.line().unwrap().unwrap();
    let pids: Vec<u64> = ["peer", "conductor", "trainer"].iter().flat_map(|r| training.pids(r)).collect();
    assert_eq!(pids.len(), 5);
    drop(training);
    let alive: Vec<_> = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
    assert!(alive.is_empty(), "{alive:?}");
}
