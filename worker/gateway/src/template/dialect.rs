//! What templates of Hugging Face's models say and Minijinja does not know, in its words: the tag `generation`, which marks what the model
//! writes and changes nothing in a prompt, and Python's `'...' % values`, which is the filter [`modulo`].

use minijinja::value::Value;
use minijinja::{Error, State, context};

/// Brackets inside of each other that are translated; Minijinja parses 150.
const DEPTH_MAX: usize = 150;
/// What finding the rest of a division costs, in instructions.
const FUEL: u64 = 50;

/// The same template in Minijinja's words. What is not understood is left as it is: parsing tells what is wrong with it.
pub fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let kind = tag_kind(before);
        let Some(end) = (if kind == '#' { tag.find("#}") } else { end_of(tag, kind) }) else {
            rest = tag;
            break;
        };
        let (code, after) = tag.split_at(end);
        rest = after;
        match code.trim_matches(['-', '+']).trim() {
            _ if kind == '#' => out.push_str(code),
            "raw" if kind == '%' => {
                out.push_str(code);
                let (raw, after) = rest.split_at(end_of_raw(rest));
                out.push_str(raw);
                rest = after;
            }
            word @ ("generation" | "endgeneration") if kind == '%' => {
                out.push_str(&code.replace(word, if word == "generation" { "with" } else { "endwith" }));
            }
            _ => out.push_str(&expression(code, 0)),
        }
    }
    out.push_str(rest);
    out
}

/// Python's `left % right`: what a text makes of values, or the rest of a division.
///
/// # Errors
/// When there is no such thing.
pub fn modulo(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_none() {
        state.consume_fuel(FUEL)?;
        return state.env().compile_expression("left % right")?.eval(context! { left, right });
    }
    let mut arguments = vec![left];
    if right.is_tuple() {
        arguments.extend(right.try_iter()?);
    } else {
        arguments.push(right);
    }
    state.apply_filter("format", &arguments)
}

fn tag_kind(opened: &str) -> char {
    opened.chars().next_back().unwrap_or_default()
}

/// Where the tag ends that `text` is in: at its closing braces outside of texts and objects.
fn end_of(text: &str, kind: char) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'\'' | b'"' => at = end_of_literal(text, at)?,
            b'%' if kind == '%' && bytes.get(at + 1) == Some(&b'}') => return Some(at),
            b'}' if kind == '{' && depth == 0 && bytes.get(at + 1) == Some(&b'}') => return Some(at),
            byte => {
                depth =
                    if byte == b'{' { depth + 1 } else { depth.saturating_sub(usize::from(byte == b'}')) };
                at += 1;
            }
        }
    }
    None
}

/// Where `{% endraw %}` begins.
fn end_of_raw(text: &str) -> usize {
    let ends = |at: &usize| text[at + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw");
    text.match_indices("{%").map(|(at, _)| at).find(ends).unwrap_or(text.len())
}

/// Behind the literal that begins at `at`.
fn end_of_literal(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut end = at + 1;
    while end < bytes.len() {
        match bytes[end] {
            b'\\' => end += 2,
            byte if byte == bytes[at] => return Some(end + 1),
            _ => end += 1,
        }
    }
    None
}

/// An expression in which `left % right` has become a filter: of texts it is a format, and which names are texts is known when it is computed.
///
/// It is left alone between numbers that are written out, and where it is one of several factors or its right side goes on: there the filter, which binds
/// closer, would take another part.
fn expression(code: &str, depth: usize) -> String {
    let mut out = String::with_capacity(code.len());
    let mut at = 0;
    while let Some(first) = code[at..].chars().next() {
        if !begins_operand(first) {
            out.push(first);
            at += first.len_utf8();
            continue;
        }
        let Some(len) = operand(&code[at..]) else { break };
        let factor = out.trim_end().ends_with(['*', '/', '%']);
        let left = &code[at..at + len];
        at += len;
        out.push_str(&groups(left, depth));
        while let Some(right) = right_side(&code[at..]).filter(|_| !factor && !first.is_ascii_digit()) {
            out.push_str(&format!("|modulo({})", groups(right.operand, depth)));
            at += right.end;
        }
    }
    out.push_str(&code[at..]);
    out
}

/// What `%` is applied to.
struct Right<'a> {
    operand: &'a str,
    /// Where it ends.
    end: usize,
}

