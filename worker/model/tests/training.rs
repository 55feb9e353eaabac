//! Training of a stage: gradients against finite differences of a plain model in f64, and bits against everything that must not change them.
#![allow(
    clippy::unwrap_used,
    clippy::needless_range_loop,
    reason = "a test may panic, and indexes several arrays"
)]

mod support;

use dunlin_kernels::gradient_sum::to_f32;
use dunlin_kernels::{GradientSums, IGNORED, Isa, Pool, bit_sum};
use dunlin_model::ModelConfig;
use dunlin_model::spec::Activation;
use dunlin_model::training::{
    Backward, Grad, ParameterLayout, StageInput, StageModel, TrainingError, initialise,
};
use support::training::{LENGTH, config, loss_f64, microbatch, parameters, wide};

const LIMIT: f32 = 1024.0;

/// The families, tied and not.
fn families() -> Vec<ModelConfig> {
    ["llama", "mistral", "qwen2"]
        .iter()
        .flat_map(|name| [true, false].map(|tied| config(name, tied)))
        .collect()
}

fn whole(config: &ModelConfig, pool: &Pool, parameters: &[f32]) -> StageModel {
    let mut model = StageModel::new(config, 0..config.layers, true, true, LENGTH).unwrap();
    model.set_parameters(pool, parameters).unwrap();
    model
}

/// Loss and sums of one microbatch through the whole model.
fn gradients(config: &ModelConfig, pool: &Pool, parameters: &[f32], seed: u64) -> (f64, Vec<i64>) {
    let (tokens, targets) = microbatch(config, 2, seed);
    let mut sums = GradientSums::new(parameters.len());
    let grad = Grad::Targets { targets: &targets, scale: 0.5 };
    let mut model = whole(config, pool, parameters);
    let out = model.backward(pool, StageInput::Tokens(&tokens), grad, Some(&mut sums), LIMIT).unwrap();
    assert_eq!(out.input_gradient, None);
    assert_eq!(model.loss(pool, StageInput::Tokens(&tokens), &targets).unwrap(), out.loss.unwrap());
    (out.loss.unwrap(), sums.values().to_vec())
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for config in families() {
        let layout = ParameterLayout::new(&config, 0..config.layers, true, true);
        let parameters = parameters(&config, &layout);
        let (loss, sums) = gradients(&config, &Pool::new(2), &parameters, 3);
        let (tokens, targets) = microbatch(&config, 2, 3);
        let mut wide = wide(&parameters);
        let want = loss_f64(&config, &layout, &wide, &[], &tokens, &targets);
        assert!((loss - want).abs() < 1e-6 * want, "{loss} not {want}");
        let mut differences = |i: usize| {
            let value = wide[i];
            let mut at = |by: f64| {
                wide[i] = value + by;
                let loss = loss_f64(&config, &layout, &wide, &[], &tokens, &targets);
                wide[i] = value;
                loss
            };
            0.5 * (at(1e-5) - at(-1e-5)) / 2e-5
        };
        for tensor in layout.tensors() {
            let got: Vec<f64> = sums[tensor.range()].iter().map(|sum| f64::from(to_f32(*sum))).collect();
            let size = got.iter().fold(0f64, |max, v| max.max(v.abs()));
            for at in (0..tensor.len()).step_by(tensor.len().div_ceil(9)) {
                let want = differences(tensor.offset + at);
                let error = (got[at] - want).abs();
                let name = &tensor.name;
                assert!(error < 2e-5 * size, "{config:?} {name} {at}: {} not {want} ({size})", got[at]);
            }
        }
    }
}

