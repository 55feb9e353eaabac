//! A few threads that split one operation among them.
//!
//! Work is always split over output columns, rows or heads, never over a sum, so the number of threads cannot change a bit.
//! Workers spin for some microseconds between operations, because the operations of a decoder block follow each other closely, and sleep then.
//!
//! One operation has the workers at a time; another that comes meanwhile (from inside of a part, or from another thread) runs all its parts
//! itself. A part that panics is caught where it ran, the operation is waited for to its end, and the panic goes on in the caller.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::isa::Isa;
use crate::lender::{Lender, Lent};

/// Rounds of spinning before a thread sleeps (about 20 microseconds).
const SPINS: u32 = 4000;
/// Below this many values an element-wise operation is done before another thread has woken up.
pub(crate) const SMALL: usize = 1 << 14;

/// Threads and the instruction set that kernels use, and their buffers.
pub struct Pool {
    isa: Isa,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    lender: Lender,
}

/// What [`Pool::split_rows`] calls: with a range of rows, and these rows of every output.
pub type RowsPart<'a, T, const N: usize> = dyn Fn(Range<usize>, [&mut [T]; N]) + Sync + 'a;

/// What a panic carries.
type Payload = Box<dyn Any + Send>;

struct Shared {
    /// An operation has the workers.
    running: AtomicBool,
    /// Counts operations; a worker that sees a new number has work.
    generation: AtomicUsize,
    /// Workers still busy with the current operation.
    busy: AtomicUsize,
    stop: AtomicBool,
    task: Mutex<Option<Task>>,
    wake: Condvar,
    /// The first panic of a worker in the current operation.
    panic: Mutex<Option<Payload>>,
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
    /// If this machine does not support `isa`.
    #[must_use]
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        assert!(isa <= Isa::best(), "this machine has no {isa:?}");
        let shared = Arc::new(Shared {
            running: AtomicBool::new(false),
            generation: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            task: Mutex::new(None),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let workers = (1..threads.max(1))
            .map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || work(&shared, index))
            })
            .collect();
        Self { isa, shared, workers, lender: Lender::default() }
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

    /// A buffer for the time of a call.
    pub(crate) fn lend<T: Default + Send + 'static>(&self) -> Lent<'_, T> {
        self.lender.lend()
    }

    /// Calls `part(i)` for every `i` in `0..threads()` and returns when all are done: each on a thread of its own, or all on this one when
    /// the workers have another operation. So parts must not wait for each other.
    ///
    /// # Panics
    /// When a part does, with its panic, after all others have ended; the pool can be used again.
    pub fn run(&self, part: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if self.workers.is_empty() || shared.running.swap(true, Ordering::Acquire) {
            (0..self.threads()).for_each(part);
            return;
        }
        // SAFETY: only the lifetime is changed; this function waits for every worker before it returns or unwinds.
        let task = Task(unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(
                part,
            )
        });
        shared.busy.store(self.workers.len(), Ordering::Release);
        {
            let mut slot = shared.task.lock().unwrap_or_else(PoisonError::into_inner);
            *slot = Some(task);
            shared.generation.fetch_add(1, Ordering::Release);
            shared.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| part(0)));
        let mut spins = 0;
        while shared.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins % SPINS == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        shared.running.store(false, Ordering::Release);
        match (own, theirs) {
            (Ok(()), None) => {}
            (Ok(()), Some(panic)) => resume_unwind(panic),
            (Err(panic), theirs) => {
                // Dropping a payload may panic, too.
                std::mem::forget(theirs);
                resume_unwind(panic)
            }
        }
    }

    /// Splits `0..count` in `threads()` contiguous parts of nearly equal size.
    pub fn split(&self, count: usize, part: &(dyn Fn(Range<usize>) + Sync)) {
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

    /// Splits the rows of some outputs, each given with the width of its rows: `part` gets a range of rows and these rows of every output.
    ///
    /// # Panics
    /// When the outputs have different numbers of rows, or not whole ones.
    pub fn split_rows<T: Send, const N: usize>(
        &self,
        outs: [(&mut [T], usize); N],
        part: &RowsPart<'_, T, N>,
    ) {
        let rows = outs.first().map_or(0, |(out, width)| out.len() / width);
        for (out, width) in &outs {
            assert!(out.len() == rows * width, "split_rows: {} values, {rows} rows of {width}", out.len());
        }
        let shards = outs.map(|(out, width)| (Shards::new(out), width));
        self.split(rows, &|range| {
            let outs = shards.each_ref().map(|(out, width)| {
                // SAFETY: ranges of different parts do not overlap and lie inside of the slice, which is borrowed until all parts are done.
                unsafe { std::slice::from_raw_parts_mut(out.at(range.start * width), range.len() * width) }
            });
            part(range, outs);
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
            let mut slot = shared.task.lock().unwrap_or_else(PoisonError::into_inner);
            while shared.generation.load(Ordering::Acquire) == seen {
                if shared.stop.load(Ordering::Acquire) {
                    return;
                }
                slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            seen = shared.generation.load(Ordering::Acquire);
            *slot
        };
        if let Some(Task(part)) = task {
            // SAFETY: `Pool::run` keeps the closure alive until `busy` is zero.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { (*part)(index) }));
            if let Err(panic) = done {
                let mut first = shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
                if first.is_none() {
                    *first = Some(panic);
                } else {
                    // Dropping a payload may panic, too, and would leave the caller waiting.
                    std::mem::forget(panic);
                }
            }
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
            // Workers catch what their parts panic with, so there is nothing to tell.
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
#[allow(clippy::panic, reason = "panics are what is tested")]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Pool;

    /// Each of 17 numbers is added once.
    fn assert_whole(pool: &Pool) {
        let total = AtomicUsize::new(0);
        pool.split(17, &|range| {
            total.fetch_add(range.sum::<usize>(), Ordering::Relaxed);
        });
        assert_eq!(total.into_inner(), (0..17).sum::<usize>());
    }

    /// What `run` panics with.
    fn panic_of(pool: &Pool, part: &(dyn Fn(usize) + Sync)) -> String {
        let panic = catch_unwind(AssertUnwindSafe(|| pool.run(part))).expect_err("a part panics");
        panic.downcast_ref::<String>().expect("a formatted message").clone()
    }

    #[test]
    fn every_part_runs_once_many_times_over() {
        for threads in 1..4 {
            let pool = Pool::new(threads);
            for _ in 0..200 {
                assert_whole(&pool);
            }
        }
    }

    #[test]
    fn a_panic_in_any_part_reaches_the_caller_after_all_parts_ended() {
        for threads in 2..5 {
            let pool = Pool::new(threads);
            for wrong in 0..threads {
                for _ in 0..20 {
                    let ended = AtomicUsize::new(0);
                    // The others end only after the wrong one has begun to panic, or nearly so.
                    let together = Barrier::new(threads);
                    let message = panic_of(&pool, &|i| {
                        together.wait();
                        assert!(i != wrong, "part {i}");
                        (0..100).for_each(|_| std::thread::yield_now());
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                    assert_eq!(message, format!("part {wrong}"));
                    assert_eq!(ended.into_inner(), threads - 1);
                    assert_whole(&pool);
                }
            }
        }
    }

    #[test]
    fn when_all_parts_panic_the_callers_own_is_told() {
        let pool = Pool::new(3);
        assert_eq!(panic_of(&pool, &|i| panic!("part {i}")), "part 0");
        let message = panic_of(&pool, &|i| assert!(i == 0, "part {i}"));
        assert!(["part 1", "part 2"].contains(&message.as_str()), "{message}");
        assert_whole(&pool);
    }

    #[test]
    fn a_run_inside_of_a_part_does_all_its_parts() {
        for threads in 1..4 {
            let pool = Pool::new(threads);
            for _ in 0..50 {
                let total = AtomicUsize::new(0);
                pool.run(&|outer| {
                    pool.run(&|inner| {
                        total.fetch_add(outer * threads + inner, Ordering::Relaxed);
                    });
                    assert_whole(&pool);
                });
                assert_eq!(total.into_inner(), (0..threads * threads).sum::<usize>());
            }
            let last = threads - 1;
            let nested = panic_of(&pool, &|_| pool.run(&|inner| assert!(inner < last, "inner {inner}")));
            assert_eq!(nested, format!("inner {last}"));
            assert_whole(&pool);
        }
    }

    #[test]
    fn threads_that_share_a_pool_do_not_wait_for_each_other() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..500).for_each(|_| assert_whole(&pool)));
            }
        });
        // While one operation has the worker, another comes to its end.
        let (begun, other) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pool.run(&|i| {
                    if i == 1 {
                        begun.wait();
                        other.wait();
                    }
                });
            });
            begun.wait();
            assert_whole(&pool);
            other.wait();
        });
        assert_whole(&pool);
    }
}
