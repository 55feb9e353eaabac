//! The real model: SmolLM2-135M-Instruct, Q4_1. Needs the file of e2e/fetch-model.sh.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;

use dunlin_kernels::math::ln;
use dunlin_kernels::{Isa, Pool};
use dunlin_model::ModelFile;
use dunlin_model::generate::Whole;
use dunlin_protocol::SamplingParams;

/// From the King James Bible, Genesis 1 (public domain).
const TEXT: &str = "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness \
was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And God said, Let there be light: and there \
was light. And God saw the light, that it was good: and God divided the light from the darkness. And God called the light Day, and the \
darkness he called Night. And the evening and the morning were the first day. And God said, Let there be a firmament in the midst of the \
waters, and let it divide the waters from the waters. And God made the firmament, and divided the waters which were under the firmament \
from the waters which were above the firmament: and it was so. And God called the firmament Heaven. And the evening and the morning were \
the second day.";

fn file() -> ModelFile {
    let cache = std::env::var_os("DUNLIN_CACHE").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/dunlin"));
    let path = cache.join("models/smollm2-135m-instruct-q4_1.gguf");
    assert!(path.exists(), "{} is missing: run e2e/fetch-model.sh", path.display());
    ModelFile::open_path(&path).unwrap()
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|v| v.to_bits()).collect()
}

/// exp of the mean negative log-likelihood of each token given those before.
fn perplexity(whole: &mut Whole, tokens: &[u32], vocab: usize) -> f64 {
    whole.reset();
    let rows = whole.forward(&tokens[..tokens.len() - 1]).unwrap();
    let logits = whole.logits(&rows);
    let mut sum = 0.0;
    for (logits, next) in logits.chunks_exact(vocab).zip(&tokens[1..]) {
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let total: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        sum += f64::from(max) + total.ln() - f64::from(logits[*next as usize]);
    }
    (sum / (tokens.len() - 1) as f64).exp()
}

#[test]
fn it_knows_a_capital_and_the_tokenizer_goes_both_ways() {
    let file = file();
    let tokenizer = file.tokenizer().unwrap();
    let prompt = tokenizer.encode("The capital of France is", true).unwrap();
    assert_eq!(prompt, [504, 3575, 282, 4649, 314]);
    let mut whole = Whole::load(&file, Pool::new(1), 256).unwrap();
    let answer = whole.generate(&prompt, 2, &SamplingParams::default(), tokenizer.eos()).unwrap();
    assert_eq!(tokenizer.decode(&answer), " Paris.");
    for text in ["Hello, wörld! 12345 \n\n\t x", "日本語 🙂", "don't  stop", ""] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap()), text);
    }
    assert_eq!(tokenizer.encode("1234", false).unwrap().len(), 4, "digits stand alone");
}

#[test]
fn perplexity_is_within_half_a_percent_of_f32_weights() {
    let file = file();
    let vocab = file.config().vocab;
    let tokens = file.tokenizer().unwrap().encode(TEXT, true).unwrap();
    let mut whole = Whole::load(&file, Pool::new(2), 512).unwrap();
    let quantised = perplexity(&mut whole, &tokens, vocab);
    let exact = perplexity(&mut whole.dequantised(), &tokens, vocab);
    println!(
        "perplexity over {} tokens: {quantised:.4}, with f32 arithmetic on the same weights {exact:.4}",
        tokens.len()
    );
    assert!(quantised < 20.0, "{quantised}: the model makes no sense of English");
    assert!((quantised / exact - 1.0).abs() < 0.005, "{quantised} and {exact}");
    assert!((f64::from(ln(2.0)) - std::f64::consts::LN_2).abs() < 1e-6);
}

#[test]
fn bits_do_not_depend_on_how_the_prompt_is_cut_nor_on_threads_nor_on_instructions() {
    let file = file();
    let tokens = file.tokenizer().unwrap().encode(TEXT, true).unwrap()[..70].to_vec();
    let mut whole = Whole::load(&file, Pool::new(1), 128).unwrap();
    let at_once = whole.forward(&tokens).unwrap();
    for cut in [1, 16, 33] {
        whole.reset();
        let pieces: Vec<f32> = tokens.chunks(cut).flat_map(|part| whole.forward(part).unwrap()).collect();
        assert_eq!(bits(&pieces), bits(&at_once), "pieces of {cut}");
    }
    drop(whole);
    for (threads, isa) in [(2, Isa::best()), (1, Isa::best().min(Isa::Avx2))] {
        let mut other = Whole::load(&file, Pool::with_isa(threads, isa), 128).unwrap();
        assert_eq!(bits(&other.forward(&tokens).unwrap()), bits(&at_once), "{threads} threads, {isa:?}");
    }
}
