//! What quantised arithmetic costs: SmolLM2 with int8 activations against the same weights with f32 arithmetic.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and print")]

mod support;

use dunlin_kernels::Pool;
use dunlin_model::generate::Whole;

const PROSE: &str = include_str!("prose.txt");

/// Mean Kullback-Leibler divergence of the quantised prediction from the exact one, per token.
///
/// This is by how much the logarithm of perplexity grows on text as the model itself would write it, and unlike the difference of two
/// perplexities it is hardly blurred by which words a text happens to have.
const DIVERGENCE_MAX: f64 = 0.005;

/// Change of perplexity. Over 6343 tokens of this prose, documentation and a licence it is +0.39% with a standard error of 0.13%; on 416 tokens the
/// standard error is 0.37%, so half a percent cannot be told from chance here. This is 0.39% and two standard errors.
const CHANGE_MAX: f64 = 0.0115;

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

/// exp of the mean negative log-likelihood of each token given those before.
fn perplexity(predictions: &[Vec<f64>], tokens: &[u32]) -> f64 {
    let sum: f64 = predictions.iter().zip(&tokens[1..]).map(|(p, next)| -p[*next as usize]).sum();
    (sum / predictions.len() as f64).exp()
}

#[test]
fn quantised_arithmetic_predicts_nearly_the_same() {
    let file = support::smollm2::open();
    let vocab = file.config().vocab;
    let tokens = file.tokenizer().unwrap().encode(PROSE, true).unwrap();
    assert!((300..=500).contains(&tokens.len()), "{} tokens", tokens.len());
    let mut whole = Whole::load(&file, Pool::new(2), 512).unwrap();
    let quantised = predictions(&mut whole, &tokens, vocab);
    let exact = predictions(&mut whole.dequantised(), &tokens, vocab);

    let divergence = |(exact, quantised): (&Vec<f64>, &Vec<f64>)| -> f64 {
        exact.iter().zip(quantised).map(|(e, q)| e.exp() * (e - q)).sum()
    };
    let divergence = exact.iter().zip(&quantised).map(divergence).sum::<f64>() / exact.len() as f64;
    let (quantised, exact) = (perplexity(&quantised, &tokens), perplexity(&exact, &tokens));
    let change = quantised / exact - 1.0;
    println!(
        "perplexity over {} tokens: {quantised:.4} quantised, {exact:.4} with f32 arithmetic on the same weights: {:+.3}%; \
         divergence {divergence:.5}",
        tokens.len(),
        100.0 * change
    );
    // A model that has lost its way is in the hundreds.
    assert!(exact < 40.0, "{exact}: the model makes no sense of English");
    // Equal predictions would mean that the same arithmetic ran twice.
    assert!(divergence > 1e-5 && divergence < DIVERGENCE_MAX, "{divergence}");
    assert!(change.abs() < CHANGE_MAX, "{quantised} and {exact}");
}
