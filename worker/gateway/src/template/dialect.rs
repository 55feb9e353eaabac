//! What templates of Hugging Face's models say and Minijinja does not know, in its words: the tag `generation`, which marks what the model
//! writes and changes nothing in a prompt, and Python's `'...' % values`, which is the filter `format`.

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
            _ => out.push_str(&expression(code)),
        }
    }
    out.push_str(rest);
    out
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

/// An expression in which `'...' % values` has become a filter.
fn expression(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut at = 0;
    while let Some(quote) = code[at..].find(['\'', '"']).map(|i| at + i) {
        let Some(end) = end_of_literal(code, quote) else { break };
        out.push_str(&code[at..end]);
        at = end;
        let behind = code[end..].trim_start();
        if let Some(operand) = behind.strip_prefix('%') {
            let operand = operand.trim_start();
            if let Some(Operand { arguments, len }) = operand_of(operand) {
                out.push_str(&format!("|format({})", expression(arguments)));
                at = code.len() - operand.len() + len;
            }
        }
    }
    out.push_str(&code[at..]);
    out
}

/// What `%` is applied to.
struct Operand<'a> {
    /// As arguments of a call.
    arguments: &'a str,
    /// Bytes that it takes.
    len: usize,
}

/// The operand at the beginning of `text`: a name, a number, a text or something in parentheses, with what is asked of it.
fn operand_of(text: &str) -> Option<Operand<'_>> {
    let word = |from: usize| {
        let rest = &text[from..];
        from + rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
    };
    let first = match text.as_bytes().first()? {
        b'(' => end_of_group(text, 0)?,
        b'\'' | b'"' => end_of_literal(text, 0)?,
        _ => word(0),
    };
    let mut end = first;
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
            _ => break,
        };
    }
    let grouped = text.starts_with('(') && end == first;
    let arguments = if grouped { &text[1..end - 1] } else { &text[..end] };
    (end > 0).then_some(Operand { arguments, len: end })
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

    use super::super::ChatTemplate;
    use super::translate;

    #[test]
    fn what_the_model_writes_is_marked_and_nothing_else_changes() {
        let template = "a\n{%- generation -%}\n b{% endgeneration %}\nc{% raw %}{% generation %}{% endraw %}{# {% generation %} #}{{ '{% generation %}' }}";
        let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
        assert_eq!(template.render(Vec::new(), UNIX_EPOCH).unwrap(), "abc{% generation %}{% generation %}");
    }

    #[test]
    fn python_s_formats_are_a_filter() {
        for (code, expected) in [
            ("{{ '%s' % x }}", "{{ '%s'|format(x) }}"),
            ("{{'%s-%s'%(a, b)}}", "{{'%s-%s'|format(a, b)}}"),
            ("{{ 'a' + \"%d\" % (n) + 'b' }}", "{{ 'a' + \"%d\"|format(n) + 'b' }}"),
            ("{% set x = '%s' % m['a'].b(1)|upper %}", "{% set x = '%s'|format(m['a'].b(1)|upper) %}"),
            ("{{ '%s' % ('%s' % y) }}", "{{ '%s'|format('%s'|format(y)) }}"),
            (
                "{{ 5 % 3 }}{{ '%' }}{%- if a %}'%s' % x{% endif %}",
                "{{ 5 % 3 }}{{ '%' }}{%- if a %}'%s' % x{% endif %}",
            ),
            ("{{ {'a': {'b': '}}'}} }} '%s' % x", "{{ {'a': {'b': '}}'}} }} '%s' % x"),
            ("{{ 'it\\'s' }}{{ 'open", "{{ 'it\\'s' }}{{ 'open"),
        ] {
            assert_eq!(translate(code), expected);
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
        assert_eq!(translate("{{ '%s' % é.ü }}ß"), "{{ '%s'|format(é.ü) }}ß");
    }
}
