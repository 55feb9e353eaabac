//! GGUF files of the shapes that most people have, small and of random weights, in a mix of types as `Q4_K_M` is: Q4_K, with Q6_K where it matters most; and one shape in other mixes.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and print")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::ModelFile;
use dunlin_model::generate::Whole;
use dunlin_model::source::MemorySource;
use dunlin_protocol::SamplingParams;
use half::f16;
use support::gguf::{Gguf, Tensor, block};
use support::vocabulary;

/// What makes a family's file another than the next one's.
struct Shape {
    name: &'static str,
    /// Types of most weights, and of those that matter most.
    types: [&'static str; 2],
    architecture: &'static str,
    /// The way its text is split; SentencePiece without.
    pre: Option<&'static str>,
    kv_heads: u64,
    head: u64,
    tied: bool,
    biases: bool,
    qk_norm: bool,
    post_norms: bool,
    /// Matrices of the same inputs are one tensor.
    fused: bool,
    /// `rope_freqs.weight`.
    divisors: bool,
}

const LAYERS: u32 = 2;
const HIDDEN: u64 = 256;
const FFN: u64 = 512;
const HEADS: u64 = 4;

const LLAMA_2: Shape = Shape {
    name: "Llama 2",
    types: ["Q4_K", "Q6_K"],
    architecture: "llama",
    pre: None,
    kv_heads: HEADS,
    head: 64,
    tied: false,
    biases: false,
    qk_norm: false,
    post_norms: false,
    fused: false,
    divisors: false,
};

fn shapes() -> [Shape; 16] {
    let llama_3 = || Shape { pre: Some("llama-bpe"), kv_heads: 1, divisors: true, ..LLAMA_2 };
    [
        LLAMA_2,
        Shape { name: "Llama 3.1", ..llama_3() },
        Shape { name: "Llama 3.2", tied: true, ..llama_3() },
        Shape { name: "Mistral 7B", kv_heads: 2, ..LLAMA_2 },
        Shape { name: "Mistral Nemo", pre: Some("tekken"), kv_heads: 2, head: 128, ..LLAMA_2 },
        Shape { name: "Qwen2.5", architecture: "qwen2", pre: Some("qwen2"), biases: true, ..LLAMA_2 },
        Shape {
            name: "Qwen3",
            architecture: "qwen3",
            pre: Some("qwen2"),
            kv_heads: 2,
            head: 128,
            qk_norm: true,
            tied: true,
            ..LLAMA_2
        },
        Shape { name: "Gemma", architecture: "gemma", kv_heads: 1, head: 128, tied: true, ..LLAMA_2 },
        Shape {
            name: "Gemma 3",
            architecture: "gemma3",
            kv_heads: 1,
            head: 256,
            qk_norm: true,
            post_norms: true,
            tied: true,
            ..LLAMA_2
        },
        Shape { name: "Phi-3", architecture: "phi3", fused: true, ..LLAMA_2 },
        Shape { name: "Llama 2 in Q5_K", types: ["Q5_K", "Q6_K"], ..LLAMA_2 },
        Shape { name: "Llama 2 in Q3_K", types: ["Q3_K", "Q5_K"], ..LLAMA_2 },
        Shape { name: "Llama 2 in Q2_K", types: ["Q2_K", "Q3_K"], ..LLAMA_2 },
        Shape { name: "Llama 2 in IQ4_XS", types: ["IQ4_XS", "Q5_K"], ..LLAMA_2 },
        Shape { name: "Llama 2 in IQ4_NL", types: ["IQ4_NL", "Q5_0"], ..LLAMA_2 },
        Shape { name: "Llama 2 in Q5_1", types: ["Q5_1", "Q8_0"], ..LLAMA_2 },
    ]
}

/// Random numbers by their place, so that no test depends on another.
fn noise(i: usize) -> u64 {
    let z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
}

/// Scale and, where the format has one, minimum of a block of bytes without a pattern, with which its values are about 1/25 large and have no mean.
fn scales(format: &str) -> [f32; 2] {
    match format {
        "Q8_0" => [6e-4, 0.0],
        "Q5_0" => [5e-3, 0.0],
        "Q5_1" => [3e-3, -4.65e-2],
        "Q2_K" => [4e-3, 6e-3],
        "Q3_K" => [1.2e-3, 0.0],
        "Q5_K" => [1e-4, 1.55e-3],
        "Q6_K" => [3e-5, 0.0],
        "IQ4_XS" => [4e-5, 0.0],
        "IQ4_NL" => [7e-4, 0.0],
        // Q4_K.
        _ => [2e-4, 1.5e-3],
    }
}

/// A tensor whose values are about 1/25 large and have no mean, or about 1 for a norm.
fn tensor(name: &str, format: &str, dimensions: &[u64]) -> Tensor {
    let (kind, values, bytes, places) = block(format);
    let count = dimensions.iter().product::<u64>() as usize;
    let seed = name.bytes().fold(7usize, |seed, byte| seed.wrapping_mul(31).wrapping_add(usize::from(byte)));
    let float = |i: usize| (noise(seed.wrapping_add(i)) % 2001) as f32 / 1000.0 - 1.0;
    let data: Vec<u8> = match format {
        "F32" if name == "rope_freqs.weight" => {
            (0..count).flat_map(|i| (1.0 + i as f32 / 8.0).to_le_bytes()).collect()
        }
        "F32" if name.ends_with("norm.weight") => {
            (0..count).flat_map(|i| (1.0 + 0.1 * float(i)).to_le_bytes()).collect()
        }
        "F32" => (0..count).flat_map(|i| (0.1 * float(i)).to_le_bytes()).collect(),
        _ => {
            let mut data: Vec<u8> =
                (0..count / values * bytes).map(|i| noise(seed.wrapping_add(i)) as u8).collect();
            for block in data.chunks_exact_mut(bytes) {
                for (at, value) in places.iter().zip(scales(format)) {
                    block[*at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
                }
            }
            data
        }
    };
    Tensor { name: name.as_bytes().to_vec(), dimensions: dimensions.to_vec(), kind, offset: None, data }
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn file(shape: &Shape) -> Vec<u8> {
    let mut file = Gguf {
        magic: *b"GGUF",
        version: 3,
        tensor_count: None,
        key_count: None,
        values: Vec::new(),
        tensors: Vec::new(),
    };
    let Shape {
        architecture, pre, kv_heads, head, tied, biases, qk_norm, post_norms, fused, divisors, ..
    } = *shape;
    let [most, precious] = shape.types;
    file.set_text("general.architecture", architecture);
    for (key, value) in [
        ("block_count", LAYERS),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", FFN as u32),
        ("attention.head_count", HEADS as u32),
        ("attention.head_count_kv", kv_heads as u32),
        ("attention.key_length", head as u32),
        ("attention.value_length", head as u32),
        ("context_length", 256),
    ] {
        file.set_u32(&format!("{architecture}.{key}"), value);
    }
    file.set_f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5);
    let vocab = vocabulary::add(&mut file, pre);
    let mut add = |name: &str, format: &str, dimensions: &[u64]| {
        file.tensors.push(tensor(name, format, dimensions));
    };
    add("token_embd.weight", if tied { precious } else { most }, &[HIDDEN, vocab]);
    for layer in 0..LAYERS {
        // As in Q4_K_M: half of the values' and of the last matrices.
        let more = if layer == 0 { precious } else { most };
        let (q, kv) = (HEADS * head, kv_heads * head);
        for (name, format, dimensions) in [
            ("attn_norm.weight", "F32", vec![HIDDEN]),
            ("attn_output.weight", most, vec![q, HIDDEN]),
            ("ffn_norm.weight", "F32", vec![HIDDEN]),
            ("ffn_down.weight", more, vec![FFN, HIDDEN]),
        ] {
            add(&format!("blk.{layer}.{name}"), format, &dimensions);
        }
        let matrices: &[(&str, &str, u64)] = if fused {
            &[("attn_qkv", more, q + 2 * kv), ("ffn_up", most, 2 * FFN)]
        } else {
            &[
                ("attn_q", most, q),
                ("attn_k", most, kv),
                ("attn_v", more, kv),
                ("ffn_gate", most, FFN),
                ("ffn_up", most, FFN),
            ]
        };
        for (name, format, rows) in matrices {
            add(&format!("blk.{layer}.{name}.weight"), format, &[HIDDEN, *rows]);
        }
        if post_norms {
            for name in ["post_attention_norm.weight", "post_ffw_norm.weight"] {
                add(&format!("blk.{layer}.{name}"), "F32", &[HIDDEN]);
            }
        }
        if biases {
            for (name, n) in [("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv)] {
                add(&format!("blk.{layer}.{name}"), "F32", &[n]);
            }
        }
        if qk_norm {
            for name in ["attn_q_norm.weight", "attn_k_norm.weight"] {
                add(&format!("blk.{layer}.{name}"), "F32", &[head]);
            }
        }
    }
    add("output_norm.weight", "F32", &[HIDDEN]);
    if !tied {
        add("output.weight", precious, &[HIDDEN, vocab]);
    }
    if divisors {
        add("rope_freqs.weight", "F32", &[head / 2]);
    }
    file.bytes()
}

#[test]
fn models_that_most_people_have_are_served() {
    for shape in shapes() {
        let name = shape.name;
        let file = ModelFile::open(Arc::new(MemorySource(file(&shape)))).unwrap();
        let tokenizer = file.tokenizer().unwrap();
        let prompt = tokenizer.encode("In the beginning, 12 birds said: 你好 🐦!", true).unwrap();
        assert!(prompt.len() > 10, "{name}");
        let mut whole = Whole::load(&file, Pool::new(1), 256).unwrap();
        let rows = whole.forward(&prompt).unwrap();
        let logits = whole.logits(&rows);
        // The same weights without rounding of inputs: what other programs that do not round compute.
        let mut exact = Whole::load(&file, Pool::new(1), 256).unwrap().dequantised();
        let rows = exact.forward(&prompt).unwrap();
        let wanted = exact.logits(&rows);
        let square =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>();
        let error = square(&mut logits.iter().zip(&wanted).map(|(a, b)| a - b));
        let size = square(&mut wanted.iter().copied());
        assert!(size > 0.0 && error < 1e-3 * size, "{name}: {error} of {size}");
        let answer = |model: &mut Whole| {
            model.generate(&prompt, 8, &SamplingParams::default(), tokenizer.eos()).unwrap()
        };
        let tokens = answer(&mut whole);
        assert_eq!(tokens, answer(&mut whole), "{name}");
        assert_eq!(tokens.first(), answer(&mut exact).first(), "{name}");
    }
}

const PROMPTS: [&str; 3] = [
    "In the beginning, 12 birds said: 你好 🐦!",
    "def add(a, b):\n    return a + b\n",
    "The quick brown fox jumps over the lazy dog, and the rest of an evening is quiet.",
];
/// How far logits may be apart, as a part of their spread: our rounding of inputs and llama.cpp's, each less than 3 %. The gap of a token that is another may
/// be that of a rare row.
const APART: f64 = 0.05;
/// Tokens of an answer.
const ANSWER: usize = 24;

/// What llama.cpp has behind each of `tokens`, row by row.
fn of_llama_cpp(program: &Path, model: &Path, tokens: &[u32]) -> Vec<f32> {
    let tokens = tokens.iter().map(u32::to_string);
    let output = Command::new(program).arg(model).args(tokens).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn largest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// The answer that is the likeliest here, token by token beside what llama.cpp would have said there.
///
/// Both multiply quantised weights with inputs of 8 bits, in blocks of their own, so logits differ by some hundredths of how far they lie apart
/// from one another (above: less than 3 % for ours alone), and where two tokens are as likely one program may say the one and one the other. Nothing else may differ.
#[test]
#[ignore = "needs llama.cpp: `make test-gguf` builds it"]
fn tokens_are_those_of_llama_cpp() {
    let program = std::env::var_os("DUNLIN_LLAMA_LOGITS").expect("`make test-gguf` says where llama.cpp is");
    let program = PathBuf::from(program);
    let (mut same, mut all) = (0, 0);
    for shape in shapes() {
        let name = shape.name;
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
            "shape-{}-{}.gguf",
            name.replace(' ', "-"),
            std::process::id()
        ));
        std::fs::write(&path, file(&shape)).unwrap();
        let model = ModelFile::open_path(&path).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let mut whole = Whole::load(&model, Pool::new(1), 256).unwrap();
        let vocab = model.config().vocab;
        let (mut error, mut size, mut widest) = (0f64, 0f64, 0f64);
        for prompt in PROMPTS {
            let prompt = tokenizer.encode(prompt, true).unwrap();
            let answer = whole.generate(&prompt, ANSWER, &SamplingParams::default(), &[]).unwrap();
            let tokens = [prompt.as_slice(), &answer].concat();
            whole.reset();
            let rows = whole.forward(&tokens).unwrap();
            let ours = whole.logits(&rows);
            let theirs = of_llama_cpp(&program, &path, &tokens);
            assert_eq!(ours.len(), theirs.len(), "{name}");
            let rows = ours.chunks_exact(vocab).zip(theirs.chunks_exact(vocab)).enumerate();
            for (at, (ours, theirs)) in rows {
                let mean = theirs.iter().map(|v| f64::from(*v)).sum::<f64>() / vocab as f64;
                let spread = theirs.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>();
                size += spread;
                error += ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                // Of the prompt's rows only the last says something.
                let Some(said) = at.checked_sub(prompt.len() - 1).and_then(|at| answer.get(at)) else {
                    continue;
                };
                let gap = f64::from(theirs[largest(theirs)] - theirs[*said as usize]);
                widest = widest.max(gap / (spread / vocab as f64).sqrt());
                (same, all) = (same + usize::from(gap == 0.0), all + 1);
            }
        }
        std::fs::remove_file(&path).unwrap();
        println!(
            "{name}: logits differ by {:.2} % of their spread, the widest gap is {:.2} %",
            100.0 * (error / size).sqrt(),
            100.0 * widest
        );
        assert!(
            error < APART * APART * size,
            "{name}: logits differ by {:.4} of their spread",
            (error / size).sqrt()
        );
        assert!(widest < 5.0 * APART, "{name}: another token, by {widest:.4} of the spread");
    }
    println!("{same} of {all} tokens are the same");
    assert!(same * 10 >= all * 9, "{same} of {all}");
}
