use std::cell::Cell;
use std::path::Path;

use dunlin_model::{ModelConfig, ModelFile};

use super::disk::Disk;
use super::read::latest;
use super::write::{retain, retain_on, write_manifest_on, write_stage_on};
use super::{
    Checkpoint, CheckpointError, Claim, ConductorLife, Destination, EMBEDDING, Identity, Manifest, Scrutiny,
    StageRecord, StageValues, Tensor, TensorSpec, Texts, model,
};
use crate::config::{InitialModel, TrainingConfig, model_config};
use crate::testing::Folder;

const LAYERS: u32 = 3;

pub(super) fn config() -> TrainingConfig {
    let json = serde_json::json!({
        "model": {"config": {"hiddenSize": 16, "layers": LAYERS, "heads": 2, "ffn": 24, "contextLength": 32, "tied": true}},
        "data": {"text": {"path": "a"}}, "sequenceLength": 8, "globalBatch": 2, "microbatch": 1, "steps": 100, "seed": 9,
        "optimizer": {"kind": "AdamW", "learningRate": 0.1},
    });
    TrainingConfig::from_json(&json.to_string()).unwrap()
}

fn model(config: &TrainingConfig) -> ModelConfig {
    let InitialModel::Config(shape) = &config.model else { unreachable!() };
    model_config(shape, 256).unwrap()
}

/// Tensors of a span of layers in their places; a tied embedding is in the first and in the last span.
fn layout(layers: std::ops::Range<u32>) -> (Vec<TensorSpec>, usize) {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    if layers.start == 0 {
        shapes.push((EMBEDDING.to_owned(), vec![256, 16]));
    }
    for layer in layers.clone() {
        let roles: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[16]),
            ("self_attn.q_proj", &[16, 16]),
            ("self_attn.k_proj", &[16, 16]),
            ("self_attn.v_proj", &[16, 16]),
            ("self_attn.o_proj", &[16, 16]),
            ("post_attention_layernorm", &[16]),
            ("mlp.gate_proj", &[24, 16]),
            ("mlp.up_proj", &[24, 16]),
            ("mlp.down_proj", &[16, 24]),
        ];
        shapes.extend(
            roles.map(|(role, shape)| (format!("model.layers.{layer}.{role}.weight"), shape.to_vec())),
        );
    }
    if layers.end == LAYERS {
        shapes.push(("model.norm.weight".to_owned(), vec![16]));
        if layers.start > 0 {
            shapes.push((EMBEDDING.to_owned(), vec![256, 16]));
        }
    }
    let mut end = 0;
    let place = |(name, shape): (String, Vec<usize>)| {
        let start = end;
        end += shape.iter().product::<usize>();
        TensorSpec { name, shape, range: start..end }
    };
    (shapes.into_iter().map(place).collect(), end)
}

/// Values of a vector: of the tensor's name, the vector and the step.
fn values(specs: &[TensorSpec], slot: u32, step: u64) -> Vec<f32> {
    let value = |spec: &TensorSpec, i: usize| {
        let name = spec.name.bytes().fold(17u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(b)));
        let mixed = (name ^ i as u64)
            .wrapping_add(u64::from(slot) * 77 + step * 1009)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 44) as f32 / 1_048_576.0 - 0.5
    };
    specs.iter().flat_map(|spec| (0..spec.range.len()).map(move |i| value(spec, i))).collect()
}

fn tensors<'a>(specs: &'a [TensorSpec], values: &'a [f32]) -> Vec<Tensor<'a>> {
    let tensor =
        |s: &'a TensorSpec| Tensor { name: &s.name, shape: &s.shape, values: &values[s.range.clone()] };
    specs.iter().map(tensor).collect()
}

fn cuts(stages: u32) -> Vec<std::ops::Range<u32>> {
    (0..stages).map(|s| LAYERS * s / stages..LAYERS * (s + 1) / stages).collect()
}

