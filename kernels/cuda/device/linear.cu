// y = x W^T for quantised weights. The integer sum of a block is exact, the float steps are those of ARITHMETIC.md, 2, in their order.
#include "weights.cuh"

// Rows that were quantised: see quantise.cu.
struct Rows {
    const uint2* q;
    // Of two rows.
    const float4* ds;
    const int4* halves;
    int tiles;
};

// What a lane has of a tile: rows 2 t and 2 t + 1 of output 2 g in the first two, of output 2 g + 1 in the last two.
typedef float Sums[4];

template <class P> __device__ __forceinline__ void load_block(Weights& w, const uint8_t* panel, int block, int lane) {
    P::load(w, panel + (size_t)(block / P::BLOCKS) * P::BYTES, block % P::BLOCKS, lane);
}

template <class P> __device__ __forceinline__ size_t panel_bytes(int blocks) { return (size_t)(blocks / P::BLOCKS) * P::BYTES; }

// The integer sums of a block as floats; where sixteen inputs have a scale, of both halves times theirs.
template <class P> __device__ __forceinline__ void block_sums(float (&out)[4], const Weights& w, const uint32_t (&b)[2]) {
    int sum[4], last[4];
    if (P::SIXTEENS) {
        half_dots(sum, last, w.a, b);
        UNROLL
        for (int i = 0; i < 4; i++) out[i] = __int2float_rn(sum[i] * w.scale[0][i / 2] + last[i] * w.scale[1][i / 2]);
    } else {
        dot(sum, w.a, b, SUM_START);
        UNROLL
        for (int i = 0; i < 4; i++) out[i] = sum_as_float(sum[i]);
    }
}

// The sums of minima times activations.
__device__ __forceinline__ void minimum_sums(float (&out)[4], const Weights& w, const int4& halves) {
    UNROLL
    for (int i = 0; i < 4; i++) {
        const int first = i % 2 ? halves.z : halves.x, last = i % 2 ? halves.w : halves.y;
        out[i] = __int2float_rn(first * w.minimum[0][i / 2] + last * w.minimum[1][i / 2]);
    }
}

// Goes on with the sums of a tile.
template <class P>
__device__ __forceinline__ void add_block(Sums& acc, const Weights& w, const Rows& rows, int block, int tile, int lane) {
    const size_t at = (size_t)block * rows.tiles + tile;
    const uint2 q = rows.q[at * 32 + lane];
    const float4 ds = rows.ds[at * 4 + lane % 4];
    const uint32_t b[2] = {q.x, q.y};
    float sum[4];
    block_sums<P>(sum, w, b);
    UNROLL
    for (int i = 0; i < 4; i++) {
        acc[i] = fmaf(sum[i], __fmul_rn(w.d[i / 2], i % 2 ? ds.z : ds.x), acc[i]);
        if (P::MINIMUM == SUMS) acc[i] = fmaf(w.m[i / 2], i % 2 ? ds.w : ds.y, acc[i]);
    }
    if (P::MINIMUM == INTEGERS) {
        minimum_sums(sum, w, rows.halves[at * 4 + lane % 4]);
        UNROLL
        for (int i = 0; i < 4; i++) acc[i] = fmaf(-sum[i], __fmul_rn(w.m[i / 2], i % 2 ? ds.z : ds.x), acc[i]);
    }
}

// The sums of eight chunks, one of each warp, of T tiles of rows. A column more than there are spreads them over the banks.
template <int T> struct ChunkSums {
    float of[8][TILE * T][PANEL + 1];
};
// While one of them is added up, the next one is written.
template <int T> struct TwoChunkSums {
    ChunkSums<T> turn[2];
};

// The sums of chunk `c`, by a warp.
template <class P, int T>
__device__ __forceinline__ void chunk_sums(float (&out)[TILE * T][PANEL + 1], const uint8_t* panel, const Rows& rows, int c, int blocks,
                                           int lane) {
    Sums acc[T] = {};
    const int end = smaller(c * CHUNK_BLOCKS + CHUNK_BLOCKS, blocks), first_tile = blockIdx.y * T;
    // The more tiles, the fewer blocks at a time: all that is loaded early takes registers.
#pragma unroll(4 / T)
    for (int block = c * CHUNK_BLOCKS; block < end; block++) {
        Weights w;
        load_block<P>(w, panel, block, lane);
        UNROLL
        // What lies behind the last tile is computed from that one, and not written: all lanes of a warp must take part.
        for (int i = 0; i < T; i++) add_block<P>(acc[i], w, rows, block, smaller(first_tile + i, rows.tiles - 1), lane);
    }
    const int g = lane / 4, t = lane % 4;
    UNROLL
    for (int i = 0; i < T; i++)
        UNROLL
        for (int j = 0; j < 4; j++) out[i * TILE + 2 * t + j % 2][2 * g + j / 2] = acc[i][j];
}

