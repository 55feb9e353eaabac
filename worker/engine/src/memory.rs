//! What a stage needs memory for, and how the memory that it may use is divided. Pure.
//!
//! | part | size |
//! |---|---|
//! | the process itself, allocator | [`PROCESS_BYTES`] and a 32nd of the whole |
//! | rows beyond those of journals | [`QUEUED_ROWS`] rows, and [`LINK_BYTES`] on their way |
//! | buffers of a batch, rotary table, load buffer, adapters | known from the model |
//! | weights of span and shadows, embedding, head | as packed |
//! | KV cache and journal of one sequence of the greatest length, in the layers of the span | at least |
//! | KV cache and journals of more sequences | what is left, as much for each as a position takes there |
//!
//! With a device that has memory of its own, weights, KV cache, buffers of a batch, rotary tables and adapters lie there, and the rest on the host, which also
//! has the embedding, and a layer on its way to the device.
//!
//! Nobody else knows these numbers: the planner is told what a layer takes and what room there is.

use std::collections::BTreeSet;
use std::fmt;

use dunlin_kernels::{PAGE, page_len};
use dunlin_model::{Embedding, Head, LayerWeights, ModelConfig, ModelError, ModelFile};
use dunlin_protocol::Windows;
use dunlin_protocol::frame::WINDOW_ROWS;
use dunlin_schedule::Budget as Rows;
use dunlin_swarm::{Layers, layer_set, ranges};

/// Memory of the process itself: code, threads, connections.
const PROCESS_BYTES: u64 = 48 << 20;
/// What the allocator loses: this part of the whole.
const ALLOCATOR_PART: u64 = 32;
/// Rows that wait for the engine have the memory of journals: a position that waits has no row there yet, and a session is let in with KV pages for all its
/// positions, for each of which the journals have a row. Let in without pages are answers that had begun, when a peer was lost: these are rows for a full window of
/// 16 of them.
const QUEUED_ROWS: u64 = 16 * WINDOW_ROWS as u64;
/// Rows that have been received and not been looked at: the window of one connection.
const LINK_BYTES: u64 = 16 << 20;

/// What the parts take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Weights of each layer.
    layers: Vec<u64>,
    embedding: u64,
    head: u64,
    /// Embedding and output matrix are one.
    tied: bool,
    /// KV cache of a page's positions in one layer.
    page: u64,
    /// A row at the border of layers.
    row: u64,
    /// Of each position, in the rotary tables.
    rotary: u64,
    /// Longest sequence.
    positions: u32,
    /// What layers keep of a sequence.
    windows: Windows,
    /// Buffers of a batch.
    batch: u64,
    load: u64,
    adapters: u64,
}

impl Needs {
    /// Of a model served with sequences of up to `positions` and adapters that take so many bytes.
    ///
    /// # Errors
    /// When a tensor is missing, of another shape, or cannot be packed.
    pub fn of(file: &ModelFile, positions: u32, adapters: u64) -> Result<Self, ModelError> {
        let c = file.config();
        let head_dim = c.block.attention.head_dim;
        let layers = (0..c.layers).map(|layer| LayerWeights::bytes_in(file, layer));
        Ok(Self {
            layers: layers.collect::<Result<_, _>>()?,
            embedding: Embedding::bytes_in(file)?,
            head: Head::bytes_in(file)?,
            tied: c.tied,
            page: floats(page_len(c.block.attention.kv_heads, head_dim)),
            row: floats(c.hidden),
            rotary: floats(c.rotaries().len() * head_dim),
            positions,
            windows: Windows::new(c.windows()),
            batch: batch_bytes(c),
            load: file.load_bytes_max(),
            adapters,
        })
    }

    /// The same with sequences of up to `positions`.
    #[must_use]
    pub fn with_positions(&self, positions: u32) -> Self {
        Self { positions, ..self.clone() }
    }

    /// Weights of each layer, without embedding and head.
    #[must_use]
    pub fn layer_bytes(&self) -> &[u64] {
        &self.layers
    }

