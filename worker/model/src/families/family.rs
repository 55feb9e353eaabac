//! What is particular to a family: what its files call things, and what of its blocks is not as in a Llama.

use std::collections::BTreeMap;

use dunlin_kernels::RopeLayout;

use crate::config::ModelConfig;
use crate::config::gguf_values::{Keys, RopeTensors};
use crate::config::json_section::Section;
use crate::error::ModelError;
use crate::gguf::GgufTensor;
use crate::spec::{Activation, Projection, Rotary, TensorRole};

/// Whose names and layouts a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Gguf,
    HuggingFace,
}

/// Names in both forms: Hugging Face's and GGUF's.
pub(crate) type InBoth = [&'static str; 2];

/// Several matrices of the same inputs that are one tensor in a file, one after the other.
pub(crate) struct Fused {
    pub(crate) parts: &'static [Projection],
    pub(crate) names: InBoth,
}

impl Fused {
    /// The module that it is in Hugging Face's models.
    pub(crate) fn module(&self) -> &'static str {
        let [name, _] = self.names;
        name.trim_end_matches(".weight")
    }
}

/// What transformers takes where config.json has no such key.
pub(crate) struct Defaults {
    pub(crate) positions: usize,
    /// As many as query heads when none.
    pub(crate) kv_heads: Option<usize>,
    /// `hidden_size / num_attention_heads` when none.
    pub(crate) head_dim: Option<usize>,
    pub(crate) rms_eps: f64,
}

/// Models that are read alike.
pub(crate) struct Family {
    /// What people call it.
    pub(crate) title: &'static str,
    /// What config.json calls its `model_type`, and messages call it.
    pub(crate) name: &'static str,
    /// What `architectures` calls it.
    pub(crate) class: &'static str,
    /// What GGUF files call it, if they do not take it for another one.
    pub(crate) gguf_name: Option<&'static str>,
    pub(crate) defaults: Defaults,
    /// Keys of config.json that it reads beside those of all.
    pub(crate) json_keys: &'static [&'static str],
    /// Keys of GGUF files that it reads beside those of all.
    pub(crate) gguf_keys: &'static [&'static str],
    pub(crate) activation: Activation,
    /// What config.json calls the activation beside its usual names.
    pub(crate) activation_names: &'static [&'static str],
    /// Which values of a head turn as a pair in GGUF files.
    pub(crate) gguf_layout: RopeLayout,
    /// Tensors of GGUF files that say how frequencies are stretched.
    pub(crate) rope_tensors: &'static [&'static str],
    /// Tensors of a block that have other names than a Llama's.
    pub(crate) names: &'static [(TensorRole, InBoth)],
    pub(crate) fused: &'static [Fused],
    /// Why its models are not trained, if not for their blocks.
    pub(crate) untrained: Option<&'static str>,
    /// What config.json says of the rotary embedding; of a model of so many positions.
    pub(crate) rotary: fn(&Section<'_>, usize) -> Result<Rotary, ModelError>,
    /// What config.json says beyond that, put into a model that is a Llama so far.
    pub(crate) json: fn(&Section<'_>, &mut ModelConfig) -> Result<(), ModelError>,
    /// The same of a GGUF file.
    pub(crate) gguf: fn(&Keys<'_>, &Beside<'_>, &mut ModelConfig) -> Result<(), ModelError>,
}

/// What stands in a GGUF file beside its keys.
pub(crate) struct Beside<'a> {
    pub(crate) tensors: &'a BTreeMap<String, GgufTensor>,
    pub(crate) rope: &'a RopeTensors,
}

impl Family {
    /// The name of a tensor of a block.
    pub(crate) fn tensor(&self, role: TensorRole, form: Form) -> &'static str {
        let own = self.names.iter().find(|(own, _)| *own == role);
        of(own.map_or_else(|| llama(role), |(_, names)| *names), form)
    }
}

/// The name in one of both forms.
pub(crate) fn of(names: InBoth, form: Form) -> &'static str {
    let [hugging_face, gguf] = names;
    match form {
        Form::HuggingFace => hugging_face,
        Form::Gguf => gguf,
    }
}

fn llama(role: TensorRole) -> InBoth {
    match role {
        TensorRole::AttentionNorm => ["input_layernorm.weight", "attn_norm.weight"],
        TensorRole::Matrix(Projection::Query) => ["self_attn.q_proj.weight", "attn_q.weight"],
        TensorRole::Matrix(Projection::Key) => ["self_attn.k_proj.weight", "attn_k.weight"],
        TensorRole::Matrix(Projection::Value) => ["self_attn.v_proj.weight", "attn_v.weight"],
        TensorRole::Matrix(Projection::Output) => ["self_attn.o_proj.weight", "attn_output.weight"],
        TensorRole::Matrix(Projection::Gate) => ["mlp.gate_proj.weight", "ffn_gate.weight"],
        TensorRole::Matrix(Projection::Up) => ["mlp.up_proj.weight", "ffn_up.weight"],
        TensorRole::Matrix(Projection::Down) => ["mlp.down_proj.weight", "ffn_down.weight"],
        TensorRole::Bias(Projection::Query) => ["self_attn.q_proj.bias", "attn_q.bias"],
        TensorRole::Bias(Projection::Key) => ["self_attn.k_proj.bias", "attn_k.bias"],
        TensorRole::Bias(Projection::Value) => ["self_attn.v_proj.bias", "attn_v.bias"],
        TensorRole::Bias(Projection::Output) => ["self_attn.o_proj.bias", "attn_output.bias"],
        TensorRole::Bias(Projection::Gate) => ["mlp.gate_proj.bias", "ffn_gate.bias"],
        TensorRole::Bias(Projection::Up) => ["mlp.up_proj.bias", "ffn_up.bias"],
        TensorRole::Bias(Projection::Down) => ["mlp.down_proj.bias", "ffn_down.bias"],
        TensorRole::QueryNorm => ["self_attn.q_norm.weight", "attn_q_norm.weight"],
        TensorRole::KeyNorm => ["self_attn.k_norm.weight", "attn_k_norm.weight"],
        TensorRole::MlpNorm => ["post_attention_layernorm.weight", "ffn_norm.weight"],
        // As Gemma's.
        TensorRole::AttentionPostNorm => ["post_attention_layernorm.weight", "post_attention_norm.weight"],
        TensorRole::MlpPostNorm => ["post_feedforward_layernorm.weight", "post_ffw_norm.weight"],
    }
}
