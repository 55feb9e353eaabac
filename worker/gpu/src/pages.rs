//! The KV pages of segments, on the device.

use std::collections::{BTreeMap, VecDeque};

use dunlin_cuda::pages::{Page, PageArena};
use dunlin_cuda::{Gpu, GpuError};
use dunlin_schedule::SegmentKey;

/// Pages of one layer of a segment. The first `taken` were given back.
#[derive(Default)]
struct LayerPages {
    taken: usize,
    /// Page `taken` and those behind it.
    pages: VecDeque<Page>,
}

impl LayerPages {
    fn end(&self) -> usize {
        self.taken + self.pages.len()
    }
}

/// The pages of all segments.
pub(crate) struct SegmentPages {
    arena: PageArena,
    segments: BTreeMap<SegmentKey, Vec<LayerPages>>,
}

impl SegmentPages {
    /// None yet; each has so many values.
    pub(crate) fn new(page_len: usize) -> Self {
        Self { arena: PageArena::new(page_len), segments: BTreeMap::new() }
    }

    pub(crate) fn page_bytes(&self) -> usize {
        self.arena.page_bytes()
    }

    pub(crate) fn used(&self) -> usize {
        self.arena.used()
    }

    /// A segment has so many pages in each of its layers from now on, the first ones being those that it had before.
    pub(crate) fn set(&mut self, gpu: &Gpu, key: SegmentKey, pages: usize) -> Result<(), GpuError> {
        let layers = self.segments.entry(key).or_default();
        layers.resize_with(key.1.len() as usize, LayerPages::default);
        for layer in layers.iter_mut() {
            while layer.end() > pages {
                match layer.pages.pop_back() {
                    Some(page) => self.arena.give_back(page),
                    None => layer.taken = pages,
                }
            }
            while layer.end() < pages {
                layer.pages.push_back(self.arena.take(gpu)?);
            }
        }
        if pages == 0 {
            self.segments.remove(&key);
        }
        Ok(())
    }

    /// Takes the pages before page `first` of a layer back.
    pub(crate) fn give_back(&mut self, key: SegmentKey, layer: u32, first: usize) {
        let layers = self.segments.get_mut(&key);
        let Some(layer) = layers.and_then(|layers| layers.get_mut((layer - key.1.start) as usize)) else {
            return;
        };
        while layer.taken < first {
            let Some(page) = layer.pages.pop_front() else { return };
            self.arena.give_back(page);
            layer.taken += 1;
        }
    }

    pub(crate) fn keep_spare(&mut self, pages: usize) {
        self.arena.keep_spare(pages);
    }

    /// Where the pages of a layer of a segment are, by number; 0 where there is none any more.
    pub(crate) fn addresses(&self, key: SegmentKey, slot: usize) -> impl Iterator<Item = u64> {
        let layer = &self.segments[&key][slot];
        std::iter::repeat_n(0, layer.taken).chain(layer.pages.iter().map(Page::address))
    }

    /// Pages of each layer of a segment, those that were given back among them.
    pub(crate) fn count(&self, key: SegmentKey) -> usize {
        self.segments[&key].first().map_or(0, LayerPages::end)
    }
}
