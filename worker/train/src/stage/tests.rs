use std::collections::BTreeMap;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::training::layout::EMBEDDING;
use serde_json::json;

use super::Stage;
use crate::average::tests::form;
use crate::average::{Average, part};
use crate::codec::Codec;
use crate::config::{ModelSource, TrainingConfig};
use crate::run::Run;

/// Two stages of one block, with one embedding.
fn run(activations: &str, gradients: &str) -> Arc<Run> {
    let config = json!({
        "model": {"config": {"hiddenSize": 32, "layers": 2, "heads": 2, "kvHeads": 1, "ffn": 64, "contextLength": 16, "tied": true}},
        "data": {"text": {"path": "unread"}},
        "sequenceLength": 16, "globalBatch": 8, "microbatch": 2, "steps": 100,
        "optimizer": {"kind": "AdamW", "learningRate": 1e-2},
        "stages": 2,
        "wire": {"activations": activations, "gradients": gradients},
    });
    let config = TrainingConfig::from_json(&config.to_string()).unwrap();
    let ModelSource::Config(shape) = &config.model else { unreachable!("the model is above") };
    let model = shape.model_config(256).unwrap();
    Arc::new(Run::new(config, model).unwrap())
}

/// Tokens of a microbatch, or its targets, as they travel.
fn tokens(from: u32) -> Vec<u8> {
    (from..from + 32).flat_map(|i| (i * 37 % 251).to_le_bytes()).collect()
}

/// What went from the first stage to the last, what came back, and the loss.
fn through(first: &mut Stage, last: &mut Stage, from: u32) -> (Vec<u8>, Vec<u8>, f64) {
    let pool = Pool::new(1);
    let rows = first.forward(&pool, &tokens(from)).unwrap().data;
    let back = last.backward(&pool, &rows, &tokens(from + 1), true).unwrap();
    first.backward(&pool, &tokens(from), &back.data, true).unwrap();
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
            last.backward(&pool, &vec![0; other], &tokens(6), false).unwrap_err();
            first.backward(&pool, &tokens(5), &vec![0; other], false).unwrap_err();
        }
    }
}

/// The averages of a step of all peers: of each stage, and of the embedding that all share. By peer, then by shard.
fn averages(peers: &[&Stage]) -> Vec<BTreeMap<u32, Arc<Average>>> {
    let mut out = vec![BTreeMap::new(); peers.len()];
    for shard in 0..3 {
        let group: Vec<usize> =
            (0..peers.len()).filter(|p| shard == 2 || peers[*p].index() == shard).collect();
        let shares: Vec<_> = group.iter().map(|p| peers[*p].share(shard)).collect();
        let wire = peers[0].run.config.wire.gradients;
        for (peer, average) in group.into_iter().zip(form(wire, &shares)) {
            out[peer].insert(shard, Arc::new(average));
        }
    }
    out
}

fn embedding(stage: &Stage) -> &[f32] {
    let tensor = stage.layout().tensors().iter().find(|t| t.name == EMBEDDING).unwrap();
    &stage.parameters[tensor.range()]
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
            let shares: Vec<_> = peers.iter().map(|p| p.share(p.index())).collect();
            let hashes: Vec<u64> = peers
                .iter_mut()
                .zip(&averages)
                .map(|(peer, averages)| peer.apply(&pool, 0.5, averages).unwrap())
                .collect();
            assert_eq!((hashes[0], hashes[2]), (hashes[1], hashes[3]), "{gradients}");
            assert_eq!(embedding(&peers[0]), embedding(&peers[2]), "{gradients}");
            assert!(peers.iter().all(|p| p.sums().iter().all(|sum| *sum == 0)));
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
        let gradient = Arc::new(vec![1e-3; a.parameters.len()]);
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
    let share = last.share(1);
    let bytes = |share: &crate::average::Share| share.encode(0..share.len(), &mut Vec::new()).unwrap();
    let (before, now) = (bytes(&share), last.share(1));
    assert_eq!(bytes(&now), before);
    through(&mut first, &mut last, 50);
    assert_eq!(bytes(&share), before);
    assert_ne!(bytes(&last.share(1)), before);
    last.clear();
    assert_eq!(bytes(&share), before);
    assert!(last.sums().iter().all(|sum| *sum == 0));
}