#[test]
fn a_block_without_a_way_back_is_refused_by_name() {
    let gelu = |c: &mut ModelConfig| c.block.mlp.activation = Activation::GeluTanh;
    let scale = |c: &mut ModelConfig| c.block.attention.scale = Some(0.5);
    for (change, what) in [
        ((|c| c.block.attention.qk_norm = true) as fn(&mut ModelConfig), "norms queries and keys"),
        (|c| c.block.post_norms = true, "has norms behind attention"),
        (gelu, "has another activation than SiLU"),
        (scale, "scales attention in its own way"),
        (|c| c.embedding_scale = Some(2.0), "scales its embedding"),
        (|c| c.architecture = "phi3".to_owned(), "has matrices that are one tensor"),
    ] {
        let mut config = config("llama", true);
        change(&mut config);
        let error = StageModel::new(&config, 0..1, true, false, LENGTH).map(drop).unwrap_err().to_string();
        assert!(error.ends_with(&format!(", which {what}, is not trained here")), "{error}");
    }
    // Inside of a window it changes nothing.
    let mut config = config("mistral", true);
    config.block.attention.window = Some(LENGTH as u32);
    assert!(StageModel::new(&config, 0..1, true, false, LENGTH).is_ok());
    config.block.attention.window = Some(LENGTH as u32 - 1);
    let error = StageModel::new(&config, 0..1, true, false, LENGTH).map(drop).unwrap_err().to_string();
    assert!(error.contains("sequences of 19 tokens for a model with a context of 18"), "{error}");
}

