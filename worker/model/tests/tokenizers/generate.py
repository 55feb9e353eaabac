#!/usr/bin/env python3
"""Writes the fixtures of ../tokenizers.rs: small vocabularies as GGUF files have them, with the tokens of other people's programs.

    python3 -m venv /tmp/tokenizers && /tmp/tokenizers/bin/pip install sentencepiece==0.2.3 protobuf tokenizers==0.23.3 llama-cpp-python==0.3.36 gguf==0.19.0
    /tmp/tokenizers/bin/python worker/model/tests/tokenizers/generate.py

`sentence_piece.json` has a SentencePiece model that is trained here. `ids` has the tokens of `texts` per kind: `llama` as Llama 2 is, `gemma` without the
space before a text (both asserted to be the same from sentencepiece and llama.cpp where a text has no special tokens), `ties` with scores that
many pieces share (llama.cpp). `hashes` has, of 10,000 texts made from `parts`, one number per 500.

`byte_level.json` has a byte-level vocabulary whose merges go across words, so that a split at another place is another token. `ids` has the tokens of
`texts` by the names of pre-tokenizers: those of the tokenizers package, which has another engine of regular expressions, with the steps of
the models' `tokenizer.json`. llama.cpp has the same ones; where it has not, the text is printed.
"""

import json
import pathlib
import tempfile
import unicodedata

import gguf
import sentencepiece
from llama_cpp import Llama
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent
MASK = (1 << 64) - 1

TEXTS = [
    "Hello world", " Hello world", "  two  spaces  ", "Hello\n\n\nworld\n", "\ttabs\t\tand\r\nlines\r\n", "", " ", "   ", "\n", " \n ", "a", " a",
    "The quick brown fox, it's said, jumps over 13 lazy dogs; we'll see 1234567 of them in 2026!", "I'M, I've, THEY'LL, don't, DON'T, l'été, 'tis",
    "3.14159 1,000,000 0x7f 10% $5 12345678901234567890 ²³ ½ Ⅷ ١٢٣ १२३ 一二三", "def f(x):\n    if x > 1:\n        return x ** 2  # so\n\n\treturn [0] * 10\n",
    "<div class=\"a\">&amp;</div> {\"key\": [1, 2.5, null]} // a /* b */ a/b\n/c", "CamelCase HTTPServer iPhone XMLHttpRequest snake_case SCREAMING_CASE x1y2",
    "Grüße aus Köln, señor. Çeşme, naïve, fiancée, ŁÓDŹ", "Привет, мир! Ещё раз.", "Γειά σου Κόσμε, ὕδωρ", "שלום עולם", "مرحبا بالعالم، كيف حالك؟", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "你好，世界！这是一个测试。", "こんにちは世界。テスト、カタカナ。", "안녕하세요 세계", "🐦🦆 👩‍👩‍👧‍👦 🇩🇪 ❤️ 🏳️‍🌈!", "e\u0301 n\u0303 a\u0308 \u1112\u1161\u11ab", "\u00a0nbsp\u00a0 \u2003em \u200bzero\u200b \u3000wide", "\x00\x01\x1b[0m\x7f\u0085\u2028end",
    "!!! ??? ... --- *** ((()))[[[]]]", "a  b   c    d     e      f       g        h", "word \n word  \n  word\n \nword", "«quoted» “curly” ‘single’ – — …", "\u2581lower\u2581block \u2581", "<0x41><0x0A>", "a\u0000b",
    "ﬁ ﬀ ㎏ ℃ Å Ω K", "ÅÉÎÕÜ ÅÉ", "x̂ ŷ", "Ж1ж2 Б", "αβγ ΑΒΓ Ὗώ ᾼι ΐΊ", "İstanbul ı ſ ß ẞ ǅ ǈ", "1st 2nd 3rd v1.2.3-rc4+5", "https://example.org/path?q=1&r=%20#top", "user@example.com @user #tag", "e=mc² ∑∫√∞ ≤≥ ±", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐐀𐐨 𑢠", "ⅈⅉ ⅎ Ↄↄ ⱻ",
]
SPECIAL_TEXTS = [
    "<s>", "<s>Hello</s>", "<s>[INST] Hello [/INST] Hi </s><s>[INST] more [/INST]", "a<|mark|>b", "a <|mark|> b", "<|mark|><|mark|>", "<unk> x", "<s> <s>",
    "a    b\n\n\nc", " <|mark|>",
]
PARTS = [
    " ", "  ", "   ", "\n", "\n\n", "\t", "a", "b", "e", "t", "the", " the", " and", "ing", "tion", "LORD", " God", "of", " of the", "'s", "n't", ",", ", ", ".", ". ", "!", "?", ":", ";", "(", ")", "\"", "0",
    "1", "7", "42", "1999", "é", "ü", "ß", "ñ", "ę", "Ж", "я", "при", "вет", "Ω", "λ", "ש", "ل", "م", "न", "्", "ส", "你", "好", "世界", "の", "カ", "한", "글", "🐦", "👩", "\u200d", "\ufe0f", "\u0301", "\u00a0", "\u2581", "\u3000", "\x00", "\x1b",
    "def ", "return", "()", "{", "}", "==", "//", "<", ">", "</", "<0x41>", "_", "-", "--", "…", "—", "”", "Zz", "qq", "xX", "ſ", "İ", "\U0010ffff",
]
SPECIAL_PARTS = ["<s>", "</s>", "<unk>", "<|mark|>"]
RANDOM = 10_000
PER_HASH = 500


