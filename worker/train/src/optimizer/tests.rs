use dunlin_kernels::Pool;
use serde_json::Value;

use super::{Optimizer, OptimizerError, OptimizerState};
use crate::config::OptimizerSpec;
use crate::parts::{CHUNK, TensorRange};

fn config(json: &str) -> OptimizerSpec {
    serde_json::from_str(json).unwrap()
}

fn tensors(ranges: &[(std::ops::Range<usize>, bool)]) -> Vec<TensorRange> {
    ranges.iter().map(|(range, decay)| TensorRange { range: range.clone(), decay: *decay }).collect()
}

/// As `number` of e2e/torch/optimizers.py.
fn number(i: usize) -> f32 {
    (((i * 389 + 97) % 1025) as f32 - 512.0) / 512.0
}

fn gradient(step: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| number(1000 * (step + 1) + i) * 2f32.powi(i as i32 % 5 - 3)).collect()
}

const ADAMW: &str = r#"{"kind": "AdamW", "learningRate": 0.01, "weightDecay": 0.1}"#;
const LAMB: &str =
    r#"{"kind": "Lamb", "learningRate": 0.01, "weightDecay": 0.1, "epsilon": 1e-6, "beta2": 0.999}"#;
const SGD: &str = r#"{"kind": "Sgd", "learningRate": 0.01, "weightDecay": 0.1, "momentum": 0.9}"#;
const SGD_PLAIN: &str = r#"{"kind": "Sgd", "learningRate": 0.01, "weightDecay": 0.1}"#;

#[test]
fn updates_are_those_of_pytorch() {
    let expected: Value = serde_json::from_str(include_str!("torch.json")).unwrap();
    let pool = Pool::new(2);
    for (name, json) in [("AdamW", ADAMW), ("Sgd", SGD), ("SgdPlain", SGD_PLAIN)] {
        let mut optimizer =
            Optimizer::new(&config(json), tensors(&[(0..16, true), (16..24, false)]), 24).unwrap();
        let mut parameters = optimizer.checked((0..24).map(number).collect()).unwrap();
        for (step, row) in expected[name].as_array().unwrap().iter().enumerate() {
            let rate = 0.01 / (step + 1) as f64;
            optimizer.step(&pool, rate, 1.0, &mut parameters, &gradient(step, 24)).unwrap();
            for (i, (found, expected)) in parameters.values().iter().zip(row.as_array().unwrap()).enumerate()
            {
                let error = (f64::from(*found) - expected.as_f64().unwrap()).abs();
                // Two roundings of numbers up to 1 per step.
                assert!(error <= 1.2e-7 * (step + 1) as f64, "{name} step {step} [{i}]: {found} {expected}");
            }
        }
        assert_eq!(optimizer.updates(), 6);
    }
}

/// The formulas in f64, straight from the papers.
fn reference(
    config: &OptimizerSpec,
    decays: &[(std::ops::Range<usize>, bool)],
    length: usize,
    steps: usize,
) -> Vec<f64> {
    use crate::config::OptimizerKind::{AdamW, Lamb, Sgd};
    let mut w: Vec<f64> = (0..length).map(|i| f64::from(number(i))).collect();
    let (mut m, mut v) = (vec![0.0; length], vec![0.0; length]);
    for step in 0..steps {
        let (t, lr) = (step as i32 + 1, 0.01);
        let g: Vec<f64> = gradient(step, length).iter().map(|g| f64::from(*g) * 0.5).collect();
        for (range, decay) in decays {
            let d = if *decay { config.weight_decay } else { 0.0 };
            let mut u = vec![0.0; length];
            for i in range.clone() {
                if config.kind == Sgd {
                    m[i] = config.momentum * m[i] + g[i] + d * w[i];
                    u[i] = m[i];
                    continue;
                }
                m[i] = config.beta1 * m[i] + (1.0 - config.beta1) * g[i];
                v[i] = config.beta2 * v[i] + (1.0 - config.beta2) * g[i] * g[i];
                let (mh, vh): (f64, f64) =
                    (m[i] / (1.0 - config.beta1.powi(t)), v[i] / (1.0 - config.beta2.powi(t)));
                u[i] = mh / (vh.sqrt() + config.epsilon) + d * w[i];
            }
            let norm = |x: &[f64]| x[range.clone()].iter().map(|x| x * x).sum::<f64>().sqrt();
            let trust =
                if config.kind == Lamb && norm(&w) > 0.0 { norm(&w).min(1e4) / norm(&u) } else { 1.0 };
            for i in range.clone() {
                w[i] -= lr * trust * u[i];
            }
        }
        assert!(matches!(config.kind, AdamW | Lamb | Sgd));
    }
    w
}

