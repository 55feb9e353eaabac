//! Whole layers of every family on the emulated device, beside the processor: the same bits, in any batches.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use dunlin_cuda::Gpu;
use dunlin_engine::CpuSpan;
use dunlin_engine::span::{BatchFailure, BatchRows, Span};
use dunlin_gpu::GpuSpan;
use dunlin_kernels::PAGE;
use dunlin_model::adapter::{AdapterShape, LoraShape, Projection, random};
use dunlin_model::random_model::{self, RandomModelSpec};
use dunlin_model::{Adapter, Embedding, Head, LayerWeights, ModelFile, NonFinite, RowOf};
use dunlin_protocol::SessionId;
use dunlin_schedule::SegmentKey;
use dunlin_swarm::Layers;

/// The emulated device.
fn gpu() -> Gpu {
    static EMULATED: Once = Once::new();
    EMULATED.call_once(|| {
        dunlin_cuda_emulator::load();
        // Nobody looks at the environment before: every test begins here.
        dunlin_cuda_emulator::allow();
    });
    Gpu::open(0).unwrap()
}

/// A model on both devices.
struct Both {
    file: ModelFile,
    embedding: Embedding,
    cpu: CpuSpan,
    gpu: GpuSpan,
    /// Rows that are in the cache of each sequence.
    have: Vec<u32>,
}

/// Some rows of a sequence.
type Part<'a> = (usize, &'a [u32]);

/// Whose the rows of a batch are, their values, and their adapters.
type Rows = (Vec<RowOf>, Vec<f32>, Vec<(Range<usize>, Arc<str>)>);

impl Both {
    fn open(path: &Path, positions_max: usize) -> Self {
        let file = ModelFile::open_path(path).unwrap();
        let config = file.config().clone();
        let mut cpu = CpuSpan::new(&config, 2, positions_max);
        let mut gpu = GpuSpan::new(gpu(), &config, positions_max).unwrap();
        let embedding = Embedding::load(&file).unwrap();
        let head = Arc::new(Head::load(&file, Some(&embedding)).unwrap());
        cpu.install_head(Arc::clone(&head)).unwrap();
        gpu.install_head(head).unwrap();
        for layer in 0..config.layers {
            let weights = Arc::new(LayerWeights::load(&file, layer).unwrap());
            cpu.install(layer, Arc::clone(&weights)).unwrap();
            gpu.install(layer, weights).unwrap();
        }
        Self { file, embedding, cpu, gpu, have: Vec::new() }
    }

    fn layers(&self) -> Layers {
        Layers::new(0, self.file.config().layers)
    }

    fn key(&self, sequence: usize) -> SegmentKey {
        (SessionId(sequence as u64 + 1), self.layers())
    }

    fn spans(&mut self) -> [&mut dyn Span; 2] {
        [&mut self.cpu, &mut self.gpu]
    }

    fn on_both(&mut self, call: impl Fn(&mut dyn Span)) {
        self.spans().into_iter().for_each(call);
    }

