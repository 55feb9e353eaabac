//! How fast the engine is, in a unit that does not depend on what it happens to do.
//!
//! Rows per second say little: a batch of one row and one of a hundred read the same weights, so that the same machine shows ten times the
//! rate while it has a prompt. So the time that a layer takes is measured once for both, and from then on batches are compared with it.

/// A batch of this many rows is measured beside one of a single row.
pub const PROBE_ROWS: usize = 64;
/// Batches count for about this much time that the engine is busy, in seconds.
const MEMORY_S: f64 = 2.0;

/// What a layer takes: at first, and now.
#[derive(Clone, Debug)]
pub struct Pace {
    /// A batch without rows, in seconds.
    batch_s: f64,
    /// Each row more.
    row_s: f64,
    /// Time that batches took of late, and would have taken at first, both fading.
    took_s: f64,
    would_s: f64,
}

impl Pace {
    /// From the time of one row and of `many` rows through one layer, in seconds.
    #[must_use]
    pub fn measured(one_s: f64, many_s: f64, many: usize) -> Self {
        let one_s = one_s.max(1e-9);
        let row_s = ((many_s - one_s) / many.saturating_sub(1).max(1) as f64).clamp(0.0, one_s);
        Self { batch_s: one_s - row_s, row_s, took_s: MEMORY_S / 2.0, would_s: MEMORY_S / 2.0 }
    }

    /// A batch of `rows` rows went through `layers` layers.
    pub fn batch(&mut self, rows: u32, layers: u32, took_s: f64) {
        let would_s = f64::from(layers) * (self.batch_s + self.row_s * f64::from(rows));
        let fade = (-took_s / MEMORY_S).exp();
        self.took_s = self.took_s * fade + took_s;
        self.would_s = self.would_s * fade + would_s;
    }

    /// Single rows per second through one layer, at the pace of the last batches.
    #[must_use]
    pub fn rows_per_s_per_layer(&self) -> f64 {
        self.would_s / self.took_s.max(1e-9) / (self.batch_s + self.row_s)
    }
}

#[cfg(test)]
mod tests {
    use super::{PROBE_ROWS, Pace};

    /// A layer takes 300 us and 100 us for each row.
    fn took_s(rows: u32, layers: u32) -> f64 {
        f64::from(layers) * (300e-6 + 100e-6 * f64::from(rows))
    }

    fn pace() -> Pace {
        Pace::measured(took_s(1, 1), took_s(PROBE_ROWS as u32, 1), PROBE_ROWS)
    }

    fn is_about(pace: &Pace, rate: f64) {
        let measured = pace.rows_per_s_per_layer();
        assert!((measured / rate - 1.0).abs() < 0.15, "{measured}, not {rate}");
    }

    #[test]
    fn prompts_and_single_rows_show_the_same_rate() {
        for rows in [1, 8, 128, 192] {
            let mut pace = pace();
            is_about(&pace, 2500.0);
            (0..1000).for_each(|_| pace.batch(rows, 10, took_s(rows, 10)));
            is_about(&pace, 2500.0);
        }
    }

    #[test]
    fn a_tenth_of_the_speed_shows_within_seconds_and_one_bad_moment_does_not() {
        let mut pace = pace();
        pace.batch(1, 10, 0.65);
        assert!(pace.rows_per_s_per_layer() > 2500.0 / 2.0);
        let mut busy_s = 0.0;
        while pace.rows_per_s_per_layer() > 2500.0 / 4.0 {
            pace.batch(8, 10, 10.0 * took_s(8, 10));
            busy_s += 10.0 * took_s(8, 10);
        }
        assert!(busy_s < 2.0, "{busy_s}");
        (0..1000).for_each(|_| pace.batch(8, 10, took_s(8, 10)));
        is_about(&pace, 2500.0);
    }
}