/// What `put` says of each of `stages` stages at `step`.
pub(super) fn each_stage(
    step: u64,
    stages: u32,
    put: impl Fn(&StageValues<'_>) -> Result<StageRecord, CheckpointError>,
) -> Result<Vec<StageRecord>, CheckpointError> {
    let put_one = |(stage, layers): (usize, std::ops::Range<u32>)| {
        let (specs, _) = layout(layers.clone());
        let all: Vec<Vec<f32>> = (0..3).map(|slot| values(&specs, slot, step)).collect();
        let parameters = tensors(&specs, &all[0]);
        let slots = vec![tensors(&specs, &all[1]), tensors(&specs, &all[2])];
        put(&StageValues { adapter: false, stage: stage as u32, stages, layers, parameters, slots })
    };
    cuts(stages).into_iter().enumerate().map(put_one).collect()
}

/// Calls `seal` with what a checkpoint of `step` is of.
pub(super) fn identified<T>(step: u64, seal: impl FnOnce(Identity<'_>) -> T) -> T {
    let config = config();
    seal(Identity {
        step,
        config: &config,
        model: &model(&config),
        texts: &Texts::of_bytes(),
        data_sha256: "abc",
        slots: 2,
    })
}

pub(super) fn write(
    disk: &Disk,
    destination: &Path,
    step: u64,
    stages: u32,
) -> Result<Manifest, CheckpointError> {
    let records = each_stage(step, stages, |stage| write_stage_on(disk, destination, step, stage))?;
    identified(step, |identity| write_manifest_on(disk, destination, identity, records))
}

pub(super) fn assert_whole(checkpoint: &Checkpoint, stages: u32) {
    let step = checkpoint.manifest.step;
    checkpoint.verify().unwrap();
    for layers in cuts(stages) {
        let (specs, length) = layout(layers);
        let (parameters, state) = checkpoint.read_stage(&specs, length).unwrap();
        assert_eq!(parameters, values(&specs, 0, step));
        assert_eq!(state.step, step);
        assert_eq!(state.slots, [values(&specs, 1, step), values(&specs, 2, step)]);
    }
}

pub(super) fn newest(destination: &Path) -> Checkpoint {
    let latest = latest(destination, Scrutiny::Digests).unwrap();
    assert!(latest.damaged.is_empty(), "{:?}", latest.damaged);
    latest.checkpoint.unwrap()
}

#[test]
fn any_cut_reads_what_any_cut_wrote() {
    for written in 1..=3 {
        let folder = Folder::new();
        let manifest = write(&Disk::default(), folder.path(), 120, written).unwrap();
        let checkpoint = newest(folder.path());
        assert_eq!(checkpoint.manifest, manifest);
        assert_eq!(checkpoint.folder, folder.path().join("step-00000120"));
        assert_eq!((manifest.seed, manifest.step, manifest.stages.len()), (9, 120, written as usize));
        (1..=3).for_each(|read| assert_whole(&checkpoint, read));
    }
}

#[test]
fn a_checkpoint_is_a_model_with_a_tokenizer() {
    let folder = Folder::new();
    write(&Disk::default(), folder.path(), 1, 2).unwrap();
    let file = ModelFile::open_path(&folder.path().join("step-00000001")).unwrap();
    assert_eq!(*file.config(), model(&config()));
    assert!(file.layer_bytes(1) > 0);
    let tokenizer = file.tokenizer().unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos()), (256, &[0][..]));
    let text = "In the beginning\n\u{0}\u{7f} Ünïcode \u{1f600}  Ā";
    let tokens = tokenizer.encode(text, true).unwrap();
    assert!(tokens.iter().copied().eq(text.bytes().map(u32::from)), "{tokens:?}");
    assert_eq!(tokenizer.decode(&tokens), text);
    let single = |byte: u32| tokenizer.token_bytes(byte) == [byte as u8];
    assert!((0..256).all(single));
    for architecture in ["mistral", "qwen2"] {
        let mut other = model(&config());
        (other.architecture, other.block.attention.bias) = (architecture.to_owned(), architecture == "qwen2");
        let json = model::config_json(&other, &Default::default());
        assert_eq!(dunlin_model::config::from_json("x", &json).unwrap(), other);
    }
}

