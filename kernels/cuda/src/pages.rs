//! Memory of KV pages: taken and given back one by one, and from the device some at a time.

use crate::error::GpuError;
use crate::gpu::Gpu;
use crate::memory::DeviceBuffer;

/// Memory that is taken from the device at a time, in bytes, if a page is not larger.
const SLAB_BYTES: usize = 8 << 20;

/// The page of one layer and of 16 positions: `K [kv_heads][hd][16]`, then `V [kv_heads][16][hd]`. It belongs to the arena it is from, which it goes back to.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    slab: usize,
    address: u64,
}

impl Page {
    /// Where it is on the device: what tables of [`crate::attention`] have.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }
}

struct Slab {
    memory: DeviceBuffer<f32>,
    /// Addresses of pages that nobody has.
    free: Vec<u64>,
}

/// Pages of one size.
pub struct PageArena {
    page_len: usize,
    /// By number; none where one was given back to the device.
    slabs: Vec<Option<Slab>>,
    free: usize,
    used: usize,
}

impl PageArena {
    /// Without memory, for pages of `page_len` values.
    #[must_use]
    pub fn new(page_len: usize) -> Self {
        Self { page_len, slabs: Vec::new(), free: 0, used: 0 }
    }

    /// Memory of a page, in bytes.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_len * size_of::<f32>()
    }

    /// Pages that somebody has.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Pages of a slab.
    fn per_slab(&self) -> usize {
        (SLAB_BYTES / self.page_bytes()).max(1)
    }

    /// A page, whose values are undefined.
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn take(&mut self, gpu: &Gpu) -> Result<Page, GpuError> {
        if self.free == 0 {
            self.grow(gpu)?;
        }
        let mut slabs = self.slabs.iter_mut().enumerate();
        let page = slabs.find_map(|(slab, own)| Some(Page { slab, address: own.as_mut()?.free.pop()? }));
        self.free -= 1;
        self.used += 1;
        Ok(page.expect("a slab has a page that is free, because one was counted"))
    }

    /// Takes a page back. Nothing that was put on the queue before and uses it is disturbed, as all that comes is behind it.
    pub fn give_back(&mut self, page: Page) {
        if let Some(Some(slab)) = self.slabs.get_mut(page.slab) {
            slab.free.push(page.address);
            self.free += 1;
            self.used -= 1;
        }
    }

    /// Reads the values of a page.
    ///
    /// # Errors
    /// When an operation before failed.
    ///
    /// # Panics
    /// When the page is not of this arena, or has another number of values.
    pub fn read(&self, gpu: &Gpu, page: &Page, to: &mut [f32]) -> Result<(), GpuError> {
        assert_eq!(to.len(), self.page_len, "read: values of a page");
        let slab = self.slabs[page.slab].as_ref().expect("a page of this arena");
        let memory = slab.memory.all();
        let first = (page.address - memory.address()) as usize / size_of::<f32>();
        gpu.read(memory.range(first..first + self.page_len), to)
    }

    /// Gives memory of which nobody has a page back to the device, as long as `spare` free pages are left.
    pub fn keep_spare(&mut self, spare: usize) {
        let pages = self.per_slab();
        for slab in self.slabs.iter_mut().rev() {
            if self.free < spare + pages {
                return;
            }
            if slab.as_ref().is_some_and(|own| own.free.len() == pages) {
                *slab = None;
                self.free -= pages;
            }
        }
    }

    fn grow(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let pages = self.per_slab();
        let memory = gpu.buffer::<f32>(pages * self.page_len)?;
        let first = memory.all().address();
        let free = (0..pages).rev().map(|page| first + (page * self.page_bytes()) as u64).collect();
        let slab = Some(Slab { memory, free });
        match self.slabs.iter_mut().find(|slab| slab.is_none()) {
            Some(place) => *place = slab,
            None => self.slabs.push(slab),
        }
        self.free += pages;
        Ok(())
    }
}
