//! Batches of a step.
//!
//! The stream of tokens is cut: the tail is for validation. Sequence `i` of a part is its tokens from `i * L` on: `L` tokens and, one
//! further, `L` targets. So every token but the first of a part is a target once an epoch.

use super::error::DataError;
use super::order::Order;
use super::text::{TextTokenizer, tokenise};
use super::tokens::Tokens;
use crate::config::TrainingConfig;

/// A microbatch: sequences one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `sequences * L` tokens.
    pub tokens: Vec<u32>,
    /// The token that follows each.
    pub targets: Vec<u32>,
}

/// Tokens in memory, and how they make batches.
pub struct Dataset {
    tokens: Tokens,
    sha256: String,
    tokenizer: TextTokenizer,
    /// First token of the validation part.
    held_back: usize,
    length: usize,
    microbatch: usize,
    global_batch: usize,
    order: Order,
    validation_batches: usize,
}

impl Dataset {
    /// Reads and tokenises the data of `config`, which has been validated.
    ///
    /// # Errors
    /// When the data cannot be used, or there is too little of it.
    pub fn open(config: &TrainingConfig, tokenizer: TextTokenizer) -> Result<Self, DataError> {
        let tokens = tokenise(&config.data, &tokenizer)?;
        Self::new(config, tokenizer, tokens)
    }

    /// As [`Dataset::open`] of tokens that are there already.
    ///
    /// # Errors
    /// When a part has too few tokens for one sequence.
    pub fn new(config: &TrainingConfig, tokenizer: TextTokenizer, tokens: Tokens) -> Result<Self, DataError> {
        let (length, all) = (config.sequence_length, tokens.len());
        let held_back = all - (config.data.validation_fraction * all as f64).ceil() as usize;
        let needed = length + 1;
        let too_small = |part, tokens| Err(DataError::TooSmall { part, tokens, needed });
        if held_back < needed {
            return too_small("the training part of the data", held_back);
        }
        let order = Order::new(config.seed, ((held_back - 1) / length) as u64);
        let validation_batches = match &config.validation {
            Some(_) if all - held_back < needed => {
                return too_small(
                    "the validation part of the data (data.validationFraction)",
                    all - held_back,
                );
            }
            Some(validation) => {
                let sequences = (all - held_back - 1) / length;
                validation.batches.min(sequences.div_ceil(config.microbatch))
            }
            None => 0,
        };
        Ok(Self {
            sha256: tokens.sha256(),
            tokens,
            tokenizer,
            held_back,
            length,
            microbatch: config.microbatch,
            global_batch: config.global_batch,
            order,
            validation_batches,
        })
    }

    /// The microbatch of `step` (from 0): `microbatch * L` tokens. When the sequences of an epoch are used up, the next begins, also inside of a
    /// microbatch.
    ///
    /// # Errors
    /// When a step has no such microbatch.
    pub fn batch(&self, step: u64, microbatch: usize) -> Result<Batch, DataError> {
        if microbatch >= self.global_batch / self.microbatch {
            return Err(DataError::NoBatch(format!("microbatch {microbatch} of a step")));
        }
        let first = u128::from(step) * self.global_batch as u128 + (microbatch * self.microbatch) as u128;
        let first = u64::try_from(first).map_err(|_| DataError::NoBatch(format!("step {step}")))?;
        let sequences = (0..self.microbatch as u64).map(|i| self.order.sequence(first + i) as usize);
        Ok(self.gather(0, sequences))
    }

    /// A batch of the validation part, the same in every measurement; the last has fewer sequences if the part ends before.
    ///
    /// # Errors
    /// When there is no such batch.
    pub fn validation(&self, index: usize) -> Result<Batch, DataError> {
        if index >= self.validation_batches {
            return Err(DataError::NoBatch(format!("validation batch {index}")));
        }
        let sequences = (self.tokens.len() - self.held_back - 1) / self.length;
        let first = index * self.microbatch;
        Ok(self.gather(self.held_back, first..sequences.min(first + self.microbatch)))
    }

    /// Batches of a measurement: as configured, or as there are.
    #[must_use]
    pub fn validation_batches(&self) -> usize {
        self.validation_batches
    }

    fn gather(&self, part: usize, sequences: impl Iterator<Item = usize>) -> Batch {
        let mut batch = Batch { tokens: Vec::new(), targets: Vec::new() };
        for sequence in sequences {
            let start = part + sequence * self.length;
            self.tokens.copy_to(start..start + self.length, &mut batch.tokens);
            self.tokens.copy_to(start + 1..start + 1 + self.length, &mut batch.targets);
        }
        batch
    }