#[test]
fn every_parameter_has_a_gradient() {
    for config in families() {
        let layout = ParameterLayout::new(&config, 0..config.layers, true, true);
        let parameters = parameters(&config, &layout);
        let (_, sums) = gradients(&config, &Pool::new(1), &parameters, 4);
        let (tokens, _) = microbatch(&config, 2, 4);
        for tensor in layout.tensors() {
            for (i, sum) in sums[tensor.range()].iter().enumerate() {
                let token = (i / config.hidden) as u32;
                // A token that does not occur has no gradient as an input; and shifting all keys alike changes no softmax, but rotation does.
                let none = tensor.name.contains("embed") && !config.tied && !tokens.contains(&token);
                assert_eq!(*sum == 0, none, "{} {i}", tensor.name);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_instructions() {
    for config in [config("qwen2", true), config("llama", false)] {
        let layout = ParameterLayout::new(&config, 0..config.layers, true, true);
        let parameters = parameters(&config, &layout);
        let (loss, sums) = gradients(&config, &Pool::with_isa(1, Isa::Scalar), &parameters, 5);
        for isa in Isa::all() {
            for threads in [1, 2, 3] {
                let (other, other_sums) = gradients(&config, &Pool::with_isa(threads, isa), &parameters, 5);
                assert!(
                    loss.to_bits() == other.to_bits() && sums == other_sums,
                    "{isa:?}, {threads} threads"
                );
            }
        }
    }
}

/// Runs a microbatch through stages that are cut before the layers `cuts`; gives the loss and the sums by tensor name.
fn through_stages(config: &ModelConfig, cuts: &[u32], seed: u64) -> (f64, Vec<(String, Vec<i64>)>) {
    let pool = Pool::new(2);
    let edges: Vec<u32> = [&[0], cuts, &[config.layers]].concat();
    let count = edges.len() - 1;
    let mut stages: Vec<StageModel> = (0..count)
        .map(|i| {
            let layers = edges[i]..edges[i + 1];
            let mut stage = StageModel::new(config, layers, i == 0, i + 1 == count, LENGTH).unwrap();
            let own = parameters(config, stage.layout());
            stage.set_parameters(&pool, &own).unwrap();
            stage
        })
        .collect();
    let (tokens, targets) = microbatch(config, 2, seed);
    let mut rows: Vec<Vec<f32>> = Vec::new();
    for i in 0..count - 1 {
        let input = rows.last().map_or(StageInput::Tokens(&tokens), |rows| StageInput::Rows(rows));
        let out = stages[i].forward(&pool, input, 2).unwrap();
        rows.push(out);
    }
    let (mut loss, mut back) = (0.0, Vec::new());
    let mut sums: Vec<GradientSums> =
        stages.iter().map(|stage| GradientSums::new(stage.layout().len())).collect();
    for i in (0..count).rev() {
        let input = if i == 0 { StageInput::Tokens(&tokens) } else { StageInput::Rows(&rows[i - 1]) };
        let grad =
            if i + 1 == count { Grad::Targets { targets: &targets, scale: 0.5 } } else { Grad::Rows(&back) };
        let only_input = stages[i].backward(&pool, input, grad, None, LIMIT).unwrap();
        let out = stages[i].backward(&pool, input, grad, Some(&mut sums[i]), LIMIT).unwrap();
        assert_eq!(only_input, out, "sums or not, the rest is the same");
        loss = out.loss.unwrap_or(loss);
        back = out.input_gradient.unwrap_or_default();
    }
    let named = |(stage, sums): (&StageModel, &GradientSums)| {
        let tensors = stage.layout().tensors().iter();
        tensors
            .map(|tensor| (tensor.name.clone(), sums.values()[tensor.range()].to_vec()))
            .collect::<Vec<_>>()
    };
    (loss, stages.iter().zip(&sums).flat_map(named).collect())
}

#[test]
fn where_the_model_is_cut_changes_no_bit() {
    for config in families() {
        let (loss, mut want) = through_stages(&config, &[], 6);
        want.sort();
        for cuts in [&[1][..], &[2], &[1, 2], &[0], &[3]] {
            let (other, sums) = through_stages(&config, cuts, 6);
            assert_eq!(loss.to_bits(), other.to_bits(), "cut before {cuts:?}");
            let mut merged: Vec<(String, Vec<i64>)> = Vec::new();
            for (name, sums) in sums {
                match merged.iter_mut().find(|(other, _)| *other == name) {
                    // Both ends of a tied embedding.
                    Some((_, total)) => total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum),
                    None => merged.push((name, sums)),
                }
            }
            merged.sort();
            assert!(merged == want, "{} tied {}: cut before {cuts:?}", config.architecture, config.tied);
        }
    }
}

#[test]
fn microbatches_add_up_in_any_order() {
    let config = config("llama", true);
    let layout = ParameterLayout::new(&config, 0..config.layers, true, true);
    let (pool, parameters) = (Pool::new(2), parameters(&config, &layout));
    let mut model = whole(&config, &pool, &parameters);
    let mut all = |order: &[u64]| {
        let mut sums = GradientSums::new(layout.len());
        for seed in order {
            let (tokens, targets) = microbatch(&config, 1, *seed);
            let grad = Grad::Targets { targets: &targets, scale: 0.01 };
            model.backward(&pool, StageInput::Tokens(&tokens), grad, Some(&mut sums), LIMIT).unwrap();
        }
        sums
    };
    let want = all(&[1, 2, 3, 4, 5]);
    assert_eq!(want, all(&[4, 1, 5, 3, 2]));
    assert_ne!(want, all(&[4, 1, 5, 3, 3]));
}

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    let config = config("mistral", false);
    let layout = ParameterLayout::new(&config, 0..config.layers, true, true);
    let (pool, parameters) = (Pool::new(2), parameters(&config, &layout));
    let mut model = whole(&config, &pool, &parameters);
    let (tokens, _) = microbatch(&config, 3, 9);
    let together = model.forward(&pool, StageInput::Tokens(&tokens), 3).unwrap();
    for (sequence, rows) in tokens.chunks(LENGTH).zip(together.chunks(LENGTH * config.hidden)) {
        assert_eq!(model.forward(&pool, StageInput::Tokens(sequence), 1).unwrap(), rows);
    }
}

/// What computations read can be told from something else by the parameters alone.
#[test]
fn copies_have_the_sums_of_bits_of_the_parameters() {
    for family in ["llama", "mistral", "qwen2"] {
        for tied in [true, false] {
            let config = config(family, tied);
            for (first, last) in [(true, true), (true, false), (false, true), (false, false)] {
                let layout = ParameterLayout::new(&config, 0..2, first, last);
                let (pool, values) = (Pool::new(2), parameters(&config, &layout));
                let mut model = StageModel::new(&config, 0..2, first, last, LENGTH).unwrap();
                model.set_parameters(&pool, &values).unwrap();
                let mut copied = vec![false; layout.len()];
                for held in model.held() {
                    let place = held.of.unwrap();
                    assert_eq!(
                        held.bits.sum(pool.isa()),
                        bit_sum::of_values(pool.isa(), &values[place.clone()])
                    );
                    let parts = held.bits.parts(100).into_iter().map(|part| part.sum(pool.isa()));
                    assert_eq!(parts.sum::<u64>(), held.bits.sum(pool.isa()));
                    copied[place].fill(true);
                }
                assert!(copied.into_iter().all(|copied| copied), "{family} {tied} {first} {last}");
            }
        }
    }
}

#[test]
fn ignored_targets_count_nothing() {
    let config = config("llama", false);
    let layout = ParameterLayout::new(&config, 0..config.layers, true, true);
    let (pool, parameters) = (Pool::new(1), parameters(&config, &layout));
    let mut model = whole(&config, &pool, &parameters);
    let (tokens, mut targets) = microbatch(&config, 2, 10);
    let losses: Vec<f64> = (0..2)
        .map(|i| {
            let (input, targets) = (&tokens[i * LENGTH..][..LENGTH], &targets[i * LENGTH..][..LENGTH]);
            model.loss(&pool, StageInput::Tokens(input), targets).unwrap()
        })
        .collect();
    targets[LENGTH..].fill(IGNORED);
    let grad = Grad::Targets { targets: &targets, scale: 1.0 };
    let mut sums = GradientSums::new(layout.len());
    let out = model.backward(&pool, StageInput::Tokens(&tokens), grad, Some(&mut sums), LIMIT).unwrap();
    assert!((out.loss.unwrap() - losses[0]).abs() < 1e-9);
    let mut alone = GradientSums::new(layout.len());
    let grad = Grad::Targets { targets: &targets[..LENGTH], scale: 1.0 };
    model.backward(&pool, StageInput::Tokens(&tokens[..LENGTH]), grad, Some(&mut alone), LIMIT).unwrap();
    let close = |(a, b): (&i64, &i64)| (to_f32(*a) - to_f32(*b)).abs() < 1e-6 * (1.0 + to_f32(*a).abs());
    assert!(sums.values().iter().zip(alone.values()).all(close));
    targets.fill(IGNORED);
    let grad = Grad::Targets { targets: &targets, scale: 1.0 };
    sums.clear();
    let out = model.backward(&pool, StageInput::Tokens(&tokens), grad, Some(&mut sums), LIMIT).unwrap();
    assert_eq!(out, Backward { input_gradient: None, loss: Some(0.0) });
    assert!(sums.values().iter().all(|sum| *sum == 0));
}

#[test]
fn what_goes_wrong_is_named_and_adds_nothing() {
    let config = config("qwen2", false);
    let pool = Pool::new(2);
    let mut model = StageModel::new(&config, 1..3, false, true, LENGTH).unwrap();
    let layout = model.layout().clone();
    let sound = parameters(&config, &layout);
    let (_, targets) = microbatch(&config, 1, 11);
    let rows: Vec<f32> = (0..LENGTH * config.hidden).map(|i| (i % 17) as f32 / 9.0 - 1.0).collect();
    let mut fails = |parameters: &[f32], rows: &[f32], scale: f32, limit: f32| {
        model.set_parameters(&pool, parameters).unwrap();
        let mut sums = GradientSums::new(layout.len());
        let grad = Grad::Targets { targets: &targets, scale };
        let error = model.backward(&pool, StageInput::Rows(rows), grad, Some(&mut sums), limit).unwrap_err();
        assert_eq!(sums, GradientSums::new(layout.len()), "{error}");
        error
    };
    let with = |name: &str, value: f32| {
        let mut parameters = sound.clone();
        parameters[layout.tensor(name).unwrap().offset] = value;
        parameters
    };
    for (name, layer, op) in [
        ("model.layers.2.self_attn.q_proj.weight", 2, "queries"),
        ("model.layers.1.self_attn.k_proj.bias", 1, "keys"),
        ("model.layers.2.self_attn.v_proj.weight", 2, "values"),
        ("model.layers.1.self_attn.o_proj.weight", 1, "feed-forward"),
        ("model.layers.1.mlp.up_proj.weight", 1, "feed-forward"),
        ("lm_head.weight", 3, "logits"),
        ("model.norm.weight", 3, "logits"),
    ] {
        for value in [f32::NAN, f32::INFINITY] {
            match fails(&with(name, value), &rows, 1.0, LIMIT) {
                TrainingError::NonFinite { layer: l, op: o, .. } => assert_eq!((l, o), (layer, op), "{name}"),
                other => panic!("{name}: {other}"),
            }
        }
    }
    assert!(matches!(
        fails(&sound, &rows, f32::MAX, LIMIT),
        TrainingError::NonFinite { layer: 3, op: "the backward pass", .. }
            | TrainingError::NonFinite { op: "the backward pass", .. }
    ));
    match fails(&sound, &rows, 1.0, 1e-6) {
        TrainingError::Gradient { tensor, value, limit, .. } => {
            assert!(
                tensor == "model.layers.1.input_layernorm.weight" && value.abs() > limit,
                "{tensor} {value}"
            );
        }
        other => panic!("{other}"),
    }
    let mut odd = rows.clone();
    odd[3 * config.hidden] = f32::NAN;
    assert_eq!(fails(&sound, &odd, 1.0, LIMIT).to_string(), "a value of input row 3 is not finite");
    assert!(matches!(fails(&sound, &rows[1..], 1.0, LIMIT), TrainingError::Input(_)));
    let missing = model.set_parameters(&pool, &sound[1..]).unwrap_err();
    assert!(matches!(missing, TrainingError::Input(_)));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let config = config("llama", false);
    let pool = Pool::new(1);
    for (layers, length) in [(0..4, LENGTH), (4..4, LENGTH), (0..1, 0), (0..1, 65)] {
        assert!(StageModel::new(&config, layers, true, false, length).is_err());
    }
    let mut first = StageModel::new(&config, 0..1, true, false, LENGTH).unwrap();
    let mut last = StageModel::new(&config, 1..3, false, true, LENGTH).unwrap();
    let (tokens, targets) = microbatch(&config, 1, 1);
    let rows = vec![0.5; LENGTH * config.hidden];
    let mut wide = tokens.clone();
    wide[5] = config.vocab as u32;
    let mut errors = Vec::new();
    for input in [StageInput::Rows(&rows), StageInput::Tokens(&wide), StageInput::Tokens(&tokens[1..])] {
        errors.push(first.forward(&pool, input, 1).unwrap_err());
    }
    errors.push(first.forward(&pool, StageInput::Tokens(&tokens), 2).unwrap_err());
    errors.push(first.loss(&pool, StageInput::Tokens(&tokens), &targets).unwrap_err());
    let goal = Grad::Targets { targets: &targets, scale: 1.0 };
    errors.push(first.backward(&pool, StageInput::Tokens(&tokens), goal, None, 1.0).unwrap_err());
    let short = Grad::Rows(&rows[1..]);
    errors.push(first.backward(&pool, StageInput::Tokens(&tokens), short, None, 1.0).unwrap_err());
    errors.push(last.forward(&pool, StageInput::Tokens(&tokens), 1).unwrap_err());
    errors.push(last.backward(&pool, StageInput::Rows(&rows), Grad::Rows(&rows), None, 1.0).unwrap_err());
    let wide = Grad::Targets { targets: &wide, scale: 1.0 };
    errors.push(last.backward(&pool, StageInput::Rows(&rows), wide, None, 1.0).unwrap_err());
    let few = last.backward(&pool, StageInput::Rows(&rows), goal, Some(&mut GradientSums::new(3)), 1.0);
    errors.push(few.unwrap_err());
    assert!(errors.iter().all(|error| matches!(error, TrainingError::Input(_))), "{errors:?}");
}

#[test]
fn first_values_do_not_depend_on_where_the_model_is_cut() {
    let config = config("qwen2", true);
    let of = |layers, first, last, seed| {
        let layout = ParameterLayout::new(&config, layers, first, last);
        let mut values = vec![f32::NAN; layout.len()];
        initialise(&layout, &config, seed, &mut values);
        (layout, values)
    };
    let (layout, values) = of(0..3, true, true, 1);
    for (part, part_values) in [of(0..1, true, false, 1), of(1..3, false, true, 1)] {
        for tensor in part.tensors() {
            let whole = layout.tensor(&tensor.name).unwrap();
            assert!(part_values[tensor.range()] == values[whole.range()], "{}", tensor.name);
        }
    }
    assert!(of(0..3, true, true, 2).1 != values);
    for tensor in layout.tensors() {
        let v = &values[tensor.range()];
        if !tensor.decay {
            let one = if tensor.name.ends_with("bias") { 0.0 } else { 1.0 };
            assert!(v.iter().all(|v| *v == one), "{}", tensor.name);
            continue;
        }
        let n = v.len() as f64;
        let mean = v.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let deviation = (v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
        let residual = tensor.name.contains("o_proj") || tensor.name.contains("down_proj");
        let want = if residual { 0.02 / 6f64.sqrt() } else { 0.02 };
        let sampling = 4.0 / n.sqrt();
        assert!(mean.abs() < want * sampling && (deviation / want - 1.0).abs() < sampling, "{}", tensor.name);
    }
}
