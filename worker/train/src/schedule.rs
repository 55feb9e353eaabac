//! The learning rate of a step: a pure function, with the same bits on every machine.

use crate::config::{OptimizerSpec, ScheduleKind};

/// Learning rate of the update of `step` (from 0) in a run of `steps`.
///
/// It grows evenly over the warm-up (the first step has `1 / warmupSteps` of the highest rate); the last step has `finalFraction` of it.
#[must_use]
pub fn learning_rate(optimizer: &OptimizerSpec, step: u64, steps: u64) -> f64 {
    let schedule = &optimizer.schedule;
    if step < schedule.warmup_steps {
        return optimizer.learning_rate * (step + 1) as f64 / schedule.warmup_steps as f64;
    }
    let rest = steps.saturating_sub(schedule.warmup_steps + 1).max(1);
    let progress = ((step - schedule.warmup_steps) as f64 / rest as f64).min(1.0);
    let fallen = match schedule.kind {
        ScheduleKind::Constant => return optimizer.learning_rate,
        ScheduleKind::Linear => progress,
        ScheduleKind::Cosine => 0.5 * (1.0 - cos_pi(progress)),
    };
    optimizer.learning_rate * (1.0 - (1.0 - schedule.final_fraction) * fallen)
}

/// cos(pi x) for x from 0 to 1, to about 1e-15. Not the C library's, which picks its code, and so its last bit, by the processor.
fn cos_pi(x: f64) -> f64 {
    if x > 0.5 {
        return -cos_pi(1.0 - x);
    }
    let square = (std::f64::consts::PI * x) * (std::f64::consts::PI * x);
    // Horner's form of 1 - s/2! + s^2/4! - ...
    (1..=12u32).rev().fold(1.0, |rest, n| 1.0 - rest * square / f64::from((2 * n - 1) * 2 * n))
}

#[cfg(test)]
mod tests {
    use super::{cos_pi, learning_rate};
    use crate::config::{OptimizerSpec, ScheduleKind, ScheduleSpec};

    fn rates(kind: ScheduleKind, warmup_steps: u64, steps: u64) -> Vec<f64> {
        let json = r#"{"kind": "AdamW", "learningRate": 2.0}"#;
        let mut optimizer: OptimizerSpec = serde_json::from_str(json).unwrap();
        optimizer.schedule = ScheduleSpec { kind, warmup_steps, final_fraction: 0.1 };
        (0..steps).map(|step| learning_rate(&optimizer, step, steps)).collect()
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-12, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn rates_warm_up_and_fall() {
        assert_near(&rates(ScheduleKind::Constant, 2, 4), &[1.0, 2.0, 2.0, 2.0]);
        assert_near(&rates(ScheduleKind::Linear, 2, 5), &[1.0, 2.0, 2.0, 1.1, 0.2]);
        assert_near(
            &rates(ScheduleKind::Cosine, 0, 5),
            &[
                2.0,
                2.0 * (1.0 - 0.9 * 0.5 * (1.0 - std::f64::consts::FRAC_1_SQRT_2)),
                1.1,
                2.0 * (1.0 - 0.9 * 0.5 * (1.0 + std::f64::consts::FRAC_1_SQRT_2)),
                0.2,
            ],
        );
        // All of it warming up, and a run of one step.
        assert_near(&rates(ScheduleKind::Linear, 2, 2), &[1.0, 2.0]);
        assert_near(&rates(ScheduleKind::Cosine, 0, 1), &[2.0]);
    }

    #[test]
    fn the_cosine_is_right() {
        for i in 0..=1000 {
            let x = f64::from(i) / 1000.0;
            assert!((cos_pi(x) - (std::f64::consts::PI * x).cos()).abs() < 1e-15, "{x}");
        }
    }
}