    /// Weights of the embedding, which the first layer needs.
    #[must_use]
    pub fn embedding_bytes(&self) -> u64 {
        self.embedding
    }

    /// Weights of the head, which the last layer needs, without what it shares with the embedding.
    #[must_use]
    pub fn head_bytes(&self) -> u64 {
        self.head
    }

    /// Are embedding and output matrix one?
    #[must_use]
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// KV cache of one sequence of the greatest length in one layer: in that which keeps most, for a planner may move any layer anywhere.
    #[must_use]
    pub fn sequence_bytes(&self) -> u64 {
        self.sequence_pages(self.positions) * self.page
    }

    /// Pages of a sequence of so many positions in the layer that keeps most.
    fn sequence_pages(&self, positions: u32) -> u64 {
        let of_layer = |layer| self.windows.pages(Layers::new(layer, layer + 1), positions);
        (0..self.layers.len() as u32).map(of_layer).max().unwrap_or(0).into()
    }

    /// Weights of these layers, with embedding and head where they belong.
    #[must_use]
    pub fn weights(&self, layers: &BTreeSet<u32>) -> u64 {
        let last = self.layers.len().saturating_sub(1);
        let (first, end) = (layers.contains(&0), layers.contains(&(last as u32)));
        let ends = match (first, end) {
            (true, true) if self.tied => self.embedding.max(self.head),
            _ => u64::from(first) * self.embedding + u64::from(end) * self.head,
        };
        let own = layers.iter().filter_map(|layer| self.layers.get(*layer as usize)).sum::<u64>();
        own + ends
    }

    /// Everything but layers, and the journal of one sequence.
    fn fixed(&self) -> u64 {
        self.process() + self.computing()
    }

    /// What of it the process needs, whatever computes.
    fn process(&self) -> u64 {
        let queues = QUEUED_ROWS * self.row + LINK_BYTES;
        PROCESS_BYTES + queues + u64::from(self.positions) * self.row + self.load
    }

    /// What of it lies where layers are computed.
    fn computing(&self) -> u64 {
        u64::from(self.positions) * self.rotary + self.batch + self.adapters
    }

    /// What a process needs on the host whose layers are on a device: with what it reads and does not keep. Layers that wait for the engine are two.
    fn host(&self) -> u64 {
        let layer = self.layers.iter().copied().max().unwrap_or(0);
        self.process() + self.embedding + self.adapters + self.head.max(2 * layer)
    }

    /// What must be there for a stage that executes `span` and nothing else.
    fn span(&self, span: Layers) -> u64 {
        self.weights(&span.iter().collect()) + u64::from(span.len()) * self.sequence_bytes()
    }
}

/// Buffers that hold what a batch computes, at most.
fn batch_bytes(c: &ModelConfig) -> u64 {
    let widest = c.hidden.max(c.block.mlp.width).max(c.q_width());
    // Beside those of the block: activations as integers, in both widths and with scales.
    let row = floats(c.block.row_values(c.hidden)) + 4 * widest as u64;
    // Logits of every row that is sampled, and the ranking of one.
    let logits = floats(c.vocab + 2 * c.hidden) * u64::from(Rows::ENGINE.sampled()) + floats(4 * c.vocab);
    row * u64::from(Rows::ENGINE.rows()) + logits
}

fn floats(count: usize) -> u64 {
    (count * size_of::<f32>()) as u64
}

/// What may be used, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    limit: u64,
    /// Memory of the device, if it has its own.
    device: Option<u64>,
    needs: Needs,
}

/// What a stage will hold, and what KV cache and journals may take beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Layers, the span among them.
    pub layers: BTreeSet<u32>,
    /// Shadows for which there is no room.
    pub left_out: Vec<Layers>,
    /// Bytes of all KV pages.
    pub kv_bytes: u64,
    /// Bytes of all journals.
    pub journal_bytes: u64,
}

impl MemoryBudget {
    /// `limit`: what the process may use, in bytes.
    #[must_use]
    pub fn new(limit: u64, needs: Needs) -> Self {
        Self { limit, device: None, needs }
    }