    /// Which data it is: SHA-256 of all tokens.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// What made the tokens.
    #[must_use]
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Different tokens that can be in it.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.tokenizer.vocab()
    }

    /// Tokens of the training part.
    #[must_use]
    pub fn training_tokens(&self) -> usize {
        self.held_back
    }

    /// Sequences of an epoch.
    #[must_use]
    pub fn sequences(&self) -> usize {
        (self.held_back - 1) / self.length
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, Dataset};
    use crate::config::TrainingConfig;
    use crate::data::{TextTokenizer, Tokens};
    use crate::testing::Folder;

    fn config(validation_fraction: f64, batches: usize) -> TrainingConfig {
        let json = serde_json::json!({
            "model": {"checkpoint": "a"},
            "data": {"text": {"path": "a"}, "validationFraction": validation_fraction},
            "sequenceLength": 8, "globalBatch": 6, "microbatch": 2, "steps": 100, "seed": 5,
            "optimizer": {"kind": "AdamW", "learningRate": 0.1},
            "validation": {"everySteps": 1, "batches": batches},
        });
        TrainingConfig::from_json(&json.to_string()).unwrap()
    }

    fn dataset(tokens: u16, fraction: f64, batches: usize) -> Result<Dataset, String> {
        let tokens = Tokens::Narrow((0..tokens).collect());
        Dataset::new(&config(fraction, batches), TextTokenizer::Bytes, tokens).map_err(|e| e.to_string())
    }

    fn starts(batch: &Batch) -> Vec<u32> {
        let sequences = batch.tokens.chunks(8).zip(batch.targets.chunks(8));
        sequences
            .map(|(tokens, targets)| {
                let counts = |values: &[u32], from: u32| values.iter().copied().eq(from..from + 8);
                assert!(counts(tokens, tokens[0]) && counts(targets, tokens[0] + 1));
                tokens[0]
            })
            .collect()
    }

    #[test]
    fn an_epoch_has_every_sequence_once_and_never_the_tail() {
        let data = dataset(1000, 0.1, 2).unwrap();
        assert_eq!((data.training_tokens(), data.sequences()), (900, 112));
        let order: Vec<u32> = (0..38)
            .flat_map(|step| (0..3).map(move |m| (step, m)))
            .flat_map(|(step, m)| starts(&data.batch(step, m).unwrap()))
            .collect();
        assert_eq!(order.len(), 228);
        for epoch in order[..224].chunks(112) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq((0..112).map(|i| i * 8)));
        }
        assert_ne!(order[..112], order[112..224]);
        assert!(data.batch(0, 3).is_err());
        assert!(data.batch(u64::MAX, 0).is_err());
    }

    #[test]
    fn validation_batches_are_the_tail_in_order() {
        let data = dataset(1000, 0.1, 2).unwrap();
        assert_eq!(data.validation_batches(), 2);
        assert_eq!(starts(&data.validation(0).unwrap()), [900, 908]);
        assert_eq!(starts(&data.validation(1).unwrap()), [916, 924]);
        assert!(data.validation(2).is_err());
        // Eleven sequences and no more.
        let data = dataset(999, 0.09, 100).unwrap();
        assert_eq!(data.validation_batches(), 6);
        assert_eq!(starts(&data.validation(5).unwrap()), [909 + 80]);
    }

    /// `e2e/torch/train.py --check-data` reads the same file.
    #[test]
    fn batches_are_those_of_the_fixture() {
        let mut fixture: serde_json::Value = serde_json::from_str(include_str!("batches.json")).unwrap();
        let folder = Folder::new();
        let text = folder.file("a.txt", fixture["text"].as_str().unwrap().as_bytes());
        fixture["config"]["data"]["text"] = serde_json::json!({"path": text});
        let config = TrainingConfig::from_json(&fixture["config"].to_string()).unwrap();
        let data = Dataset::open(&config, TextTokenizer::Bytes).unwrap();
        let steps: Vec<Vec<u32>> = [(0, 0), (0, 1), (7, 0), (7, 1)]
            .map(|(step, microbatch)| data.batch(step, microbatch).unwrap().targets)
            .into();
        let validation: Vec<Vec<u32>> =
            (0..data.validation_batches()).map(|i| data.validation(i).unwrap().targets).collect();
        let found = serde_json::json!({"sha256": data.sha256(), "steps": steps, "validation": validation});
        assert_eq!(found, fixture["expected"]);
    }

    #[test]
    fn too_little_data_is_refused() {
        assert!(dataset(10, 0.1, 1).err().unwrap().contains("validation part"));
        assert!(dataset(9, 0.1, 1).err().unwrap().contains("the training part of the data has 8 tokens"));
        assert!(dataset(17, 0.5, 1).is_err());
        assert!(dataset(18, 0.5, 1).is_ok_and(|d| d.sequences() == 1));
    }

    #[test]
    fn the_digest_is_that_of_the_tokens() {
        let data = dataset(300, 0.1, 1).unwrap();
        let wide = Tokens::Wide((0..300).collect());
        assert_eq!(data.sha256(), wide.sha256());
        assert_ne!(data.sha256(), Tokens::Narrow((1..301).collect()).sha256());
        // python3 -c 'import hashlib,struct; print(hashlib.sha256(struct.pack("<3I",0,1,2)).hexdigest())'
        let digest = Tokens::Narrow(vec![0, 1, 2]).sha256();
        assert_eq!(digest, DIGEST_OF_012);
    }

    const DIGEST_OF_012: &str = "ad5dc1478de06a4c2728ea528bd9361a4b945e92a414bf4d180cedaaeaa5f4cc";
}
