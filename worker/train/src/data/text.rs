//! Documents to tokens.
//!
//! Plain text is one document. JSON lines are a document a line; behind each comes the token that ends documents: byte 0 (`Bytes`), or the
//! tokenizer's first end-of-sequence token, if it has one.
//!
//! A tokenizer gets plain text in pieces: whole lines, of 1 MiB or less together, or less than a line where it is longer than that.

use std::path::Path;

use dunlin_model::tokenizer::TokenFiles;
use dunlin_model::{ModelFile, Tokenizer};
use serde_json::Value;

use super::error::DataError;
use super::memory::available;
use super::source::Source;
use super::tokens::{TOKENS_MAX, Tokens};
use crate::config::{DataConfig, TokenizerConfig, TrainingConfig};

/// Bytes of a piece of plain text, and of a line of JSON.
const PIECE: usize = 1 << 20;
const LINE_MAX: usize = 64 << 20;
const FILE_MAX: u64 = 64 << 20;

/// Text to tokens.
pub enum TextTokenizer {
    /// A token is a byte.
    Bytes,
    /// As a model's tokenizer.json, or its GGUF file, says.
    Model(Box<Tokenizer>),
}

impl TextTokenizer {
    /// Loads that of a run. `model`: what training goes on from, or what an adapter is trained over.
    ///
    /// # Errors
    /// When its files cannot be read or make no tokenizer, or its tokens are not those of the model.
    pub fn open(config: &TrainingConfig, model: Option<&ModelFile>) -> Result<Self, DataError> {
        let tokenizer = match (config.tokenizer(), model) {
            (TokenizerConfig::Bytes, None) => return Ok(Self::Bytes),
            (TokenizerConfig::Bytes, Some(model)) => {
                let own = if model.has_tokenizer()? { Some(model.tokenizer()?) } else { None };
                if let Some(own) = own.filter(|own| !own.is_of_bytes()) {
                    return Err(DataError::OtherTokens(format!(
                        "is Bytes, but the model has a tokenizer of its own, of {} tokens: bytes would be taken for numbers of those. Leave \
                         data.tokenizer out",
                        own.vocab_size()
                    )));
                }
                return Ok(Self::Bytes);
            }
            (TokenizerConfig::Model, Some(model)) if model.has_tokenizer()? => model.tokenizer()?,
            (TokenizerConfig::Model, _) => {
                let problem =
                    "is that of the model, which has none: name one with data.tokenizer.path, or use Bytes";
                return Err(DataError::OtherTokens(problem.to_owned()));
            }
            (TokenizerConfig::Path(path), _) => read_tokenizer(&path)?,
        };
        let vocab = model.map_or(usize::MAX, |model| model.config().vocab);
        if tokenizer.vocab_size() > vocab {
            let size = tokenizer.vocab_size();
            return Err(DataError::OtherTokens(format!(
                "has {size} tokens, and the model knows {vocab}: use the model's own, which it is if nothing is said"
            )));
        }
        Ok(Self::Model(Box::new(tokenizer)))
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab(&self) -> usize {
        match self {
            Self::Bytes => 256,
            Self::Model(tokenizer) => tokenizer.vocab_size(),
        }
    }

    /// The token behind each document.
    #[must_use]
    pub fn end_of_document(&self) -> Option<u32> {
        match self {
            Self::Bytes => Some(0),
            Self::Model(tokenizer) => tokenizer.document_end(),
        }
    }

    fn push(&self, text: &str, tokens: &mut Tokens) -> Result<(), DataError> {
        match self {
            Self::Bytes => tokens.push(text.bytes().map(u32::from)),
            Self::Model(tokenizer) => tokens.push(tokenizer.encode(text, false)?.into_iter()),
        }
        Ok(())
    }
}

/// A `tokenizer.json`, or the folder that has one, or a model's GGUF file.
fn read_tokenizer(path: &Path) -> Result<Tokenizer, DataError> {
    if path.extension().is_some_and(|e| e == "gguf") {
        return Ok(ModelFile::open_path(path)?.tokenizer()?);
    }
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
    let json = read(&file)?;
    let beside = |name: &str| -> Result<Value, DataError> {
        let path = file.with_file_name(name);
        if !path.exists() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&read(&path)?).map_err(|e| DataError::Malformed {
            what: path.display().to_string(),
            line: e.line() as u64,
            problem: format!("{e}; use an intact copy"),
        })
    };
    let files = TokenFiles {
        config: beside("config.json")?,
        tokenizer: beside("tokenizer_config.json")?,
        ..TokenFiles::default()
    };
    Ok(Tokenizer::from_json(&json, &files)?)
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let wrong = |source| DataError::Read { what: path.display().to_string(), source };
    let length = std::fs::metadata(path).map_err(wrong)?.len();
    if length > FILE_MAX {
        return Err(wrong(std::io::Error::other(format!("it has {length} bytes, more than {FILE_MAX}"))));
    }
    std::fs::read(path).map_err(wrong)
}

