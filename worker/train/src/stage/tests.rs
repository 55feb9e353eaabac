use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::training::layout::EMBEDDING;
use serde_json::json;

use super::{Purpose, Stage};
use crate::average::tests::form;
use crate::average::{Average, part};
use crate::codec::Codec;
use crate::config::{InitialModel, TrainingConfig, model_config};
use crate::run::Run;

/// Two stages of one block, with one embedding.
fn run(activations: &str, gradients: &str) -> Arc<Run> {
    run_with(activations, gradients, false)
}

fn run_with(activations: &str, gradients: &str, delayed_updates: bool) -> Arc<Run> {
    let config = json!({
        "model": {"config": {"hiddenSize": 32, "layers": 2, "heads": 2, "kvHeads": 1, "ffn": 64, "contextLength": 16, "tied": true}},
        "data": {"text": {"path": "unread"}},
        "sequenceLength": 16, "globalBatch": 8, "microbatch": 2, "steps": 100,
        "optimizer": {"kind": "AdamW", "learningRate": 1e-2, "delayedUpdates": delayed_updates},
        "stages": 2,
        "wire": {"activations": activations, "gradients": gradients},
    });
    let config = TrainingConfig::from_json(&config.to_string()).unwrap();
    let InitialModel::Config(shape) = &config.model else { unreachable!("the model is above") };
    let model = model_config(shape, 256).unwrap();
    Arc::new(Run::new(config, model).unwrap())
}

/// Tokens of a microbatch, or its targets, as they travel.
fn tokens(from: u32) -> Vec<u8> {
    (from..from + 32).flat_map(|i| (i * 37 % 251).to_le_bytes()).collect()
}

/// What went from the first stage to the last, what came back, and the loss.
fn through(first: &mut Stage, last: &mut Stage, from: u32) -> (Vec<u8>, Vec<u8>, f64) {
    let step = first.step();
    through_in(first, last, step, from)
}

/// The same in a step that may be the one behind.
fn through_in(first: &mut Stage, last: &mut Stage, step: u64, from: u32) -> (Vec<u8>, Vec<u8>, f64) {
    let pool = Pool::new(1);
    let purpose = Purpose { step, validation: false };
    let rows = first.forward(&pool, purpose, &tokens(from)).unwrap().data;
    let back = last.backward(&pool, step, &rows, &tokens(from + 1), true).unwrap();
    first.backward(&pool, step, &tokens(from), &back.data, true).unwrap();
    (rows, back.data, back.loss.unwrap())
}

#[test]
fn rows_and_their_gradients_travel_in_the_codec_of_the_run() {
    let pool = Pool::new(1);
    let mut exact = None;
    for (wire, codec, bytes) in
        [("F32", Codec::F32, 4096), ("F16", Codec::F16, 2048), ("Q8", Codec::Q8, 1024 + 16 * 4)]
    {
        let run = run(wire, "Exact");
        let stage = |index| Stage::initial(&run, index, &pool).unwrap();
        let (mut first, mut last) = (stage(0), stage(1));
        let (rows, gradients, loss) = through(&mut first, &mut last, 5);
        // 2 sequences of 16 rows of 32 values.
        assert_eq!((rows.len(), gradients.len()), (bytes, bytes), "{wire}");
        let (mut decoded, mut back) = (Vec::new(), Vec::new());
        codec.decode(&rows, 1024, &mut decoded).unwrap();
        codec.decode(&gradients, 1024, &mut back).unwrap();
        let (rows, gradients, exact_loss) = exact.get_or_insert((decoded.clone(), back.clone(), loss));
        let error = |a: &[f32], b: &[f32]| {
            let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>();
            (squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut a.iter().copied())).sqrt()
        };
        assert!(error(rows, &decoded) < 1e-2, "{wire}: {}", error(rows, &decoded));
        assert!(error(gradients, &back) < 3e-2, "{wire}: {}", error(gradients, &back));
        assert!((loss / *exact_loss - 1.0).abs() < 1e-3, "{wire}: {loss} {exact_loss}");
        // What another codec has made is refused.
        for other in [1024, 1025, 2048, 4096].into_iter().filter(|other| *other != bytes) {
            last.backward(&pool, 0, &vec![0; other], &tokens(6), false).unwrap_err();
            first.backward(&pool, 0, &tokens(5), &vec![0; other], false).unwrap_err();
        }
    }
}