#[test]
fn updates_are_those_of_the_papers_and_threads_change_no_bit() {
    let length = 3 * CHUNK + 101;
    // A norm, a matrix of several chunks, a hole, a small matrix.
    let ranges = [(0..64, false), (64..2 * CHUNK + 77, true), (2 * CHUNK + 90..length, true)];
    for json in [ADAMW, LAMB, SGD, SGD_PLAIN] {
        let config = config(json);
        let run = |threads| {
            let pool = Pool::new(threads);
            let mut optimizer = Optimizer::new(&config, tensors(&ranges), length).unwrap();
            let mut parameters = optimizer.checked((0..length).map(number).collect()).unwrap();
            for step in 0..3 {
                optimizer.step(&pool, 0.01, 0.5, &mut parameters, &gradient(step, length)).unwrap();
            }
            (parameters.into_values(), optimizer.into_state())
        };
        let (parameters, state) = run(1);
        for (i, (found, expected)) in
            parameters.iter().zip(reference(&config, &ranges, length, 3)).enumerate()
        {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{json} [{i}]: {found} {expected}");
        }
        for threads in 2..5 {
            assert_eq!(run(threads), (parameters.clone(), state.clone()), "{json} {threads}");
        }
    }
}

#[test]
fn a_state_goes_on_where_it_was_and_the_cut_in_stages_changes_no_bit() {
    let (length, cut) = (CHUNK + 500, CHUNK / 2);
    let ranges = [(0..cut, true), (cut..length, true)];
    for json in [ADAMW, LAMB, SGD] {
        let (config, pool) = (config(json), Pool::new(2));
        let mut optimizer = Optimizer::new(&config, tensors(&ranges), length).unwrap();
        let mut whole = optimizer.checked((0..length).map(number).collect()).unwrap();
        let mut part = whole.values()[cut..].to_vec();
        let one = || tensors(&[(0..length - cut, true)]);
        let mut state = Optimizer::new(&config, one(), length - cut).unwrap().into_state();
        for step in 0..4 {
            let gradient = gradient(step, length);
            optimizer.step(&pool, 0.01, 1.0, &mut whole, &gradient).unwrap();
            let mut again = Optimizer::with_state(&config, one(), length - cut, state).unwrap();
            let mut checked = again.checked(part).unwrap();
            again.step(&pool, 0.01, 1.0, &mut checked, &gradient[cut..]).unwrap();
            (part, state) = (checked.into_values(), again.into_state());
        }
        assert_eq!(whole.values()[cut..], part, "{json}");
        assert_eq!(state.step, 4);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (adamw, pool) = (config(ADAMW), Pool::new(1));
    let refused =
        |ranges: &[(std::ops::Range<usize>, bool)]| Optimizer::new(&adamw, tensors(ranges), 10).is_err();
    assert!(refused(&[(0..11, true)]));
    assert!(refused(&[(0..5, true), (4..10, true)]));
    assert!(!refused(&[(0..5, true), (6..10, true)]));
    let state = OptimizerState { step: 3, slots: vec![vec![0.0; 10]] };
    let error = Optimizer::with_state(&adamw, vec![], 10, state).err().unwrap();
    assert!(matches!(error, OptimizerError::Slots { found: 1, expected: 2, .. }));
    let mut optimizer = Optimizer::new(&adamw, tensors(&[(0..10, true)]), 10).unwrap();
    optimizer.checked(vec![0.0; 11]).unwrap_err();
    let mut parameters = optimizer.checked(vec![0.0; 10]).unwrap();
    let error = optimizer.step(&pool, 0.1, 1.0, &mut parameters, &[0.0; 9]).unwrap_err();
    assert!(error.to_string().contains("the gradient has 9 values"), "{error}");
    assert_eq!(optimizer.updates(), 0);
    let error = optimizer.step(&pool, 0.1, 1.0, &mut parameters, &[f32::NAN; 10]).unwrap_err();
    assert!(matches!(error, OptimizerError::NonFinite(1)), "{error}");
}

#[test]
fn a_value_that_changes_by_itself_is_noticed_by_the_update_that_reads_it() {
    let length = 2 * CHUNK + 101;
    let ranges = [(0..64, false), (64..length, true)];
    for json in [ADAMW, LAMB, SGD] {
        let vectors = Optimizer::slots(&config(json));
        for (vector, place) in (0..=vectors).flat_map(|v| [0, 63, 64, CHUNK + 64, length - 1].map(|p| (v, p)))
        {
            let pool = Pool::new(2);
            let mut optimizer = Optimizer::new(&config(json), tensors(&ranges), length).unwrap();
            let mut parameters = optimizer.checked((0..length).map(number).collect()).unwrap();
            optimizer.step(&pool, 0.01, 1.0, &mut parameters, &gradient(0, length)).unwrap();
            assert_eq!(parameters.changed(pool.isa()), None);
            // Who reads them as they were does not see what comes.
            let (before, as_read) = (parameters.clone(), parameters.values().to_vec());
            let changed = match vector {
                0 => &mut parameters,
                slot => &mut optimizer.vectors_mut()[slot - 1],
            };
            let value = &mut changed.values_mut()[place];
            *value = f32::from_bits(value.to_bits() ^ 1 << (place % 32));
            assert!(changed.changed(pool.isa()).unwrap().contains(&place));
            let error = optimizer.step(&pool, 0.01, 1.0, &mut parameters, &gradient(1, length)).unwrap_err();
            let OptimizerError::Changed { from, to, what } = error else { panic!("{json}: {error}") };
            assert!(
                (from..to).contains(&place) && (what == "a parameter") == (vector == 0),
                "{what} {from} {to}"
            );
            assert_eq!(before.values(), as_read);
        }
    }
}
