// Which kernels this machine can run.
#include <stddef.h>
#include <string.h>

#include "abi.h"

#define TUILI_OPS(X) \
    X(embed) X(add_norm) X(quantize) X(gather) X(linear) X(rope_kv) X(attention) X(sample) X(record) X(logprobs) \
    X(expand_rows) X(causal_conv) X(gated_conv) X(gated_delta) X(gated_norm) X(sigmoid_mul) X(norm_add_norm) X(layer_norm) \
    X(route) X(group_slots) X(experts_gate_up) X(experts_down) X(packed_attention) X(pool) \
    X(scale_logits) X(latent_write) X(head_linear) X(latent_attention) X(selective_scan) X(silu_gate) X(gelu_mul) \
    X(head_norm_add) X(lora) X(block_linear) X(embed_blocks)

extern "C" {

#define DECLARE(op)                              \
    extern const TuiliKind tuili_kind_##op##_avx2 __attribute__((weak));   \
    extern const TuiliKind tuili_kind_##op##_avx512 __attribute__((weak)); \
    extern const TuiliKind tuili_kind_##op##_avx512_bf16 __attribute__((weak));
TUILI_OPS(DECLARE)

#pragma GCC visibility push(default)

// The best instruction set of this machine: "avx512_bf16", "avx512" (with VNNI), "avx2", or "" when it has none of
// them.
const char* tuili_best_isa() {
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) return "avx512_bf16";
    if (avx512) return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return "avx2";
    return "";
}

// The op of that name, compiled for that instruction set; NULL when there is none. The caller sees to it that the
// machine has the instructions.
const TuiliKind* tuili_kind(const char* op, const char* isa) {
#define FIND(name)                                                               \
    if (strcmp(op, #name) == 0) {                                                \
        if (strcmp(isa, "avx512_bf16") == 0) return &tuili_kind_##name##_avx512_bf16; \
        if (strcmp(isa, "avx512") == 0) return &tuili_kind_##name##_avx512;      \
        if (strcmp(isa, "avx2") == 0) return &tuili_kind_##name##_avx2;          \
    }
    TUILI_OPS(FIND)
    return NULL;
}

#pragma GCC visibility pop

}  // extern "C"