/// As many tokens as are held here. A vector that grows has both its old and its new place for a moment.
struct Room {
    tokens_max: usize,
    available: u64,
}

impl Room {
    fn now(tokens: &Tokens) -> Self {
        let available = available();
        let fit = usize::try_from(available / (2 * tokens.width() as u64)).unwrap_or(usize::MAX);
        Self { tokens_max: fit.min(TOKENS_MAX), available }
    }

    fn check(&self, tokens: &Tokens, what: &str) -> Result<(), DataError> {
        if tokens.len() <= self.tokens_max {
            return Ok(());
        }
        let available = self.available >> 20;
        Err(DataError::TooLarge { what: what.to_owned(), tokens: self.tokens_max, available })
    }
}

/// All tokens of the data.
///
/// # Errors
/// When it cannot be read, breaks its format or does not fit.
pub fn tokenise(config: &DataConfig, tokenizer: &TextTokenizer) -> Result<Tokens, DataError> {
    let mut tokens = Tokens::new(tokenizer.vocab());
    let room = Room::now(&tokens);
    match (&config.text, &config.json_lines) {
        (Some(location), _) => plain(Source::open(location)?, tokenizer, &room, &mut tokens)?,
        (None, Some(location)) => {
            json_lines(Source::open(location)?, &config.field, tokenizer, &room, &mut tokens)?;
        }
        (None, None) => {}
    }
    Ok(tokens)
}

