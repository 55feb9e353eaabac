//! Model files come from strangers: whatever they hold, they are read or refused with a reason, without a panic and without much memory.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_kernels::Pool;
use dunlin_model::generate::Whole;
use dunlin_model::source::MemorySource;
use dunlin_model::{ByteSource, ModelError, ModelFile, config, gguf, safetensors};
use dunlin_protocol::SamplingParams;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use support::allocations::{Counting, most_held};
use support::gguf::{ARRAY, F32, Gguf, TEXT, Tensor, U8, array, text, tiny};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn open(bytes: Vec<u8>) -> Result<ModelFile, ModelError> {
    ModelFile::open(Arc::new(MemorySource(bytes)))
}

/// Everything that is done with a model: tokens, weights, an answer.
fn use_all(file: &ModelFile) -> Result<Vec<u32>, ModelError> {
    let tokenizer = file.tokenizer()?;
    let mut prompt = tokenizer.encode("the rest of an evening.", true)?;
    let _text = tokenizer.decode(&prompt);
    prompt.push(0);
    let mut whole = Whole::load(file, Pool::new(1), 64)?;
    whole.generate(&prompt, 4, &SamplingParams::default(), tokenizer.eos())
}

/// The message says what is wrong and what to do.
fn assert_tells(error: &ModelError, what: &str) {
    let message = error.to_string();
    assert!(message.contains(what), "`{message}` does not say `{what}`");
    let advice = [
        "use an intact copy",
        "Dunlin runs",
        "the configuration needs",
        "incomplete or of another",
        "the tokenizer cannot",
        "run here",
        "convert it",
        "give ",
        "it is a model of another kind",
        "use a complete copy",
        "use the model",
    ];
    assert!(advice.iter().any(|advice| message.contains(advice)), "`{message}` does not say what to do");
    assert!(message.len() < 400, "{message}");
}

/// A changed tiny model is refused when it is opened.
fn refused(what: &str, change: impl FnOnce(&mut Gguf)) {
    let mut file = tiny();
    change(&mut file);
    let (result, held) = most_held(|| open(file.bytes()));
    let Err(error) = result else { panic!("taken, but it should be refused for: {what}") };
    assert_tells(&error, what);
    assert!(held < 1 << 18, "{what}: {held} bytes");
}

/// As [`refused`], when it is opened or when it is used.
fn refused_in_use(what: &str, change: impl FnOnce(&mut Gguf)) {
    let mut file = tiny();
    change(&mut file);
    let Err(error) = open(file.bytes()).and_then(|file| use_all(&file)) else {
        panic!("taken, but it should be refused for: {what}")
    };
    assert_tells(&error, what);
}

#[test]
fn the_tiny_model_is_sound() {
    assert_eq!(use_all(&open(tiny().bytes()).unwrap()).unwrap().len(), 4);
}

#[test]
fn gguf_cut_anywhere_is_refused() {
    let bytes = tiny().bytes();
    for len in 0..bytes.len() {
        let Err(error) = open(bytes[..len].to_vec()) else { panic!("cut at {len} is taken") };
        assert!(matches!(error, ModelError::Malformed { .. }), "{error}");
    }
}

#[test]
fn gguf_beginnings() {
    refused("does not begin with GGUF", |f| f.magic = *b"GGML");
    refused("does not begin with GGUF", |f| f.magic = *b"FUGG");
    for version in [0, 1, 4, u32::MAX, 4u32.swap_bytes()] {
        refused(&format!("version {version}, not 2 or 3"), |f| f.version = version);
    }
    refused("big-endian", |f| f.version = 3u32.swap_bytes());
    for count in [u64::MAX, 1 << 63, 1 << 40, (1 << 18) + 1] {
        refused(&format!("{count} tensors"), |f| f.tensor_count = Some(count));
        refused(&format!("{count} keys"), |f| f.key_count = Some(count));
    }
    refused("", |f| f.tensor_count = Some(1 << 18));
    refused("", |f| f.key_count = Some(1 << 16));
    refused("", |f| f.key_count = Some(f.values.len() as u64 + 1));
    refused("", |f| f.key_count = Some(f.values.len() as u64 - 1));
}

