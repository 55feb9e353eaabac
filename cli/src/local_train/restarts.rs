//! When processes that ended by themselves are started again. Pure.
//!
//! One that was killed is replaced at once: the machines of a swarm may vanish. One that ends with an error is started again after a pause
//! that grows, and not for ever, as long as no step is made in between.

/// First and longest pause.
const PAUSE_MS: (u64, u64) = (100, 10_000);
/// Errors in a row: two minutes, more or less.
const ERRORS_MAX: u32 = 20;
/// Kills in a row; that many without a step between are no bad luck, but, say, too little memory.
const KILLS_MAX: u32 = 200;

/// Processes of one role that ended since the last step.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    errors: u32,
    kills: u32,
    not_before_ms: u64,
}

impl Restarts {
    /// A process ended, by a signal or by itself. False when there is no point in going on.
    #[must_use]
    pub fn ended(&mut self, now_ms: u64, killed: bool) -> bool {
        if killed {
            self.kills += 1;
        } else {
            let pause = PAUSE_MS.0 << self.errors.min(16);
            self.not_before_ms = now_ms + pause.min(PAUSE_MS.1);
            self.errors += 1;
        }
        self.errors <= ERRORS_MAX && self.kills <= KILLS_MAX
    }

    /// A step was made: whatever was wrong is over.
    pub fn step(&mut self) {
        *self = Self::default();
    }

    /// May one be started now?
    #[must_use]
    pub fn may_start(&self, now_ms: u64) -> bool {
        now_ms >= self.not_before_ms
    }
}

#[cfg(test)]
mod tests {
    use super::Restarts;

    #[test]
    fn kills_cost_no_time_and_errors_ever_more() {
        let mut restarts = Restarts::default();
        assert!((0..200).all(|_| restarts.ended(5, true) && restarts.may_start(5)));
        assert!(!restarts.ended(5, true));
        restarts.step();
        let (mut now, mut pauses) = (0, Vec::new());
        while restarts.ended(now, false) {
            let pause = (0..).step_by(100).find(|ms| restarts.may_start(now + ms)).unwrap();
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses[..8], [100, 200, 400, 800, 1600, 3200, 6400, 10_000]);
        assert!(pauses.len() == 20 && (100_000..200_000).contains(&now), "{now}");
        restarts.step();
        assert!(restarts.may_start(0) && restarts.ended(0, false));
    }
}