fn plain(
    mut source: Source,
    tokenizer: &TextTokenizer,
    room: &Room,
    tokens: &mut Tokens,
) -> Result<(), DataError> {
    let (mut piece, mut number) = (Vec::new(), 1);
    let mut line = Vec::new();
    loop {
        // A part of a character may be left over from before.
        let more = source.read_line(PIECE - line.len(), &mut line)?;
        let flush = !more || piece.len() + line.len() > PIECE;
        if flush {
            tokenizer.push(as_text(&source.name, number, &piece)?, tokens)?;
            room.check(tokens, &source.name)?;
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
    std::str::from_utf8(bytes).map_err(|error| {
        let from = if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            "utf-16"
        } else {
            "latin1"
        };
        DataError::Malformed {
            what: what.to_owned(),
            line: first_line + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count() as u64,
            problem: format!("it is not UTF-8; convert it, for example with `iconv -f {from} -t utf-8`"),
        }
    })
}

fn json_lines(
    mut source: Source,
    field: &str,
    tokenizer: &TextTokenizer,
    room: &Room,
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
        let text = as_text(&source.name, number, &line)?;
        let object: Value =
            serde_json::from_str(text).map_err(|e| wrong(format!("it is not a JSON object: {e}")))?;
        let Some(document) = object[field].as_str() else {
            return Err(wrong(format!("it has no text in field `{field}`; say another with data.field")));
        };
        tokenizer.push(document, tokens)?;
        tokens.push(tokenizer.end_of_document().into_iter());
        room.check(tokens, &source.name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use dunlin_model::ModelFile;
    use dunlin_model::random_model::{self, RandomModelSpec};

    use super::{PIECE, TextTokenizer, tokenise};
    use dunlin_store::Location;

    use crate::config::{DataConfig, TrainingConfig};
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
        let open = |path: PathBuf| TextTokenizer::Model(Box::new(super::read_tokenizer(&path).unwrap()));
        let tokenizer = open(folder.path().to_owned());
        assert_eq!(tokenizer.vocab(), 300);
        let Tokens::Narrow(found) = tokenise(&config(None, Some(lines)), &tokenizer).unwrap() else {
            unreachable!()
        };
        let TextTokenizer::Model(tokenizer) = &tokenizer else { unreachable!() };
        let mut expected = tokenizer.encode("aaa b", false).unwrap();
        expected.push(299);
        expected.extend(tokenizer.encode("c", false).unwrap());
        expected.push(299);
        assert_eq!(found, expected.iter().map(|t| *t as u16).collect::<Vec<_>>());
        // Pieces of plain text are whole lines: the tokens are those of the lines.
        let text = folder.file("a.txt", "aa bb\n".repeat(PIECE / 4).as_bytes());
        let all = open(folder.path().join("tokenizer.json"));
        let tokens = tokenise(&config(Some(text), None), &all).unwrap();
        assert_eq!(tokens.len(), tokenizer.encode("aa bb\n", false).unwrap().len() * (PIECE / 4));
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let folder = Folder::new();
        let plain = folder.file("a.txt", b"\xef\xbb\xbfab\xef\xbb\xbf");
        let found = bytes(&config(Some(plain), None)).unwrap();
        assert_eq!(found, [97, 98, 0xef, 0xbb, 0xbf], "in the middle it is a character like others");
        let lines = folder.file("a.jsonl", b"\xef\xbb\xbf{\"text\": \"ab\"}\r\n");
        assert_eq!(bytes(&config(None, Some(lines))).unwrap(), [97, 98, 0]);
        let error = bytes(&config(Some(folder.file("b.txt", b"\xff\xfea\0b\0")), None)).unwrap_err();
        assert!(error.contains("line 1: it is not UTF-8") && error.contains("iconv -f utf-16"), "{error}");
        let error =
            bytes(&config(None, Some(folder.file("b.jsonl", b"{\"text\": \"\xe4\"}\n")))).unwrap_err();
        assert!(error.contains("line 1: it is not UTF-8") && error.contains("iconv -f latin1"), "{error}");
    }

    #[test]
    fn what_is_no_file_is_refused_and_what_does_not_end_is_bounded() {
        for path in ["/dev/zero", "/dev"] {
            let error = bytes(&config(Some(path.into()), None)).unwrap_err();
            assert!(error.contains(&format!("cannot read {path}")), "{error}");
        }
        let mut tokens = Tokens::new(256);
        tokens.push([0; 11].into_iter());
        let room = super::Room { tokens_max: 10, available: 3 << 20 };
        let error = room.check(&tokens, "it").unwrap_err().to_string();
        assert!(error.contains("it has more than 10 tokens") && error.contains("(3 MiB"), "{error}");
    }

    #[test]
    fn a_models_tokens_are_its_own_tokenizers() {
        let folder = Folder::new();
        let spec =
            RandomModelSpec { layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 16, vocab: 300, seed: 1 };
        random_model::write(folder.path(), &spec).unwrap();
        let model = ModelFile::open_path(folder.path()).unwrap();
        let open = |tokenizer: serde_json::Value| {
            let mut config = serde_json::json!({
                "model": {"checkpoint": "a"}, "data": {"text": {"path": "a"}, "tokenizer": tokenizer},
                "sequenceLength": 8, "globalBatch": 6, "microbatch": 2, "steps": 100,
                "optimizer": {"kind": "AdamW", "learningRate": 0.1},
            });
            if config["data"]["tokenizer"].is_null() {
                config["data"].as_object_mut().unwrap().remove("tokenizer");
            }
            let config = TrainingConfig::from_json(&config.to_string()).unwrap();
            TextTokenizer::open(&config, Some(&model)).map(|t| t.vocab()).map_err(|e| e.to_string())
        };
        assert_eq!(open(serde_json::Value::Null), Ok(300));
        assert_eq!(open("Model".into()), Ok(300));
        let error = open("Bytes".into()).unwrap_err();
        assert!(error.contains("data.tokenizer is Bytes") && error.contains("of 300 tokens"), "{error}");
        // Another one that has more tokens than the model knows.
        let other = Folder::new();
        random_model::write(other.path(), &RandomModelSpec { vocab: 301, ..spec }).unwrap();
        let error = open(serde_json::json!({"path": other.path()})).unwrap_err();
        assert!(error.contains("has 301 tokens, and the model knows 300"), "{error}");
        // Without one, bytes are a choice that somebody must make.
        std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        assert!(open(serde_json::Value::Null).unwrap_err().contains("which has none"));
        assert_eq!(open("Bytes".into()), Ok(256));
        let bytes = crate::checkpoint::bytes_tokenizer().to_string();
        folder.file("tokenizer.json", bytes.as_bytes());
        assert_eq!((open("Bytes".into()), open(serde_json::Value::Null)), (Ok(256), Ok(256)));
    }
}