#[test]
fn gguf_metadata() {
    let long = |len: u64| len.to_le_bytes().to_vec();
    for len in [u64::MAX, u64::MAX - 7, 1 << 62, (16 << 20) + 1] {
        refused(&format!("a string of {len} bytes"), |f| {
            f.set("x", TEXT, long(len));
        });
    }
    refused("ends inside of the header", |f| {
        f.set("x", TEXT, long(16 << 20));
    });
    refused("text that is not UTF-8", |f| {
        f.set("x", TEXT, text([0xff, 0xfe]));
    });
    refused("text that is not UTF-8", |f| f.values.push((vec![0xc0, 0x80], U8, vec![1])));
    refused("key `general.architecture` twice", |f| {
        f.values.push((b"general.architecture".to_vec(), TEXT, text("llama")));
    });
    for kind in [13, 255, u32::MAX] {
        refused(&format!("a value of unknown type {kind}"), |f| {
            f.set("x", kind, [0; 8]);
        });
        refused(&format!("a value of unknown type {kind}"), |f| {
            f.set("x", ARRAY, array(kind, 1, &[0; 8]));
        });
    }
    for kind in [U8, TEXT, 12] {
        for count in [u64::MAX, u64::MAX / 8 + 1, 1 << 40, 1 << 20] {
            refused(&format!("an array of {count} elements"), |f| {
                f.set("x", ARRAY, array(kind, count, &[]));
            });
        }
    }
    let mut nested = array(U8, 1, &[1]);
    for _ in 0..1000 {
        nested = array(ARRAY, 1, &nested);
    }
    refused("an array of arrays", |f| {
        f.set("x", ARRAY, nested);
    });
    for alignment in [0, 3, 48, 1 << 21, 1 << 31] {
        refused(&format!("an alignment of {alignment}"), |f| {
            f.set_u32("general.alignment", alignment);
        });
    }
    refused("an alignment", |f| {
        f.set_text("general.alignment", "32");
    });
}

#[test]
fn gguf_tensors() {
    let with =
        |what: &str, change: &dyn Fn(&mut Tensor)| refused(what, |f| change(f.tensor("blk.0.attn_q.weight")));
    let has = "tensor `blk.0.attn_q.weight`";
    with("has 0 dimensions", &|t| t.dimensions.clear());
    with("has 5 dimensions", &|t| t.dimensions = vec![1; 5]);
    for dimensions in [[0, 32], [32, 0], [0, u64::MAX]] {
        with("has no values", &|t| t.dimensions = dimensions.to_vec());
    }
    for dimensions in [[u64::MAX, u64::MAX], [1 << 32, 1 << 32], [32, u64::MAX], [1 << 63, 2]] {
        with(&format!("{has} is too large"), &|t| t.dimensions = dimensions.to_vec());
    }
    // Fits in 64 bits as a number of values, not as an offset.
    with(has, &|t| t.dimensions = vec![32, 1 << 58]);
    with(has, &|t| t.dimensions = vec![32, 1 << 40]);
    with("does not fill blocks of Q4_0", &|t| t.dimensions = vec![33, 32]);
    with("does not fill blocks of Q4_0", &|t| t.dimensions = vec![1, 32]);
    for (kind, name) in [
        (4, "of GGML type 4"),
        (9, "Q8_1"),
        (16, "IQ2_XXS"),
        (35, "TQ2_0"),
        (u32::MAX, "of GGML type 4294967295"),
    ] {
        with(&format!("is {name}; F32, F16"), &|t| t.kind = kind);
    }
    for offset in [1, 16, 33] {
        with(&format!("is at offset {offset}, not a multiple of 32"), &|t| t.offset = Some(offset));
    }
    for offset in [1 << 20, 1 << 62, u64::MAX - 31] {
        with(has, &|t| t.offset = Some(offset));
    }
    with("overlap", &|t| t.offset = Some(0));
    with("overlap", &|t| t.offset = Some(32));
    with("text that is not UTF-8", &|t| t.name = vec![0xff]);
    with("tensor `output_norm.weight` twice", &|t| t.name = b"output_norm.weight".to_vec());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn gguf_configurations() {
    let number = |key: &'static str, value: u32, what: &str| {
        refused(what, |f| {
            f.set_u32(key, value);
        })
    };
    refused("no `general.architecture`", |f| {
        f.remove("general.architecture");
    });
    refused("the architecture is `gpt4`", |f| {
        f.set_text("general.architecture", "gpt4");
    });
    for key in
        ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"]
    {
        refused(&format!("no usable `llama.{key}`"), |f| {
            f.remove(&format!("llama.{key}"));
        });
        refused(&format!("no usable `llama.{key}`"), |f| {
            f.set_text(&format!("llama.{key}"), "7");
        });
    }
    number("llama.block_count", 0, "layers is 0");
    number("llama.block_count", u32::MAX, "layers is 4294967295");
    number("llama.attention.head_count", 0, "is");
    number("llama.attention.head_count_kv", 0, "kv_heads is 0");
    number("llama.attention.head_count_kv", 3, "not a multiple of 3 KV heads");
    number("llama.attention.key_length", 12, "only a part of each head");
    number("llama.rope.dimension_count", 8, "only a part of each head");
    number("llama.embedding_length", u32::MAX, "is");
    number("llama.expert_count", 8, "mixture of experts");
    for value in [f32::NAN, f32::INFINITY, -1.0] {
        refused("rms epsilon", |f| {
            f.set_f32("llama.attention.layer_norm_rms_epsilon", value);
        });
        refused("rope base", |f| {
            f.set_f32("llama.rope.freq_base", value);
        });
    }
    for value in [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-30, 1e30] {
        refused("rope scaling", |f| {
            f.set_text("llama.rope.scaling.type", "linear").set_f32("llama.rope.scaling.factor", value);
        });
    }
    refused("no usable `llama.rope.scaling.factor`", |f| {
        f.set_text("llama.rope.scaling.type", "yarn");
    });
    refused("no tensor `token_embd.weight`", |f| {
        f.tensors.remove(0);
    });
    refused_in_use("no tensor `blk.1.attn_norm.weight`", |f| {
        f.set_u32("llama.block_count", 2);
    });
    refused_in_use("no tensor `output_norm.weight`", |f| {
        f.tensors.pop();
    });
    refused_in_use("tensor `blk.0.attn_norm.weight` is [1, 32]", |f| {
        f.tensor("blk.0.attn_norm.weight").dimensions = vec![32, 1];
    });
    refused_in_use("tensor `blk.0.ffn_gate.weight` is [64, 32]", |f| {
        f.set_u32("llama.feed_forward_length", 65);
    });
    let mut windowed = tiny();
    windowed.set_u32("llama.attention.sliding_window", 16);
    let windowed = open(windowed.bytes()).unwrap();
    assert_eq!((windowed.config().block.attention.window, windowed.config().context_length), (Some(16), 64));
}

