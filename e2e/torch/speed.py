"""Tokens per second of forward, loss and backward of a plain Llama in PyTorch eager mode (f32): the twin of
worker/model/examples/train_speed.rs, with the same arguments.

speed.py [THREADS] [SECONDS] [HIDDEN LAYERS HEADS KV_HEADS FFN VOCAB SEQUENCE MICROBATCH]
"""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class Block(nn.Module):
    def __init__(self, hidden, heads, kv_heads, ffn):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads, hidden // heads
        self.norm1, self.norm2 = Norm(hidden), Norm(hidden)
        kv = kv_heads * self.width
        self.q, self.k, self.v = (nn.Linear(hidden, n, bias=False) for n in (hidden, kv, kv))
        self.o = nn.Linear(hidden, hidden, bias=False)
        self.gate, self.up = (nn.Linear(hidden, ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, length, hidden = x.shape
        y = self.norm1(x)
        q = self.q(y).view(batch, length, self.heads, self.width).transpose(1, 2)
        k = self.k(y).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        v = self.v(y).view(batch, length, self.kv_heads, self.width).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.heads != self.kv_heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, hidden))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    def __init__(self, hidden, layers, heads, kv_heads, ffn, vocab, length):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, kv_heads, ffn) for _ in range(layers))
        self.norm = Norm(hidden)
        self.head = nn.Linear(hidden, vocab, bias=False)
        width = hidden // heads
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(length), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def main():
    numbers = [int(v) for v in sys.argv[1:]]
    defaults = [1, 10, 256, 8, 4, 4, 768, 512, 256, 4]
    numbers += defaults[len(numbers) :]
    threads, seconds, hidden, layers, heads, kv_heads, ffn, vocab, length, microbatch = numbers
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = Llama(hidden, layers, heads, kv_heads, ffn, vocab, length)
    tokens = torch.randint(vocab, (microbatch, length))
    targets = torch.randint(vocab, (microbatch, length))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step():
        # Gradients are added up over microbatches, as in a step of many.
        loss = F.cross_entropy(model(tokens).view(-1, vocab), targets.view(-1))
        loss.backward()
        return loss

    loss, best = step().item(), float("inf")
    end, cpu, steps = time.monotonic() + seconds, time.process_time(), 0
    while time.monotonic() < end:
        started = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - started)
        steps += 1
    cpu = (time.process_time() - cpu) / steps
    out = {"threads": threads, "parameters": sum(p.numel() for p in model.parameters()), "loss": round(loss, 4)}
    out["tokens_per_second"] = round(microbatch * length / best, 1)
    out["tokens_per_cpu_second"] = round(microbatch * length / cpu, 1)
    out["torch"] = torch.__version__
    print(json.dumps(out))


if __name__ == "__main__":
    main()
