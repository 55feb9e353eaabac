#!/usr/bin/env python3
"""Trains what a training configuration says in one process of PyTorch: the curve that a TrainingSwarm must follow.

    $(e2e/torch/setup.sh) e2e/torch/train.py --config FILE --init FOLDER [--steps N] [--save FILE]
    ... train.py --check-order worker/train/src/data/order.json --check-data worker/train/src/data/batches.json

The same configuration file (JSON), the same sequences in the same order, the same first weights, the same updates. Prints a JSON object a line:
{"data": digest, ...}, then {"step", "loss"} per step (mean loss of a token before the update, nats), {"step", "validation"} when the
configuration says so, and {"validation"} in the end. `wire` is left aside: nothing travels here.
"""

import argparse
import hashlib
import json
import math
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch

from llama import Llama, Shape

MASK = (1 << 64) - 1
PIECE = 1 << 20


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def sequence_at(seed, count, position):
    """As `Order::sequence` of worker/train/src/data/order.rs."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    epoch, at = divmod(position, count)
    key = mix(seed ^ mix((epoch + 0x9E3779B97F4A7C15) & MASK))
    while True:
        left, right = at >> half, at & mask
        for step in range(6):
            left, right = right, left ^ (mix(key ^ mix((step << 32) ^ right)) & mask)
        at = (left << half) | right
        if at < count:
            return at


def check_order(file):
    """Fails when the order is not that of the fixture that Rust's tests read, too."""
    for case in json.loads(pathlib.Path(file).read_text()):
        found = [sequence_at(case["seed"], case["count"], case["from"] + i) for i in range(16)]
        if found != case["sequences"]:
            raise SystemExit(f"the order differs: {found} instead of {case}")
    print("the order is that of the fixture")


def check_data(file):
    """Fails when digest or batches are not those of the fixture that Rust's tests read, too."""
    fixture = json.loads(pathlib.Path(file).read_text())
    with tempfile.NamedTemporaryFile() as text:
        pathlib.Path(text.name).write_text(fixture["text"])
        fixture["config"]["data"] |= {"text": {"path": text.name}}
        found = described(Data(fixture["config"]))
    if found != fixture["expected"]:
        raise SystemExit(f"the data differs: {json.dumps(found)}")
    print("the data is that of the fixture")


def described(data):
    """Digest, the targets of the first microbatches of two steps, and those of validation."""
    targets = lambda batch: batch[1].flatten().tolist()
    steps = [targets(data.batch(step, microbatch)) for step in (0, 7) for microbatch in (0, 1)]
    return {"sha256": data.digest(), "steps": steps, "validation": [targets(batch) for batch in data.validation()]}


class Data:
    """Tokens, cut in a training and a validation part, as worker/train/src/data does it."""

    def __init__(self, config):
        self.config, data = config, config["data"]
        self.seed, self.length = config.get("seed", 0), config["sequenceLength"]
        name = data.get("tokenizer", "Bytes")
        if name == "Bytes":
            self.vocab, end, encode = 256, [0], lambda text: np.frombuffer(text, np.uint8)
        else:
            self.vocab, end, encode = model_tokenizer(pathlib.Path(name["path"]))
        if data.get("text"):
            pieces = [encode(piece) for piece in plain(pathlib.Path(data["text"]["path"]).read_bytes())]
        else:
            pieces, field = [], data.get("field", "text")
            with open(data["jsonLines"]["path"], "rb") as lines:
                for line in filter(bytes.strip, lines):
                    pieces += [encode(json.loads(line)[field].encode()), end]
        self.tokens = np.concatenate([np.asarray(piece, np.int64) for piece in pieces])
        self.held_back = len(self.tokens) - math.ceil(data.get("validationFraction", 0.01) * len(self.tokens))
        self.count = (self.held_back - 1) // self.length

    def digest(self):
        return hashlib.sha256(self.tokens.astype("<u4").tobytes()).hexdigest()

    def gather(self, starts):
        rows = np.stack([self.tokens[start : start + self.length + 1] for start in starts])
        return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())

    def batch(self, step, microbatch):
        size = self.config["microbatch"]
        first = step * self.config["globalBatch"] + microbatch * size
        return self.gather([sequence_at(self.seed, self.count, first + i) * self.length for i in range(size)])

    def validation(self):
        size, sequences = self.config["microbatch"], (len(self.tokens) - self.held_back - 1) // self.length
        batches = min(self.config["validation"]["batches"], -(-sequences // size))
        for first in range(0, batches * size, size):
            yield self.gather([self.held_back + i * self.length for i in range(first, min(sequences, first + size))])


def plain(text):
    """Pieces as worker/train/src/data/text.rs makes them: whole lines of 1 MiB or less together, lines that are longer cut between characters."""
    text.decode()
    piece, at = b"", 0
    while at < len(text):
        end = text.find(b"\n", at, at + PIECE) + 1 or min(len(text), at + PIECE)
        taken = end - at
        # Not inside of a character.
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        if len(piece) + taken > PIECE:
            yield piece
            piece = b""
        piece, at = piece + text[at:end], end
    yield piece


def model_tokenizer(path):
    import tokenizers

    file = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    ids = set()
    side = lambda name: json.loads(file.with_name(name).read_text()) if file.with_name(name).exists() else {}
    config = side("config.json").get("eos_token_id")
    ids |= set(config if isinstance(config, list) else [] if config is None else [config])
    name = side("tokenizer_config.json").get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if name is not None and tokenizer.token_to_id(name) is not None:
        ids.add(tokenizer.token_to_id(name))
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return size, sorted(ids)[:1], lambda text: tokenizer.encode(text.decode(), add_special_tokens=False).ids


def learning_rate(optimizer, step, steps):
    """As worker/train/src/schedule.rs."""
    schedule = optimizer.get("schedule", {})
    highest, warmup = optimizer["learningRate"], schedule.get("warmupSteps", 0)
    if step < warmup:
        return highest * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup - 1))
    kind = schedule.get("kind", "Constant")
    fallen = {"Constant": 0.0, "Linear": progress, "Cosine": 0.5 * (1 - math.cos(math.pi * progress))}[kind]
    return highest * (1 - (1 - schedule.get("finalFraction", 0.0)) * fallen) if kind != "Constant" else highest