#[test]
fn gguf_tokenizers() {
    refused_in_use("its kind is `bert`", |f| {
        f.set_text("tokenizer.ggml.model", "bert");
    });
    refused_in_use("no list with a score for every token", |f| {
        f.set_text("tokenizer.ggml.model", "llama");
    });
    let scores = |f: &mut Gguf, score: f32| {
        let scores: Vec<u8> = (0..40).flat_map(|_| score.to_le_bytes()).collect();
        f.set_text("tokenizer.ggml.model", "llama");
        f.set("tokenizer.ggml.scores", ARRAY, array(F32, 40, &scores));
    };
    refused_in_use("no list with a score for every token", |f| scores(f, f32::NAN));
    refused_in_use("without a token for every byte (`<0x00>`)", |f| scores(f, 0.0));
    refused_in_use("changes text before it reads it", |f| {
        f.set_u32("tokenizer.ggml.remove_extra_whitespaces", 1);
        scores(f, 0.0);
    });
    refused_in_use("the way in which it splits text is `x`", |f| {
        f.set_text("tokenizer.ggml.pre", "x");
    });
    refused_in_use("no list of tokens", |f| {
        f.remove("tokenizer.ggml.tokens");
    });
    refused_in_use("no list of merges", |f| {
        f.set_u32("tokenizer.ggml.merges", 1);
    });
    refused_in_use("two tokens are the same text", |f| {
        f.set_texts("tokenizer.ggml.tokens", &["a"; 40]);
    });
    refused_in_use("not as long as that of tokens", |f| {
        f.set_texts("tokenizer.ggml.tokens", &["a", "b"]);
    });
    for merge in ["q q", "q", "", "a b c", "\0 \u{ffff}"] {
        refused_in_use("the vocabulary is not sound", |f| {
            f.set_texts("tokenizer.ggml.merges", &[merge]);
        });
    }
    let tokens: Vec<String> = (0..41).map(|i| format!("t{i}")).collect();
    refused_in_use("it has 41 tokens, the model 40", |f| {
        f.remove("tokenizer.ggml.token_type").set_texts("tokenizer.ggml.tokens", &tokens);
        f.set_texts::<&str>("tokenizer.ggml.merges", &[]);
    });
    // Ids outside of the vocabulary are as good as none.
    let mut file = tiny();
    file.set_u32("tokenizer.ggml.eos_token_id", u32::MAX);
    assert!(open(file.bytes()).unwrap().tokenizer().unwrap().eos().is_empty());
}