#[test]
fn wherever_the_machine_stops_there_is_a_whole_checkpoint() {
    let mut stops = 0;
    for left in 0.. {
        let folder = Folder::new();
        write(&Disk::default(), folder.path(), 10, 2).unwrap();
        let disk = Disk { left: Some(Cell::new(left)) };
        let done = write(&disk, folder.path(), 20, 2).and_then(|_| retain_on(&disk, folder.path(), 1));
        let checkpoint = newest(folder.path());
        assert!(done.is_err() || checkpoint.manifest.step == 20);
        assert_whole(&checkpoint, 3);
        // After a restart the same is done again, also with another cut.
        write(&Disk::default(), folder.path(), 20, 3).unwrap();
        retain(folder.path(), 1).unwrap();
        let checkpoint = newest(folder.path());
        assert_eq!(checkpoint.manifest.step, 20);
        assert_whole(&checkpoint, 1);
        // Nothing is left over that a reader of models would stumble on.
        ModelFile::open_path(&checkpoint.folder).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let files = std::fs::read_dir(&checkpoint.folder).unwrap().count();
        assert_eq!(files, checkpoint.manifest.all_files().count() + 1);
        if done.is_ok() {
            break;
        }
        stops += 1;
    }
    // Nine files of five operations each, and what is removed.
    assert!(stops > 50, "{stops}");
}

#[test]
fn damage_is_told_and_an_older_checkpoint_is_found() {
    /// A file, what happens to it, and what is said of it.
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let cases: &[Case<'_>] = &[
        ("model-00001-of-00002.safetensors", &|p| truncate(p), "bytes, the manifest says"),
        ("optimizer-00002-of-00002.safetensors", &|p| std::fs::remove_file(p).unwrap(), "it is not there"),
        ("model-00002-of-00002.safetensors", &|p| flip(p), "its SHA-256 is"),
        ("config.json", &|p| flip(p), "its SHA-256 is"),
        ("training.json", &|p| truncate(p), "it is no manifest"),
        ("training.json", &|p| std::fs::write(p, b"{}").unwrap(), "it is no manifest"),
        ("training.json", &|p| replace(p, "\"version\": 2", "\"version\": 0"), "its version is 0"),
        ("training.json", &|p| replace(p, "\"config.json\"", "\"../config.json\""), "is no name of a file"),
        ("training.json", &|p| replace(p, "\"stage\": 1", "\"stage\": 2"), "stage 1 is 2"),
        ("training.json", &|p| replace(p, "\"step\": 20", "\"step\": 21"), "it is of step 21"),
    ];
    for (file, damage, message) in cases {
        let folder = Folder::new();
        write(&Disk::default(), folder.path(), 10, 2).unwrap();
        write(&Disk::default(), folder.path(), 20, 2).unwrap();
        damage(&folder.path().join("step-00000020").join(file));
        let found = latest(folder.path(), Scrutiny::Digests).unwrap();
        assert_eq!(found.checkpoint.unwrap().manifest.step, 10, "{file}");
        let text = found.damaged.iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains(file) && text.contains(message), "{text}");
    }
}

/// A peer reads what the conductor tells it to, whatever is wrong with newer ones.
#[test]
fn the_step_that_is_asked_for_is_read() {
    let folder = Folder::new();
    for step in [10, 20, 30] {
        write(&Disk::default(), folder.path(), step, 2).unwrap();
    }
    let file = |step: u64, name: &str| folder.path().join(format!("step-{step:08}")).join(name);
    flip(&file(30, "model-00001-of-00002.safetensors"));
    truncate(&file(20, "optimizer-00001-of-00002.safetensors"));
    let destination = Destination::from(folder.path());
    let (specs, length) = layout(0..2);
    let read = |step: u64| destination.read_stage(step, &specs, length);
    assert_eq!(read(10).unwrap().0, values(&specs, 0, 10));
    for (step, message) in
        [(20, "bytes, the manifest says"), (30, "its SHA-256 is"), (40, "is no checkpoint")]
    {
        let error = read(step).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains(message), "{error}");
    }
    // A destination that cannot be read is no reason to go on from an older one.
    std::fs::remove_file(file(20, "training.json")).unwrap();
    std::fs::create_dir(file(20, "training.json")).unwrap();
    let error = latest(folder.path(), Scrutiny::Digests).unwrap_err();
    assert!(!error.is_damage() && error.to_string().contains("step-00000020/training.json"), "{error}");
}