// Few rows: a panel for each block of threads. Its 8 warps take one chunk each, then the 8 sums are added in order, and so on.
// grid (panels, tiles / T), 256 threads.
template <class P, int T>
__device__ __forceinline__ void few_rows(const uint8_t* w, const Rows& rows, float* y, int m, int n, int k, int add) {
    // Outputs that a thread adds up: all of a tile are 128.
    constexpr int OUTPUTS = TILE * T * PANEL, OWN = (OUTPUTS + 255) / 256;
    SHARED(TwoChunkSums<T>, sums);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, blocks = k / BLOCK, chunks = divided_up(blocks, CHUNK_BLOCKS);
    const uint8_t* panel = w + blockIdx.x * panel_bytes<P>(blocks);
    float total[OWN] = {};
    for (int round = 0; round * 8 < chunks; round++) {
        ChunkSums<T>& part = sums.turn[round % 2];
        if (round * 8 + warp < chunks) chunk_sums<P, T>(part.of[warp], panel, rows, round * 8 + warp, blocks, lane);
        // One barrier a round is enough, because the other half is written next.
        __syncthreads();
        const int valid = smaller(chunks - round * 8, 8);
        UNROLL
        for (int o = 0; o < OWN; o++) {
            const int i = threadIdx.x + o * 256;
            if (i >= OUTPUTS) continue;
            for (int c = 0; c < valid; c++) {
                const float sum = part.of[c][i / PANEL][i % PANEL];
                total[o] = round == 0 && c == 0 ? sum : __fadd_rn(total[o], sum);
            }
        }
    }
    UNROLL
    for (int o = 0; o < OWN; o++) {
        const int i = threadIdx.x + o * 256, row = blockIdx.y * T * TILE + i / PANEL, column = blockIdx.x * PANEL + i % PANEL;
        if (i < OUTPUTS && row < m && column < n) put(y + (size_t)row * n + column, total[o], add);
    }
}

// Many rows: a warp has 2 panels and 4 tiles, 8 warps have 4 panels and 16 tiles. No sum is split.
// grid (panels / 4, tiles / 16), 256 threads.
template <class P>
__device__ __forceinline__ void many_rows(const uint8_t* w, const Rows& rows, float* y, int m, int n, int k, int add) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, blocks = k / BLOCK, panels = divided_up(n, PANEL);
    const int first_panel = blockIdx.x * 4 + warp % 2 * 2, first_tile = blockIdx.y * 16 + warp / 2 * 4;
    // Whole warps, and no barrier follows.
    if (first_panel >= panels || first_tile >= rows.tiles) return;
    const uint8_t* panel[2];
    UNROLL
    for (int p = 0; p < 2; p++) panel[p] = w + smaller(first_panel + p, panels - 1) * panel_bytes<P>(blocks);
    Sums total[2][4];
    for (int c = 0; c * CHUNK_BLOCKS < blocks; c++) {
        Sums acc[2][4] = {};
        const int end = smaller(c * CHUNK_BLOCKS + CHUNK_BLOCKS, blocks);
        for (int block = c * CHUNK_BLOCKS; block < end; block++) {
            Weights own[2];
            UNROLL
            for (int p = 0; p < 2; p++) load_block<P>(own[p], panel[p], block, lane);
            UNROLL
            for (int i = 0; i < 4; i++)
                UNROLL
                for (int p = 0; p < 2; p++) add_block<P>(acc[p][i], own[p], rows, block, smaller(first_tile + i, rows.tiles - 1), lane);
        }
        UNROLL
        for (int i = 0; i < 32; i++) {
            float &to = total[i / 16][i / 4 % 4][i % 4], sum = acc[i / 16][i / 4 % 4][i % 4];
            to = c == 0 ? sum : __fadd_rn(to, sum);
        }
    }
    const int g = lane / 4, t = lane % 4;
    UNROLL
    for (int i = 0; i < 32; i++) {
        const int p = i / 16, tile = first_tile + i / 4 % 4, j = i % 4;
        const int row = tile * TILE + 2 * t + j % 2, column = (first_panel + p) * PANEL + 2 * g + j / 2;
        if (row < m && column < n) put(y + (size_t)row * n + column, total[p][i / 4 % 4][j], add);
    }
}

#define PARAMETERS                                                                                                                             \
    const uint8_t *__restrict__ w, const uint2 *__restrict__ xq, const float4 *__restrict__ xds, const int4 *__restrict__ xhalf,               \
        float *__restrict__ y, int m, int n, int k, int tiles, int add
// BLOCKS of threads have room on a multiprocessor, so the compiler knows how many registers there are.
#define FEW(name, P, T, BLOCKS)                                                                                                                \
    KERNEL __launch_bounds__(256, BLOCKS) name(PARAMETERS) { few_rows<P, T>(w, Rows{xq, xds, xhalf, tiles}, y, m, n, k, add); }
#define MANY(name, P)                                                                                                                          \
    KERNEL __launch_bounds__(256, 1) name(PARAMETERS) { many_rows<P>(w, Rows{xq, xds, xhalf, tiles}, y, m, n, k, add); }
// Kernels for 8, 16 and 32 rows, and for many.
#define LINEAR(name, P) FEW(name##_8, P, 1, 3) FEW(name##_16, P, 2, 3) FEW(name##_32, P, 4, 2) MANY(name##_many, P)

LINEAR(linear_q8, Q8)
LINEAR(linear_q4, WithMinimum<4>)
LINEAR(linear_q5, WithMinimum<5>)
LINEAR(linear_iq4, Iq4)
LINEAR(linear_q2k, Q2k)
LINEAR(linear_q3k, Sixteens<3>)
LINEAR(linear_q4k, Minima<4>)
LINEAR(linear_q5k, Minima<5>)
LINEAR(linear_q6k, Sixteens<6>)
LINEAR(linear_iq4xs, Iq4Xs)
