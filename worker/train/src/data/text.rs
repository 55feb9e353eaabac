//! Documents to tokens.
//!
//! Plain text is one document. JSON lines are a document a line; behind each comes the token that ends documents: byte 0 (`Bytes`), or the
//! tokenizer's first end-of-sequence token, if it has one.
//!
//! A tokenizer gets plain text in pieces: whole lines, of 1 MiB or less together, or less than a line where it is longer than that.

use std::path::{Path, PathBuf};

use dunlin_model::{ModelFile, Tokenizer};
use serde_json::Value;

use super::source::Source;
use super::{DataError, Tokens};
use crate::config::{DataConfig, TokenizerConfig};

/// Bytes of a piece of plain text, and of a line of JSON.
const PIECE: usize = 1 << 20;
const LINE_MAX: usize = 64 << 20;
const FILE_MAX: u64 = 64 << 20;

/// Text to tokens.
pub enum TextTokenizer {
    /// A token is a byte.
    Bytes,
    /// As a model's tokenizer.json, or its GGUF file, says.
    Model {
        /// Text to tokens.
        tokenizer: Box<Tokenizer>,
        /// The files it is made of, which belong in a checkpoint; none when it is a part of the model's.
        files: Vec<PathBuf>,
    },
}

impl TextTokenizer {
    /// Loads it.
    ///
    /// # Errors
    /// When its files cannot be read or make no tokenizer.
    pub fn open(config: &TokenizerConfig) -> Result<Self, DataError> {
        let TokenizerConfig::Path(path) = config else { return Ok(Self::Bytes) };
        if path.extension().is_some_and(|e| e == "gguf") {
            let tokenizer = Box::new(ModelFile::open_path(path)?.tokenizer()?);
            return Ok(Self::Model { tokenizer, files: Vec::new() });
        }
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.clone() };
        let beside = |name: &str| file.with_file_name(name);
        let json = read(&file)?;
        let side = |name: &str| -> Result<Value, DataError> {
            let path = beside(name);
            if !path.exists() {
                return Ok(Value::Null);
            }
            serde_json::from_slice(&read(&path)?).map_err(|e| DataError::Malformed {
                what: path.display().to_string(),
                line: e.line() as u64,
                problem: format!("{e}; use an intact copy"),
            })
        };
        let tokenizer = Tokenizer::from_json(&json, &side("config.json")?, &side("tokenizer_config.json")?)?;
        let extra = beside("tokenizer_config.json");
        let files = [file, extra].into_iter().filter(|file| file.exists()).collect();
        Ok(Self::Model { tokenizer: Box::new(tokenizer), files })
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab(&self) -> usize {
        match self {
            Self::Bytes => 256,
            Self::Model { tokenizer, .. } => tokenizer.vocab_size(),
        }
    }

    /// The token behind each document.
    #[must_use]
    pub fn end_of_document(&self) -> Option<u32> {
        match self {
            Self::Bytes => Some(0),
            Self::Model { tokenizer, .. } => tokenizer.eos().first().copied(),
        }
    }

    fn push(&self, text: &str, tokens: &mut Tokens) -> Result<(), DataError> {
        match self {
            Self::Bytes => tokens.push(text.bytes().map(u32::from)),
            Self::Model { tokenizer, .. } => tokens.push(tokenizer.encode(text, false)?.into_iter()),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let wrong = |source| DataError::Read { what: path.display().to_string(), source };
    let length = std::fs::metadata(path).map_err(wrong)?.len();
    if length > FILE_MAX {
        return Err(wrong(std::io::Error::other(format!("it has {length} bytes, more than {FILE_MAX}"))));
    }
    std::fs::read(path).map_err(wrong)
}

/// All tokens of the data.
///
/// # Errors
/// When it cannot be read, breaks its format or does not fit.
pub fn tokenise(config: &DataConfig, tokenizer: &TextTokenizer) -> Result<Tokens, DataError> {
    let mut tokens = Tokens::new(tokenizer.vocab());
    match (&config.text, &config.json_lines) {
        (Some(location), _) => plain(Source::open(location)?, tokenizer, &mut tokens)?,
        (None, Some(location)) => json_lines(Source::open(location)?, &config.field, tokenizer, &mut tokens)?,
        (None, None) => {}
    }
    Ok(tokens)
}

fn plain(mut source: Source, tokenizer: &TextTokenizer, tokens: &mut Tokens) -> Result<(), DataError> {
    let (mut piece, mut number) = (Vec::new(), 1);
    let mut line = Vec::new();
    loop {
        // A part of a character may be left over from before.
        let more = source.read_line(PIECE - line.len(), &mut line)?;
        let flush = !more || piece.len() + line.len() > PIECE;
        if flush {
            tokenizer.push(as_text(&source.name, number, &piece)?, tokens)?;
            number += piece.iter().filter(|b| **b == b'\n').count() as u64;
            piece.clear();
        }
        if !more {
            // What is left over is a part of a character at the end of the text.
            as_text(&source.name, number, &line)?;
            return Ok(());
        }
        let whole = whole_characters(&line);
        piece.extend(line.drain(..whole));
    }
}

/// Bytes of `line` without the beginning of a character whose end is missing.
fn whole_characters(line: &[u8]) -> usize {
    match std::str::from_utf8(line) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // Wrong bytes are found later.
        _ => line.len(),
    }
}

fn as_text<'a>(what: &str, first_line: u64, bytes: &'a [u8]) -> Result<&'a str, DataError> {
    std::str::from_utf8(bytes).map_err(|error| DataError::Malformed {
        what: what.to_owned(),
        line: first_line + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64,
        problem: "it is not UTF-8; convert it, for example with `iconv -t utf-8`".to_owned(),
    })
}

