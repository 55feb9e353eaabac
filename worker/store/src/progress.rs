//! How far a transfer is.

use std::time::{Duration, Instant};

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferProgress {
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all, where the server says it.
    pub total: Option<u64>,
    /// Since the last report.
    pub bytes_per_s: u64,
}

/// Reports how far a transfer is, not too often.
pub struct Meter<'a> {
    tell: &'a mut dyn FnMut(TransferProgress),
    every: Duration,
    told: (Instant, u64),
}

impl<'a> Meter<'a> {
    /// Calls `tell` every so often, as long as bytes come.
    pub fn new(every: Duration, tell: &'a mut dyn FnMut(TransferProgress)) -> Self {
        Self { tell, every, told: (Instant::now(), 0) }
    }

    /// Begins with what is there already.
    pub fn begin(&mut self, bytes: u64) {
        self.told = (Instant::now(), bytes);
    }

    /// So many are there now.
    pub fn count(&mut self, bytes: u64, total: Option<u64>) {
        self.count_at(Instant::now(), bytes, total);
    }

    fn count_at(&mut self, now: Instant, bytes: u64, total: Option<u64>) {
        let (last, before) = self.told;
        let passed = now.saturating_duration_since(last);
        if passed < self.every {
            return;
        }
        let bytes_per_s = (bytes.saturating_sub(before) as f64 / passed.as_secs_f64().max(1e-3)) as u64;
        self.told = (now, bytes);
        (self.tell)(TransferProgress { bytes, total, bytes_per_s });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_tells_how_far_it_is_now_and_then() {
        let mut told = Vec::new();
        let mut tell = |progress| told.push(progress);
        let mut meter = Meter::new(Duration::from_secs(10), &mut tell);
        meter.begin(1000);
        let start = meter.told.0;
        for second in 1..=25 {
            meter.count_at(start + Duration::from_secs(second), 1000 + second * 7, Some(5000));
        }
        let expected =
            [1070, 1140].map(|bytes| TransferProgress { bytes, total: Some(5000), bytes_per_s: 7 });
        assert_eq!(told, expected);
    }
}