    /// The same with a device that computes and has so many bytes of memory of its own for it.
    #[must_use]
    pub fn with_device(self, device: Option<u64>) -> Self {
        Self { device, ..self }
    }

    /// What the parts take.
    #[must_use]
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Room for weights and KV cache.
    #[must_use]
    pub fn room(&self) -> u64 {
        usable(self.computing_limit()).saturating_sub(self.fixed())
    }

    /// What there is where layers are computed.
    fn computing_limit(&self) -> u64 {
        self.device.unwrap_or(self.limit)
    }

    /// What is needed there without any layer.
    fn fixed(&self) -> u64 {
        if self.device.is_some() { self.needs.computing() } else { self.needs.fixed() }
    }

    /// Has the host what it needs for a device?
    fn host_suffices(&self) -> bool {
        self.device.is_none() || self.needs.host() <= usable(self.limit)
    }

    /// What is held for `span` and, in their order and as far as there is room, `shadows`. Shadows that are here already (`held`) come
    /// first.
    ///
    /// # Errors
    /// When there is no room for the span, or for what is needed without any layer.
    pub fn fit(&self, span: Layers, shadows: &[Layers], held: &BTreeSet<u32>) -> Result<Fit, OutOfMemory> {
        let (needs, room) = (&self.needs, self.room());
        let cache = u64::from(span.len()) * needs.sequence_bytes();
        let usable_bytes = usable(self.computing_limit());
        let takes = |layers: &BTreeSet<u32>| self.fixed() + needs.weights(layers) + cache <= usable_bytes;
        let mut layers: BTreeSet<u32> = span.iter().collect();
        if !takes(&layers) || !self.host_suffices() {
            return Err(OutOfMemory { span, budget: Box::new(self.clone()) });
        }
        let mut wanted: Vec<u32> = shadows.iter().flat_map(|s| s.iter()).collect();
        wanted.sort_by_key(|layer| !held.contains(layer));
        let mut left_out = BTreeSet::new();
        for layer in wanted {
            if layers.insert(layer) && !takes(&layers) {
                layers.remove(&layer);
                left_out.insert(layer);
            }
        }
        let positions = u64::from(needs.positions);
        let left = room - needs.weights(&layers);
        if self.device.is_some() {
            let journal_bytes = usable(self.limit) - needs.host() + positions * needs.row;
            return Ok(Fit { layers, left_out: ranges(&left_out), kv_bytes: left, journal_bytes });
        }
        // What the layers leave, and the one journal that was set aside.
        let rest = left + positions * needs.row;
        let executed = if span.is_empty() { layers.len() as u64 } else { u64::from(span.len()) }.max(1);
        // Of a sequence of the greatest length: journals have all of it, the cache may have less.
        let kept = (needs.sequence_pages(needs.positions) * PAGE as u64).min(positions);
        let kv = u128::from(needs.page / PAGE as u64 * executed) * u128::from(kept);
        let rows = u128::from(needs.row) * u128::from(positions);
        let kv_bytes = u64::try_from(u128::from(rest) * kv / (kv + rows).max(1));
        let kv_bytes = kv_bytes.unwrap_or(rest).max(cache).min(rest);
        Ok(Fit { layers, left_out: ranges(&left_out), kv_bytes, journal_bytes: rest - kv_bytes })
    }

    /// How many sequences of so many positions have room at once in a stage that executes `span` and holds what `fit` says.
    #[must_use]
    pub fn sequences(&self, span: Layers, fit: &Fit, positions: u32) -> u64 {
        let positions = positions.max(1);
        let pages = u64::from(self.needs.windows.pages(span, positions));
        let rows = fit.journal_bytes / self.needs.row.max(1);
        (fit.kv_bytes / (self.needs.page * pages).max(1)).min(rows / u64::from(positions))
    }

    /// How many peers of this budget it takes to execute all layers; `None` when no number suffices.
    fn peers(&self) -> Option<u32> {
        let (all, room) = (self.needs.layers.len() as u32, self.room());
        let (mut start, mut peers) = (0, 0);
        while start < all {
            let end =
                (start + 1..=all).rev().find(|end| self.needs.span(Layers::new(start, *end)) <= room)?;
            (start, peers) = (end, peers + 1);
        }
        Some(peers)
    }