/// The averages of a step of all peers: of each stage, and of the embedding that all share. By peer, then by shard.
fn averages(peers: &[&Stage]) -> Vec<BTreeMap<u32, Arc<Average>>> {
    let mut out = vec![BTreeMap::new(); peers.len()];
    for shard in 0..3 {
        let group: Vec<usize> =
            (0..peers.len()).filter(|p| shard == 2 || peers[*p].index() == shard).collect();
        let shares: Vec<_> = group.iter().map(|p| peers[*p].share_unchecked(shard)).collect();
        let wire = peers[0].run.config.wire.gradients;
        for (peer, average) in group.into_iter().zip(form(wire, &shares)) {
            out[peer].insert(shard, Arc::new(average));
        }
    }
    out
}

fn sums(stage: &Stage, step: u64) -> Option<&[i64]> {
    let ahead = usize::try_from(step.checked_sub(stage.step())?).unwrap();
    stage.sums.get(ahead).map(|sums| sums.values())
}

fn is_empty(stage: &Stage, step: u64) -> bool {
    sums(stage, step).is_some_and(|sums| sums.iter().all(|sum| *sum == 0))
}

fn state(stage: &Stage) -> (Vec<f32>, Vec<Vec<f32>>) {
    let snapshot = stage.snapshot();
    (snapshot.parameters().to_vec(), snapshot.slots().map(<[f32]>::to_vec).collect())
}

fn embedding(stage: &Stage) -> &[f32] {
    let tensor = stage.layout().tensors().iter().find(|t| t.name == EMBEDDING).unwrap();
    &stage.parameters.values()[tensor.range()]
}

#[test]
fn peers_stay_the_same_and_what_was_lost_is_in_the_next_step_once() {
    let pool = Pool::new(2);
    for gradients in ["Exact", "F32", "F16", "Q8"] {
        let run = run("F32", gradients);
        let stage = |index| Stage::initial(&run, index, &pool).unwrap();
        let mut peers = [stage(0), stage(0), stage(1), stage(1)];
        for step in 0..3 {
            let [a, b, c, d] = &mut peers;
            through(a, c, 100 * step);
            through(b, d, 100 * step + 40);
            let averages = averages(&peers.each_ref());
            let before: Vec<Vec<f32>> = peers.iter().map(|p| p.residual.to_vec()).collect();
            let shares: Vec<_> = peers.iter().map(|p| p.share_unchecked(p.index())).collect();
            let fingerprints: Vec<u64> = peers
                .iter_mut()
                .zip(&averages)
                .map(|(peer, averages)| peer.apply(&pool, 0.5, averages).unwrap())
                .collect();
            let [a, b, c, d] = fingerprints[..] else { unreachable!("there are four") };
            assert!(a == b && c == d && a != c, "{gradients}");
            assert_eq!(embedding(&peers[0]), embedding(&peers[2]), "{gradients}");
            assert!(peers.iter().all(|p| is_empty(p, u64::from(step) + 1)));
            if matches!(gradients, "Exact" | "F32") {
                assert!(peers.iter().all(|p| p.residual.is_empty()));
                continue;
            }
            for (((peer, before), share), averages) in peers.iter().zip(before).zip(&shares).zip(&averages) {
                assert_ne!(*peer.residual, before, "{gradients}");
                // In its own part, what the result has lost; elsewhere, what did not get to the others.
                let average = &averages[&peer.index()];
                let kept = share.remaining(&pool, average).unwrap();
                let own = part(share.len(), average.index, 2);
                let mut at = 0;
                for (range, lost) in kept {
                    assert_eq!(peer.residual[range], lost);
                    for (i, lost) in (at..).zip(&lost).filter(|(i, _)| own.contains(i)) {
                        assert_eq!(average.lost[i - own.start], *lost);
                    }
                    at += lost.len();
                }
                assert_eq!(at, share.len());
            }
        }
        // An update that was made without this peer.
        let [a, b, ..] = &mut peers;
        let gradient = Arc::new(vec![1e-3; a.layout().len()]);
        assert_eq!(a.follow(&pool, Arc::clone(&gradient)).unwrap(), b.follow(&pool, gradient).unwrap());
        assert!(a.residual.iter().all(|lost| *lost == 0.0));
    }
}

