"""Chats and texts as tokens, in transformers and here: all the same, refusals included.

compare.py PROMPTS DUNLIN [COUNT]: PROMPTS is the example of worker/gateway, DUNLIN is the tool, COUNT the number of generated texts.
The templates are those of model families in the package axolotl. Tokenizers of four kinds are trained here, on the templates and on generated texts.
"""

import copy
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path

os.environ["TZ"] = "UTC"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
time.tzset()

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What breaks tokenizers and templates: scripts, marks, white space of all kinds, controls, code, what looks like Jinja or like special tokens.
FRAGMENTS = [
    "the", " The", " quick", "ing", "Hello", ", world", ".", "!?", " I'm", "n't", "'S", "'ll", " 12", "3456", "7.89", "1e-5", " $9", " a_b", "camelCase",
    "é", "e\u0301", "ü", "ñ", "Ångström", "ﬁ", "①", "한국어", "\u1112\u1161\u11ab", "日本語", "鳥", "привет", "שלום", "مرحبا", "हिन्दी", "ไทย", "\u200d", "\ufeff",
    "👍", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "𝕏", "\U000e0041", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\u00a0", "\u2003", "\u2028", "\x0b", "\x1c", "\x1f", "\x7f",
    "\x00", "\x07", "{{ x }}", "{% if %}", "{# c #}", "</s>", "<s>", "<|im_end|>", "<|im_start|>user\n", "[INST]", "[/INST]", "<think>", "</think>", "<", ">", "&", "\"", "'", "\\",
    "\\n", "def f(x):\n    return x\n", "http://a.example/b?c=d#e", "▁", "Ġ", "<0x0A>", "```", "###", "-", "--", "---", "%s", "%", "\u0378", "\uffff", "ß", "İ", "ǅ",
]
# Of the families that run.
FAMILIES = {"llama3", "mistral_v1", "mistral_v2v3", "mistral_v3_tekken", "mistral_v7_tekken", "qwen_25", "qwen3", "gemma", "gemma3", "phi_3", "phi_35"}


def text(draw, most=12):
    return "".join(draw.choice(FRAGMENTS) for _ in range(draw.randint(0, most)))


def talks(draw):
    """With and without a system message, of one turn and several, and some that templates refuse."""
    turns = [{"role": "user", "content": text(draw)}]
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        turns += [{"role": "assistant", "content": text(draw)}, {"role": "user", "content": text(draw)}]
    if draw.random() < 0.4:
        turns.insert(0, {"role": "system", "content": text(draw)})
    if draw.random() < 0.05:
        draw.shuffle(turns)
    return turns


def templates():
    """The templates of axolotl's wheel, and what else templates of real models say."""
    found = {Path(f).stem: Path(f.locate()).read_text() for f in files("axolotl") if str(f).endswith(".jinja")}
    assert len(found) >= 30, f"{len(found)} templates"
    missing = FAMILIES - found.keys()
    assert not missing, f"axolotl has no templates of {missing} any more: add them here"
    return found | {
        "date": "{{ bos_token }}{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %A, %-d %B') }}{% endif %}{{ messages[-1].content }}{{ eos_token }}",
        "generation": "{% for m in messages %}{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}\n{% else %}{{ m.content | trim }}{% endif %}\n{% endfor %}",
        "data": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{{ {'role': m.role, 'a': [1.5, none, true, 'it\\'s']} }}{{ {'b': 1, 'a': [1.5, none, true], 'c': 1e-7} | tojson }}{% endfor %}",
        "text": "{% for m in messages %}{{ '%s: %s' % (m.role, m.content) }}{{ m.content | indent(2) }}{{ m.content | indent(3, true, true) }}{{ m.content | wordcount }}{{ m.content.strip() }}|{{ m.content.split('\n')[-1].rstrip() }}{% endfor %}",
        "formats": "{% set f = '<%s>' %}{% for m in messages %}{{ f % m.role }}{{ (f ~ '%d') % (m.content, loop.index) }}{{ loop.index % 2 }}{{ -loop.index % 3 * 2 }}{% endfor %}",
        "nothing": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{% if not tools is defined %}x{% endif %}{{ unknown }}{{ mask_token is defined }}{{ messages | length }}",
    }


def byte_level(regex, normalizer=None):
    t = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    t.pre_tokenizer = level if regex is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), level])
    if normalizer:
        t.normalizer = normalizer
    t.decoder = decoders.ByteLevel()
    return t, trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)


def sentence_piece():
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    return t, trainers.BpeTrainer(vocab_size=3000, special_tokens=first, show_progress=False)