    /// The longest sequence with which `span` would fit.
    fn positions(&self, span: Layers) -> u32 {
        let weights = self.needs.weights(&span.iter().collect());
        let fits = |pages: &u32| {
            let needs = self.needs.with_positions(pages * PAGE as u32);
            let cache = u64::from(span.len()) * needs.sequence_bytes();
            let budget = Self { needs, ..self.clone() };
            weights + cache + budget.fixed() <= usable(budget.computing_limit()) && budget.host_suffices()
        };
        let (mut most, mut beyond) = (0, self.needs.positions / PAGE as u32 + 1);
        while beyond - most > 1 {
            let middle = u32::midpoint(most, beyond);
            *if fits(&middle) { &mut most } else { &mut beyond } = middle;
        }
        most * PAGE as u32
    }
}

/// What the allocator does not lose of so many bytes.
fn usable(limit: u64) -> u64 {
    limit - limit / ALLOCATOR_PART
}

/// A span does not fit, and what would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfMemory {
    span: Layers,
    budget: Box<MemoryBudget>,
}

impl std::error::Error for OutOfMemory {}

/// Sequences shorter than this are of no use to anybody.
const POSITIONS_USEFUL: u32 = 256;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (span, needs) = (self.span, &self.budget.needs);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        if !self.budget.host_suffices() {
            let need = needs.host() + needs.host().div_ceil(ALLOCATOR_PART - 1);
            return write!(
                f,
                "beside its GPU this peer needs {} MiB of memory for embedding, journals, queues and the process itself, and there are {}. Give each peer {} MiB",
                mib(need),
                self.budget.limit >> 20,
                mib(need),
            );
        }
        let weights = needs.weights(&span.iter().collect());
        let cache = u64::from(span.len()) * needs.sequence_bytes();
        let need = weights + cache + self.budget.fixed();
        let need = need + need.div_ceil(ALLOCATOR_PART - 1);
        let (memory, rest) = match self.budget.device {
            Some(_) => ("memory of the GPU", "buffers"),
            None => ("memory", "buffers, queues and the process itself"),
        };
        write!(
            f,
            "layers {span} need {} MiB of {memory} and there are {}: weights {}, KV cache for one sequence of {} \
             positions {}, {rest} {}. Give each peer {} MiB",
            mib(need),
            self.budget.computing_limit() >> 20,
            mib(weights),
            needs.positions,
            mib(cache),
            mib(need - weights - cache),
            mib(need),
        )?;
        match self.budget.peers() {
            Some(peers) => write!(f, ", or let {peers} peers share the layers")?,
            None => f.write_str("; no number of peers of this size suffices")?,
        }
        let positions = self.budget.positions(span);
        if positions >= POSITIONS_USEFUL && positions < needs.positions {
            write!(f, ", or limit sequences to {positions} positions")?;
        }
        Ok(())
    }
}