def noise(i):
    z = (i + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def random_text(i, parts):
    """Of 1 to 24 parts."""
    count = 1 + noise(i * 64) % 24
    return "".join(parts[noise(i * 64 + 1 + j) % len(parts)] for j in range(count))


def hashes(encode, parts):
    out = []
    for start in range(0, RANDOM, PER_HASH):
        h = 0xCBF29CE484222325
        for i in range(start, start + PER_HASH):
            for token in [*encode(random_text(i, parts)), MASK >> 32]:
                for byte in token.to_bytes(4, "little"):
                    h = ((h ^ byte) * 0x100000001B3) & MASK
        out.append(f"{h:016x}")
    return out


def llama_cpp(folder, name, keys):
    """llama.cpp with the vocabulary alone; text of special tokens is these."""
    path = f"{folder}/{name}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in keys.items():
        getattr(writer, f"add_{kind}")(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    model = Llama(path, vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=True) if text else []


def sentence_piece(folder):
    prose = (HERE.parent / "prose.txt").read_text().splitlines()
    with open(f"{folder}/text", "w") as file:
        file.write("\n".join(line for line in [*prose, *TEXTS] if "\0" not in line))
    sentencepiece.SentencePieceTrainer.train(
        input=f"{folder}/text", model_prefix=f"{folder}/m", vocab_size=900, model_type="bpe", byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        user_defined_symbols=["<|mark|>", "   "], minloglevel=2,
    )
    sp = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/m.model")
    tokens = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    scores = [sp.get_score(i) for i in range(len(tokens))]
    user = {"<|mark|>", "   ", "\u2581" * 3}
    kind = lambda i: 2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 4 if tokens[i] in user else 1
    kinds = [kind(i) for i in range(len(tokens))]
    # As the converters write those of Gemma.
    tokens = [t.replace("\u2581", " ") if k == 4 else t for t, k in zip(tokens, kinds)]
    ties = [float(round(score / 40)) for score in scores]

    def keys(scores, space):
        return {
            "model": ("string", "llama"), "tokens": ("array", tokens), "scores": ("array", scores), "token_type": ("array", kinds),
            "add_space_prefix": ("bool", space),
        }

    programs = {
        "llama": llama_cpp(folder, "llama", keys(scores, True)), "gemma": llama_cpp(folder, "gemma", keys(scores, False)),
        "ties": llama_cpp(folder, "ties", keys(ties, True)),
    }
    plain = [t for t in TEXTS if "   " not in t]
    plain_parts = [p for p in PARTS if p.strip(" ")] + [" "]
    def no_user(text):
        return "   " not in text
    for name in ["llama", "gemma"]:
        if name == "gemma":
            model = sentencepiece_model_pb2.ModelProto.FromString(pathlib.Path(f"{folder}/m.model").read_bytes())
            model.normalizer_spec.add_dummy_prefix = False
            sp = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        differ = [t for t in plain if sp.encode(t) != programs[name](t)]
        random = [t for t in (random_text(i, PARTS) for i in range(RANDOM)) if no_user(t)]
        differ += [t for t in random if sp.encode(t) != programs[name](t)]
        print(f"{name}: {len(plain) + len(random)} texts, {len(differ)} of them otherwise by sentencepiece", differ[:5])
        for t in differ[:3]:
            print([sp.id_to_piece(i) for i in sp.encode(t)], [tokens[i] for i in programs[name](t)])
        assert not [t for t in differ if "\0" not in t]
    texts = TEXTS + SPECIAL_TEXTS
    out = dict(tokens=tokens, scores=scores, ties=ties, kinds=kinds, texts=texts, parts=PARTS + SPECIAL_PARTS, ids={}, hashes={})
    for name, encode in programs.items():
        out["ids"][name] = [encode(text) for text in texts]
        out["hashes"][name] = hashes(encode, PARTS + SPECIAL_PARTS)
    write("sentence_piece.json", out)


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼ"
    "ℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[一-龥ࠀ-一가-\ud7ff]+"
V3 = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
DIGITS = "digits"
# Steps, and whether accents are composed first.
STEPS = {
    "gpt-2": ([GPT2], False), "phi-2": ([GPT2], False), "olmo": ([GPT2], True), "mpt": ([GPT2], True), "smollm": ([DIGITS, GPT2], False), "starcoder": ([DIGITS, GPT2], False),
    "refact": ([DIGITS, GPT2], False), "command-r": ([DIGITS, GPT2], True), "llama-bpe": ([LLAMA3], False), "llama3": ([LLAMA3], False), "llama-v3": ([LLAMA3], False),
    "smaug-bpe": ([LLAMA3], False), "qwen2": ([QWEN2], True), "deepseek-r1-qwen": ([QWEN2], False), "tekken": ([TEKKEN], False), "gpt-4o": ([GPT4O], False), "llama4": ([GPT4O], False),
    "deepseek-llm": ([r"[\r\n]", rf"\s?[{CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK, DIGITS], False),
    "deepseek-coder": ([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGITS], False),
    "deepseek-v3": ([r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", V3], False),
}


def byte_level(folder):
    level = lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained = Tokenizer(models.BPE())
    # Merges go across whatever a real tokenizer would split, but for digits: no vocabulary whose text is split at digits has tokens of several.
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}|\P{N}{1,9}"), "isolated"), level()])
    prose = (HERE.parent / "prose.txt").read_text().splitlines()[:120]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False, min_frequency=1)
    trained.train_from_iterator([*TEXTS * 2, *prose], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    kinds = [1] * len(tokens)
    texts = list(TEXTS)
    out = dict(tokens=tokens, merges=merges, texts=texts, ids={})
    for name, (steps, composed) in STEPS.items():
        t = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m.split(" ")) for m in merges]))
        t.normalizer = normalizers.NFC() if composed else None
        split = lambda s: pre_tokenizers.Digits(individual_digits=True) if s == DIGITS else pre_tokenizers.Split(Regex(s), "isolated")
        t.pre_tokenizer = pre_tokenizers.Sequence([*map(split, steps), level()])
        t.decoder = decoders.ByteLevel()
        ids = [t.encode(text).ids for text in texts]
        other = llama_cpp(folder, name, {
            "model": ("string", "gpt2"), "pre": ("string", name), "tokens": ("array", tokens), "merges": ("array", merges), "token_type": ("array", kinds),
        })
        # llama.cpp never composes.
        differ = [text for text, own in zip(texts, ids) if other(unicodedata.normalize("NFC", text) if composed else text) != own]
        print(f"{name}: {len(differ)} of {len(texts)} texts otherwise by llama.cpp", differ)
        out["ids"][name] = ids
    write("byte_level.json", out)


def write(name, out):
    lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=True, separators=(',', ':'))}" for key, value in out.items())
    (HERE / name).write_text("{\n" + ",\n".join(lines) + "\n}\n")


with tempfile.TemporaryDirectory() as folder:
    sentence_piece(folder)
    byte_level(folder)
