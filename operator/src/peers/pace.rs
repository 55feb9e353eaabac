//! How fast the workers of a swarm are beside one another, from what they report once a second.

use std::time::Duration;

use dunlin_planner::speed::{PeerPace, beside};
use tokio::time::Instant;

use super::report::{WorkerReport, WorkerState};

/// After a start, a loss or a new plan, workers read layers and compute rows again: what is measured then says nothing.
const CALM: Duration = Duration::from_secs(30);
/// Rates that are compared with one another are of this time.
const MOMENT: Duration = Duration::from_secs(3);

/// What is known about the speed of one worker.
#[derive(Clone, Debug)]
pub(super) struct Speed {
    pace: PeerPace,
    /// Since when it does the same.
    since: Instant,
    /// The rate it measured last, and when that was new: one that computes nothing repeats itself.
    measured: Option<(f64, Instant)>,
}

impl Speed {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { pace: PeerPace::default(), since: now, measured: None }
    }

    /// Takes note of a report; whether it has a new rate that counts.
    pub fn see(&mut self, before: Option<&WorkerReport>, report: &WorkerReport, now: Instant) -> bool {
        let same = before.is_some_and(|before| {
            (before.state, before.epoch) == (report.state, report.epoch) && before.held == report.held
        });
        if !same || report.state != WorkerState::Ready {
            self.since = now;
            self.measured = None;
        }
        let new = before.is_some_and(|before| before.rows_per_s_per_layer != report.rows_per_s_per_layer);
        if new && now.duration_since(self.since) >= CALM {
            self.measured = Some((report.rows_per_s_per_layer, now));
            return true;
        }
        false
    }

    /// The rate that others may be compared with now.
    pub fn rate(&self, now: Instant) -> Option<f64> {
        self.measured.filter(|(_, at)| now.duration_since(*at) < MOMENT).map(|(rate, _)| rate)
    }

    /// Compares it with all workers that measured theirs at the same time, itself among them.
    pub fn compare(&mut self, all: &[f64], now: Instant) {
        if let Some(ratio) = self.rate(now).and_then(|rate| beside(rate, all)) {
            self.pace.push(ratio);
        }
    }

    /// 1 is as fast as the others; `None` while too little is known.
    pub fn known(&self) -> Option<f64> {
        self.pace.speed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        workers: Vec<(Speed, WorkerReport)>,
        now: Instant,
    }

    impl World {
        fn new(count: usize) -> Self {
            let now = Instant::now();
            let report = WorkerReport { state: WorkerState::Ready, epoch: 1, ..WorkerReport::default() };
            Self { workers: vec![(Speed::new(now), report); count], now }
        }

        /// A second in which each measures this rate.
        fn second(&mut self, rates: &[f64]) {
            self.now += Duration::from_secs(1);
            for (i, rate) in rates.iter().enumerate() {
                let before = self.workers[i].1.clone();
                let report = WorkerReport { rows_per_s_per_layer: *rate, ..before.clone() };
                let counts = self.workers[i].0.see(Some(&before), &report, self.now);
                self.workers[i].1 = report;
                if counts {
                    let all: Vec<f64> = self.workers.iter().filter_map(|(s, _)| s.rate(self.now)).collect();
                    self.workers[i].0.compare(&all, self.now);
                }
            }
        }

        fn seconds(&mut self, count: u32, rates: &[f64]) -> Vec<Option<f64>> {
            for second in 0..count {
                // No two measurements are quite the same.
                let off = 1.0 + f64::from(second % 7) / 1000.0;
                self.second(&rates.iter().map(|rate| rate * off).collect::<Vec<_>>());
            }
            let tenths =
                |(speed, _): &(Speed, WorkerReport)| speed.known().map(|s| (s * 10.0).round() / 10.0);
            self.workers.iter().map(tenths).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn workers_are_compared_while_nothing_changes() {
        let mut world = World::new(3);
        assert_eq!(world.seconds(300, &[100.0, 100.0, 30.0]), [None; 3]);
        assert_eq!(world.seconds(60, &[100.0, 100.0, 30.0]), [Some(1.0), Some(1.0), Some(0.3)]);
        // All of them have more to do at once.
        assert_eq!(world.seconds(400, &[900.0, 900.0, 270.0]), [Some(1.0), Some(1.0), Some(0.3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_measured_after_a_change_or_repeated_by_an_idle_worker_does_not_count() {
        let mut world = World::new(3);
        world.seconds(400, &[100.0; 3]);
        // The last measurement before everything stood still was of a bad moment.
        world.second(&[100.0, 100.0, 10.0]);
        for _ in 0..1000 {
            world.second(&[100.0, 100.0, 10.0]);
        }
        assert_eq!(world.seconds(1, &[100.0; 3]), [Some(1.0); 3]);
        // Plans that change all the time: rows are computed again.
        for epoch in 2..60 {
            world.workers.iter_mut().for_each(|(_, report)| report.epoch = epoch);
            let before = WorkerReport { epoch: epoch - 1, ..world.workers[2].1.clone() };
            let report = world.workers[2].1.clone();
            assert!(!world.workers[2].0.see(Some(&before), &report, world.now));
            world.seconds(20, &[100.0, 100.0, 10.0]);
        }
        assert_eq!(world.seconds(1, &[100.0; 3]), [Some(1.0); 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_alone_is_compared_with_nobody() {
        assert_eq!(World::new(1).seconds(400, &[100.0]), [None]);
    }
}
