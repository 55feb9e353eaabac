// Rows as 8-bit integers, in blocks of 32 values (ARITHMETIC.md, 2), as the products read them.
#include "common.cuh"

// Per block of 32 inputs and tile of 8 rows: in `xq` 32 lanes of 8 bytes as `dot` wants them, in `xds` scale and scale times sum of each row, in
// `xhalf` the integer sums of both halves of each row. Rows from m on are zero.
//
// A warp has one block of one row. grid (blocks / 8, whole tiles of rows), 256 threads.
KERNEL __launch_bounds__(256)
quantise(const float* __restrict__ x, int m, int k, uint8_t* __restrict__ xq, float2* __restrict__ xds, int2* __restrict__ xhalf) {
    const int lane = threadIdx.x % 32, block = blockIdx.x * 8 + threadIdx.x / 32, row = blockIdx.y;
    const int tiles = gridDim.y / TILE;
    // Whole warps, and no barrier follows.
    if (block >= k / BLOCK) return;
    const float v = row < m ? x[(size_t)row * k + block * BLOCK + lane] : 0.0f;
    const bool is_odd = __any_sync(WHOLE_WARP, !is_finite(v));
    const float max = tree_max<32>(fabsf(v));
    // Where the inverse of the largest value would overflow.
    const bool is_tiny = max < 1e-30f;
    // Rounded to nearest even: the sum with 1.5 * 2^23 has no bits left for a fraction.
    const float scaled = __fmul_rn(v, __fdiv_rn(127.0f, max));
    const int q = is_odd || is_tiny ? 0 : __float_as_int(__fadd_rn(scaled, 12582912.0f)) - SUM_START;
    const int half_sum = tree_sum<16>(q);
    const int last_sum = __shfl_sync(WHOLE_WARP, half_sum, 16);
    const size_t tile = (size_t)block * tiles + row / TILE;
    // Lane 4 g + t of the product has inputs 4 t.. and 16 + 4 t.. of row g.
    xq[tile * 256 + (row % TILE * 4 + lane % 16 / 4) * 8 + lane / 16 * 4 + lane % 4] = (uint8_t)q;
    if (lane > 0) return;
    // With NaN, all outputs of the row are NaN, and the request fails.
    const float d = is_odd ? __int_as_float(0x7fc00000) : is_tiny ? 0.0f : __fdiv_rn(max, 127.0f);
    float2 ds;
    ds.x = d;
    ds.y = __fmul_rn(d, __int2float_rn(half_sum + last_sum));
    xds[tile * TILE + row % TILE] = ds;
    int2 halves;
    halves.x = half_sum;
    halves.y = last_sum;
    xhalf[tile * TILE + row % TILE] = halves;
}