/// A long file that is all zeros behind its first bytes.
struct Zeros {
    begin: Vec<u8>,
    len: u64,
}

impl ByteSource for Zeros {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        for (i, byte) in buffer.iter_mut().enumerate() {
            *byte = self.begin.get(offset as usize + i).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn describe(&self) -> String {
        "zeros".to_owned()
    }
}

/// When the file is as long as it says, only limits are left.
#[test]
fn long_files_do_not_take_long_memory() {
    for (kind, count) in [(U8, 1 << 25), (TEXT, 1 << 26), (12, u64::MAX >> 5)] {
        let mut file = tiny();
        file.set("x", ARRAY, array(kind, count, &[]));
        let source = Zeros { begin: file.header(), len: 1 << 60 };
        let (result, held) = most_held(|| gguf::read_header(&source));
        assert_tells(&result.unwrap_err(), "its arrays have more than");
        assert!(held < 4 << 20, "{held} bytes");
    }
    let mut length = 100_000_000u64;
    let source = Zeros { begin: length.to_le_bytes().to_vec(), len: 1 << 60 };
    let (result, held) = most_held(|| safetensors::read_header(&source));
    assert_tells(&result.unwrap_err(), "not sound JSON");
    assert!(held < 110_000_000, "{held} bytes");
    length += 1;
    let source = Zeros { begin: length.to_le_bytes().to_vec(), len: 1 << 60 };
    assert_tells(&safetensors::read_header(&source).unwrap_err(), "a header of 100000001 bytes");
}

/// A safetensors file with this header and so many bytes behind it.
fn safe(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

fn read_safe(bytes: Vec<u8>) -> Result<usize, ModelError> {
    safetensors::read_header(&MemorySource(bytes)).map(|tensors| tensors.len())
}

const SAFE: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn safetensors_headers() {
    assert_eq!(read_safe(safe(SAFE, 32)).unwrap(), 2);
    assert_eq!(read_safe(safe("{}", 0)).unwrap(), 0);
    assert_eq!(read_safe(safe(r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#, 0)).unwrap(), 1);
    assert_eq!(
        read_safe(safe(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":[1]}}"#, 4)).unwrap(),
        1
    );
    let bytes = safe(SAFE, 32);
    for len in 0..bytes.len() {
        assert_tells(&read_safe(bytes[..len].to_vec()).unwrap_err(), "");
    }
    let refused = |what: &str, bytes: Vec<u8>| {
        let (result, held) = most_held(|| read_safe(bytes));
        assert_tells(&result.expect_err(what), what);
        assert!(held < 1 << 18, "{what}: {held} bytes");
    };
    for length in [u64::MAX, u64::MAX - 7, 1 << 62, 100_000_001, bytes.len() as u64] {
        let mut bytes = bytes.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refused(&format!("a header of {length} bytes"), bytes);
    }
    let deep = format!(r#"{{"a":{}"#, "[".repeat(10_000));
    let deeper = format!(r#"{{"__metadata__":{}"#, r#"{"a":"#.repeat(10_000));
    for header in
        ["", "null", "[]", "7", "{", "{}}", "\u{feff}{}", r#"{"a":1}"#, r#"{"a":{}}"#, &deep, &deeper]
    {
        refused("not sound JSON", safe(header, 32));
    }
    let mut not_text = safe(SAFE, 32);
    let at = not_text.windows(3).position(|w| w == b"\"a\"").unwrap() + 1;
    not_text[at] = 0xff;
    refused("not sound JSON", not_text);
    refused("tensor `b` twice", safe(&SAFE.replace("\"a\"", "\"b\""), 32));
    let entry = |dtype: &str, shape: &str, span: &str| {
        safe(&format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{span}}}}}"#), 64)
    };
    for dtype in ["", "f32", "I128"] {
        refused(&format!("has type `{dtype}`"), entry(dtype, "[1]", "[0,4]"));
    }
    for shape in ["[-1]", "[1.5]", "[\"4\"]", "4", "[18446744073709551616]", "[null]", "[[1]]"] {
        refused("not sound JSON", entry("F32", shape, "[0,4]"));
    }
    for span in ["[0]", "[0,4,8]", "[-4,0]", "null", "[0,1e30]"] {
        refused("not sound JSON", entry("F32", "[1]", span));
    }
    for (shape, span) in [
        ("[1]", "[4,0]"),
        ("[1]", "[0,8]"),
        ("[2]", "[0,4]"),
        ("[18446744073709551615,2]", "[0,4]"),
        ("[4294967296,4294967296]", "[0,0]"),
        ("[4611686018427387904]", "[0,0]"),
        ("[1]", "[18446744073709551615,3]"),
    ] {
        refused("tensor `a` of shape", entry("F32", shape, span));
    }
    for span in ["[64,68]", "[61,65]", "[18446744073709551611,18446744073709551615]"] {
        refused("it may be truncated", entry("F32", "[1]", span));
    }
    for offsets in ["[20,28]", "[0,8]", "[16,24]"] {
        refused("overlap", safe(&SAFE.replace("[24,32]", offsets), 32));
    }
}

fn sound_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32},
    })
}

#[test]
fn configurations() {
    assert!(config::from_json("config.json", &sound_config()).is_ok());
    for not_an_object in [Value::Null, json!([]), json!(7), json!("x")] {
        assert!(config::from_json("config.json", &not_an_object).is_err());
    }
    let refused = |what: &str, key: &str, value: Value| {
        let mut config = sound_config();
        let at = key.split('.').fold(&mut config, |at, key| &mut at[key]);
        *at = value;
        assert_tells(&config::from_json("config.json", &config).expect_err(key), what);
    };
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    {
        for value in [Value::Null, json!("32"), json!(-32), json!(32.5), json!([32]), json!(1e30)] {
            refused(&format!("no usable `{key}`"), key, value);
        }
        for value in [0, u64::MAX, 1 << 32, (1 << 32) + 2] {
            refused("is", key, json!(value));
        }
    }
    refused("layers is", "num_hidden_layers", json!((1u64 << 32) + 2));
    refused("kv_heads is 0", "num_key_value_heads", json!(0));
    refused("not a multiple of 3 KV heads", "num_key_value_heads", json!(3));
    refused("the head dimension is 12", "head_dim", json!(12));
    refused("no usable `rms_norm_eps`", "rms_norm_eps", json!("small"));
    refused("rms epsilon inf", "rms_norm_eps", json!(1e300));
    refused("rope base 1", "rope_theta", json!(1));
    refused("rope base -1", "rope_theta", json!(-1));
    refused("no usable `architectures`", "architectures", json!("LlamaForCausalLM"));
    refused("neither `architectures` nor `model_type`", "architectures", json!([]));
    refused("rope scaling", "rope_scaling.rope_type", json!("dynamic"));
    for value in [json!(0), json!(-1), json!("8"), Value::Null, json!(1e-300), json!(1e300)] {
        refused("rope scaling", "rope_scaling.factor", value.clone());
        refused("rope scaling", "rope_scaling.low_freq_factor", value.clone());
        if !value.is_null() {
            refused("rope scaling", "rope_scaling.original_max_position_embeddings", value);
        }
    }
    // Between equal factors the blend would divide by zero.
    refused("rope scaling", "rope_scaling.high_freq_factor", json!(1.0));
}

/// A folder with these files, and its name.
fn folder(name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    for (file, bytes) in files {
        std::fs::write(path.join(file), bytes).unwrap();
    }
    path
}

#[test]
fn folders() {
    let sound = sound_config().to_string();
    let refused = |what: &str, files: &[(&str, &[u8])]| {
        let path = folder("refused", files);
        let result = ModelFile::open_path(&path).map(drop);
        std::fs::remove_dir_all(&path).unwrap();
        let message = result.expect_err(what).to_string();
        assert!(message.contains(what), "`{message}` does not say `{what}`");
    };
    let weights = safe(SAFE, 32);
    refused("has no config.json", &[("model.safetensors", &weights)]);
    refused("has no safetensors files", &[("config.json", sound.as_bytes())]);
    let deep = "[".repeat(100_000);
    for config in ["", "{", "\u{feff}{}", &deep] {
        refused(
            "is not a sound JSON file",
            &[("config.json", config.as_bytes()), ("model.safetensors", &weights)],
        );
    }
    let long = vec![b' '; (4 << 20) + 1];
    refused(
        "it has 4194305 bytes, more than 4194304",
        &[("config.json", &long), ("model.safetensors", &weights)],
    );
    refused(
        "tensor `a`, which another file of the folder has, too",
        &[("config.json", sound.as_bytes()), ("1.safetensors", &weights), ("2.safetensors", &weights)],
    );
}

#[test]
fn tokenizers_of_folders() {
    let bpe = |vocab: &str, added: &str| {
        format!(
            r#"{{"version":"1.0","added_tokens":[{added}],"model":{{"type":"BPE","vocab":{{{vocab}}},"merges":[]}}}}"#
        )
    };
    let deep = "[".repeat(100_000);
    for (what, json) in [
        ("beyond", bpe(r#""a":0,"b":4294967295"#, "")),
        ("beyond", bpe(r#""a":0,"b":4194304"#, "")),
        ("it has 98 tokens, the model 97", bpe(r#""a":0,"b":97"#, "")),
        ("tokenizer.json", "{".to_owned()),
        ("tokenizer.json", deep),
        ("not sound", "{}".to_owned()),
        ("not sound", bpe(r#""a":-1"#, "")),
        ("not sound", bpe(r#""a":0"#, "7")),
    ] {
        let path = folder("tokenizer", &[("tokenizer.json", json.as_bytes())]);
        let sound = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/llama");
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(sound.join(name), path.join(name)).unwrap();
        }
        let (result, held) = most_held(|| ModelFile::open_path(&path).unwrap().tokenizer().map(drop));
        std::fs::remove_dir_all(&path).unwrap();
        assert_tells(&result.expect_err(what), what);
        assert!(held < 8 << 20, "{what}: {held} bytes");
    }
}

/// Bytes written over others: single ones, and numbers that are large or nearly so.
fn mutation() -> impl Strategy<Value = (Index, Vec<u8>)> {
    let large = prop::sample::select(vec![
        0,
        1,
        8,
        9,
        1 << 20,
        1 << 31,
        1 << 32,
        1 << 62,
        u64::MAX / 8 + 1,
        u64::MAX,
    ]);
    let bytes = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 1..3),
        1 => large.clone().prop_map(|v| v.to_le_bytes().to_vec()),
        1 => large.prop_map(|v| (v as u32).to_le_bytes().to_vec()),
    ];
    (any::<Index>(), bytes)
}

fn mutate(mut bytes: Vec<u8>, below: usize, mutations: &[(Index, Vec<u8>)], cut: Option<Index>) -> Vec<u8> {
    for (at, new) in mutations {
        let at = at.index(below);
        let len = new.len().min(bytes.len() - at);
        bytes[at..at + len].copy_from_slice(&new[..len]);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

fn mutations() -> impl Strategy<Value = Vec<(Index, Vec<u8>)>> {
    prop::collection::vec(mutation(), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_gguf_header_is_read_or_refused(
        mutations in mutations(),
        cut in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let file = tiny();
        let bytes = mutate(file.bytes(), file.header().len(), &mutations, cut);
        let len = bytes.len();
        let (result, held) = most_held(|| open(bytes));
        prop_assert!(held < 32 * len + (1 << 16), "{} bytes for {}", held, len);
        prop_assert!(!matches!(result, Err(ModelError::Read { .. })), "it reads beyond the end");
    }

    #[test]
    fn a_mutated_safetensors_header_is_read_or_refused(
        mutations in mutations(),
        cut in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let bytes = mutate(safe(SAFE, 32), 8 + SAFE.len(), &mutations, cut);
        let (result, held) = most_held(|| read_safe(bytes));
        prop_assert!(held < 1 << 16, "{} bytes", held);
        prop_assert!(!matches!(result, Err(ModelError::Read { .. })), "it reads beyond the end");
    }

    #[test]
    fn a_mutated_configuration_is_read_or_refused(mutations in mutations(), digits in "[0-9]{1,24}", at in any::<Index>()) {
        let text = sound_config().to_string().into_bytes();
        let len = text.len();
        let mut text = mutate(text, len, &mutations[..mutations.len() / 2], None);
        let at = at.index(text.len());
        text.splice(at..at, digits.bytes());
        if let Ok(json) = serde_json::from_slice(&text)
            && let Ok(config) = config::from_json("config.json", &json)
        {
            prop_assert!(config.validate("config.json").is_ok());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_gguf_model_is_used_or_refused(mutations in mutations(), anywhere in any::<bool>()) {
        let file = tiny();
        let bytes = file.bytes();
        let below = if anywhere { bytes.len() } else { file.header().len() };
        let bytes = mutate(bytes, below, &mutations, None);
        let (result, held) = most_held(|| open(bytes).and_then(|file| use_all(&file)));
        prop_assert!(held < 64 << 20, "{} bytes", held);
        prop_assert!(!matches!(result, Err(ModelError::Read { .. })), "it reads beyond the end");
    }
}