def tokenizers(folder, dunlin, corpus, markers):
    """Folders with a tokenizer each: of Llama 3, Qwen 2, GPT-2 and Llama 2 kind."""
    kinds = {
        "llama3": (byte_level(LLAMA3), "PreTrainedTokenizerFast", True, {}),
        "qwen2": (byte_level(LLAMA3.replace("{1,3}", ""), normalizers.NFC()), "Qwen2TokenizerFast", False, {"bos_token": None}),
        "gpt2": (byte_level(None), "PreTrainedTokenizerFast", False, {}),
        "llama2": (sentence_piece(), "LlamaTokenizerFast", False, {"legacy": True, "unk_token": "<unk>"}),
    }
    for name, ((t, trainer), kind, begins, config) in kinds.items():
        t.train_from_iterator(corpus, trainer)
        if name == "llama2":
            # The bytes of a vocabulary are no special tokens.
            state = json.loads(t.to_str())
            state["added_tokens"] = [a for a in state["added_tokens"] if not a["content"].startswith("<0x")]
            t = Tokenizer.from_str(json.dumps(state))
        t.add_special_tokens([m for m in ["<s>", "</s>"] + markers if t.token_to_id(m) is None or name == "llama2"])
        if begins:
            bos = t.token_to_id("<s>")
            t.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", bos)])
        path = folder / name
        size = max(t.get_vocab(True).values()) + 1
        shape = ["--layers", "1", "--hidden", "8", "--heads", "1", "--kv-heads", "1", "--ffn", "8", "--vocab", str(size)]
        subprocess.run([dunlin, "random-model", *shape, "--out", str(path)], check=True, stdout=subprocess.DEVNULL)
        t.save(str(path / "tokenizer.json"))
        config = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": False} | config
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        yield path, AutoTokenizer.from_pretrained(path)


def theirs(tokenizer, request):
    if "text" in request:
        return {"tokens": tokenizer(request["text"])["input_ids"]}
    try:
        prompt = tokenizer.apply_chat_template(
            copy.deepcopy(request["messages"]), chat_template=request["template"], add_generation_prompt=True, tokenize=False
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"prompt": prompt, "tokens": tokenizer(prompt, add_special_tokens=False)["input_ids"]}


def main():
    prompts, dunlin, count = sys.argv[1], sys.argv[2], int((sys.argv[3:] or ["100000"])[0])
    draw = random.Random(1)
    sources = templates()
    markers = sorted({m for s in sources.values() for m in re.findall(r"<\|[a-zA-Z_]+\|>|<[a-z_]+>|\[/?[A-Z_]+\]", s)})
    with tempfile.TemporaryDirectory() as folder:
        corpus = [*sources.values(), *(text(draw) for _ in range(5000))]
        known = list(tokenizers(Path(folder), dunlin, corpus, markers))
        requests = []
        for i in range(count):
            path, tokenizer = known[i % len(known)]
            name = list(sources)[i // len(known) % len(sources)]
            if i % 5 == 0:
                # A first token that is in the text already is doubled there and not here.
                requests.append((tokenizer, "text", {"folder": str(path), "text": "a" + text(draw, 40)}))
            else:
                requests.append((tokenizer, name, {"folder": str(path), "template": sources[name], "messages": talks(draw)}))
        lines = "".join(json.dumps(r) + "\n" for _, _, r in requests)
        answers = subprocess.run([prompts], input=lines, capture_output=True, text=True, check=True).stdout.split("\n")
    same, refused, wrong = 0, 0, {}
    for (tokenizer, name, request), answer in zip(requests, answers, strict=False):
        ours, expected = json.loads(answer), theirs(tokenizer, request)
        if "error" in expected and "error" in ours:
            refused += 1
        elif {k: ours.get(k) for k in expected} == expected:
            same += 1
        else:
            wrong.setdefault((name, Path(request["folder"]).name), []).append((request, expected, ours))
    print(f"{len(requests)} texts and chats, {len(sources)} templates, {len(known)} tokenizers: {same} the same, {refused} refused by both")
    for (name, tokenizer), cases in wrong.items():
        request, expected, ours = min(cases, key=lambda case: len(json.dumps(case[0])))
        print(f"\n{name}, {tokenizer}: {len(cases)} differ, the shortest:\n  {request.get('messages', request.get('text'))!r}\n  transformers {expected}\n  here {ours}")
    sys.exit(1 if wrong or len(answers) != len(requests) + 1 else 0)


main()
