//! Takes out of a manifest what may be a key. Pure.

use serde_json::Value;

/// What stands in the place of what was taken out.
pub const GONE: &str = "(left out)";
/// Fields of metadata that tell nothing, or everything again.
const NOISE: &[&str] = &["managedFields"];
/// Annotations that hold the whole manifest.
const WHOLE: &[&str] = &["kubectl.kubernetes.io/last-applied-configuration"];
/// Environment whose values Dunlin gives itself.
const KNOWN: &[&str] = &["DUNLIN_", "RUST_LOG", "POD_", "NODE_NAME", "TMPDIR"];

/// `object` without values of environments, parts of URLs that may be keys, and what tells nothing.
#[must_use]
pub fn redact(object: &Value) -> Value {
    let mut object = object.clone();
    walk(&mut object);
    object
}

fn walk(value: &mut Value) {
    match value {
        Value::String(text) => *text = url(text),
        Value::Array(list) => list.iter_mut().for_each(walk),
        Value::Object(fields) => {
            NOISE.iter().for_each(|noise| drop(fields.remove(*noise)));
            if let Some(Value::Object(annotations)) = fields.get_mut("annotations") {
                WHOLE.iter().for_each(|whole| drop(annotations.remove(*whole)));
            }
            for (key, value) in fields.iter_mut() {
                match (key.as_str(), value) {
                    ("env", Value::Array(list)) => list.iter_mut().for_each(environment),
                    (_, value) => walk(value),
                }
            }
        }
        _ => {}
    }
}

fn environment(variable: &mut Value) {
    let name = variable["name"].as_str().unwrap_or_default();
    let known = KNOWN.iter().any(|known| name.starts_with(known));
    if let (Some(value), false) = (variable.get_mut("value"), known) {
        *value = Value::String(GONE.to_owned());
    }
}

/// `text` in which no URL has a user, a password or a query.
#[must_use]
pub fn url(text: &str) -> String {
    let (mut clean, mut rest) = (String::with_capacity(text.len()), text);
    // A text may have several, and may be JSON.
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '\\');
    while let Some(scheme) = rest.find("://") {
        let (before, from_host) = rest.split_at(scheme + 3);
        let (one, after) = from_host.split_at(from_host.find(ends).unwrap_or(from_host.len()));
        let (place, query) = one.split_at(one.find(['?', '#']).unwrap_or(one.len()));
        // An @ of a path goes, too: what is before it may be the key of another URL inside of this one.
        let place = place.rfind('@').map_or_else(|| place.to_owned(), |at| format!("{GONE}{}", &place[at..]));
        let query = if query.is_empty() { String::new() } else { format!("?{GONE}") };
        clean.extend([before, &place, &query]);
        rest = after;
    }
    clean + rest
}

/// The same for each line of `text`.
#[must_use]
pub fn lines(text: &str) -> String {
    text.lines().map(url).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_that_may_be_a_key_is_left() {
        let pod = json!({
            "metadata": {"name": "p", "managedFields": [{"manager": "x"}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{secret}", "a": "b"}},
            "spec": {"containers": [{
                "args": ["--model-url", "https://user:pass@models/m.gguf?X-Amz-Signature=abc", "--threads", "2"],
                "env": [{"name": "HTTPS_PROXY", "value": "http://u:p@proxy"}, {"name": "RUST_LOG", "value": "info"},
                        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            }]},
        });
        let clean = redact(&pod);
        let text = clean.to_string();
        for secret in ["pass", "abc", "u:p", "{secret}", "manager"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let container = &clean["spec"]["containers"][0];
        assert_eq!(container["args"][1], "https://(left out)@models/m.gguf?(left out)");
        assert_eq!(container["env"][1]["value"], "info");
        assert_eq!(container["env"][2]["valueFrom"]["secretKeyRef"]["name"], "s", "names are no secrets");
    }

    #[test]
    fn urls_inside_of_text_are_cleaned_and_the_rest_is_left() {
        assert_eq!(
            url("cannot read http://a:b@h/x?y=z: 404, nor s3://bucket/p"),
            "cannot read http://(left out)@h/x?(left out) 404, nor s3://bucket/p"
        );
        assert_eq!(url("http://h:8080/v1"), "http://h:8080/v1");
        assert_eq!(url("no URL @ all?"), "no URL @ all?");
        assert_eq!(
            lines("one\nhttp://h/m.gguf?key=a: HTTP 403\n"),
            "one\nhttp://h/m.gguf?(left out) HTTP 403"
        );
    }
}
