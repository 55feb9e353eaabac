//! How fast somebody is, from one measurement after the other.

/// Weight of the newest measurement.
const ALPHA: f64 = 0.1;

/// A moving average of seconds per row, without a bias towards its start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    biased: f64,
    measured: u32,
}

impl Speed {
    /// Enters that a row took so long.
    pub fn measure(&mut self, seconds_per_row: f64) {
        self.biased = ALPHA * seconds_per_row + (1.0 - ALPHA) * self.biased;
        self.measured = self.measured.saturating_add(1);
    }

    /// What a row takes; `None` before the first measurement.
    #[must_use]
    pub fn seconds_per_row(&self) -> Option<f64> {
        let measured = i32::try_from(self.measured).unwrap_or(i32::MAX);
        (measured > 0).then(|| self.biased / (1.0 - (1.0 - ALPHA).powi(measured)))
    }
}

#[cfg(test)]
mod tests {
    use super::Speed;

    #[test]
    fn the_first_measurement_counts_fully_and_later_ones_move_the_average() {
        let mut speed = Speed::default();
        assert_eq!(speed.seconds_per_row(), None);
        speed.measure(2.0);
        assert!((speed.seconds_per_row().unwrap() - 2.0).abs() < 1e-12);
        for _ in 0..60 {
            speed.measure(1.0);
        }
        assert!((speed.seconds_per_row().unwrap() - 1.0).abs() < 0.01);
    }
}
