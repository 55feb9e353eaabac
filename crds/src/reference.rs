//! A reference for readers, in Markdown, from a CustomResourceDefinition: every field with its type, default and limits, the rules with
//! their messages, printer columns and status.

use std::fmt::Write;

use serde_json::Value;

/// Types of Kubernetes itself: named, with a link, instead of described. (path, words)
const KUBERNETES: &[(&str, &str)] = &[(
    "status.conditions",
    "list of [Condition](https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.33/#condition-v1-meta)",
)];

/// One field.
#[derive(Default)]
struct Field {
    path: String,
    kind: String,
    default: String,
    limits: String,
    description: String,
}

/// A CEL rule.
struct Rule {
    path: String,
    rule: String,
    message: String,
}

/// The Markdown for a CustomResourceDefinition with one version.
#[must_use]
pub fn markdown(crd: &Value) -> String {
    let spec = &crd["spec"];
    let version = &spec["versions"][0];
    let root = &version["schema"]["openAPIV3Schema"];
    let schema = &root["properties"];
    let (names, text) = (&spec["names"], |value: &Value| value.as_str().unwrap_or_default().to_owned());
    let list = |value: &Value| {
        let items = value.as_array().into_iter().flatten().map(text);
        items.map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ")
    };
    let mut rules = rules_of(&text(&names["kind"]), root);
    let mut wanted = Vec::new();
    fields("spec", &schema["spec"], &mut wanted, &mut rules);
    let mut found = Vec::new();
    fields("status", &schema["status"], &mut found, &mut rules);

    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |words: String| {
        let _ = writeln!(out, "{words}");
    };
    line(format!("# {}\n", text(&names["kind"])));
    line("<!-- Made from the types in crds/ by `make crds`; edits here are lost. -->\n".into());
    line(format!("{}\n", text(&schema["spec"]["description"])));
    line(format!("- apiVersion: `{}/{}`", text(&spec["group"]), text(&version["name"])));
    line(format!("- kind: `{}`, {}", text(&names["kind"]), text(&spec["scope"]).to_lowercase()));
    line(format!("- kubectl: `{}`, short {}", text(&names["plural"]), list(&names["shortNames"])));
    line(format!("- categories: {}", list(&names["categories"])));
    if let Some(scale) = version["subresources"].get("scale") {
        line(format!(
            "- `/scale`: sets `{}`, reads `{}`",
            text(&scale["specReplicasPath"]).trim_start_matches('.'),
            text(&scale["statusReplicasPath"]).trim_start_matches('.')
        ));
    }
    line("\nA list is written `[]`, the keys of a map `<key>`. Fields without default that are not required may be left out.".into());
    line("\n## Spec\n".into());
    line(table(&["field", "type", "default", "limits", "description"], &wanted));
    line("## Rules\n\nThe API server refuses an object that breaks one of these:\n".into());
    for Rule { path, rule, message } in &rules {
        line(format!("- {message} (`{path}`: `{rule}`)"));
    }
    line("\n## Status\n\nWritten by the operator alone.\n".into());
    line(table(&["field", "type", "limits", "description"], &found));
    line("## Columns of `kubectl get`\n\n| column | shows | only with `-o wide` |\n|---|---|---|".into());
    for column in version["additionalPrinterColumns"].as_array().into_iter().flatten() {
        let wide = if column["priority"].as_i64().unwrap_or(0) > 0 { "yes" } else { "" };
        let path = text(&column["jsonPath"]);
        line(format!("| {} | `{}` | {wide} |", text(&column["name"]), path.trim_start_matches('.')));
    }
    out
}

/// The rules of `node` itself.
fn rules_of(path: &str, node: &Value) -> Vec<Rule> {
    let rule = |rule: &Value| {
        let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        Rule { path: path.to_owned(), rule: text("rule"), message: text("message") }
    };
    node["x-kubernetes-validations"].as_array().into_iter().flatten().map(rule).collect()
}

/// `node` and everything below, in the order of the schema.
fn fields(path: &str, node: &Value, out: &mut Vec<Field>, rules: &mut Vec<Rule>) {
    rules.extend(rules_of(path, node));
    let required: Vec<&str> =
        node["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        let here = format!("{path}.{name}");
        let foreign = KUBERNETES.iter().find(|(path, _)| *path == here);
        out.push(Field {
            path: here.clone(),
            kind: foreign.map_or_else(|| kind(field), |(_, words)| (*words).to_owned()),
            default: if required.contains(&name.as_str()) { "required".into() } else { default(field) },
            limits: limits(field),
            description: one_line(field["description"].as_str().unwrap_or_default()),
        });
        if foreign.is_some() {
            continue;
        }
        fields(&here, field, out, rules);
        if field["items"].is_object() {
            fields(&format!("{here}[]"), &field["items"], out, rules);
        }
        if field["additionalProperties"].is_object() {
            fields(&format!("{here}.<key>"), &field["additionalProperties"], out, rules);
        }
    }
}

