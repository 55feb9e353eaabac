// y = x W^T for weights that are floats: multiply-adds in the order of ARITHMETIC.md, 1. Panels are [k][16].
#include "common.cuh"

// How weights are stored: a pair of outputs of one input.
struct F32Weights {
    typedef float2 Word;
    static __device__ __forceinline__ Pair pair(Word word) { return {word.x, word.y}; }
};
struct F16Weights {
    typedef uint32_t Word;
    static __device__ __forceinline__ Pair pair(Word word) { return f16_pair(word); }
};
struct Bf16Weights {
    typedef uint32_t Word;
    static __device__ __forceinline__ Pair pair(Word word) { return bf16_pair(word); }
};

struct DenseChunkSums {
    float of[32][TILE][PANEL + 1];
};

// Sums of one chunk of inputs, of up to 8 rows, for the outputs 2 * pair and 2 * pair + 1 of a panel.
template <class V>
__device__ __forceinline__ void dense_chunk(float (&out)[TILE][PANEL + 1], const typename V::Word* panel, const float* x, int rows, int k,
                                            int c, int pair) {
    float acc[TILE][2] = {};
    const int end = smaller(c * CHUNK + CHUNK, k);
#pragma unroll 8
    for (int i = c * CHUNK; i < end; i++) {
        const Pair w = V::pair(panel[(size_t)i * (PANEL / 2) + pair]);
        UNROLL
        for (int r = 0; r < TILE; r++) {
            if (r >= rows) continue;
            const float v = x[(size_t)r * k + i];
            acc[r][0] = fmaf(v, w.first, acc[r][0]);
            acc[r][1] = fmaf(v, w.last, acc[r][1]);
        }
    }
    UNROLL
    for (int r = 0; r < TILE; r++)
        UNROLL
        for (int j = 0; j < 2; j++) out[r][2 * pair + j] = acc[r][j];
}

// Few rows: a panel and 8 rows for each block of threads. Eight threads have a chunk of inputs, so there are 32 chunks at a time; their sums are
// added in order. grid (panels, rows / 8), 256 threads.
template <class V>
__device__ __forceinline__ void dense_few_rows(const void* w, const float* x, float* y, int m, int n, int k, int add) {
    SHARED(DenseChunkSums, sums);
    const int chunks = divided_up(k, CHUNK), first = blockIdx.y * TILE, own = threadIdx.x / 8;
    const int out_row = threadIdx.x / PANEL, out_column = threadIdx.x % PANEL;
    const typename V::Word* panel = (const typename V::Word*)w + (size_t)blockIdx.x * k * (PANEL / 2);
    float total = 0.0f;
    for (int round = 0; round * 32 < chunks; round++) {
        const int c = round * 32 + own;
        if (c < chunks) dense_chunk<V>(sums.of[own], panel, x + (size_t)first * k, m - first, k, c, threadIdx.x % 8);
        __syncthreads();
        const int valid = smaller(chunks - round * 32, 32);
        if (out_row < TILE)
            for (int i = 0; i < valid; i++) {
                const float sum = sums.of[i][out_row][out_column];
                total = round == 0 && i == 0 ? sum : __fadd_rn(total, sum);
            }
        __syncthreads();
    }
    const int row = first + out_row, column = blockIdx.x * PANEL + out_column;
    if (out_row < TILE && row < m && column < n) put(y + (size_t)row * n + column, total, add);
}

// A tile of many rows: rows, outputs and inputs at a time.
enum { MANY_ROWS = 128, MANY_OUTPUTS = 64, MANY_INPUTS = 16 };

// Rows lie side by side. The four columns more than there are spread the writes over the banks and keep four rows aligned.
struct DenseTile {
    float x[MANY_INPUTS][MANY_ROWS + 4];
    float w[MANY_INPUTS][MANY_OUTPUTS];
};

