// What a decoder block needs besides products and attention (ARITHMETIC.md, 4).
#include "common.cuh"

// Lanes of the sums of squares.
enum { NORM_LANES = 128 };

// One divided by the root of the mean of the squares of a row, plus eps. A warp has a row, and a thread four of its lanes: t, t + 32, t + 64 and
// t + 96.
__device__ __forceinline__ float norm_scale(const float* row, float eps, int n) {
    const int t = threadIdx.x % 32;
    float lanes[4] = {};
    for (int first = 0; first < n; first += NORM_LANES) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            const int i = first + j * 32 + t;
            if (i < n) lanes[j] = __fadd_rn(lanes[j], __fmul_rn(row[i], row[i]));
        }
    }
    // Halves of 64 and of 32; the others lie in other threads.
    const float sum = tree_sum<32>(__fadd_rn(__fadd_rn(lanes[0], lanes[2]), __fadd_rn(lanes[1], lanes[3])));
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, __int2float_rn(n)), eps)));
}

// out = x / sqrt(mean(x^2) + eps) * w. grid rows / 8, 256 threads.
KERNEL __launch_bounds__(256)
rms_norm(const float* __restrict__ x, const float* __restrict__ w, float eps, int m, int n, float* __restrict__ out) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= m) return;
    const float* from = x + (size_t)row * n;
    const float scale = norm_scale(from, eps, n);
    for (int i = threadIdx.x % 32; i < n; i += 32) out[(size_t)row * n + i] = __fmul_rn(__fmul_rn(from[i], scale), w[i]);
}

// Turns the pairs of every head of a row to its position, in place: `table` is [position][pair] of cosine and sine. The layout is 0 for
// neighbours, 1 for halves of a head. grid rows, any number of threads.
KERNEL rope(float* __restrict__ x, const float2* __restrict__ table, const int* __restrict__ positions, int heads, int half, int layout) {
    float* row = x + (size_t)blockIdx.x * heads * half * 2;
    const float2* turns = table + (size_t)positions[blockIdx.x] * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        const int head = i / half, pair = i % half;
        float* values = row + (size_t)head * half * 2;
        float& first = layout == 0 ? values[2 * pair] : values[pair];
        float& last = layout == 0 ? values[2 * pair + 1] : values[pair + half];
        const float2 turn = turns[pair];
        const float a = first, b = last;
        first = __fsub_rn(__fmul_rn(a, turn.x), __fmul_rn(b, turn.y));
        last = __fadd_rn(__fmul_rn(a, turn.y), __fmul_rn(b, turn.x));
    }
}

// Keys and values of rows into their pages, each of which is K [kv_heads][hd][16] and V [kv_heads][16][hd]. `pages` says for each row where
// the page of its position is. grid rows, any number of threads.
KERNEL write_kv(const float* __restrict__ k, const float* __restrict__ v, float* const* __restrict__ pages,
                const int* __restrict__ positions, int kv_heads, int hd) {
    const int width = kv_heads * hd, at = positions[blockIdx.x] % 16;
    float* keys = pages[blockIdx.x];
    float* values = keys + (size_t)width * 16;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        keys[i * 16 + at] = k[(size_t)blockIdx.x * width + i];
        values[(i / hd * 16 + at) * hd + i % hd] = v[(size_t)blockIdx.x * width + i];
    }
}

// The number of this thread in a grid of one dimension.
__device__ __forceinline__ size_t number() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

// out = silu(gate) * up. As all that follow: a thread for each value.
KERNEL swiglu(const float* __restrict__ gate, const float* __restrict__ up, float* __restrict__ out, uint32_t count) {
    const size_t i = number();
    if (i >= count) return;
    const float g = gate[i];
    out[i] = __fmul_rn(__fdiv_rn(g, __fadd_rn(1.0f, exp_of(-g))), up[i]);
}

// out = gelu(gate) * up, by 1 / (1 + exp(-z)).
KERNEL geglu(const float* __restrict__ gate, const float* __restrict__ up, float* __restrict__ out, uint32_t count) {
    const size_t i = number();
    if (i >= count) return;
    const float g = gate[i];
    const float cube = __fmul_rn(__fmul_rn(g, g), g);
    const float z = __fmul_rn(1.595769f, __fadd_rn(g, __fmul_rn(0.044715f, cube)));
    out[i] = __fmul_rn(__fdiv_rn(g, __fadd_rn(1.0f, exp_of(-z))), up[i]);
}

// y += x.
KERNEL add(float* __restrict__ y, const float* __restrict__ x, uint32_t count) {
    const size_t i = number();
    if (i < count) y[i] = __fadd_rn(y[i], x[i]);
}

// Adds `bias` to every row of `n` values.
KERNEL add_bias(float* __restrict__ y, const float* __restrict__ bias, uint32_t count, int n) {
    const size_t i = number();
    if (i < count) y[i] = __fadd_rn(y[i], bias[i % n]);
}

// x *= by.
KERNEL scale(float* __restrict__ x, float by, uint32_t count) {
    const size_t i = number();
    if (i < count) x[i] = __fmul_rn(x[i], by);
}

// Row i of `out` is row rows[i] of `x`. grid (values / 256, rows of `out`), 256 threads.
KERNEL gather_rows(const float* __restrict__ x, const int* __restrict__ rows, int n, float* __restrict__ out) {
    const size_t i = number();
    if (i < (size_t)n) out[blockIdx.y * (size_t)n + i] = x[(size_t)rows[blockIdx.y] * n + i];
}

// Makes `flaw` code * 65536 + the row, if a row has a value that is not finite and this is less than what is there. grid rows, 256 threads.
KERNEL find_not_finite(const float* __restrict__ x, int n, uint32_t code, uint32_t* __restrict__ flaw) {
    const float* row = x + (size_t)blockIdx.x * n;
    bool is_odd = false;
    for (int i = threadIdx.x; i < n; i += blockDim.x) is_odd |= !is_finite(row[i]);
    if (__any_sync(WHOLE_WARP, is_odd) && threadIdx.x % 32 == 0) atomicMin(flaw, code * 65536 + blockIdx.x);
}
