// What llama.cpp makes of a sequence: `logits MODEL TOKEN...` writes the logits behind each token to standard output, as f32.
// Keys and values are kept in f32, so that what differs elsewhere is how matrices are multiplied.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR && level != GGML_LOG_LEVEL_CONT) {
        fputs(text, stderr);
    }
}

static void fail(const char * what) {
    fprintf(stderr, "llama.cpp %s\n", what);
    exit(1);
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fail("needs a model and at least one token");
    }
    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        fail("does not read the model");
    }
    const int count = argc - 2;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_batch = params.n_ubatch = count;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        fail("does not begin");
    }
    llama_batch batch = llama_batch_init(count, 0, 1);
    batch.n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch.token[i] = atoi(argv[i + 2]);
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    if (llama_decode(context, batch) != 0) {
        fail("does not compute the sequence");
    }
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int i = 0; i < count; i++) {
        const float * logits = llama_get_logits_ith(context, i);
        if (!logits || fwrite(logits, sizeof(float), vocab, stdout) != size_t(vocab)) {
            fail("has no logits");
        }
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
