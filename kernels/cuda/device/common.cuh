// What all kernels use. Device code includes no other headers: the same text is compiled by nvcc, by NVRTC and, through emulator/emu.h, for the
// host.
//
// All floats are computed as in kernels/ARITHMETIC.md: every operation rounds to nearest even, and a multiplication and an addition are one
// operation only where fmaf is written. Maxima are compare-and-select. Nothing is approximated.
#pragma once

#if defined(__CUDACC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
// A variable that the threads of a block share.
#define SHARED(type, name) __shared__ type name
#define UNROLL _Pragma("unroll")
#else
// The emulator has the types, and finds the variable by the place of its declaration.
#define SHARED(type, name)                                                                                                                     \
    static const char name##_key = 0;                                                                                                          \
    type& name = emu::shared<type>(&name##_key)
#define UNROLL
#endif

#define KERNEL extern "C" __global__ void
#define WHOLE_WARP 0xffffffffu
#define INFINITE __int_as_float(0x7f800000)
#define MINUS_INFINITE __int_as_float((int)0xff800000)

// Inputs of a quantised block, outputs of a panel, rows of a tile, blocks whose sum is one chunk (256 inputs).
enum { BLOCK = 32, PANEL = 16, TILE = 8, CHUNK_BLOCKS = 8, CHUNK = 256 };

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int divided_up(int n, int by) { return (n + by - 1) / by; }
__device__ __forceinline__ float larger(float a, float b) { return b > a ? b : a; }

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_int(x) & 0x7f800000) != 0x7f800000; }

// f16 bits as f32, exact.
__device__ __forceinline__ float f16_bits(uint32_t bits) {
#if defined(__CUDACC__)
    float out;
    asm("{.reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h;}" : "=f"(out) : "h"((uint16_t)bits));
    return out;
#else
    const uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __int_as_float(sign | 0x7f800000 | fraction << 13);
    if (exponent > 0) return __int_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = (float)fraction * 5.9604644775390625e-8f;
    return sign ? -small : small;
#endif
}

// The two halves of a word.
struct Pair {
    float first, last;
};
__device__ __forceinline__ Pair f16_pair(uint32_t word) { return {f16_bits(word & 0xffff), f16_bits(word >> 16)}; }
__device__ __forceinline__ Pair bf16_pair(uint32_t word) {
    return {__int_as_float((int)(word << 16)), __int_as_float((int)(word & 0xffff0000))};
}

// y = value, or y += value.
__device__ __forceinline__ void put(float* y, float value, int add) { *y = add ? __fadd_rn(*y, value) : value; }

// e^x as kernels/src/math.rs computes it: 0 below -87.33 and for NaN, infinite above 88.
__device__ __forceinline__ float exp_of(float x) {
    if (!(x >= -87.33f)) return 0.0f;
    if (x > 88.0f) return INFINITE;
    const float n = rintf(__fmul_rn(x, 1.44269504088896340736f));
    const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.693359375f, x));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    const float e = __fadd_rn(fmaf(p, __fmul_rn(r, r), r), 1.0f);
    return __int_as_float((int)((uint32_t)__float_as_int(e) + ((uint32_t)(int)n << 23)));
}

// Sums of `count` lanes that lie side by side, as a tree of halves: lane i and lane i + count / 2 first. Every lane gets the sum, because an
// addition has the same bits the other way round.
template <int COUNT> __device__ __forceinline__ float tree_sum(float x) {
    UNROLL
    for (int half = COUNT / 2; half > 0; half /= 2) x = __fadd_rn(x, __shfl_xor_sync(WHOLE_WARP, x, half));
    return x;
}
template <int COUNT> __device__ __forceinline__ float tree_max(float x) {
    UNROLL
    for (int half = COUNT / 2; half > 0; half /= 2) x = larger(x, __shfl_xor_sync(WHOLE_WARP, x, half));
    return x;
}
template <int COUNT> __device__ __forceinline__ int tree_sum(int x) {
    UNROLL
    for (int half = COUNT / 2; half > 0; half /= 2) x += __shfl_xor_sync(WHOLE_WARP, x, half);
    return x;
}

// The exact integer products of 16 outputs, 8 rows and 32 inputs, by a warp. Lane 4 g + t gives
//   a[0], a[2]  inputs 4 t.. and 16 + 4 t.. of the output that is row g of the operand, a[1], a[3] of the one that is row g + 8
//   b[0], b[1]  inputs 4 t.. and 16 + 4 t.. of row g
// and gets the sums of rows 2 t and 2 t + 1 for the first output in d[0], d[1], for the other in d[2], d[3].
//
// `dot` adds all 32 inputs to `start`; `half_dots` sums the first and the last sixteen by themselves.
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800

__device__ __forceinline__ void dot(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int start) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(start));
}

__device__ __forceinline__ void half_dot(int (&d)[4], uint32_t a_first, uint32_t a_last, uint32_t b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a_first), "r"(a_last), "r"(b), "r"(0));
}

__device__ __forceinline__ void half_dots(int (&first)[4], int (&last)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    half_dot(first, a[0], a[1], b[0]);
    half_dot(last, a[2], a[3], b[1]);
}

#elif defined(__CUDACC__)

// Turing has the product of 8 outputs and 16 inputs only.
__device__ __forceinline__ void add_eighth(int& d0, int& d1, uint32_t a, uint32_t b) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+r"(d0), "+r"(d1) : "r"(a), "r"(b));
}

__device__ __forceinline__ void dot(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int start) {
    UNROLL
    for (int output = 0; output < 2; output++) {
        d[2 * output] = d[2 * output + 1] = start;
        add_eighth(d[2 * output], d[2 * output + 1], a[output], b[0]);
        add_eighth(d[2 * output], d[2 * output + 1], a[output + 2], b[1]);
    }
}

__device__ __forceinline__ void half_dots(int (&first)[4], int (&last)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    UNROLL
    for (int output = 0; output < 2; output++) {
        first[2 * output] = first[2 * output + 1] = last[2 * output] = last[2 * output + 1] = 0;
        add_eighth(first[2 * output], first[2 * output + 1], a[output], b[0]);
        add_eighth(last[2 * output], last[2 * output + 1], a[output + 2], b[1]);
    }
}

#else

__device__ __forceinline__ void half_dots(int (&first)[4], int (&last)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::product(first, last, a, b, EMU_SITE);
}

__device__ __forceinline__ void dot(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int start) {
    int last[4];
    half_dots(d, last, a, b);
    for (int i = 0; i < 4; i++) d[i] += last[i] + start;
}

#endif

// An integer sum that starts with the bit pattern of 1.5 * 2^23: read as a float, less that number, it is the sum as a float, exactly for
// |sum| < 2^22; that of a block is at most 127 * 128 * 32. A subtraction is several times as fast as a conversion.
#define SUM_START 0x4B400000
__device__ __forceinline__ float sum_as_float(int sum) { return __fsub_rn(__int_as_float(sum), 12582912.0f); }
