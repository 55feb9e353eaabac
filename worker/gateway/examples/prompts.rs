//! What a gateway makes of chats and texts, for comparisons with transformers: see `make test-templates`.
//!
//! Every line of standard input is an object with `folder`, a model's, and `text`, or `messages` and maybe `template` in place of the model's own;
//! the answer is a line with `tokens`, and the `prompt` of messages, or `error`.
#![allow(clippy::print_stdout, reason = "it is what this program is for")]

use std::collections::BTreeMap;
use std::io::{BufWriter, Write, stdin, stdout};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use dunlin_gateway::template::{ChatTemplate, Message, told};
use dunlin_model::{ModelFile, Tokenizer};
use serde_json::{Value, json};

struct Model {
    tokenizer: Tokenizer,
    template: Option<String>,
}

fn main() -> Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    let mut models = BTreeMap::new();
    for line in stdin().lines() {
        let line: Message = serde_json::from_str(&line?)?;
        let answer =
            answer(&mut models, &line).unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        writeln!(out, "{answer}")?;
    }
    Ok(out.flush()?)
}

fn answer(models: &mut BTreeMap<String, Model>, line: &Message) -> Result<Value> {
    let field = |name: &str| line.get_attr(name).ok().and_then(|v| v.as_str().map(str::to_owned));
    let folder = field("folder").context("no `folder`")?;
    if !models.contains_key(&folder) {
        let file = ModelFile::open_path(Path::new(&folder))?;
        let model = Model { tokenizer: file.tokenizer()?, template: file.chat_template()? };
        models.insert(folder.clone(), model);
    }
    let Model { tokenizer, template } = &models[&folder];
    if let Some(text) = field("text") {
        return Ok(json!({"tokens": tokenizer.encode(&text, true)?}));
    }
    let template = field("template").or(template.clone()).context("no template")?;
    let template = ChatTemplate::new(&template, tokenizer.names().clone()).map_err(|e| anyhow!(told(&e)))?;
    let messages = line.get_attr("messages")?.try_iter()?.collect();
    let prompt = template.render(messages, SystemTime::now()).map_err(|e| anyhow!(told(&e)))?;
    Ok(json!({"tokens": tokenizer.encode(&prompt, false)?, "prompt": prompt}))
}
