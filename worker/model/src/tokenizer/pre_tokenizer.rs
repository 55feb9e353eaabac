//! How a byte-level tokenizer splits text before its merges, by the names that GGUF files have for it.
//!
//! The patterns are those of the models' own `tokenizer.json`. llama.cpp, which gave the names, writes some of them in the way that its own matcher
//! understands; that is the same for all but rare letters and marks.

use serde_json::{Value, json};

use crate::error::{ModelError, excerpt};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const NEWLINES: &str = r"[\r\n]";
const DEEPSEEK_LLM_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1f7d}ᾀ-ᾴᾶ-ᾼ\x{1fbe}ῂ-ῄῆ-ῌῐ-\x{1fd3}ῖ-\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_LLM_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_LLM_END: &str = r"\s+$";
const DEEPSEEK_CODER_LETTERS: &str = r"\s?\p{L}+";
const DEEPSEEK_CODER_PUNCTUATION: &str = r"\s?\p{P}+";
const DEEPSEEK_IDEOGRAPHS: &str = r"[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK_V3_NUMBERS: &str = r"\p{N}{1,3}";
const DEEPSEEK_V3_IDEOGRAPHS: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// Patterns none of which goes from a word into the space behind it.
pub(super) const PATTERNS: [&str; 15] = [
    GPT2,
    LLAMA3,
    QWEN2,
    TEKKEN,
    GPT4O,
    NEWLINES,
    DEEPSEEK_LLM_LETTERS,
    DEEPSEEK_LLM_PUNCTUATION,
    DEEPSEEK_LLM_END,
    DEEPSEEK_CODER_LETTERS,
    DEEPSEEK_CODER_PUNCTUATION,
    DEEPSEEK_IDEOGRAPHS,
    DEEPSEEK_V3_NUMBERS,
    DEEPSEEK_V3_IDEOGRAPHS,
    DEEPSEEK_V3,
];

/// The names that are known.
pub(super) const NAMES: [&str; 21] = [
    "default",
    "gpt-2",
    "phi-2",
    "olmo",
    "mpt",
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "llama-bpe",
    "llama3",
    "llama-v3",
    "smaug-bpe",
    "qwen2",
    "deepseek-r1-qwen",
    "tekken",
    "gpt-4o",
    "llama4",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
];

/// What a name stands for.
pub(super) struct PreTokenizer {
    /// The ways to split, one after the other.
    pub splits: Vec<Value>,
    /// A word that is a token is taken whole, whatever its merges are.
    pub ignore_merges: bool,
    /// A text begins with the first token, unless the file says otherwise.
    pub add_bos: bool,
    /// Accents become one with their letters first.
    pub nfc: bool,
}

impl PreTokenizer {
    pub(super) fn new(name: &str) -> Result<Self, ModelError> {
        let digits = || json!({"type": "Digits", "individual_digits": true});
        let by = |patterns: &[&str]| Self::of(patterns.iter().map(|p| pattern(p)).collect());
        Ok(match name {
            "default" | "gpt-2" | "phi-2" => by(&[GPT2]),
            "olmo" | "mpt" => Self { nfc: true, ..by(&[GPT2]) },
            "smollm" | "starcoder" | "refact" => Self::of(vec![digits(), pattern(GPT2)]),
            "command-r" => Self { nfc: true, ..Self::of(vec![digits(), pattern(GPT2)]) },
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, add_bos: true, ..by(&[LLAMA3]) }
            }
            "smaug-bpe" => by(&[LLAMA3]),
            "qwen2" => Self { nfc: true, ..by(&[QWEN2]) },
            "deepseek-r1-qwen" => by(&[QWEN2]),
            "tekken" => Self { ignore_merges: true, add_bos: true, ..by(&[TEKKEN]) },
            "gpt-4o" | "llama4" => by(&[GPT4O]),
            "deepseek-llm" => {
                let patterns = [
                    NEWLINES,
                    DEEPSEEK_LLM_LETTERS,
                    DEEPSEEK_LLM_PUNCTUATION,
                    DEEPSEEK_LLM_END,
                    DEEPSEEK_IDEOGRAPHS,
                ];
                by(&patterns).and(digits())
            }
            "deepseek-coder" => {
                let patterns =
                    [NEWLINES, DEEPSEEK_CODER_LETTERS, DEEPSEEK_CODER_PUNCTUATION, DEEPSEEK_IDEOGRAPHS];
                by(&patterns).and(digits())
            }
            "deepseek-v3" => by(&[DEEPSEEK_V3_NUMBERS, DEEPSEEK_V3_IDEOGRAPHS, DEEPSEEK_V3]),
            other => {
                return Err(ModelError::tokenizer(format!(
                    "the way in which it splits text is `{}`, and {} can be read from GGUF; {FOLDER}",
                    excerpt(other),
                    NAMES.join(", "),
                )));
            }
        })
    }

    fn of(splits: Vec<Value>) -> Self {
        Self { splits, ignore_merges: false, add_bos: false, nfc: false }
    }

    fn and(mut self, split: Value) -> Self {
        self.splits.push(split);
        self
    }
}

/// What to do about a tokenizer that cannot be read from GGUF.
pub(super) const FOLDER: &str =
    "use the model's safetensors folder with its tokenizer.json in place of the GGUF file";

pub(super) fn pattern(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_in_the_documentation_and_among_the_texts_of_the_tests() {
        let documentation = include_str!("../../../../docs/models.md");
        let tested: Value =
            serde_json::from_str(include_str!("../../tests/tokenizers/byte_level.json")).unwrap();
        for name in NAMES {
            assert!(PreTokenizer::new(name).is_ok(), "{name}");
            assert!(documentation.contains(&format!("`{name}`")), "{name} is not in docs/models.md");
            assert!(
                name == "default" || tested["ids"].get(name).is_some(),
                "{name} is not in byte_level.json"
            );
        }
    }
}