fn kind(node: &Value) -> String {
    if node["x-kubernetes-int-or-string"] == true {
        return "quantity".to_owned();
    }
    if node["x-kubernetes-preserve-unknown-fields"] == true {
        return "object of Kubernetes".to_owned();
    }
    let plain = node["type"].as_str().unwrap_or("any");
    match plain {
        "array" => format!("list of {}", kind(&node["items"])),
        "object" if node["additionalProperties"].is_object() => {
            format!("map of {}", kind(&node["additionalProperties"]))
        }
        other => other.to_owned(),
    }
}

/// Defaults of objects follow from those of their fields.
fn default(node: &Value) -> String {
    match &node["default"] {
        Value::Null | Value::Object(_) => String::new(),
        value => format!("`{}`", plain(value)),
    }
}

fn limits(node: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(values) = node["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|v| format!("`{}`", plain(v))).collect();
        parts.push(values.join(" or "));
    }
    for (least, most, unit) in [
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " entries"),
    ] {
        let bound = |key: &str| node.get(key).map(plain);
        match (bound(least), bound(most)) {
            (Some(least), Some(most)) => parts.push(format!("{least} to {most}{unit}")),
            (Some(least), None) => parts.push(format!("at least {least}{unit}")),
            (None, Some(most)) => parts.push(format!("at most {most}{unit}")),
            (None, None) => {}
        }
    }
    parts.extend(node["pattern"].as_str().map(|pattern| format!("`{pattern}`")));
    let inner = limits_of_entries(node);
    parts.extend((!inner.is_empty()).then(|| format!("each {inner}")));
    parts.join(", ")
}

/// Entries that are no objects have no line of their own.
fn limits_of_entries(node: &Value) -> String {
    let inner = ["items", "additionalProperties"].into_iter().map(|key| &node[key]).find(|n| n.is_object());
    inner.filter(|n| !n["properties"].is_object()).map(limits).unwrap_or_default()
}

/// A value without quotes, whole numbers without a fraction.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(whole) if whole.fract() == 0.0 => format!("{whole:.0}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn table(columns: &[&str], fields: &[Field]) -> String {
    let mut out =
        format!("| {} |\n|{}\n", columns.join(" | "), columns.iter().map(|_| "---|").collect::<String>());
    for field in fields {
        let cells = columns.iter().map(|column| match *column {
            "field" => format!("`{}`", field.path),
            "type" => field.kind.clone(),
            "default" => field.default.clone(),
            "limits" => field.limits.clone(),
            _ => field.description.clone(),
        });
        // A bar ends a cell, even inside of code.
        let cells: Vec<String> = cells.map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_limits_defaults_and_rules_are_told() {
        let rule = json!([{"rule": "self.a || self.b", "message": "a or b"}]);
        let crd = json!({"spec": {
            "names": {"kind": "Thing"},
            "versions": [{
                "additionalPrinterColumns": [{"name": "A", "jsonPath": ".spec.a", "priority": 1}],
                "schema": {"openAPIV3Schema": {"x-kubernetes-validations": rule, "properties": {"spec": {
                    "properties": {
                        "a": {"type": "integer", "minimum": 1.0, "maximum": 64.0, "default": 2},
                        "list": {
                            "type": "array",
                            "maxItems": 8,
                            "items": {
                                "type": "object",
                                "required": ["s"],
                                "properties": {"s": {"type": "string", "pattern": "^(x|y)$"}},
                                "x-kubernetes-validations": rule,
                            },
                        },
                        "map": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
                    },
                }}}},
            }],
        }});
        let text = markdown(&crd);
        for line in [
            "| `spec.a` | integer | `2` | 1 to 64 |  |",
            "| `spec.list` | list of object |  | at most 8 items |  |",
            r"| `spec.list[].s` | string | required | `^(x\|y)$` |  |",
            "| `spec.map` | map of string |  | each at most 63 characters |  |",
            "- a or b (`Thing`: `self.a || self.b`)",
            "- a or b (`spec.list[]`: `self.a || self.b`)",
            "| A | `spec.a` | yes |",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
