//! Tokens that begin and end texts and answers: what the files of a folder say of them, read as transformers reads it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pieces::steps;

/// Tokens that stand for no text.
#[derive(Clone, Debug, Default)]
pub(super) struct Special {
    /// Stand before a text that is no chat.
    pub before: Vec<u32>,
    /// Stand behind it.
    pub after: Vec<u32>,
    /// End an answer, in order.
    pub ends: Vec<u32>,
    /// Ends a document of training data.
    pub document_end: Option<u32>,
    /// Their texts, by the names that chat templates have for them.
    pub names: BTreeMap<String, String>,
}

/// The files of a folder that say which tokens begin and end sequences; those that are not there are null.
#[derive(Clone, Debug, Default)]
pub struct TokenFiles {
    /// `config.json`.
    pub config: Value,
    /// `tokenizer_config.json`.
    pub tokenizer: Value,
    /// `special_tokens_map.json`: the same names in the form of before, for what `tokenizer_config.json` does not say.
    pub map: Value,
    /// `generation_config.json`.
    pub generation: Value,
}

/// Names of special tokens in files and templates.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Classes of transformers that put tokens around a text as `add_bos_token` and `add_eos_token` say, whatever the post-processor is.
const BY_FLAGS: [&str; 3] = ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"];

impl Special {
    /// What `files` and `tokenizer.json` (`json`, with the vocabulary `known`) say.
    ///
    /// The names in `tokenizer_config.json` are what a template calls `bos_token` and `eos_token`; answers end with what
    /// `generation_config.json` says, `config.json` and the names too.
    pub(super) fn of_files(files: &TokenFiles, json: &Value, known: &tokenizers::Tokenizer) -> Self {
        let TokenFiles { config, tokenizer, map, generation } = files;
        // A file that says `null` means none.
        let said = |name: &str| [tokenizer, map].into_iter().find_map(|file| file.get(name)).map(text);
        let id = |text: Option<String>| known.token_to_id(&text?);
        let bos = match said("bos_token") {
            Some(text) => id(text),
            None => ids(&config["bos_token_id"]).first().copied(),
        };
        let named_eos = said("eos_token").and_then(id);
        // Data that was tokenised before the other files were read stays what it is.
        let mut ends = ids(&config["eos_token_id"]);
        ends.extend(tokenizer.get("eos_token").map(text).and_then(id));
        let document_end = ends.iter().min().copied();
        let eos = named_eos.or(document_end);
        ends.extend(named_eos);
        ends.extend(ids(&generation["eos_token_id"]));
        ends.sort_unstable();
        ends.dedup();
        let said_names = NAMES.iter().filter_map(|name| Some(((*name).to_owned(), said(name)??)));
        let mut names: BTreeMap<String, String> = said_names.collect();
        for (name, id) in [("bos_token", bos), ("eos_token", eos)] {
            if let Some(text) = id.and_then(|id| known.id_to_token(id)) {
                names.entry(name.to_owned()).or_insert(text);
            }
        }
        let (before, after) = around(tokenizer, json, bos, eos);
        Self { before, after, ends, document_end, names }
    }
}

/// The text of a token in a file: text, or an object that has it.
fn text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// One token or several.
fn ids(value: &Value) -> Vec<u32> {
    let one = value.as_u64().into_iter();
    let many = value.as_array().into_iter().flatten().filter_map(Value::as_u64);
    one.chain(many).filter_map(|id| u32::try_from(id).ok()).collect()
}

/// Tokens before and behind a text: those that the post-processor of `tokenizer.json` puts there. Flags of `tokenizer_config.json` (`config`)
/// count before it only for classes that heed them, and where no class is named.
fn around(config: &Value, json: &Value, bos: Option<u32>, eos: Option<u32>) -> (Vec<u32>, Vec<u32>) {
    let class = config["tokenizer_class"].as_str().map(|class| class.trim_end_matches("Fast"));
    let by_flags = class.is_some_and(|class| BY_FLAGS.contains(&class));
    let flag = |name: &str, default: bool| match (config[name].as_bool(), class) {
        (said, None) => said,
        (said, Some(_)) if by_flags => Some(said.unwrap_or(default)),
        (_, Some(_)) => None,
    };
    let processed = processed(&json["post_processor"]);
    let choose = |flag: Option<bool>, token: Option<u32>, processed: Vec<u32>| match flag {
        Some(true) => token.into_iter().collect(),
        Some(false) => Vec::new(),
        None => processed,
    };
    (
        choose(flag("add_bos_token", true), bos, processed.0),
        choose(flag("add_eos_token", false), eos, processed.1),
    )
}

/// Tokens that a post-processor puts before and behind a single text.
fn processed(processor: &Value) -> (Vec<u32>, Vec<u32>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for step in steps(processor, "processors") {
        let (first, last) = match step["type"].as_str() {
            Some("TemplateProcessing") => of_template(step),
            // `[text, id]` each.
            Some("BertProcessing" | "RobertaProcessing") => (ids(&step["cls"]), ids(&step["sep"])),
            _ => continue,
        };
        before.splice(0..0, first);
        after.extend(last);
    }
    (before, after)
}

fn of_template(step: &Value) -> (Vec<u32>, Vec<u32>) {
    let (mut before, mut after, mut behind) = (Vec::new(), Vec::new(), false);
    for piece in step["single"].as_array().into_iter().flatten() {
        match piece["SpecialToken"]["id"].as_str() {
            Some(name) if behind => after.extend(ids(&step["special_tokens"][name]["ids"])),
            Some(name) => before.extend(ids(&step["special_tokens"][name]["ids"])),
            None => behind = true,
        }
    }
    (before, after)
}
