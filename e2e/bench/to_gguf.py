"""The weights of a random model's folder as a GGUF file without a tokenizer, for llama-bench: to_gguf.py FOLDER FILE.

For speed only: rows of q and k are not brought into GGUF's rotary order, so it does not say the same tokens.
"""

import json
import sys

import gguf
import numpy

folder, target = sys.argv[1:]
config = json.load(open(folder + "/config.json"))
raw = open(folder + "/model.safetensors", "rb").read()
begin = 8 + int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:begin])

writer = gguf.GGUFWriter(target, "llama")
writer.add_tokenizer_model("no_vocab")
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
for add, key in [
    (writer.add_vocab_size, "vocab_size"),
    (writer.add_context_length, "max_position_embeddings"),
    (writer.add_embedding_length, "hidden_size"),
    (writer.add_block_count, "num_hidden_layers"),
    (writer.add_feed_forward_length, "intermediate_size"),
    (writer.add_head_count, "num_attention_heads"),
    (writer.add_head_count_kv, "num_key_value_heads"),
    (writer.add_layer_norm_rms_eps, "rms_norm_eps"),
    (writer.add_rope_freq_base, "rope_theta"),
]:
    add(config[key])
writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
for name, entry in header.items():
    if name == "__metadata__":
        continue
    start, end = entry["data_offsets"]
    values = numpy.frombuffer(raw[begin + start : begin + end], numpy.float32).reshape(entry["shape"])
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
