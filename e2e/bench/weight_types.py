"""Decode speed of every type of GGUF weights beside llama.cpp, on the same file and threads: weight_types.py --decode EXAMPLE --llama FOLDER --out JSON.

A Llama of 112 million random weights per type. EXAMPLE is dunlin-model's `decode_speed`, FOLDER has llama-bench. Runs are interleaved, so that a busy moment of
the machine hits both; the median counts.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

import gguf
import numpy
import report

TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "Q5_0", "Q5_1", "Q5_K", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"]
# Where the f16 scales of a block are, where that is not at its beginning.
SCALES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208]}
HIDDEN, FFN, HEADS, KV, LAYERS, VOCAB = 1024, 2816, 16, 4, 8, 8192


def write(kind, path):
    """A model whose matrices are of this type."""
    random = numpy.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    dtype = gguf.GGMLQuantizationType[kind]
    values, size = gguf.GGML_QUANT_SIZES[dtype]

    def norm(name):
        writer.add_tensor(name, numpy.ones(HIDDEN, numpy.float32))

    def matrix(name, n, k):
        if kind in ("F16", "BF16"):
            plain = (random.standard_normal((n, k)) * 0.02).astype(numpy.float32)
            data = plain.astype(numpy.float16) if kind == "F16" else gguf.quants.quantize(plain, dtype)
        else:
            data = random.integers(0, 256, (n, k // values, size), numpy.uint8)
            for at in SCALES.get(kind, [0]):
                data[:, :, at : at + 2] = numpy.array([1e-4], numpy.float16).view(numpy.uint8)
            data = data.reshape(n, -1)
        writer.add_tensor(name, data, raw_dtype=dtype)

    matrix("token_embd.weight", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        kv = HIDDEN // HEADS * KV
        for name, n, k in [
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", kv, HIDDEN), ("attn_v", kv, HIDDEN), ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", FFN, HIDDEN), ("ffn_up", FFN, HIDDEN), ("ffn_down", HIDDEN, FFN),
        ]:
            matrix(f"{block}{name}.weight", n, k)
        norm(block + "ffn_norm.weight")
    norm("output_norm.weight")
    matrix("output.weight", VOCAB, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dunlin(args, path):
    command = [args.decode, path, str(args.tokens), str(args.threads), "1"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def llama_cpp(args, path):
    command = [pathlib.Path(args.llama) / "llama-bench", "-m", path, "-t", str(args.threads), "-p", "0", "-r", "1", "-o", "json", "-n", str(args.tokens)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]["avg_ts"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decode", required=True)
    parser.add_argument("--llama", help="without it only our own speed is measured")
    parser.add_argument("--out", required=True)
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    figures = {}
    print(f"{'tokens/s':<8} {'dunlin':>9} {'llama.cpp':>9} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.types:
            path = f"{folder}/{kind}.gguf"
            write(kind, path)
            ours, theirs = [], []
            for _ in range(args.rounds):
                ours.append(dunlin(args, path))
                if args.llama:
                    theirs.append(llama_cpp(args, path))
            pathlib.Path(path).unlink()
            rate = statistics.median(ours)
            beside = statistics.median(theirs) if theirs else None
            figures[kind] = {"tokens_per_s": ours, "llama_cpp_tokens_per_s": theirs, "ratio": rate / beside if beside else None}
            shown = f"{beside:>9.1f} {rate / beside:>6.2f}" if beside else f"{'-':>9} {'-':>6}"
            print(f"{kind:<8} {rate:>9.1f} {shown}", flush=True)
    method = f"{args.rounds} rounds of {args.tokens} tokens, interleaved, {args.threads} threads, medians; llama.cpp by llama-bench"
    report.write(args.out, method, figures)


main()
