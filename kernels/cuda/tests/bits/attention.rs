//! Attention over pages that lie anywhere, and what is written into them.

use dunlin_cuda::attention::{Places, SeenPages, attention, segments, write_kv};
use dunlin_cuda::pages::{Page, PageArena};
use dunlin_kernels::{AttentionRow, Heads, PAGE, page_len};

use crate::Bench;
use crate::support::{Random, assert_same};

/// A row of a sequence: it sees `from..=position`.
#[derive(Clone, Copy)]
struct Row {
    sequence: usize,
    from: usize,
    position: usize,
}

/// Sequences of these lengths, of one layer.
struct Layer {
    shape: Heads,
    /// By sequence.
    pages: Vec<Vec<Vec<f32>>>,
    /// The same positions: row after row, keys and values.
    rows: Vec<(usize, usize)>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Layer {
    fn new(random: &mut Random, shape: Heads, lens: &[usize]) -> Self {
        let width = shape.kv_heads * shape.head_dim;
        let page = vec![f32::NAN; page_len(shape.kv_heads, shape.head_dim)];
        let pages = lens.iter().map(|len| vec![page.clone(); len.div_ceil(PAGE)]).collect();
        let rows: Vec<(usize, usize)> =
            lens.iter().enumerate().flat_map(|(s, len)| (0..*len).map(move |t| (s, t))).collect();
        let (keys, values) = (random.floats(rows.len() * width), random.floats(rows.len() * width));
        let mut layer = Self { shape, pages, rows, keys, values };
        for (i, &(s, t)) in layer.rows.iter().enumerate() {
            let (k, v) = (&layer.keys[i * width..][..width], &layer.values[i * width..][..width]);
            let page = &mut layer.pages[s][t / PAGE];
            dunlin_kernels::write_kv(page, t % PAGE, k, v, shape.kv_heads, shape.head_dim);
        }
        layer
    }

    fn pages_max(&self) -> usize {
        self.pages.iter().map(Vec::len).max().unwrap()
    }

    /// Where a page lies among all of them: neighbours belong to different sequences, and later pages come first.
    fn slot(&self, sequence: usize, page: usize) -> usize {
        (self.pages_max() - 1 - page) * self.pages.len() + sequence
    }

    fn slots(&self) -> usize {
        self.pages_max() * self.pages.len()
    }

    /// `[sequence][pages_max]`; pages that do not exist are nowhere.
    fn tables(&self, pool: &[Page]) -> Vec<u64> {
        let page = |s: usize, p: usize| {
            if p < self.pages[s].len() { pool[self.slot(s, p)].address() } else { 1 << 60 }
        };
        (0..self.pages.len())
            .flat_map(|s| (0..self.pages_max()).map(move |p| (s, p)))
            .map(|(s, p)| page(s, p))
            .collect()
    }

    /// Rows of all positions of a sequence that are `step` apart, with this window.
    fn rows_of(&self, sequence: usize, step: usize, window: usize) -> impl Iterator<Item = Row> {
        let len = self.rows.iter().filter(|(s, _)| *s == sequence).count();
        let row =
            move |position: usize| Row { sequence, from: (position + 1).saturating_sub(window), position };
        (0..len).rev().step_by(step).map(row)
    }
}

/// Writes the keys and values of a layer on both, and compares the pages and what rows attend to. Returns how many outputs that was.
fn compare(bench: &mut Bench, layer: &Layer, rows: &[Row], splits: &[usize]) -> usize {
    let Bench { gpu, scratch, pool: threads } = bench;
    let shape = layer.shape;
    let page = page_len(shape.kv_heads, shape.head_dim);

    let mut arena = PageArena::new(page);
    let pool: Vec<Page> = (0..layer.slots()).map(|_| arena.take(gpu).unwrap()).collect();
    let pages: Vec<u64> = layer.rows.iter().map(|(s, t)| pool[layer.slot(*s, t / PAGE)].address()).collect();
    let positions: Vec<u32> = layer.rows.iter().map(|(_, t)| *t as u32).collect();
    let (pages, positions) = (gpu.upload(&pages).unwrap(), gpu.upload(&positions).unwrap());
    let (k, v) = (gpu.upload(&layer.keys).unwrap(), gpu.upload(&layer.values).unwrap());
    let places = Places { pages: pages.all(), positions: positions.all() };
    // SAFETY: the pages are those of the arena above.
    unsafe { write_kv(gpu, k.all(), v.all(), &places, &shape).unwrap() };
    let mut got = vec![0.0; page];
    for (s, pages) in layer.pages.iter().enumerate() {
        for (p, want) in pages.iter().enumerate() {
            arena.read(gpu, &pool[layer.slot(s, p)], &mut got).unwrap();
            assert_same(&got, want, || format!("page {p} of sequence {s}"));
        }
    }

    let q = Random(99).floats(rows.len() * shape.heads * shape.head_dim);
    let views: Vec<Vec<&[f32]>> =
        layer.pages.iter().map(|pages| pages.iter().map(Vec::as_slice).collect()).collect();
    let attended: Vec<AttentionRow<'_>> = rows
        .iter()
        .map(|row| AttentionRow { pages: &views[row.sequence], from: row.from, len: row.position + 1 })
        .collect();
    let mut want = vec![0.0; q.len()];
    dunlin_kernels::attention(threads, &q, &attended, shape, &mut want);
    assert!(want.iter().all(|v| v.is_finite()), "the test itself reads what was not written");

    let of_rows = |value: fn(&Row) -> usize| {
        gpu.upload(&rows.iter().map(|row| value(row) as u32).collect::<Vec<_>>()).unwrap()
    };
    let (sequences, positions, from) =
        (of_rows(|row| row.sequence), of_rows(|row| row.position), of_rows(|row| row.from));
    let (q, tables) = (gpu.upload(&q).unwrap(), gpu.upload(&layer.tables(&pool)).unwrap());
    let mut got = vec![0.0; want.len()];
    for &splits in splits {
        let mut out = gpu.buffer::<f32>(want.len()).unwrap();
        let seen = SeenPages {
            tables: tables.all(),
            pages_max: layer.pages_max(),
            sequences: sequences.all(),
            positions: positions.all(),
            from: from.all(),
            splits,
        };
        // SAFETY: as above.
        unsafe { attention(gpu, scratch, q.all(), &seen, &shape, out.all_mut()).unwrap() };
        gpu.read(&out, &mut got).unwrap();
        assert_same(&got, &want, || format!("{shape:?}, {splits} splits"));
    }
    want.len() * splits.len()
}

#[test]
fn short_sequences() {
    let mut bench = Bench::new();
    let mut random = Random(10);
    for shape in [Heads::new(9, 3, 64), Heads::new(4, 4, 8), Heads::new(3, 1, 256), Heads::new(5, 1, 24)] {
        let layer = Layer::new(&mut random, shape, &[1, 77, 16, 33]);
        let rows: Vec<Row> = (0..4).flat_map(|s| layer.rows_of(s, 1 + s, usize::MAX)).collect();
        compare(&mut bench, &layer, &rows, &[1]);
    }
}

#[test]
fn windows() {
    let mut bench = Bench::new();
    let mut random = Random(11);
    let shape = Heads { scale: 0.25, ..Heads::new(4, 2, 16) };
    let layer = Layer::new(&mut random, shape, &[700, 300]);
    for window in [1, 16, 23, 255, 256, 257, 300, 699] {
        let rows: Vec<Row> = (0..2).flat_map(|s| layer.rows_of(s, 37, window)).collect();
        compare(&mut bench, &layer, &rows, &[1, most_segments(&rows)]);
    }
}

/// Of any row.
fn most_segments(rows: &[Row]) -> usize {
    rows.iter().map(|row| segments(row.from, row.position)).max().unwrap()
}

#[test]
fn long_sequences_in_one_and_in_many_splits() {
    let mut bench = Bench::new();
    let mut random = Random(12);
    let mut compared = 0;
    for (shape, len) in [
        (Heads::new(4, 2, 64), 1100),
        (Heads::new(2, 1, 128), 600),
        (Heads::new(2, 2, 256), 520),
        (Heads::new(6, 2, 8), 2000),
    ] {
        let layer = Layer::new(&mut random, shape, &[len, len / 3, 257, 256]);
        let rows: Vec<Row> = (0..4).flat_map(|s| layer.rows_of(s, 41, usize::MAX)).collect();
        let most = most_segments(&rows);
        assert!(most > 2);
        compared += compare(&mut bench, &layer, &rows, &[1, most]);
    }
    assert!(compared > 40_000, "{compared}");
}