// Inputs from `start` on; what there is not is zero, and not summed or not written.
template <class V>
__device__ __forceinline__ void load_tile(DenseTile& tile, const void* w, const float* x, int m, int n, int k, int start) {
    const int first_row = blockIdx.y * MANY_ROWS, first_panel = blockIdx.x * (MANY_OUTPUTS / PANEL);
    UNROLL
    for (int at = threadIdx.x; at < MANY_ROWS * MANY_INPUTS; at += 256) {
        const int row = at / MANY_INPUTS, i = at % MANY_INPUTS;
        const bool is_there = first_row + row < m && start + i < k;
        tile.x[i][row] = is_there ? x[(size_t)(first_row + row) * k + start + i] : 0.0f;
    }
    UNROLL
    for (int at = threadIdx.x; at < MANY_OUTPUTS / 2 * MANY_INPUTS; at += 256) {
        const int pair = at % (PANEL / 2), i = at / (PANEL / 2) % MANY_INPUTS, p = at / (PANEL / 2 * MANY_INPUTS);
        const bool is_there = first_panel + p < divided_up(n, PANEL) && start + i < k;
        Pair both = {0.0f, 0.0f};
        if (is_there) both = V::pair(((const typename V::Word*)w)[((size_t)(first_panel + p) * k + start + i) * (PANEL / 2) + pair]);
        tile.w[i][p * PANEL + 2 * pair] = both.first;
        tile.w[i][p * PANEL + 2 * pair + 1] = both.last;
    }
}

// One input of the tile: a thread has 8 rows and 4 outputs.
__device__ __forceinline__ void add_input(float (&acc)[8][4], const DenseTile& tile, int i, int rows_at, int outputs_at) {
    float v[8], w[4];
    *(float4*)&v[0] = *(const float4*)&tile.x[i][rows_at];
    *(float4*)&v[4] = *(const float4*)&tile.x[i][rows_at + 4];
    *(float4*)&w[0] = *(const float4*)&tile.w[i][outputs_at];
    UNROLL
    for (int r = 0; r < 8; r++)
        UNROLL
        for (int j = 0; j < 4; j++) acc[r][j] = fmaf(v[r], w[j], acc[r][j]);
}

// Many rows. grid (outputs / 64, rows / 128), 256 threads.
template <class V>
__device__ __forceinline__ void dense_many_rows(const void* w, const float* x, float* y, int m, int n, int k, int add) {
    SHARED(DenseTile, tile);
    const int rows_at = threadIdx.x / 16 * 8, outputs_at = threadIdx.x % 16 * 4;
    float total[8][4];
    for (int chunk = 0; chunk < k; chunk += CHUNK) {
        float acc[8][4] = {};
        const int end = smaller(chunk + CHUNK, k);
        for (int start = chunk; start < end; start += MANY_INPUTS) {
            load_tile<V>(tile, w, x, m, n, k, start);
            __syncthreads();
            const int valid = smaller(end - start, MANY_INPUTS);
#pragma unroll 16
            for (int i = 0; i < valid; i++) add_input(acc, tile, i, rows_at, outputs_at);
            __syncthreads();
        }
        UNROLL
        for (int r = 0; r < 8; r++)
            UNROLL
            for (int j = 0; j < 4; j++) total[r][j] = chunk == 0 ? acc[r][j] : __fadd_rn(total[r][j], acc[r][j]);
    }
    UNROLL
    for (int r = 0; r < 8; r++)
        UNROLL
        for (int j = 0; j < 4; j++) {
            const int row = blockIdx.y * MANY_ROWS + rows_at + r, column = blockIdx.x * MANY_OUTPUTS + outputs_at + j;
            if (row < m && column < n) put(y + (size_t)row * n + column, total[r][j], add);
        }
}

#define DENSE(name, V)                                                                                                                         \
    KERNEL __launch_bounds__(256) name##_8(const void* __restrict__ w, const float* __restrict__ x, float* __restrict__ y, int m, int n,       \
                                           int k, int add) {                                                                                   \
        dense_few_rows<V>(w, x, y, m, n, k, add);                                                                                              \
    }                                                                                                                                          \
    KERNEL __launch_bounds__(256) name##_many(const void* __restrict__ w, const float* __restrict__ x, float* __restrict__ y, int m, int n,    \
                                              int k, int add) {                                                                                \
        dense_many_rows<V>(w, x, y, m, n, k, add);                                                                                             \
    }

DENSE(linear_f32, F32Weights)
DENSE(linear_f16, F16Weights)
DENSE(linear_bf16, Bf16Weights)
