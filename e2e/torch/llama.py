"""A Llama in plain PyTorch, as Hugging Face's weights have it: RMSNorm, rotary halves, grouped heads, SwiGLU. Also Qwen2 (biases of q, k, v).

Weights have Hugging Face's names, so `load` takes any folder of safetensors.
"""

import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional


class Shape:
    """The numbers of Hugging Face's config.json, or of `model.config` of a training configuration."""

    def __init__(self, hidden, layers, heads, kv_heads, head_dim, ffn, vocab, rope_base, rms_eps, tied, qkv_bias):
        self.hidden, self.layers, self.heads, self.kv_heads, self.head_dim = hidden, layers, heads, kv_heads, head_dim
        self.ffn, self.vocab, self.rope_base, self.rms_eps, self.tied = ffn, vocab, rope_base, rms_eps, tied
        self.qkv_bias = qkv_bias

    @staticmethod
    def of_training(config, tokens):
        """Of `model.config`, for a tokenizer of `tokens` tokens."""
        heads = config["heads"]
        return Shape(
            config["hiddenSize"], config["layers"], heads, config.get("kvHeads") or heads,
            config.get("headDim") or config["hiddenSize"] // heads, config["ffn"], config.get("vocab") or tokens,
            config.get("ropeBase", 10000.0), config.get("rmsEps", 1e-5), config.get("tied", False),
            config.get("architecture", "llama") == "qwen2",
        )

    @staticmethod
    def of_folder(folder):
        """Of a folder's config.json."""
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise SystemExit(f"{folder}: rope scaling is not known here")
        heads = config["num_attention_heads"]
        return Shape(
            config["hidden_size"], config["num_hidden_layers"], heads, config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads, config["intermediate_size"], config["vocab_size"],
            config.get("rope_theta") or rope.get("rope_theta", 10000.0), config["rms_norm_eps"], config.get("tie_word_embeddings", False),
            config["model_type"] == "qwen2",
        )


class RmsNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotated(x, cos, sin):
    """x [batch, heads, length, head_dim]; the halves of a head are the two coordinates."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, q, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(q, shape.hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        heads = lambda y: y.view(batch, length, -1, self.shape.head_dim).transpose(1, 2)
        q = rotated(heads(self.q_proj(x)), cos, sin)
        k, v = rotated(heads(self.k_proj(x)), cos, sin), heads(self.v_proj(x))
        groups = self.shape.heads // self.shape.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden, shape.rms_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.rms_eps)
        self.mlp = Mlp(shape)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.rms_eps)


class Llama(nn.Module):
    """Tokens [batch, length] to logits [batch, length, vocab]."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.model = shape, Decoder(shape)
        self.lm_head = None if shape.tied else nn.Linear(shape.hidden, shape.vocab, bias=False)

    def forward(self, tokens):
        half = self.shape.head_dim // 2
        frequencies = self.shape.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(tokens.shape[1], dtype=torch.float64)[:, None] * frequencies
        weight = self.model.embed_tokens.weight
        cos, sin = angles.cos().to(weight), angles.sin().to(weight)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x)
        return functional.linear(x, weight) if self.lm_head is None else self.lm_head(x)

    def loss(self, tokens, targets, reduction="sum"):
        """Sum of the losses of all tokens, in nats."""
        return functional.cross_entropy(self(tokens).flatten(0, 1).float(), targets.flatten(), reduction=reduction)

    def load(self, folder):
        """Weights of a folder of safetensors; files of an optimizer beside them are passed over."""
        weights = {}
        for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
            if not file.name.startswith("optimizer-"):
                weights |= load_file(file)
        self.load_state_dict({name: weight.float() for name, weight in weights.items()})

    def save(self, file):
        """All weights as one file of safetensors."""
        save_file({name: weight.detach().contiguous() for name, weight in self.state_dict().items()}, file)
