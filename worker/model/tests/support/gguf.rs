//! A writer of GGUF files, after the specification in ggml's docs/gguf.md. It writes whatever it is told, sound or not.

use half::f16;

/// Types of metadata values.
pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const F32: u32 = 6;
pub const TEXT: u32 = 8;
pub const ARRAY: u32 = 9;

/// A text as GGUF has it.
pub fn text(value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [&(value.len() as u64).to_le_bytes(), value].concat()
}

/// An array as GGUF has it, `count` being what it claims.
pub fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

/// A tensor and what the header says of it.
#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    /// Fastest first.
    pub dimensions: Vec<u64>,
    pub kind: u32,
    /// Where the header says it is; where it is, when `None`.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

/// A file in pieces.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// What the header says; the real number when `None`.
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
    /// Key, type, value.
    pub values: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    pub fn set(&mut self, key: &str, kind: u32, value: impl AsRef<[u8]>) -> &mut Self {
        self.values.retain(|(old, ..)| old != key.as_bytes());
        self.values.push((key.as_bytes().to_vec(), kind, value.as_ref().to_vec()));
        self
    }

    pub fn set_text(&mut self, key: &str, value: &str) -> &mut Self {
        self.set(key, TEXT, text(value))
    }

    pub fn set_u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.set(key, U32, value.to_le_bytes())
    }

    pub fn set_f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.set(key, F32, value.to_le_bytes())
    }

    pub fn set_texts<T: AsRef<str>>(&mut self, key: &str, values: &[T]) -> &mut Self {
        let elements: Vec<u8> = values.iter().flat_map(|v| text(v.as_ref())).collect();
        self.set(key, ARRAY, array(TEXT, values.len() as u64, &elements))
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.values.retain(|(old, ..)| old != key.as_bytes());
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name.as_bytes()).unwrap()
    }

    /// Bytes before those of the tensors, without padding.
    pub fn header(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.values.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.values {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut end = 0u64;
        for t in &self.tensors {
            out.extend(text(&t.name));
            out.extend((t.dimensions.len() as u32).to_le_bytes());
            t.dimensions.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(t.offset.unwrap_or(end).to_le_bytes());
            end = (end + t.data.len() as u64).next_multiple_of(32);
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.data);
        }
        out
    }
}

/// (number, values, bytes, where its f16 scales are) of a block of a format.
pub fn block(format: &str) -> (u32, usize, usize, &'static [usize]) {
    match format {
        "F32" => (0, 1, 4, &[]),
        "F16" => (1, 1, 2, &[0]),
        "Q4_0" => (2, 32, 18, &[0]),
        "Q4_1" => (3, 32, 20, &[0, 2]),
        "Q8_0" => (8, 32, 34, &[0]),
        "Q5_0" => (6, 32, 22, &[0]),
        "Q5_1" => (7, 32, 24, &[0, 2]),
        "Q2_K" => (10, 256, 84, &[80, 82]),
        "Q3_K" => (11, 256, 110, &[108]),
        "Q4_K" => (12, 256, 144, &[0, 2]),
        "Q5_K" => (13, 256, 176, &[0, 2]),
        "Q6_K" => (14, 256, 210, &[208]),
        "IQ4_NL" => (20, 32, 18, &[0]),
        "IQ4_XS" => (23, 256, 136, &[0]),
        other => panic!("{other}"),
    }
}

/// `n` rows of `k` values of small size, not random but without a pattern.
pub fn values(format: &str, n: usize, k: usize) -> Vec<u8> {
    let (_, values, bytes, scales) = block(format);
    let noise = |i: usize| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let small = |i: usize| (noise(i) % 2001) as f32 / 1000.0 - 1.0;
    if format == "F32" {
        return (0..n * k).flat_map(|i| (0.3 * small(i)).to_le_bytes()).collect();
    }
    let mut out: Vec<u8> = (0..n * k / values * bytes).map(|i| noise(i) as u8).collect();
    for (i, block) in out.chunks_exact_mut(bytes).enumerate() {
        for at in scales {
            let scale = if format == "F16" { 0.3 } else { 0.01 };
            block[*at..at + 2].copy_from_slice(&f16::from_f32(scale * small(i + at)).to_le_bytes());
        }
    }
    out
}

/// A Llama of one layer with 40 tokens, in many formats.
pub fn tiny() -> Gguf {
    let mut file = Gguf {
        magic: *b"GGUF",
        version: 3,
        tensor_count: None,
        key_count: None,
        values: Vec::new(),
        tensors: Vec::new(),
    };
    let letters = ('a'..='z').map(String::from);
    let pairs: Vec<String> = "he in er an re es on st nd en".split(' ').map(str::to_owned).collect();
    let merges: Vec<String> = pairs.iter().map(|p| format!("{} {}", &p[..1], &p[1..])).collect();
    let tokens: Vec<String> =
        ["<s>", "</s>", "Ġ", "."].map(str::to_owned).into_iter().chain(letters).chain(pairs).collect();
    let kinds: Vec<u8> = (0..40).map(|id| if id < 2 { 3 } else { 1 }).collect();
    file.set_text("general.architecture", "llama")
        .set_u32("llama.block_count", 1)
        .set_u32("llama.embedding_length", 32)
        .set_u32("llama.feed_forward_length", 64)
        .set_u32("llama.attention.head_count", 2)
        .set_u32("llama.attention.head_count_kv", 1)
        .set_u32("llama.rope.dimension_count", 16)
        .set_u32("llama.context_length", 64)
        .set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .set_f32("llama.rope.freq_base", 10_000.0)
        .set_text("tokenizer.ggml.model", "gpt2")
        .set_text("tokenizer.ggml.pre", "default")
        .set_texts("tokenizer.ggml.tokens", &tokens)
        .set_texts("tokenizer.ggml.merges", &merges)
        .set("tokenizer.ggml.token_type", ARRAY, array(U8, 40, &kinds))
        .set_u32("tokenizer.ggml.bos_token_id", 0)
        .set_u32("tokenizer.ggml.eos_token_id", 1);
    for (name, format, n, k) in [
        ("token_embd.weight", "Q8_0", 40, 32),
        ("blk.0.attn_norm.weight", "F32", 1, 32),
        ("blk.0.attn_q.weight", "Q4_0", 32, 32),
        ("blk.0.attn_k.weight", "Q4_1", 16, 32),
        ("blk.0.attn_v.weight", "F16", 16, 32),
        ("blk.0.attn_output.weight", "F32", 32, 32),
        ("blk.0.ffn_norm.weight", "F32", 1, 32),
        ("blk.0.ffn_gate.weight", "Q8_0", 64, 32),
        ("blk.0.ffn_up.weight", "Q4_0", 64, 32),
        ("blk.0.ffn_down.weight", "Q4_1", 32, 64),
        ("output_norm.weight", "F32", 1, 32),
    ] {
        let dimensions = if n == 1 { vec![k as u64] } else { vec![k as u64, n as u64] };
        let data = values(format, n, k);
        let name = name.as_bytes().to_vec();
        file.tensors.push(Tensor { name, dimensions, kind: block(format).0, offset: None, data });
    }
    file
}
