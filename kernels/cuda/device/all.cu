// Every kernel, for one image.
#include "quantise.cu"
#include "linear.cu"
#include "dense.cu"
#include "attention.cu"
#include "rows.cu"

// Their names, for whoever needs a list of them.
#define LINEAR_KERNELS(X, name) X(name##_8) X(name##_16) X(name##_32) X(name##_many)
#define DENSE_KERNELS(X, name) X(name##_8) X(name##_many)
#define ALL_KERNELS(X)                                                                                                                         \
    X(quantise)                                                                                                                                \
    LINEAR_KERNELS(X, linear_q8)                                                                                                               \
    LINEAR_KERNELS(X, linear_q4)                                                                                                               \
    LINEAR_KERNELS(X, linear_q5)                                                                                                               \
    LINEAR_KERNELS(X, linear_iq4)                                                                                                              \
    LINEAR_KERNELS(X, linear_q2k)                                                                                                              \
    LINEAR_KERNELS(X, linear_q3k)                                                                                                              \
    LINEAR_KERNELS(X, linear_q4k)                                                                                                              \
    LINEAR_KERNELS(X, linear_q5k)                                                                                                              \
    LINEAR_KERNELS(X, linear_q6k)                                                                                                              \
    LINEAR_KERNELS(X, linear_iq4xs)                                                                                                            \
    DENSE_KERNELS(X, linear_f32)                                                                                                               \
    DENSE_KERNELS(X, linear_f16)                                                                                                               \
    DENSE_KERNELS(X, linear_bf16)                                                                                                              \
    X(rms_norm)                                                                                                                                \
    X(rope)                                                                                                                                    \
    X(write_kv)                                                                                                                                \
    X(attention)                                                                                                                               \
    X(attention_merge)                                                                                                                         \
    X(swiglu)                                                                                                                                  \
    X(geglu)                                                                                                                                   \
    X(add)                                                                                                                                     \
    X(add_bias)                                                                                                                                \
    X(scale)                                                                                                                                   \
    X(gather_rows)                                                                                                                             \
    X(find_not_finite)