    /// A batch of parts on both: rows and logits are the same.
    fn step(&mut self, parts: &[Part<'_>], adapted: &[Option<&str>]) {
        let (rows, x, named) = self.rows(parts, adapted);
        let segments: Vec<SegmentKey> = parts.iter().map(|(sequence, _)| self.key(*sequence)).collect();
        let pages: Vec<usize> =
            parts.iter().map(|(sequence, _)| (self.have[*sequence] as usize).div_ceil(PAGE)).collect();
        let layers = self.layers();
        let results = self.spans().map(|span| {
            for (key, pages) in segments.iter().zip(&pages) {
                span.set_pages(*key, *pages).unwrap();
            }
            let batch = BatchRows { rows: &rows, segments: &segments, adapted: &named };
            let mut x = x.clone();
            span.forward(layers, &batch, &mut x, &|_| {}).unwrap();
            let logits = span.logits(&x, rows.len()).unwrap();
            [x, logits]
        });
        let [cpu, gpu] = results.map(|both| both.map(|values| bits(&values)));
        assert!(cpu[0] == gpu[0], "rows of {parts:?} differ");
        assert!(cpu[1] == gpu[1], "logits of {parts:?} differ");
    }

    fn rows(&mut self, parts: &[Part<'_>], adapted: &[Option<&str>]) -> Rows {
        let (mut rows, mut x, mut named) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (sequence, tokens)) in parts.iter().enumerate() {
            self.have.resize(self.have.len().max(sequence + 1), 0);
            let (first, start) = (rows.len(), self.have[*sequence]);
            self.have[*sequence] += tokens.len() as u32;
            rows.extend((start..self.have[*sequence]).map(|position| RowOf { sequence: index, position }));
            x.extend(self.embedding.rows(tokens, None).unwrap());
            if let Some(Some(name)) = adapted.get(index) {
                named.push((first..rows.len(), Arc::from(*name)));
            }
        }
        (rows, x, named)
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Two sequences in parts, one beside the other.
fn in_parts(both: &mut Both, vocab: u32) {
    let tokens: Vec<u32> = (0..48).map(|i| (i * 7 + 3) % vocab).collect();
    both.step(&[(0, &tokens[..19])], &[]);
    both.step(&[(1, &tokens[5..6]), (0, &tokens[19..36])], &[]);
    both.step(&[(0, &tokens[36..37]), (1, &tokens[6..7])], &[]);
    both.step(&[(1, &tokens[7..20]), (0, &tokens[37..38])], &[]);
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/parity")
}

#[test]
fn every_family_has_the_bits_of_the_processor() {
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("recipe.json").exists() {
            continue;
        }
        let mut both = Both::open(&path, 64);
        let vocab = both.file.config().vocab as u32;
        in_parts(&mut both, vocab);
        count += 1;
    }
    assert!(count >= 13, "{count} families");
}

/// A model whose sequences may be long.
fn random(folder: &Path) -> RandomModelSpec {
    let spec = RandomModelSpec { layers: 2, hidden: 32, heads: 2, kv_heads: 1, ffn: 64, vocab: 260, seed: 3 };
    random_model::write(folder, &spec).unwrap();
    spec
}

#[test]
fn long_sequences_have_the_bits_of_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    random(folder.path());
    let mut both = Both::open(folder.path(), 700);
    let tokens: Vec<u32> = (0..600).map(|i| i * 31 % 100).collect();
    both.step(&[(0, &tokens[..300])], &[]);
    // Segments side by side.
    both.step(&[(0, &tokens[300..301]), (1, &tokens[..5])], &[]);
    both.step(&[(0, &tokens[301..560])], &[]);
    both.step(&[(1, &tokens[5..6]), (0, &tokens[560..561])], &[]);
}

#[test]
fn rows_of_adapters_have_the_bits_of_the_processor() {
    let folder = tempfile::tempdir().unwrap();
    random(folder.path());
    let mut both = Both::open(folder.path(), 64);
    let lora = |rank, targets: &[Projection]| {
        AdapterShape::Lora(LoraShape { rank, alpha: 16.0, targets: targets.to_vec() })
    };
    let all = [("a", lora(4, &Projection::ALL)), ("b", lora(7, &[Projection::Query, Projection::Down]))];
    for (seed, (name, shape)) in all.into_iter().enumerate() {
        let path = folder.path().join(name);
        random::write(&path, both.file.config(), &shape, seed as u64).unwrap();
        let adapter = Arc::new(Adapter::open(&path, both.file.config()).unwrap());
        let name: Arc<str> = name.into();
        both.on_both(|span| span.install_adapter(&name, &adapter).unwrap());
    }
    let tokens: Vec<u32> = (0..20).collect();
    both.step(&[(0, &tokens[..9]), (1, &tokens[..3]), (2, &tokens[..4])], &[Some("a"), None, Some("b")]);
    both.step(&[(2, &tokens[4..5]), (0, &tokens[9..11])], &[Some("b"), Some("a")]);
}

#[test]
fn what_is_not_finite_is_found_where_the_processor_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    random(folder.path());
    let mut both = Both::open(folder.path(), 64);
    let (layers, key) = (both.layers(), both.key(0));
    let rows: Vec<RowOf> = (0..4).map(|position| RowOf { sequence: 0, position }).collect();
    let batch = BatchRows { rows: &rows, segments: &[key], adapted: &[] };
    for (value, at) in [(f32::NAN, 70), (f32::INFINITY, 33), (f32::NEG_INFINITY, 100)] {
        let failures = both.spans().map(|span| {
            span.set_pages(key, 1).unwrap();
            let mut x = vec![0.1; 4 * 32];
            (x[at], x[at + 1]) = (value, value);
            let failure = span.forward(layers, &batch, &mut x, &|_| {}).unwrap_err();
            span.set_pages(key, 0).unwrap();
            failure
        });
        assert_eq!(failures[0], failures[1], "{value}");
        assert!(
            matches!(failures[0], BatchFailure::NonFinite(NonFinite { layer: 0, row }) if row == at / 32)
        );
    }
}

#[test]
fn pages_go_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    random(folder.path());
    let mut both = Both::open(folder.path(), 64);
    let tokens: Vec<u32> = (0..40).collect();
    both.step(&[(0, &tokens), (1, &tokens[..17])], &[]);
    let keys = [both.key(0), both.key(1)];
    let both_have = |both: &mut Both| {
        let [cpu, gpu] = both.spans().map(|span| span.pages_in_memory());
        assert_eq!(cpu, gpu);
        gpu
    };
    // Two layers of 3 and of 2 pages.
    assert_eq!(both_have(&mut both), 10);
    both.on_both(|span| span.give_back(keys[0], 1, 2));
    assert_eq!(both_have(&mut both), 8);
    both.on_both(|span| span.set_pages(keys[0], 1).unwrap());
    assert_eq!(both_have(&mut both), 5);
    // What was given back is not there any more: the sequence begins anew, in memory that others had.
    both.on_both(|span| span.set_pages(keys[0], 0).unwrap());
    both.have[0] = 0;
    both.step(&[(0, &tokens[8..20]), (1, &tokens[17..18])], &[]);
    both.on_both(|span| {
        keys.iter().for_each(|key| span.set_pages(*key, 0).unwrap());
        span.keep_spare(0);
    });
    assert_eq!(both_have(&mut both), 0);
}
