//! Chat templates: Jinja as Hugging Face renders it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};

/// Instructions a template may take; a real one takes some thousands.
const FUEL: u64 = 2_000_000;
/// Longest template.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// Used when a model has none: ChatML.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A template, checked.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Takes a model's template, or ChatML when it has none.
    ///
    /// # Errors
    /// When it cannot be parsed.
    pub fn new(source: Option<&str>, bos: Option<String>, eos: Option<String>) -> Result<Self, Error> {
        let source = source.unwrap_or(CHATML);
        if source.len() > TEMPLATE_BYTES_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "the template is too long"));
        }
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", source.to_owned())?;
        environment.set_fuel(Some(FUEL));
        Ok(Self { environment, bos: bos.unwrap_or_default(), eos: eos.unwrap_or_default() })
    }

    /// The prompt for `messages` (role and content each), ready for the assistant's answer.
    ///
    /// # Errors
    /// When the template refuses them, in its own words.
    pub fn render(&self, messages: &[serde_json::Value]) -> Result<String, Error> {
        self.environment.get_template("chat")?.render(context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::ChatTemplate;

    fn render(template: Option<&str>, messages: &[Value]) -> Result<String, String> {
        let template = ChatTemplate::new(template, Some("<s>".into()), Some("</s>".into())).unwrap();
        template.render(messages).map_err(|e| format!("{e:#}"))
    }

    fn talk() -> Vec<Value> {
        vec![json!({"role": "system", "content": "Be brief."}), json!({"role": "user", "content": " Hi "})]
    }

    #[test]
    fn chatml_is_the_default() {
        let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(None, &talk()).unwrap(), want);
    }

    #[test]
    fn a_default_system_message_as_smollm_has_it() {
        let template = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelpful.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}";
        let got = render(Some(template), &talk()[1..]).unwrap();
        assert_eq!(got, "<|im_start|>system\nHelpful.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n");
    }

    #[test]
    fn python_methods_and_headers_as_llama_3_has_them() {
        let template = "{{ bos_token }}{% for m in messages %}\n    {%- set head = '<|h|>' + m.role + '<|/h|>\n\n' %}\n    {{- head + m['content'].strip() + '<|eot|>' }}\n{%- endfor %}{% if add_generation_prompt %}<|h|>assistant<|/h|>{% endif %}";
        let got = render(Some(template), &talk()).unwrap();
        assert_eq!(
            got,
            "<s><|h|>system<|/h|>\n\nBe brief.<|eot|><|h|>user<|/h|>\n\nHi<|eot|><|h|>assistant<|/h|>"
        );
    }

    #[test]
    fn a_template_may_refuse_as_mistral_s_does() {
        let template = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must begin with user') }}{% endif %}[INST] {{ messages[0].content }} [/INST]{{ eos_token }}";
        assert!(render(Some(template), &talk()).unwrap_err().contains("roles must begin with user"));
        assert_eq!(render(Some(template), &talk()[1..]).unwrap(), "[INST]  Hi  [/INST]</s>");
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
        assert!(render(Some(endless), &talk()).is_err());
    }
}
