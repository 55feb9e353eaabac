//! Chat templates: Jinja as transformers renders it.
//!
//! [`dialect`] what Minijinja does not know, said in its words · [`json`] `tojson` · [`text`] filters and methods of text

mod dialect;
mod json;
mod text;

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
/// A message of a chat: a map of `role`, `content` and what else a template knows.
pub use minijinja::value::Value as Message;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

/// Instructions a template may take; a real one takes some thousands.
const FUEL: u64 = 2_000_000;
/// Longest template.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// A template, checked.
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Takes a model's template. `names`: special tokens, as it names them (`bos_token`, ...).
    ///
    /// # Errors
    /// When it cannot be parsed.
    pub fn new(source: &str, names: BTreeMap<String, String>) -> Result<Self, Error> {
        if source.len() > TEMPLATE_BYTES_MAX {
            let what = format!("it has {} bytes, more than {TEMPLATE_BYTES_MAX}", source.len());
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        minijinja_contrib::add_to_environment(&mut environment);
        environment.set_unknown_method_callback(text::method);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter("indent", text::indent);
        environment.add_filter("trim", text::trim);
        environment.add_filter("modulo", dialect::modulo);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", dialect::translate(source))?;
        environment.set_fuel(Some(FUEL));
        Ok(Self { environment, names })
    }

    /// The prompt for `messages` (objects with role and content), ready for the assistant's answer. `now` is what a template may ask for, in UTC:
    /// all gateways of a swarm say the same.
    ///
    /// # Errors
    /// When the template refuses them, in its own words.
    pub fn render(&self, messages: Vec<Message>, now: SystemTime) -> Result<String, Error> {
        let now = Timestamp::try_from(now).unwrap_or_default();
        let date = Value::from_function(move |format: String| text::date(now, &format));
        let names = self.names.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let given = [
            ("messages", Value::from(messages)),
            // As transformers has it: they are there, and nothing.
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(true)),
            ("strftime_now", date),
        ];
        self.environment.get_template("chat")?.render(Value::from_pairs(names.chain(given)))
    }
}

/// What a template said in an error, and what it was about.
#[must_use]
pub fn told(error: &Error) -> String {
    let mut told = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        told.push_str(": ");
        told.push_str(&error.to_string());
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;

    fn render(template: &str, messages: &serde_json::Value) -> Result<String, String> {
        let names = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let names = names.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let messages: Vec<Value> = serde_json::from_str(&messages.to_string()).unwrap();
        // 26 July 2024, 15:04:05.
        let now = UNIX_EPOCH + Duration::from_secs(1_722_006_245);
        ChatTemplate::new(template, names).unwrap().render(messages, now).map_err(|e| told(&e))
    }

    fn talk() -> serde_json::Value {
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}])
    }

    fn user() -> serde_json::Value {
        json!([{"role": "user", "content": " Hi "}])
    }

    /// What a template without messages makes.
    fn plain(template: &str) -> String {
        render(template, &json!([])).unwrap()
    }

    #[test]
    fn a_default_system_message_as_smollm_has_it() {
        let template = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelpful.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";
        let got = render(template, &user()).unwrap();
        assert_eq!(got, "<|im_start|>system\nHelpful.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n");
    }

    #[test]
    fn python_methods_and_headers_as_llama_3_has_them() {
        let template = "{{ bos_token }}{% for m in messages %}\n    {%- set head = '<|h|>' + m.role + '<|/h|>\n\n' %}\n    {{- head + m['content'].strip() + '<|eot|>' }}\n{%- endfor %}{% if add_generation_prompt %}<|h|>assistant<|/h|>{% endif %}";
        let got = render(template, &talk()).unwrap();
        assert_eq!(
            got,
            "<s><|h|>system<|/h|>\n\nBe brief.<|eot|><|h|>user<|/h|>\n\nHi<|eot|><|h|>assistant<|/h|>"
        );
    }

    #[test]
    fn a_template_may_refuse_as_mistral_s_does() {
        let template = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must begin with user') }}{% endif %}[INST] {{ messages[0].content }} [/INST]{{ eos_token }}";
        let refused = render(template, &talk()).unwrap_err();
        assert!(refused.contains("roles must begin with user") && !refused.contains('\n'), "{refused}");
        assert_eq!(render(template, &user()).unwrap(), "[INST]  Hi  [/INST]</s>");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
        assert!(render(endless, &talk()).is_err());
        let wide = "{% for i in range(999) %}{{ 'a\nb'|indent(99999) }}{% endfor %}";
        assert!(render(wide, &talk()).is_err());
    }

    #[test]
    fn the_date_is_what_python_says_and_may_be_guarded() {
        let guarded =
            "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2020{% endif %}";
        assert_eq!(plain(guarded), "26 Jul 2024");
        let date = |format: &str| plain(&format!("{{{{ strftime_now('{format}') }}}}"));
        assert_eq!(date("%A, %B %-d, %Y"), "Friday, July 26, 2024");
        assert_eq!(
            date("%c|%x|%X|%f|%Z|%%|%I:%M %p"),
            "Fri Jul 26 15:04:05 2024|07/26/24|15:04:05|000000||%|03:04 PM"
        );
    }

    #[test]
    fn what_transformers_gives_to_every_template_is_there() {
        assert_eq!(
            plain("{{ tools is defined }} {{ tools is none }} {{ documents is none }}"),
            "True True True"
        );
        assert_eq!(plain("{{ pad_token is defined }}"), "False");
    }

    #[test]
    fn a_message_keeps_the_order_of_its_keys() {
        let messages: Vec<Value> =
            serde_json::from_str(r#"[{"role": "user", "content": "a", "b": {"z": 1, "a": 2.0}}]"#).unwrap();
        let template =
            ChatTemplate::new("{{ messages[0] }}{{ messages[0]|tojson }}", BTreeMap::new()).unwrap();
        assert_eq!(
            template.render(messages, UNIX_EPOCH).unwrap(),
            "{'role': 'user', 'content': 'a', 'b': {'z': 1, 'a': 2.0}}{\"role\": \"user\", \"content\": \"a\", \"b\": {\"z\": 1, \"a\": 2.0}}"
        );
    }
}
