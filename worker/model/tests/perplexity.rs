//! What quantised arithmetic costs: SmolLM2 with int8 activations against the same weights with f32 arithmetic.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and print")]

mod support;

use dunlin_kernels::Pool;
use dunlin_model::generate::Whole;

/// Texts that do not change: a story of ours and the licence.
const TEXTS: [&str; 2] = [include_str!("prose.txt"), include_str!("../../../LICENSE")];
/// Tokens that are read together; each window begins anew.
const WINDOW: usize = 512;

/// Mean Kullback-Leibler divergence of the quantised prediction from the exact one, per token.
///
/// This is by how much the logarithm of perplexity grows on text as the model itself would write it, and unlike the difference of two
/// perplexities it is hardly blurred by which words a text happens to have.
const DIVERGENCE_MAX: f64 = 0.005;
/// Change of perplexity.
const CHANGE_MAX: f64 = 0.005;

/// Natural logarithms of the probabilities of all tokens, at every position but the last.
fn predictions(whole: &mut Whole, tokens: &[u32], vocab: usize) -> Vec<Vec<f64>> {
    whole.reset();
    let rows = whole.forward(&tokens[..tokens.len() - 1]).unwrap();
    let logits = whole.logits(&rows);
    let normalise = |logits: &[f32]| {
        let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        let total: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
        logits.iter().map(|l| f64::from(*l) - max - total.ln()).collect()
    };
    logits.chunks_exact(vocab).map(normalise).collect()
}

/// What is summed over all positions.
#[derive(Default)]
struct Sums {
    positions: usize,
    /// Negative log-likelihoods of the next token, with quantised and with f32 arithmetic.
    quantised: f64,
    exact: f64,
    divergence: f64,
}

impl Sums {
    fn add(&mut self, quantised: &[Vec<f64>], exact: &[Vec<f64>], tokens: &[u32]) {
        for ((q, e), next) in quantised.iter().zip(exact).zip(&tokens[1..]) {
            self.positions += 1;
            self.quantised -= q[*next as usize];
            self.exact -= e[*next as usize];
            self.divergence += e.iter().zip(q).map(|(e, q)| e.exp() * (e - q)).sum::<f64>();
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.positions as f64
    }
}

#[test]
fn quantised_arithmetic_predicts_nearly_the_same() {
    let file = support::smollm2::open();
    let vocab = file.config().vocab;
    let mut whole = Whole::load(&file, Pool::new(2), WINDOW).unwrap();
    let mut f32_arithmetic = Whole::load(&file, Pool::new(2), WINDOW).unwrap().dequantised();
    let mut sums = Sums::default();
    for text in TEXTS {
        let tokens = file.tokenizer().unwrap().encode(text, true).unwrap();
        for window in tokens.chunks(WINDOW).filter(|w| w.len() > 1) {
            let quantised = predictions(&mut whole, window, vocab);
            let exact = predictions(&mut f32_arithmetic, window, vocab);
            sums.add(&quantised, &exact, window);
        }
    }
    let divergence = sums.mean(sums.divergence);
    let (quantised, exact) = (sums.mean(sums.quantised).exp(), sums.mean(sums.exact).exp());
    let change = quantised / exact - 1.0;
    println!(
        "perplexity over {} tokens: {quantised:.4} quantised, {exact:.4} with f32 arithmetic on the same weights: {:+.3}%; \
         divergence {divergence:.5}",
        sums.positions,
        100.0 * change
    );
    assert!(sums.positions > 2500, "{} positions", sums.positions);
    // A model that has lost its way is in the hundreds.
    assert!(exact < 40.0, "{exact}: the model makes no sense of English");
    // Equal predictions would mean that the same arithmetic ran twice.
    assert!(divergence > 1e-5 && divergence < DIVERGENCE_MAX, "{divergence}");
    assert!(change.abs() < CHANGE_MAX, "{quantised} and {exact}");
}
