//! The updates. With g the scaled gradient of a parameter w, t the number of the update (from 1), lr the learning rate, d the decay:
//!
//! AdamW (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019, algorithm 2, as PyTorch scales it):
//! ```text
//! m <- m + (1 - beta1) (g - m)          v <- beta2 v + (1 - beta2) g^2
//! w <- w (1 - lr d) - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
//! ```
//! LAMB (You et al., "Large batch optimization for deep learning", 2020, algorithm 2), per tensor, with norms capped at 1e4:
//! ```text
//! u <- m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + d w
//! w <- w - lr |w| / |u|  u              (|w| / |u| is 1 when either is 0)
//! ```
//! SGD with momentum p, as PyTorch (decay is added to the gradient):
//! ```text
//! b <- p b + g + d w                    w <- w - lr b
//! ```

use crate::config::OptimizerSpec;

/// Numbers of one update, the same for all parameters.
pub(super) struct AdamStep {
    /// 1 - beta1.
    mean_gain: f32,
    beta2: f32,
    /// 1 - beta2.
    square_gain: f32,
    epsilon: f32,
    /// 1 - beta1^t.
    mean_correction: f64,
    /// 1 / sqrt(1 - beta2^t).
    root_correction: f32,
}

impl AdamStep {
    pub(super) fn new(config: &OptimizerSpec, step: u64) -> Self {
        Self {
            mean_gain: (1.0 - config.beta1) as f32,
            beta2: config.beta2 as f32,
            square_gain: (1.0 - config.beta2) as f32,
            epsilon: config.epsilon as f32,
            mean_correction: 1.0 - power(config.beta1, step),
            root_correction: (1.0 / (1.0 - power(config.beta2, step)).sqrt()) as f32,
        }
    }

    fn moments(&self, gradient: f32, mean: &mut f32, square: &mut f32) {
        *mean += self.mean_gain * (gradient - *mean);
        *square = self.beta2 * *square + self.square_gain * (gradient * gradient);
    }

    fn divisor(&self, square: f32) -> f32 {
        square.sqrt() * self.root_correction + self.epsilon
    }

    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    pub(super) fn adamw(
        &self,
        rate: f64,
        decay: f64,
        scale: f32,
        parameters: &mut [f32],
        gradient: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
    ) {
        let keep = (1.0 - rate * decay) as f32;
        let by = (rate / self.mean_correction) as f32;
        let moments = mean.iter_mut().zip(square);
        for ((w, g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
            self.moments(g * scale, m, v);
            *w = *w * keep - by * (*m / self.divisor(*v));
        }
    }

    /// Updates the moments and returns the sum of squares of the update.
    #[expect(clippy::too_many_arguments, reason = "a kernel's operands")]
    pub(super) fn lamb_moments(
        &self,
        decay: f64,
        scale: f32,
        parameters: &[f32],
        gradient: &[f32],
        mean: &mut [f32],
        square: &mut [f32],
    ) -> f64 {
        let mut sum = 0.0;
        for ((w, g), (m, v)) in parameters.iter().zip(gradient).zip(mean.iter_mut().zip(square)) {
            self.moments(g * scale, m, v);
            let update = f64::from(self.lamb_update(decay as f32, *w, *m, *v));
            sum += update * update;
        }
        sum
    }

    pub(super) fn lamb_apply(
        &self,
        rate: f64,
        decay: f64,
        parameters: &mut [f32],
        mean: &[f32],
        square: &[f32],
    ) {
        let rate = rate as f32;
        for (w, (m, v)) in parameters.iter_mut().zip(mean.iter().zip(square)) {
            *w -= rate * self.lamb_update(decay as f32, *w, *m, *v);
        }
    }

    fn lamb_update(&self, decay: f32, w: f32, m: f32, v: f32) -> f32 {
        (1.0 / self.mean_correction) as f32 * m / self.divisor(v) + decay * w
    }
}

pub(super) fn sgd(
    rate: f64,
    decay: f64,
    scale: f32,
    parameters: &mut [f32],
    gradient: &[f32],
    momentum: Option<(f32, &mut [f32])>,
) {
    let (rate, decay) = (rate as f32, decay as f32);
    let Some((keep, buffer)) = momentum else {
        for (w, g) in parameters.iter_mut().zip(gradient) {
            *w -= rate * (g * scale + decay * *w);
        }
        return;
    };
    for ((w, g), b) in parameters.iter_mut().zip(gradient).zip(buffer) {
        *b = keep * *b + (g * scale + decay * *w);
        *w -= rate * *b;
    }
}

/// `base^exponent` by products in a fixed order. The library's may round otherwise on another machine.
fn power(mut base: f64, mut exponent: u64) -> f64 {
    let mut product = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    product
}
