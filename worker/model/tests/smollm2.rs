//! The real model: SmolLM2-135M-Instruct, Q4_1. Needs the file of e2e/fetch-model.sh.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use dunlin_kernels::{Isa, Pool};
use dunlin_model::generate::Whole;
use dunlin_protocol::SamplingParams;
use support::smollm2::open;

const PROSE: &str = include_str!("prose.txt");

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn it_knows_a_capital_and_the_tokenizer_goes_both_ways() {
    let file = open();
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
fn bits_do_not_depend_on_how_the_prompt_is_cut_nor_on_threads_nor_on_instructions() {
    let file = open();
    let tokens = file.tokenizer().unwrap().encode(PROSE, true).unwrap()[..70].to_vec();
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