def optimizer_of(model, config):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": config.get("weightDecay", 0.0)}, {"params": others, "weight_decay": 0.0}]
    if config["kind"] == "AdamW":
        betas = (config.get("beta1", 0.9), config.get("beta2", 0.95))
        return torch.optim.AdamW(groups, lr=config["learningRate"], betas=betas, eps=config.get("epsilon", 1e-8))
    if config["kind"] == "Sgd":
        return torch.optim.SGD(groups, lr=config["learningRate"], momentum=config.get("momentum", 0.0))
    raise SystemExit(f"PyTorch has no {config['kind']}: use AdamW or Sgd")


def validate(model, data):
    with torch.no_grad():
        sums = [(model.loss(*batch).item(), batch[1].numel()) for batch in data.validation()]
    return sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums)


def say(**what):
    print(json.dumps(what), flush=True)


class Delayed:
    """With delayed updates the gradient of a step is that of the parameters before the last update; without, nothing."""

    def __init__(self, model, delayed):
        self.parameters = list(model.parameters()) if delayed else []
        self.newest = self.copy()

    def copy(self):
        return [p.detach().clone() for p in self.parameters]

    def take(self, values):
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values):
                parameter.copy_(value)

    def update(self, optimizer):
        """The model has the newest parameters then."""
        before = self.newest
        self.take(before)
        optimizer.step()
        self.newest = self.copy()
        return before


def train(config, data, model, steps, save):
    settings, total = config["optimizer"], config["steps"]
    optimizer = optimizer_of(model, settings)
    microbatches = config["globalBatch"] // config["microbatch"]
    tokens = config["globalBatch"] * config["sequenceLength"]
    clip, validation = settings.get("clip", 1.0), config.get("validation")
    say(data=data.digest(), tokens=len(data.tokens), sequences=data.count, parameters=sum(p.numel() for p in model.parameters()))
    delayed = Delayed(model, settings.get("delayedUpdates", False))
    begin = time.monotonic()
    for step in range(min(steps or total, total)):
        optimizer.zero_grad()
        loss = 0.0
        for microbatch in range(microbatches):
            part = model.loss(*data.batch(step, microbatch)) / tokens
            part.backward()
            loss += part.item()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, total)
        before = delayed.update(optimizer)
        say(step=step, loss=loss)
        if validation and (step + 1) % validation["everySteps"] == 0:
            say(step=step, validation=validate(model, data))
        delayed.take(before)
    delayed.take(delayed.newest)
    seconds = time.monotonic() - begin
    print(f"{seconds:.1f} s", file=sys.stderr)
    if validation:
        say(validation=validate(model, data))
    if save:
        model.save(save)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="training configuration (JSON)")
    parser.add_argument("--init", help="folder of safetensors with the first weights")
    parser.add_argument("--steps", type=int, help="stop after so many")
    parser.add_argument("--save", help="file of safetensors for the last weights")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--check-order", metavar="FIXTURE", help="check the order of sequences, and do not train")
    parser.add_argument("--check-data", metavar="FIXTURE", help="check batches, and do not train")
    args = parser.parse_args()
    if args.check_order:
        check_order(args.check_order)
    if args.check_data:
        check_data(args.check_data)
    if args.check_order or args.check_data:
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    config = json.loads(pathlib.Path(args.config).read_text())
    data = Data(config)
    source = config["model"]
    shape = Shape.of_training(source["config"], data.vocab) if "config" in source else Shape.of_folder(source["checkpoint"])
    init = args.init or source.get("checkpoint")
    if init is None:
        parser.error("--init is needed: first weights that both trainings begin with")
    model = Llama(shape)
    model.load(init)
    train(config, data, model, args.steps, args.save)


if __name__ == "__main__":
    main()
