//! Filters and methods of text that Minijinja has otherwise than Python and Jinja2, or not at all.

use jiff::Timestamp;
use jiff::fmt::strtime::{BrokenDownTime, Config};
use minijinja::value::{Kwargs, Rest, Value, from_args};
use minijinja::{Error, ErrorKind, State};

/// What Python takes for white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Methods of Python's types.
///
/// # Errors
/// When there is no such method, or it does not take these arguments.
pub fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let (Some(text), []) = (value.as_str(), arguments) {
        match name {
            "strip" => return Ok(Value::from(text.trim_matches(is_space))),
            "lstrip" => return Ok(Value::from(text.trim_start_matches(is_space))),
            "rstrip" => return Ok(Value::from(text.trim_end_matches(is_space))),
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// `trim(chars=none)`.
pub fn trim(value: &Value, chars: Option<String>) -> String {
    let text = value.to_string();
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}

/// `indent(width=4, first=false, blank=false)`: lines as Python cuts them, joined with line feeds.
///
/// # Errors
/// When an option is unknown, or the result is too long.
pub fn indent(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let (width, first, blank) = from_args::<(Option<Value>, Option<bool>, Option<bool>)>(&positional)?;
    let width = width.or(options.get("width")?);
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let text = value.to_string() + "\n";
    let lines = lines(&text);
    // Paid for before it is made.
    let charge = |width: usize| state.consume_fuel((width.saturating_mul(lines.len()) / 64) as u64);
    let by = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(by) => {
                charge(by.len())?;
                by.to_owned()
            }
            None => {
                let width = usize::try_from(i64::try_from(width)?).unwrap_or(0);
                charge(width)?;
                " ".repeat(width)
            }
        },
    };
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `str.splitlines` of a text that ends with a line feed.
fn lines(text: &str) -> Vec<&str> {
    let is_end = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        lines.push(&rest[..at]);
        let end = rest[at..].strip_prefix("\r\n").or_else(|| rest[at..].strip_prefix(is_end));
        rest = end.unwrap_or_default();
    }
    lines
}

/// `now.strftime(format)` of Python in the locale C, of a time without a zone.
///
/// # Errors
/// When the format cannot be used.
pub fn date(now: Timestamp, format: &str) -> Result<String, Error> {
    let mut whole = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        match if c == '%' { rest.next() } else { None } {
            Some('c') => whole.push_str("%a %b %e %H:%M:%S %Y"),
            Some('x') => whole.push_str("%m/%d/%y"),
            Some('X') => whole.push_str("%H:%M:%S"),
            Some('r') => whole.push_str("%I:%M:%S %p"),
            Some('f') => whole.push_str("%6f"),
            Some('z' | 'Z') => {}
            Some(other) => whole.extend(['%', other]),
            None => whole.push(c),
        }
    }
    let date = BrokenDownTime::from(now).to_string_with_config(&Config::new().lenient(true), whole);
    date.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use super::super::ChatTemplate;

    fn made(expression: &str) -> String {
        let template = ChatTemplate::new(&format!("[{{{{ {expression} }}}}]"), BTreeMap::new()).unwrap();
        template.render(Vec::new(), UNIX_EPOCH).unwrap()
    }

    #[test]
    fn they_are_jinja2_s() {
        // What Jinja2 3.1 makes of the same.
        for (expression, expected) in [
            (r"' a\x1f\n'.strip()", "[a]"),
            (r"'\x1c a '|trim", "[a]"),
            (r"'xxaxx'|trim('x')", "[a]"),
            (r"'a, b_c d-e 3'|wordcount", "[5]"),
            (r"'a\nb\n\nc\n'|indent(2)", "[a\n  b\n\n  c\n]"),
            (r"'a\r\nb'|indent(width=2, first=true)", "[  a\n  b]"),
            (r"'a\n\nb'|indent('> ', blank=true)", "[a\n> \n> b]"),
            (r"'a\n\nb'|indent(1, false, true)", "[a\n \n b]"),
            (r"''|indent", "[]"),
        ] {
            assert_eq!(made(expression), expected, "{expression}");
        }
    }
}