pub(super) fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

pub(super) fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn reading_checks_the_files_it_reads_and_the_tensors_it_wants() {
    let folder = Folder::new();
    write(&Disk::default(), folder.path(), 10, 3).unwrap();
    let checkpoint = newest(folder.path());
    let (specs, length) = layout(1..2);
    let wrong = |change: &dyn Fn(&mut TensorSpec)| {
        let mut specs = specs.clone();
        change(&mut specs[0]);
        checkpoint.read_stage(&specs, length).unwrap_err().to_string()
    };
    assert!(wrong(&|s| s.name = "x".to_owned()).contains("has no tensor `x`"));
    assert!(wrong(&|s| s.shape = vec![4, 4]).contains("is [16] of F32 in the checkpoint, not [4, 4]"));
    assert!(wrong(&|s| s.range = 0..15).contains("is not at 0..15"));
    flip(&checkpoint.folder.join("optimizer-00002-of-00003.safetensors"));
    assert!(latest(folder.path(), Scrutiny::Lengths).unwrap().checkpoint.is_some());
    let error = checkpoint.read_stage(&specs, length).unwrap_err();
    assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
    // Other stages' files are not read.
    let (specs, length) = layout(0..1);
    checkpoint.read_stage(&specs, length).unwrap();
}

#[test]
fn retention_keeps_the_newest_complete_ones() {
    let folder = Folder::new();
    for step in [10, 20, 30, 40] {
        write(&Disk::default(), folder.path(), step, 1).unwrap();
    }
    let path = |step: u64| folder.path().join(format!("step-{step:08}"));
    let steps = || {
        let names =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<u64> = names.filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    };
    // 40 is being written, 30 is damaged: neither counts.
    std::fs::remove_file(path(40).join("training.json")).unwrap();
    truncate(&path(30).join("config.json"));
    std::fs::create_dir(folder.path().join("step-x")).unwrap();
    assert_eq!(retain(folder.path(), 0).unwrap(), [10]);
    assert_eq!(steps(), [20, 30, 40]);
    assert_eq!(latest(folder.path(), Scrutiny::Lengths).unwrap().checkpoint.unwrap().manifest.step, 20);
    write(&Disk::default(), folder.path(), 50, 1).unwrap();
    assert_eq!(retain(folder.path(), 2).unwrap(), [40, 30]);
    assert_eq!(steps(), [20, 50]);
    assert!(retain(&folder.path().join("none"), 2).unwrap().is_empty());
    assert!(latest(&folder.path().join("none"), Scrutiny::Digests).unwrap().checkpoint.is_none());
}