fn json_lines(
    mut source: Source,
    field: &str,
    tokenizer: &TextTokenizer,
    tokens: &mut Tokens,
) -> Result<(), DataError> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if !source.read_line(LINE_MAX, &mut line)? {
            break;
        }
        let wrong =
            |problem: String| DataError::Malformed { what: source.name.clone(), line: number, problem };
        if line.len() == LINE_MAX && line.last() != Some(&b'\n') {
            return Err(wrong(format!("it has {LINE_MAX} bytes or more; cut the document")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let object: Value =
            serde_json::from_slice(&line).map_err(|e| wrong(format!("it is not a JSON object: {e}")))?;
        let Some(document) = object[field].as_str() else {
            return Err(wrong(format!("it has no text in field `{field}`; say another with data.field")));
        };
        tokenizer.push(document, tokens)?;
        tokens.push(tokenizer.end_of_document().into_iter())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use dunlin_model::random_model::{self, RandomModelSpec};

    use super::{PIECE, TextTokenizer, tokenise};
    use crate::config::{DataConfig, Location, TokenizerConfig};
    use crate::data::Tokens;
    use crate::testing::Folder;

    fn config(text: Option<PathBuf>, json_lines: Option<PathBuf>) -> DataConfig {
        let mut config: DataConfig = serde_json::from_str("{}").unwrap();
        (config.text, config.json_lines) = (text.map(Location::Path), json_lines.map(Location::Path));
        config
    }

    fn bytes(config: &DataConfig) -> Result<Vec<u16>, String> {
        match tokenise(config, &TextTokenizer::Bytes) {
            Ok(Tokens::Narrow(tokens)) => Ok(tokens),
            Ok(Tokens::Wide(_)) => Err("wide".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn plain_text_is_its_bytes_whatever_its_lines() {
        let folder = Folder::new();
        // Lines shorter and longer than a piece, cut inside of characters.
        let long = "ü".repeat(PIECE + 11);
        let text = format!("a\n\n{}{long}x{long}\nend", "line\n".repeat(PIECE / 3));
        let found = bytes(&config(Some(folder.file("a.txt", text.as_bytes())), None)).unwrap();
        assert!(found == text.bytes().map(u16::from).collect::<Vec<_>>());
        let found = bytes(&config(Some(folder.file("a.txt", b"")), None)).unwrap();
        assert!(found.is_empty());
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_line() {
        let folder = Folder::new();
        for wrong in [&b"a\nb\nx\xff\n"[..], b"a\nb\nx\xc3", b"a\nb\n\xc3(\n"] {
            let error = bytes(&config(Some(folder.file("a.txt", wrong)), None)).unwrap_err();
            assert!(error.contains("a.txt, line 3: it is not UTF-8"), "{error}");
        }
        let error = bytes(&config(Some("/no/such".into()), None)).unwrap_err();
        assert!(error.contains("cannot read /no/such"), "{error}");
    }

    #[test]
    fn documents_of_json_lines_end_with_a_token() {
        let folder = Folder::new();
        let lines = b"{\"text\": \"ab\", \"n\": 1}\n\n{\"text\": \"\\u00fc\"}";
        let found = bytes(&config(None, Some(folder.file("a.jsonl", lines)))).unwrap();
        assert_eq!(found, [97, 98, 0, 0xc3, 0xbc, 0]);
        let mut other = config(None, Some(folder.file("b.jsonl", b"{\"body\": \"a\"}\n{\"text\": 1}\n")));
        other.field = "body".to_owned();
        let error = bytes(&other).unwrap_err();
        assert!(error.contains("b.jsonl, line 2: it has no text in field `body`"), "{error}");
        let error =
            bytes(&config(None, Some(folder.file("c.jsonl", b"{\"text\": \"a\"}\nabc\n")))).unwrap_err();
        assert!(error.contains("c.jsonl, line 2: it is not a JSON object"), "{error}");
    }

    #[test]
    fn a_models_tokenizer_is_used_with_its_end_of_sequence() {
        let folder = Folder::new();
        let spec =
            RandomModelSpec { layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 16, vocab: 300, seed: 1 };
        random_model::write(folder.path(), &spec).unwrap();
        let lines = folder.file("a.jsonl", b"{\"text\": \"aaa b\"}\n{\"text\": \"c\"}\n");
        let tokenizer = TextTokenizer::open(&TokenizerConfig::Path(folder.path().to_owned())).unwrap();
        assert_eq!(tokenizer.vocab(), 300);
        let Tokens::Narrow(found) = tokenise(&config(None, Some(lines)), &tokenizer).unwrap() else {
            unreachable!()
        };
        let TextTokenizer::Model { tokenizer, files } = &tokenizer else { unreachable!() };
        let mut expected = tokenizer.encode("aaa b", false).unwrap();
        expected.push(299);
        expected.extend(tokenizer.encode("c", false).unwrap());
        expected.push(299);
        assert_eq!(found, expected.iter().map(|t| *t as u16).collect::<Vec<_>>());
        assert_eq!(*files, [folder.path().join("tokenizer.json")]);
        // Pieces of plain text are whole lines: the tokens are those of the lines.
        let text = folder.file("a.txt", "aa bb\n".repeat(PIECE / 4).as_bytes());
        let all = TextTokenizer::open(&TokenizerConfig::Path(folder.path().join("tokenizer.json"))).unwrap();
        let tokens = tokenise(&config(Some(text), None), &all).unwrap();
        assert_eq!(tokens.len(), tokenizer.encode("aa bb\n", false).unwrap().len() * (PIECE / 4));
    }
}
