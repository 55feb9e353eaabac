//! Whose a destination is, and which run goes on from what is there.

use dunlin_model::OWN_NUMERICS;
use dunlin_swarm::NumericsClass;

use super::disk::Disk;
use super::manifest::goes_on;
use super::tests::{assert_whole, config, each_stage, identified, newest, replace, truncate, write};
use super::{CheckpointError, Claim, ConductorLife, Destination, Manifest, Scrutiny};
use crate::config::TrainingConfig;
use crate::testing::Folder;

/// A run with a change, and its claim on `destination`.
fn claim(
    destination: &Destination,
    name: &str,
    change: impl FnOnce(&mut TrainingConfig),
) -> Result<Claim, CheckpointError> {
    let mut config = config();
    change(&mut config);
    Claim::take(destination, &config, ConductorLife::new(name).unwrap()).map(|(claim, _)| claim)
}

#[test]
fn a_destination_belongs_to_one_run() {
    let folder = Folder::new();
    let destination = Destination::from(folder.path().join("not/there/yet").as_path());
    let first = claim(&destination, "one", |_| {}).unwrap();
    for (change, said) in [
        (&(|c: &mut TrainingConfig| c.seed = 8) as &dyn Fn(&mut TrainingConfig), "seed was 9"),
        (&|c| c.global_batch = 4, "globalBatch was 2"),
        (&|c| c.sequence_length = 4, "sequenceLength was 8"),
        (&|c| c.optimizer.kind = crate::config::OptimizerKind::Lamb, "optimizer.kind was \"AdamW\""),
    ] {
        let error = claim(&destination, "other", change).err().unwrap();
        assert!(error.is_refusal() && error.to_string().contains(said), "{error}");
        assert!(error.to_string().contains("choose another checkpoint.destination"), "{error}");
    }
    // Nothing was changed by those that were refused.
    first.check().unwrap();
    // What may change does not make it another run.
    let second = claim(&destination, "two", |c| c.optimizer.learning_rate = 0.5).unwrap();
    let error = first.check().unwrap_err();
    assert!(matches!(&error, CheckpointError::TakenOver(why) if why.starts_with("two (process ")), "{error}");
    second.check().unwrap();
}

#[test]
fn who_was_replaced_completes_no_checkpoint() {
    let folder = Folder::new();
    let destination = Destination::from(folder.path());
    let mut first = claim(&destination, "one", |_| {}).unwrap();
    let records = || each_stage(10, 2, |stage| destination.write_stage(10, stage)).unwrap();
    assert_eq!(
        records(),
        each_stage(10, 2, |stage| stage.record()).unwrap(),
        "what is written is known without writing it"
    );
    let mut second = claim(&destination, "two", |_| {}).unwrap();
    let sealed = identified(10, |identity| first.seal(identity, records(), 1));
    assert!(matches!(sealed, Err(CheckpointError::TakenOver(_))), "{sealed:?}");
    assert!(destination.latest(Scrutiny::Lengths).unwrap().checkpoint.is_none());
    assert!(matches!(first.discard(10), Err(CheckpointError::TakenOver(_))));
    assert!(folder.path().join("step-00000010").exists(), "they are the other's files now");
    identified(10, |identity| second.seal(identity, records(), 1)).unwrap();
    second.confirm(10).unwrap();
}

#[test]
fn a_run_that_ends_without_a_checkpoint_leaves_the_destination_to_others() {
    let folder = Folder::new();
    let destination = Destination::from(folder.path());
    let other = |c: &mut TrainingConfig| c.seed = 8;
    let first = claim(&destination, "one", |_| {}).unwrap();
    let error = claim(&destination, "two", other).err().unwrap().to_string();
    assert!(error.contains("if one (process ") && error.contains("/owner.json"), "{error}");
    first.release().unwrap();
    let mut second = claim(&destination, "two", other).unwrap();
    let records = each_stage(10, 1, |stage| destination.write_stage(10, stage)).unwrap();
    identified(10, |identity| second.seal(identity, records, 1)).unwrap();
    second.release().unwrap();
    let error = claim(&destination, "one", |_| {}).err().unwrap().to_string();
    assert!(error.contains("seed was 8") && !error.contains("/owner.json"), "{error}");
}