/// The sign at the beginning of `text`, and its right side.
fn right_side(text: &str) -> Option<Right<'_>> {
    let right = text.trim_start().strip_prefix('%')?.trim_start();
    let len = operand(right).filter(|len| *len > 0)?;
    let behind = right[len..].trim_start();
    let goes_on = behind.starts_with("**") || behind.starts_with(['.', '(', '[']);
    if goes_on || behind.split(|c| !in_word(c)).next() == Some("is") {
        return None;
    }
    Some(Right { operand: &right[..len], end: text.len() - right.len() + len })
}

/// The same with what is in brackets translated.
fn groups(text: &str, depth: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['\'', '"', '(', '[', '{']) {
        let literal = rest[at..].starts_with(['\'', '"']);
        let end = if literal { end_of_literal(rest, at) } else { end_of_group(rest, at) };
        let Some(end) = end.filter(|_| depth < DEPTH_MAX) else { break };
        if literal {
            out.push_str(&rest[..end]);
        } else {
            out.push_str(&rest[..=at]);
            out.push_str(&expression(&rest[at + 1..end - 1], depth + 1));
            out.push_str(&rest[end - 1..end]);
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn begins_operand(c: char) -> bool {
    in_word(c) || matches!(c, '\'' | '"' | '(' | '[' | '{')
}

/// Bytes of the operand at the beginning of `text`: a name, a number, a text or something in brackets, with what is asked of it.
fn operand(text: &str) -> Option<usize> {
    let word = |from: usize| {
        let rest = &text[from..];
        from + rest.find(|c: char| !in_word(c)).unwrap_or(rest.len())
    };
    let mut end = match text.as_bytes().first()? {
        b'(' | b'[' | b'{' => end_of_group(text, 0)?,
        b'\'' | b'"' => end_of_literal(text, 0)?,
        _ => word(0),
    };
    loop {
        let rest = &text[end..];
        let filter = rest.trim_start();
        end = match rest.as_bytes().first() {
            Some(b'.') => word(end + 1),
            Some(b'[' | b'(') => end_of_group(text, end)?,
            _ if filter.starts_with('|') => {
                let name = filter[1..].trim_start();
                word(text.len() - name.len())
            }
            _ => return Some(end),
        };
    }
}

/// Behind the group that a bracket opens at `at`.
fn end_of_group(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut end, mut depth) = (at, 0_usize);
    while end < bytes.len() {
        match bytes[end] {
            b'\'' | b'"' => {
                end = end_of_literal(text, end)?;
                continue;
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(end + 1);
                }
            }
            _ => {}
        }
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use super::super::{ChatTemplate, told};
    use super::translate;

    #[test]
    fn what_the_model_writes_is_marked_and_nothing_else_changes() {
        let template = "a\n{%- generation -%}\n b{% endgeneration %}\nc{% raw %}{% generation %}{% endraw %}{# {% generation %} #}{{ '{% generation %}' }}";
        let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
        assert_eq!(template.render(Vec::new(), UNIX_EPOCH).unwrap(), "abc{% generation %}{% generation %}");
    }

    #[test]
    fn python_s_percent_sign_is_a_filter() {
        for (code, expected) in [
            ("{{ '%s' % x }}", "{{ '%s'|modulo(x) }}"),
            ("{{'%s-%s'%(a, b)}}", "{{'%s-%s'|modulo((a, b))}}"),
            ("{{ 'a' + \"%d\" % (n) + 'b' }}", "{{ 'a' + \"%d\"|modulo((n)) + 'b' }}"),
            ("{% set x = '%s' % m['a'].b(1)|upper %}", "{% set x = '%s'|modulo(m['a'].b(1)|upper) %}"),
            ("{{ '%s' % ('%s' % y) }}", "{{ '%s'|modulo(('%s'|modulo(y))) }}"),
            (
                "{{ 5 % 3 }}{{ '%' }}{%- if a %}'%s' % x{% endif %}",
                "{{ 5 % 3 }}{{ '%' }}{%- if a %}'%s' % x{% endif %}",
            ),
            ("{{ {'a': {'b': '}}'}} }} '%s' % x", "{{ {'a': {'b': '}}'}} }} '%s' % x"),
            ("{{ 'it\\'s' }}{{ 'open", "{{ 'it\\'s' }}{{ 'open"),
            ("{{ format % x }}", "{{ format|modulo(x) }}"),
            (
                "{% if (a[i % 2] ~ b) % (c, d % e) == -f % g %}",
                "{% if (a[i|modulo(2)] ~ b)|modulo((c, d|modulo(e))) == -f|modulo(g) %}",
            ),
            // The filter would bind closer than these.
            (
                "{{ a * b % c }}{{ a % b ** c }}{{ a % b .c }}{{ a % b is odd }}",
                "{{ a * b % c }}{{ a % b ** c }}{{ a % b .c }}{{ a % b is odd }}",
            ),
            ("{{ a % b * c % d }}{{ a % b % c }}", "{{ a|modulo(b) * c % d }}{{ a|modulo(b)|modulo(c) }}"),
        ] {
            assert_eq!(translate(code), expected);
        }
    }

    /// What Jinja2 3.1 makes of the same.
    #[test]
    fn names_before_a_percent_sign_are_texts_or_numbers() {
        let made = |template: &str| {
            let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
            template.render(Vec::new(), UNIX_EPOCH).map_err(|error| told(&error))
        };
        for (template, expected) in [
            ("{% set f = '<%s>' %}{{ f % 'a' }}{{ f % 1 }}{{ (f ~ f) % ('b', 2) }}", "<a><1><b><2>"),
            ("{% set f = {'user': 'U: %s'} %}{{ f['user'] % 'x'|upper }}{{ f.user % ('y') }}", "U: XU: y"),
            ("{% set n = 7 %}{{ n % 4 }}{{ -n % 4 }}{{ n % -4 }}{{ 2 * n % 4 }}{{ n % 4 * 2 }}", "31-126"),
            ("{% for i in range(4) %}{{ i % 2 == 0 }}{% endfor %}", "TrueFalseTrueFalse"),
            ("{% set p = ('a', 'b') %}{{ '%s-%s' % p }}{{ '%s' % (p,) }}", "a-b('a', 'b')"),
            ("{{ '%s' % ['a'] }}{{ '%(a)s' % {'a': 1} }}", "['a']1"),
            ("{{ true % 2 }}{{ 7.5 % 2 }}{% set n = 7.5 %}{{ n % 2 }}", "11.51.5"),
        ] {
            assert_eq!(made(template).as_deref(), Ok(expected), "{template}");
        }
        assert!(made("{% set n = none %}{{ n % 2 }}").unwrap_err().contains('%'));
    }

    #[test]
    fn brackets_without_end_are_left() {
        for open in ["(", "[", "x % (", "'%s' % ("] {
            let deep = format!("{{{{ {} }}}}", open.repeat(1 << 18));
            assert_eq!(translate(&deep), deep);
            let closed = format!("{{{{ {}1{} }}}}", open.repeat(300), ")".repeat(300));
            assert!(ChatTemplate::new(&closed, BTreeMap::new()).is_err());
        }
    }

    #[test]
    fn whatever_is_said_is_left_or_translated() {
        for broken in [
            "{",
            "{{",
            "{%",
            "{#",
            "{{ '",
            "{% raw %}",
            "{{ '%s' % }}",
            "{{ '%s' % ( }}",
            "é{{ '%s' % é }}",
            "{{ '\\",
        ] {
            let _ = translate(broken);
        }
        assert_eq!(translate("{{ '%s' % é.ü }}ß"), "{{ '%s'|modulo(é.ü) }}ß");
    }
}
