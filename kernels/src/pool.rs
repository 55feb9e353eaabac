//! A few threads that split one operation among them.
//!
//! Work is always split over output columns, rows or heads, never over a sum, so the number of threads cannot change a bit.
//! Workers spin for some microseconds between operations, because the operations of a decoder block follow each other closely, and sleep then.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::isa::Isa;

/// Rounds of spinning before a thread sleeps (about 20 microseconds).
const SPINS: u32 = 4000;

/// Threads and the instruction set that kernels use.
pub struct Pool {
    isa: Isa,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts operations; a worker that sees a new number has work.
    generation: AtomicUsize,
    /// Workers still busy with the current operation.
    busy: AtomicUsize,
    stop: AtomicBool,
    task: Mutex<Option<Task>>,
    wake: Condvar,
}

/// A borrowed closure whose lifetime `run` guards: it does not return before every worker is done with it.
#[derive(Clone, Copy)]
struct Task(*const (dyn Fn(usize) + Sync));
// SAFETY: the closure is Sync and outlives its use (see `Pool::run`).
unsafe impl Send for Task {}

impl Pool {
    /// `threads` threads in all, counting the caller's (at least 1), with the best instructions there are.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::best())
    }

    /// As [`Pool::new`] with a chosen instruction set, which this machine must have.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        assert!(isa <= Isa::best(), "this machine has no {isa:?}");
        let shared = Arc::new(Shared {
            generation: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            task: Mutex::new(None),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || work(&shared, index))
            })
            .collect();
        Self { isa, shared, workers }
    }

    /// Threads in all.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `part(i)` for every `i` in `0..threads()`, each on a thread of its own, and returns when all are done.
    pub fn run(&self, part: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            part(0);
            return;
        }
        // SAFETY: only the lifetime is changed; this function waits for every worker before it returns.
        let task = Task(unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(
                part,
            )
        });
        self.shared.busy.store(self.workers.len(), Ordering::Release);
        {
            let mut slot = self.shared.task.lock().expect("no worker panics while it holds the lock");
            *slot = Some(task);
            self.shared.generation.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        part(0);
        let mut spins = 0;
        while self.shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins % SPINS == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    /// Splits `0..count` in `threads()` contiguous parts of nearly equal size.
    pub fn split(&self, count: usize, part: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let threads = self.threads();
        if threads == 1 || count < 2 {
            part(0..count);
            return;
        }
        self.run(&|i| {
            let range = count * i / threads..count * (i + 1) / threads;
            if !range.is_empty() {
                part(range);
            }
        });
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.generation.load(Ordering::Acquire) == seen && spins < SPINS {
            spins += 1;
            std::hint::spin_loop();
        }
        let task = {
            let mut slot = shared.task.lock().expect("no worker panics while it holds the lock");
            while shared.generation.load(Ordering::Acquire) == seen {
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                slot = shared.wake.wait(slot).expect("no worker panics while it holds the lock");
            }
            seen = shared.generation.load(Ordering::Acquire);
            *slot
        };
        if let Some(Task(part)) = task {
            // SAFETY: `Pool::run` keeps the closure alive until `busy` is zero.
            unsafe { (*part)(index) };
            shared.busy.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        {
            let _slot = self.shared.task.lock();
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker that panicked has already aborted the operation it was part of.
            let _ = worker.join();
        }
    }
}

/// A raw output pointer that parts of one operation write through, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shards<T>(*mut T);
// SAFETY: users write to disjoint places only; each use says why.
unsafe impl<T: Send> Send for Shards<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shards<T> {}

impl<T> Shards<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn at(&self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Pool;

    #[test]
    fn every_part_runs_once_many_times_over() {
        for threads in 1..4 {
            let pool = Pool::new(threads);
            let total = AtomicUsize::new(0);
            for _ in 0..200 {
                pool.split(17, &|range| {
                    total.fetch_add(range.sum::<usize>(), Ordering::Relaxed);
                });
            }
            assert_eq!(total.into_inner(), 200 * (0..17).sum::<usize>());
        }
    }
}