#[test]
fn a_claim_that_somebody_removed_is_written_again_and_a_broken_one_is_named() {
    let folder = Folder::new();
    let destination = Destination::from(folder.path());
    let mut first = claim(&destination, "one", |_| {}).unwrap();
    let file = folder.path().join("owner.json");
    std::fs::remove_file(&file).unwrap();
    first.prepare().unwrap();
    assert!(file.exists());
    std::fs::write(&file, b"{").unwrap();
    let error = claim(&destination, "two", |_| {}).err().unwrap();
    assert!(error.is_refusal() && error.to_string().contains("Remove it if"), "{error}");
    std::fs::write(&file, b"{\"version\": 7}").unwrap();
    let error = claim(&destination, "two", |_| {}).err().unwrap();
    assert!(error.is_refusal() && error.to_string().contains("its version is 7"), "{error}");
}

#[test]
fn what_an_attempt_left_goes_and_what_is_complete_stays() {
    let folder = Folder::new();
    let destination = Destination::from(folder.path());
    let mut claim = claim(&destination, "one", |_| {}).unwrap();
    write(&Disk::default(), folder.path(), 10, 2).unwrap();
    each_stage(20, 2, |stage| destination.write_stage(20, stage)).unwrap();
    claim.discard(20).unwrap();
    claim.discard(10).unwrap();
    claim.discard(30).unwrap();
    assert!(!folder.path().join("step-00000020").exists());
    assert_whole(&newest(folder.path()), 2);
}

#[test]
fn a_last_checkpoint_that_is_not_what_was_written_is_noticed() {
    let folder = Folder::new();
    let destination = Destination::from(folder.path());
    let mut claim = claim(&destination, "one", |_| {}).unwrap();
    let records = each_stage(10, 2, |stage| destination.write_stage(10, stage)).unwrap();
    identified(10, |identity| claim.seal(identity, records, 1)).unwrap();
    claim.confirm(10).unwrap();
    let manifest = folder.path().join("step-00000010/training.json");
    let written = std::fs::read(&manifest).unwrap();
    replace(&manifest, "\"abc\"", "\"abd\"");
    assert!(claim.confirm(10).unwrap_err().is_damage());
    std::fs::write(&manifest, written).unwrap();
    truncate(&folder.path().join("step-00000010/config.json"));
    assert!(claim.confirm(10).unwrap_err().is_damage());
    std::fs::remove_file(&manifest).unwrap();
    assert!(claim.confirm(10).unwrap_err().is_damage());
}

#[test]
fn a_run_goes_on_with_another_version_of_the_arithmetic_if_that_gives_its_bits() {
    // Version 2 changed nothing but quantised weights, version 3 everything.
    for (was, versions, unquantised, quantised) in [
        (1, (1, 2), true, false),
        (2, (1, 2), true, true),
        (3, (1, 2), false, false),
        (2, (3, 3), false, false),
    ] {
        assert_eq!(goes_on(was, false, versions), unquantised, "{was} {versions:?}");
        assert_eq!(goes_on(was, true, versions), quantised, "{was} {versions:?}");
    }
}

#[test]
fn a_manifest_admits_its_own_run_with_its_own_arithmetic() {
    let folder = Folder::new();
    let manifest = write(&Disk::default(), folder.path(), 10, 2).unwrap();
    let destination = Destination::from(folder.path());
    let admit = |manifest: &Manifest, change: &dyn Fn(&mut TrainingConfig)| {
        let mut config = config();
        change(&mut config);
        manifest.admit(&destination, &config).map_err(|e| (e.is_refusal(), e.to_string()))
    };
    let changes = admit(&manifest, &|c| (c.steps, c.optimizer.clip) = (200, None)).unwrap();
    let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["optimizer.clip 1.0 -> nothing", "steps 100 -> 200"]);
    let (refusal, why) = admit(&manifest, &|c| c.global_batch = 4).unwrap_err();
    assert!(refusal && why.contains("globalBatch was 2"), "{why}");
    let (ours, theirs) = (OWN_NUMERICS, OWN_NUMERICS.version() + 1);
    let other = Manifest { arithmetic: NumericsClass::from_number(theirs).unwrap(), ..manifest.clone() };
    let (refusal, why) = admit(&other, &|_| {}).unwrap_err();
    let both = format!("version {theirs} of the arithmetic, and this program has version {ours}");
    assert!(refusal && why.contains(&both), "{why}");
    // Those that were written before the arithmetic was in them all had the first.
    let path = folder.path().join("step-00000010/training.json");
    let present = format!("\"version\": 2,\n  \"arithmetic\": {ours}");
    replace(&path, &present, "\"version\": 1");
    assert_eq!(
        newest(folder.path()).manifest,
        Manifest { version: 1, arithmetic: NumericsClass::FIRST, ..manifest }
    );
    // One of a later form may be sound: it is not passed over.
    replace(&path, "\"version\": 1", "\"version\": 3");
    let error = destination.latest(Scrutiny::Lengths).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("is of version 3"), "{error}");
}