/// What to tell a user of shadows that were left out.
#[must_use]
pub fn without_room(left_out: &[Layers]) -> String {
    let count = layer_set(left_out).len();
    let words = left_out.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "there is no memory for {count} shadow layers {words}: their loss would not be survived; give each peer more memory, or use more peers"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// 30 layers of 10 MiB each, embedding and head of 40 MiB, 1 MiB of KV cache for 16 positions of a layer.
    fn needs() -> Needs {
        Needs {
            layers: vec![10 * MIB; 30],
            embedding: 40 * MIB,
            head: 40 * MIB,
            tied: true,
            page: MIB,
            row: 4096,
            rotary: 512,
            positions: 160,
            windows: Windows::default(),
            batch: 8 * MIB,
            load: 8 * MIB,
            adapters: 0,
        }
    }

    fn fit(limit_mib: u64, span: (u32, u32), shadows: &[(u32, u32)]) -> Result<Fit, String> {
        let shadows: Vec<Layers> = shadows.iter().map(|s| Layers::new(s.0, s.1)).collect();
        let budget = MemoryBudget::new(limit_mib * MIB, needs());
        budget.fit(Layers::new(span.0, span.1), &shadows, &BTreeSet::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_span_that_does_not_fit_is_refused_with_what_would() {
        // All 30 layers: weights 340, KV cache 300, the rest 48 + 32 + 8 + 8.
        let told = fit(512, (0, 30), &[]).unwrap_err();
        let numbers = "layers [0,30) need 761 MiB of memory and there are 512: weights 340, KV cache for one sequence of 160 positions 300, \
             buffers, queues and the process itself 121. Give each peer 761 MiB, or let 2 peers share the layers";
        assert_eq!(told, numbers);
        assert!(fit(761, (0, 30), &[]).is_ok());
        assert!(fit(760, (0, 30), &[]).is_err());
        // With shorter sequences it would fit as well.
        let longer = MemoryBudget::new(2048 * MIB, Needs { positions: 8192, ..needs() });
        let told = longer.fit(Layers::new(0, 30), &[], &BTreeSet::new()).unwrap_err().to_string();
        assert!(told.ends_with("or limit sequences to 816 positions"), "{told}");
        let shorter = MemoryBudget::new(2048 * MIB, Needs { positions: 816, ..needs() });
        assert!(shorter.fit(Layers::new(0, 30), &[], &BTreeSet::new()).is_ok());
        let told = fit(100, (0, 1), &[]).unwrap_err();
        assert!(told.ends_with("no number of peers of this size suffices"), "{told}");
    }

    #[test]
    fn a_device_has_layers_and_pages_and_the_host_has_the_rest() {
        let budget =
            |host: u64, device: u64| MemoryBudget::new(host * MIB, needs()).with_device(Some(device * MIB));
        let all = Layers::new(0, 30);
        // Weights 340, KV cache 300, buffers 8 and a bit; of the host: process 48, queues and links, embedding, head, load buffer.
        let fits = budget(512, 1024).fit(all, &[], &BTreeSet::new()).unwrap();
        assert!(fits.kv_bytes > 600 * MIB && fits.kv_bytes < 650 * MIB, "{}", fits.kv_bytes / MIB);
        assert!(
            fits.journal_bytes > 300 * MIB && fits.journal_bytes < 350 * MIB,
            "{}",
            fits.journal_bytes / MIB
        );
        let told = budget(512, 512).fit(all, &[], &BTreeSet::new()).unwrap_err().to_string();
        let numbers = "layers [0,30) need 669 MiB of memory of the GPU and there are 512: weights 340, KV cache for one sequence of 160 \
             positions 300, buffers 29. Give each peer 669 MiB, or let 2 peers share the layers";
        assert_eq!(told, numbers);
        let told = budget(128, 1024).fit(all, &[], &BTreeSet::new()).unwrap_err().to_string();
        assert!(told.starts_with("beside its GPU this peer needs 175 MiB of memory"), "{told}");
    }

    #[test]
    fn what_does_not_fit_without_any_layer_is_refused() {
        assert!(
            fit(64, (0, 0), &[(0, 1)]).unwrap_err().ends_with("no number of peers of this size suffices")
        );
        assert!(fit(121, (0, 0), &[(0, 1)]).unwrap().layers.is_empty());
    }

    #[test]
    fn shadows_are_held_as_far_as_there_is_room_and_those_that_are_here_first() {
        let all = fit(2048, (0, 10), &[(10, 20), (20, 30)]).unwrap();
        assert_eq!((all.layers.len(), all.left_out.len()), (30, 0));
        let some = fit(420, (0, 10), &[(10, 20)]).unwrap();
        assert_eq!(some.left_out, [Layers::new(17, 20)]);
        let budget = MemoryBudget::new(420 * MIB, needs());
        let held = (17..20).collect();
        let kept = budget.fit(Layers::new(0, 10), &[Layers::new(10, 20)], &held).unwrap();
        assert_eq!(kept.left_out, [Layers::new(14, 17)]);
        assert!(without_room(&kept.left_out).starts_with("there is no memory for 3 shadow layers [14,17)"));
    }

    #[test]
    fn what_is_left_is_divided_as_positions_need_it() {
        let fit = fit(1024, (0, 10), &[(10, 20)]).unwrap();
        // A position takes 10 / 16 MiB of KV cache and 4 KiB of a journal.
        let ratio = fit.kv_bytes as f64 / fit.journal_bytes as f64;
        assert!((ratio - 160.0).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn sequences_have_room_while_pages_and_rows_last() {
        let budget = MemoryBudget::new(1024 * MIB, needs());
        let fit = Fit { kv_bytes: 400 * MIB, journal_bytes: 2 * MIB, ..Fit::default() };
        // 40 pages of 16 positions in ten layers, and 512 rows.
        let sequences = |positions| budget.sequences(Layers::new(0, 10), &fit, positions);
        assert_eq!((sequences(16), sequences(17), sequences(160), sequences(641)), (32, 20, 3, 0));
    }

    /// 64 positions behind 256 that are kept as well and before a batch of 128: 29 pages, with what is not a whole one.
    #[test]
    fn a_sequence_takes_no_more_than_windows_keep() {
        let windows = Windows::new([Some(64); 30]);
        let of = |positions| Needs { windows: windows.clone(), ..needs() }.with_positions(positions);
        let most = 29 * MIB;
        assert_eq!(
            [160, 448, 464, 100_000].map(|p| of(p).sequence_bytes()),
            [10 * MIB, 28 * MIB, most, most]
        );
        let budget = MemoryBudget::new(2048 * MIB, of(8192));
        let fit = budget.fit(Layers::new(0, 30), &[], &BTreeSet::new()).unwrap();
        let all = Layers::new(0, 30);
        assert_eq!(budget.sequences(all, &fit, 8192), fit.kv_bytes / (30 * most));
        // One that sees everything may be anywhere.
        let odd = Windows::new((0..30).map(|layer| (layer != 7).then_some(64)));
        assert_eq!(Needs { windows: odd, ..of(1600) }.sequence_bytes(), 100 * MIB);
        // Longer sequences are a matter of journals and rotary tables only.
        let told = MemoryBudget::new(1400 * MIB, of(1 << 20))
            .fit(all, &[], &BTreeSet::new())
            .unwrap_err()
            .to_string();
        assert!(told.contains("or limit sequences to "), "{told}");
    }

    proptest! {
        #[test]
        fn no_more_is_used_than_there_is(
            limit_mib in 64..4096u64,
            start in 0..30u32,
            len in 0..31u32,
            shadows in prop::collection::vec((0..30u32, 1..8u32), 0..4),
            held in prop::collection::btree_set(0..30u32, 0..30),
            positions in 16..4096u32,
            slides in any::<bool>(),
            odd in 0..60u32,
        ) {
            let windows = Windows::new((0..30).map(|layer| (slides && layer != odd).then_some(64)));
            let needs = Needs { positions, windows, ..needs() };
            let budget = MemoryBudget::new(limit_mib * MIB, needs.clone());
            let span = Layers::new(start, (start + len).min(30));
            let shadows: Vec<Layers> =
                shadows.into_iter().map(|(at, len)| Layers::new(at, (at + len).min(30))).collect();
            if let Ok(fit) = budget.fit(span, &shadows, &held) {
                let fixed = needs.fixed() - u64::from(needs.positions) * needs.row;
                let used = fixed + needs.weights(&fit.layers) + fit.kv_bytes + fit.journal_bytes;
                prop_assert!(used + limit_mib * MIB / ALLOCATOR_PART <= limit_mib * MIB);
                prop_assert!(fit.kv_bytes >= u64::from(span.len()) * needs.sequence_bytes());
                prop_assert!(span.iter().all(|layer| fit.layers.contains(&layer)));
                let asked: BTreeSet<u32> = layer_set(&shadows).into_iter().chain(span.iter()).collect();
                let given: BTreeSet<u32> =
                    fit.layers.iter().copied().chain(layer_set(&fit.left_out)).collect();
                prop_assert_eq!(given, asked);
            }
        }
    }
}
