//! The filter `tojson` as transformers has it: Python's `json.dumps` that leaves everything beyond ASCII as it is.

use std::io::{self, Write};

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Widest indent, in spaces.
const INDENT_MAX: i64 = 256;

/// `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
///
/// # Errors
/// When the value is none of JSON's.
pub fn tojson(value: &Value, ensure_ascii: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let wrong = |what: &str| Error::new(ErrorKind::InvalidOperation, what.to_owned());
    if value.is_undefined() {
        return Err(wrong("an undefined value has no JSON"));
    }
    let ascii = ensure_ascii.or(options.get("ensure_ascii")?).is_some_and(|v| v.is_true());
    let indent = options.get::<Option<Value>>("indent")?.filter(|v| !v.is_none());
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(width) => Some(" ".repeat(i64::try_from(width)?.clamp(0, INDENT_MAX) as usize)),
    };
    let [item, key] = match separators.as_deref() {
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(wrong("`separators` are two texts")),
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
    };
    let mut out = Vec::new();
    let python = Python { ascii, indent, item, key, depth: 0, filled: false };
    let mut serializer = Serializer::with_formatter(&mut out, python);
    let written = if sorted {
        // Its maps are in the order of their keys.
        serde_json::to_value(value).and_then(|value| value.serialize(&mut serializer))
    } else {
        value.serialize(&mut serializer)
    };
    written.map_err(|error| wrong(&format!("no JSON: {error}")))?;
    // Only text was written.
    Ok(Value::from(String::from_utf8_lossy(&out).into_owned()))
}

/// The layout of `json.dumps`.
struct Python {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    depth: usize,
    /// The innermost list or object has something in it.
    filled: bool,
}

impl Python {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, with: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        writer.write_all(with)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, with: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(writer)?;
        }
        self.filled = true;
        writer.write_all(with)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }

    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    /// `1e+16`, `1e-05`: Rust has the same digits, without sign and zero of the exponent.
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let text = format!("{value:?}");
        let Some((digits, exponent)) = text.split_once('e') else { return writer.write_all(text.as_bytes()) };
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        write!(writer, "{digits}e{sign}{exponent:0>2}")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if (' '..='~').contains(&c) {
                write!(writer, "{c}")?;
            } else {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use super::super::ChatTemplate;

    fn dumps(expression: &str) -> String {
        let template = ChatTemplate::new(&format!("{{{{ {expression} }}}}"), BTreeMap::new()).unwrap();
        template.render(Vec::new(), UNIX_EPOCH).unwrap()
    }

    #[test]
    fn it_is_json_dumps() {
        // What `json.dumps(..., ensure_ascii=False)` of Python 3.12 writes.
        let value = r#"{"b": 1, "a": "é<>&'\"\n", "c": [1.5, none, true, []], "d": {}}"#;
        assert_eq!(
            dumps(&format!("{value}|tojson")),
            r#"{"b": 1, "a": "é<>&'\"\n", "c": [1.5, null, true, []], "d": {}}"#
        );
        assert_eq!(
            dumps(&format!("{value}|tojson(indent=2)")),
            "{\n  \"b\": 1,\n  \"a\": \"é<>&'\\\"\\n\",\n  \"c\": [\n    1.5,\n    null,\n    true,\n    []\n  ],\n  \"d\": {}\n}"
        );
        assert_eq!(
            dumps("{'b': [1], 'a': 'é👍'}|tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true)"),
            r#"{"a":"\u00e9\ud83d\udc4d","b":[1]}"#
        );
        assert_eq!(dumps("[1]|tojson(indent=0)"), "[\n1\n]");
    }

    #[test]
    fn numbers_are_python_s() {
        assert_eq!(
            dumps("[1.0, 0.0001, 0.00001, 123456789012345680.0, 1e100, -2]|tojson"),
            "[1.0, 0.0001, 1e-05, 1.2345678901234568e+17, 1e+100, -2]"
        );
    }
}
