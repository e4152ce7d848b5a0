// Tokens a second that llama.cpp makes of random ones over RPC servers, as its llama-batched-bench measures them. Links
// with llama.cpp alone: its own program needs a library of options, templates and JSON, most of what there is to build.
//
// Usage: llama-rates MODEL SERVER,SERVER TOKENS SEQUENCES,SEQUENCES → one line for each number of sequences.

#include "ggml-backend.h"
#include "llama.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

static const int PROMPT = 16, CONTEXT = 4096;

static std::vector<std::string> split(const std::string & text) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) {
        parts.push_back(part);
    }
    return parts;
}

static void die(const char * what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

static void quiet(enum ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

static void use_servers(const std::vector<std::string> & servers) {
    typedef ggml_backend_reg_t (*add_server)(const char *);
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    add_server add = rpc ? (add_server) ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server") : nullptr;
    if (!add) {
        die("llama.cpp was built without RPC");
    }
    for (const std::string & server : servers) {
        ggml_backend_reg_t reg = add(server.c_str());
        if (!reg) {
            die("an RPC server does not answer");
        }
        ggml_backend_register(reg);
    }
}

// `count` positions from `first` on of each of `sequences`, random tokens.
static void decode(llama_context * context, int vocabulary, int sequences, int first, int count) {
    llama_batch batch = llama_batch_init(sequences * count, 0, 1);
    for (int sequence = 0; sequence < sequences; ++sequence) {
        for (int position = first; position < first + count; ++position) {
            const int at = batch.n_tokens++;
            batch.token[at] = std::rand() % vocabulary;
            batch.pos[at] = position;
            batch.n_seq_id[at] = 1;
            batch.seq_id[at][0] = sequence;
            batch.logits[at] = position == first + count - 1;
        }
    }
    if (llama_decode(context, batch) != 0) {
        die("llama_decode failed");
    }
    llama_synchronize(context);
    llama_batch_free(batch);
}

static double rate(llama_context * context, int vocabulary, int sequences, int tokens) {
    llama_memory_clear(llama_get_memory(context), false);
    decode(context, vocabulary, sequences, 0, PROMPT);
    const auto began = std::chrono::steady_clock::now();
    for (int token = 0; token < tokens; ++token) {
        decode(context, vocabulary, sequences, PROMPT + token, 1);
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    return sequences * tokens / took.count();
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        die("usage: llama-rates MODEL SERVER,SERVER TOKENS SEQUENCES,SEQUENCES");
    }
    std::vector<int> sequences;
    for (const std::string & number : split(argv[4])) {
        sequences.push_back(std::atoi(number.c_str()));
    }
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    use_servers(split(argv[2]));
    llama_model_params how = llama_model_default_params();
    how.n_gpu_layers = 99;
    llama_model * model = llama_model_load_from_file(argv[1], how);
    if (!model) {
        die("the model cannot be loaded");
    }
    llama_context_params options = llama_context_default_params();
    options.n_ctx = CONTEXT;
    options.n_threads = options.n_threads_batch = 1;
    options.n_seq_max = *std::max_element(sequences.begin(), sequences.end());
    llama_context * context = llama_init_from_model(model, options);
    if (!context) {
        die("there is no context");
    }
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    rate(context, vocabulary, 1, 1);
    for (const int many : sequences) {
        std::printf("%.3f\n", rate(context, vocabulary, many, std::atoi(argv[3])));
    }
    llama_free(context);
    llama_model_free(model);
    return 0;
}