#[test]
fn a_share_that_is_being_sent_does_not_change() {
    let run = run("F32", "Q8");
    let pool = Pool::new(1);
    let (mut first, mut last) =
        (Stage::initial(&run, 0, &pool).unwrap(), Stage::initial(&run, 1, &pool).unwrap());
    through(&mut first, &mut last, 1);
    let share = last.share_unchecked(1);
    let bytes = |share: &crate::average::Share| share.encode(0..share.len(), &mut Vec::new()).unwrap();
    let (before, now) = (bytes(&share), last.share_unchecked(1));
    assert_eq!(bytes(&now), before);
    through(&mut first, &mut last, 50);
    assert_eq!(bytes(&share), before);
    assert_ne!(bytes(&last.share_unchecked(1)), before);
    last.clear();
    assert_eq!(bytes(&share), before);
    assert!(is_empty(&last, 0));
}

/// Three steps of a pipeline with delayed updates. When `early`, every step but the first is computed before the update before it; else behind it.
fn three_delayed_steps(early: bool) -> [Stage; 2] {
    let pool = Pool::new(1);
    let run = run_with("F32", "Exact", true);
    let [mut first, mut last] = [0, 1].map(|index| Stage::initial(&run, index, &pool).unwrap());
    through_in(&mut first, &mut last, 0, 1);
    for step in 0..3 {
        let from = 60 * (step as u32 + 1);
        if early {
            through_in(&mut first, &mut last, step + 1, from);
        }
        let averages = averages(&[&first, &last]);
        for (stage, averages) in [&mut first, &mut last].into_iter().zip(&averages) {
            stage.apply(&pool, 1.0, averages).unwrap();
        }
        if !early {
            through_in(&mut first, &mut last, step + 1, from);
        }
    }
    [first, last]
}

#[test]
fn a_delayed_step_is_computed_with_the_parameters_before_the_last_update_whenever_that_is() {
    let pool = Pool::new(1);
    let (early, late) = (three_delayed_steps(true), three_delayed_steps(false));
    for (early, late) in early.iter().zip(&late) {
        assert!(early.snapshot().vectors().eq(late.snapshot().vectors()));
        assert_eq!(early.fingerprint(), late.fingerprint());
        assert_eq!(sums(early, 3).unwrap(), sums(late, 3).unwrap());
        assert!(
            !is_empty(early, 3) && is_empty(early, 4) && sums(early, 5).is_none() && sums(early, 2).is_none()
        );
    }
    // What a mate or a checkpoint gives begins where this one is.
    let [mut first, mut last] = early.each_ref().map(|stage| {
        let (parameters, slots) = state(stage);
        assert_eq!(slots.len(), stage.run.state_slots());
        assert_ne!(*slots.last().unwrap(), parameters);
        Stage::from_state(&stage.run, stage.index(), 3, parameters, slots, &pool).unwrap()
    });
    through_in(&mut first, &mut last, 3, 180);
    assert_eq!((sums(&first, 3), sums(&last, 3)), (sums(&early[0], 3), sums(&early[1], 3)));
    // A validation is of what all updates have made; what is neither is refused.
    let forward = |stage: &mut Stage, step, validation| {
        stage.forward(&pool, Purpose { step, validation }, &tokens(7)).map(|c| c.data)
    };
    let now = forward(&mut first, 4, false).unwrap();
    assert_eq!(forward(&mut first, 3, true).unwrap(), now);
    assert_ne!(forward(&mut first, 3, false).unwrap(), now);
    for (step, validation) in [(2, false), (5, false), (4, true)] {
        forward(&mut first, step, validation).unwrap_err();
    }
}

#[test]
fn a_run_may_begin_to_delay_its_updates_or_cease_to() {
    let pool = Pool::new(1);
    let states = [false, true].map(|delayed| {
        let stage = Stage::initial(&run_with("F32", "Exact", delayed), 0, &pool).unwrap();
        state(&stage)
    });
    for ((parameters, slots), delayed) in states.into_iter().zip([true, false]) {
        let run = run_with("F32", "Exact", delayed);
        let stage = Stage::from_state(&run, 0, 5, parameters, slots, &pool).unwrap();
        assert_eq!(stage.snapshot().slots().len(), run.state_slots());
        assert_eq!(sums(&stage, 6).is_some(), delayed);
    }
}