#[test]
fn stages_that_do_not_fit_together_make_no_checkpoint() {
    let folder = Folder::new();
    let (specs, _) = layout(0..1);
    let all = values(&specs, 0, 1);
    let stage = |slots| StageValues {
        adapter: false,
        stage: 0,
        stages: 1,
        layers: 0..1,
        parameters: tensors(&specs, &all),
        slots,
    };
    let disk = Disk::default();
    let error = write_stage_on(&disk, folder.path(), 1, &stage(vec![vec![]])).unwrap_err();
    assert!(error.to_string().contains("vector 0 of the optimizer"), "{error}");
    let record = write_stage_on(&disk, folder.path(), 1, &stage(vec![])).unwrap();
    let config = config();
    let identity = Identity {
        step: 1,
        config: &config,
        model: &model(&config),
        texts: &Texts::of_bytes(),
        data_sha256: "",
        slots: 0,
    };
    for (records, message) in [
        (vec![], "no stages"),
        (vec![record.clone()], "do not end with the last of 3 layers"),
        (vec![record.clone(), record.clone()], "two stages have tensor"),
    ] {
        let error = write_manifest_on(&disk, folder.path(), identity, records).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    assert!(latest(folder.path(), Scrutiny::Lengths).unwrap().checkpoint.is_none());
}

/// The environment has a server that checks signatures, with a bucket `checkpoints`, and its keys.
#[test]
#[ignore = "needs a server of S3's API: make test-s3"]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn s3_keeps_checkpoints_as_a_folder_does() {
    let url = std::env::var("DUNLIN_S3_URL").unwrap();
    let place = |bucket: &str, prefix: &str, credentials: Option<&Path>| -> Destination {
        let s3 = serde_json::json!({"endpoint": url, "bucket": bucket, "prefix": prefix});
        serde_json::from_value(serde_json::json!({"s3": s3, "credentials": credentials})).unwrap()
    };
    let bucket = place("checkpoints", "runs/tiny", None);
    let mut claim = Claim::take(&bucket, &config(), ConductorLife::new("a test").unwrap()).unwrap().0;
    let mut save = |step: u64, stages: u32, keep: usize| {
        let records = each_stage(step, stages, |stage| bucket.write_stage(step, stage)).unwrap();
        let removed = identified(step, |identity| claim.seal(identity, records, keep)).unwrap().1;
        claim.confirm(step).unwrap();
        removed
    };
    let newest = || bucket.latest(Scrutiny::Digests).unwrap().checkpoint.map(|c| c.manifest.step);
    let read = |step: u64, stages: u32| {
        cuts(stages).into_iter().all(|layers| {
            let (specs, length) = layout(layers);
            let (parameters, state) = match bucket.read_stage(step, &specs, length) {
                Err(CheckpointError::Missing(_)) => return false,
                other => other.unwrap(),
            };
            assert_eq!(parameters, values(&specs, 0, step));
            assert_eq!(state.slots, [values(&specs, 1, step), values(&specs, 2, step)]);
            true
        })
    };
    assert_eq!(newest(), None);
    assert!(save(10, 2, 2).is_empty());
    assert!(save(20, 3, 2).is_empty());
    assert!(newest() == Some(20) && read(20, 1) && read(10, 2));
    assert_eq!(save(30, 1, 2), [10]);
    assert!(newest() == Some(30) && read(30, 3) && read(20, 2) && !read(10, 1));
    // What an attempt left goes, what is complete stays.
    each_stage(40, 2, |stage| bucket.write_stage(40, stage)).unwrap();
    claim.discard(40).unwrap();
    claim.discard(30).unwrap();
    claim.prepare().unwrap();
    assert!(newest() == Some(30) && read(30, 1));
    // The next life takes it, and another run does not.
    Claim::take(&bucket, &config(), ConductorLife::new("another").unwrap()).unwrap();
    assert!(matches!(claim.check(), Err(CheckpointError::TakenOver(_))));
    let mut other = config();
    other.seed += 1;
    let refused = Claim::take(&bucket, &other, ConductorLife::new("another").unwrap()).err().unwrap();
    assert!(refused.to_string().contains("seed was 9"), "{refused}");

    let keys = Folder::new();
    keys.file("accessKeyId", std::env::var("AWS_ACCESS_KEY_ID").unwrap().as_bytes());
    keys.file("secretAccessKey", b"wrong");
    let error = |destination: Destination| {
        let read = destination.latest(Scrutiny::Lengths).unwrap_err();
        let said = |error: CheckpointError| std::error::Error::source(&error).unwrap().to_string();
        let claimed = Claim::take(&destination, &config(), ConductorLife::new("a test").unwrap());
        (said(read), said(claimed.err().unwrap()))
    };
    let (read, claimed) = error(place("checkpoints", "runs/tiny", Some(keys.path())));
    assert!(
        read.contains("(SignatureDoesNotMatch: ")
            && read.contains("`secretAccessKey` in ")
            && claimed == read,
        "{read}, {claimed}"
    );
    let (read, claimed) = error(place("elsewhere", "runs/tiny", None));
    assert!(read.contains("make the bucket `elsewhere`") && claimed == read, "{read}, {claimed}");
}
