// Blocks of packed weights in registers. The packings are those of kernels/src/matrix: panels of 16 outputs, in them blocks of 32 inputs.
//
// What the CPU reads is the register layout of the product as well: a word of a plane has four inputs of one output. Which outputs are rows g
// and g + 8 of the operand is free: here they are 2 g and 2 g + 1 of the panel, so what a lane needs of them lies side by side.
#pragma once
#include "common.cuh"

// A block of 32 inputs of a panel: lane 4 g + t has it of outputs 2 g and 2 g + 1.
struct Weights {
    uint32_t a[4];
    // Scales, and minima or the scales of these.
    float d[2], m[2];
    // Of both halves, where sixteen inputs have a scale: integers.
    int scale[2][2], minimum[2][2];
};

// What is added besides the products of a block: nothing, minimum times sum of the activations, or that in integers.
enum Minimum { NO_MINIMUM, SUMS, INTEGERS };

// ---- Bits of weights: kernels/src/matrix/bits.rs has where they lie.

__device__ __forceinline__ uint2 two_words(const uint8_t* from) { return *(const uint2*)from; }

// Four bits of each weight: inputs 4 t.. in the lower halves of bytes, 16 + 4 t.. in the upper.
__device__ __forceinline__ void four_bits(uint32_t (&a)[4], const uint8_t* plane, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint2 words = two_words(plane + (t * PANEL + 2 * g) * 4);
    a[0] = words.x & 0x0f0f0f0fu;
    a[1] = words.y & 0x0f0f0f0fu;
    a[2] = words.x >> 4 & 0x0f0f0f0fu;
    a[3] = words.y >> 4 & 0x0f0f0f0fu;
}

// Two bits of each, to be the bits from SHIFT on.
template <int SHIFT> __device__ __forceinline__ void or_two_bits(uint32_t (&a)[4], const uint8_t* plane, int lane) {
    const int g = lane / 4, t = lane % 4, at = t % 2 * 4;
    const uint2 words = two_words(plane + (t / 2 * PANEL + 2 * g) * 4);
    a[0] |= (words.x >> at & 0x03030303u) << SHIFT;
    a[1] |= (words.y >> at & 0x03030303u) << SHIFT;
    a[2] |= (words.x >> (at + 2) & 0x03030303u) << SHIFT;
    a[3] |= (words.y >> (at + 2) & 0x03030303u) << SHIFT;
}

// One bit of each, to be bit SHIFT.
template <int SHIFT> __device__ __forceinline__ void or_one_bit(uint32_t (&a)[4], const uint8_t* plane, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint2 words = two_words(plane + 2 * g * 4);
    a[0] |= (words.x >> t & 0x01010101u) << SHIFT;
    a[1] |= (words.y >> t & 0x01010101u) << SHIFT;
    a[2] |= (words.x >> (t + 4) & 0x01010101u) << SHIFT;
    a[3] |= (words.y >> (t + 4) & 0x01010101u) << SHIFT;
}

// Bytes of 32 inputs and 16 outputs of so many bits.
__device__ constexpr int plane_bytes(int bits) { return bits * BLOCK * PANEL / 8; }

template <int BITS> __device__ __forceinline__ void unsigned_bits(uint32_t (&a)[4], const uint8_t* from, int lane) {
    a[0] = a[1] = a[2] = a[3] = 0;
    if (BITS & 4) four_bits(a, from, lane);
    if (BITS & 2) or_two_bits<BITS & 4>(a, from + plane_bytes(BITS & 4), lane);
    if (BITS & 1) or_one_bit<BITS & 6>(a, from + plane_bytes(BITS & 6), lane);
}

// Each of four bytes below 128, less the same number, as signed bytes: no borrow leaves a byte whose upper bit is set.
__device__ __forceinline__ uint32_t bytes_less(uint32_t bytes, uint32_t number) {
    return ((bytes | 0x80808080u) - number * 0x01010101u) ^ 0x80808080u;
}

// What the numbers of IQ4 stand for: -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113.
#define IQ4_0 0xbfad9881u
#define IQ4_4 0xf6eaddcfu
#define IQ4_8 0x26190d01u
#define IQ4_12 0x71594535u

// The values of the four numbers in the lower half of `q`, in their order.
__device__ __forceinline__ uint32_t four_values(uint32_t q) {
    const uint32_t low = __byte_perm(IQ4_0, IQ4_4, q & 0x7777), high = __byte_perm(IQ4_8, IQ4_12, q & 0x7777);
    // Byte i of the one, or of the other for numbers from 8 on.
    return __byte_perm(low, high, 0x3210 | (q & 0x8888) >> 1);
}

// The values of the numbers in the lower and in the upper halves of four bytes.
__device__ __forceinline__ void chosen_values(uint32_t& lower, uint32_t& upper, uint32_t q) {
    const uint32_t first = four_values(q), last = four_values(q >> 16);
    lower = __byte_perm(first, last, 0x6420);
    upper = __byte_perm(first, last, 0x7531);
}

__device__ __forceinline__ void chosen_bits(uint32_t (&a)[4], const uint8_t* plane, int lane) {
    const int g = lane / 4, t = lane % 4;
    const uint2 words = two_words(plane + (t * PANEL + 2 * g) * 4);
    chosen_values(a[0], a[2], words.x);
    chosen_values(a[1], a[3], words.y);
}

// ---- Scales

// The f16 of both outputs.
__device__ __forceinline__ void two_f16(float (&out)[2], const uint8_t* from, int lane) {
    const Pair pair = f16_pair(*(const uint32_t*)(from + lane / 4 * 4));
    out[0] = pair.first;
    out[1] = pair.last;
}

// The bytes of both outputs.
__device__ __forceinline__ void two_bytes(int (&out)[2], const uint8_t* from, int lane) {
    const uint32_t both = *(const uint16_t*)(from + lane / 4 * 2);
    out[0] = both & 255;
    out[1] = both >> 8;
}

__device__ __forceinline__ void two_signed_bytes(int (&out)[2], const uint8_t* from, int lane) {
    two_bytes(out, from, lane);
    out[0] = (int8_t)out[0];
    out[1] = (int8_t)out[1];
}

// ---- Packings: BLOCKS of 32 inputs have BYTES together; `load` reads block `u` of them.

struct Q8 {
    static constexpr int BLOCKS = 1, BYTES = 544;
    static constexpr Minimum MINIMUM = NO_MINIMUM;
    static constexpr bool SIXTEENS = false;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int, int lane) {
        const int g = lane / 4, t = lane % 4;
        two_f16(w.d, from, lane);
        const uint2 first = two_words(from + 32 + (t * PANEL + 2 * g) * 4), last = two_words(from + 32 + ((4 + t) * PANEL + 2 * g) * 4);
        w.a[0] = first.x;
        w.a[1] = first.y;
        w.a[2] = last.x;
        w.a[3] = last.y;
    }
};

// Scale and minimum of 32 inputs.
template <int BITS> struct WithMinimum {
    static constexpr int BLOCKS = 1, BYTES = 64 + plane_bytes(BITS);
    static constexpr Minimum MINIMUM = SUMS;
    static constexpr bool SIXTEENS = false;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int, int lane) {
        two_f16(w.d, from, lane);
        two_f16(w.m, from + 32, lane);
        unsigned_bits<BITS>(w.a, from + 64, lane);
    }
};

struct Iq4 {
    static constexpr int BLOCKS = 1, BYTES = 32 + plane_bytes(4);
    static constexpr Minimum MINIMUM = NO_MINIMUM;
    static constexpr bool SIXTEENS = false;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int, int lane) {
        two_f16(w.d, from, lane);
        chosen_bits(w.a, from + 32, lane);
    }
};

// Q4_K and Q5_K: every 32 inputs have scale and minimum, multiples of those of 256.
template <int BITS> struct Minima {
    static constexpr int BLOCKS = 8, BYTES = 320 + 8 * plane_bytes(BITS);
    static constexpr Minimum MINIMUM = SUMS;
    static constexpr bool SIXTEENS = false;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int u, int lane) {
        int scale[2], minimum[2];
        two_f16(w.d, from, lane);
        two_f16(w.m, from + 32, lane);
        two_bytes(scale, from + 64 + u * PANEL, lane);
        two_bytes(minimum, from + 192 + u * PANEL, lane);
        UNROLL
        for (int i = 0; i < 2; i++) {
            w.d[i] = __fmul_rn(w.d[i], __int2float_rn(scale[i]));
            // It is subtracted.
            w.m[i] = -__fmul_rn(w.m[i], __int2float_rn(minimum[i]));
        }
        unsigned_bits<BITS>(w.a, from + 320 + u * plane_bytes(BITS), lane);
    }
};

// Q3_K and Q6_K: every sixteen inputs have a scale, an integer.
template <int BITS> struct Sixteens {
    static constexpr int BLOCKS = 8, BYTES = 288 + 8 * plane_bytes(BITS);
    static constexpr Minimum MINIMUM = NO_MINIMUM;
    static constexpr bool SIXTEENS = true;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int u, int lane) {
        two_f16(w.d, from, lane);
        two_signed_bytes(w.scale[0], from + 32 + 2 * u * PANEL, lane);
        two_signed_bytes(w.scale[1], from + 32 + (2 * u + 1) * PANEL, lane);
        unsigned_bits<BITS>(w.a, from + 288 + u * plane_bytes(BITS), lane);
        UNROLL
        for (int i = 0; i < 4; i++) w.a[i] = bytes_less(w.a[i], 1u << (BITS - 1));
    }
};

struct Q2k {
    static constexpr int BLOCKS = 8, BYTES = 320 + 8 * plane_bytes(2);
    static constexpr Minimum MINIMUM = INTEGERS;
    static constexpr bool SIXTEENS = true;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int u, int lane) {
        two_f16(w.d, from, lane);
        two_f16(w.m, from + 32, lane);
        UNROLL
        for (int half = 0; half < 2; half++) {
            int both[2];
            two_bytes(both, from + 64 + (2 * u + half) * PANEL, lane);
            UNROLL
            for (int i = 0; i < 2; i++) {
                w.scale[half][i] = both[i] & 15;
                w.minimum[half][i] = both[i] >> 4;
            }
        }
        unsigned_bits<2>(w.a, from + 320 + u * plane_bytes(2), lane);
    }
};

struct Iq4Xs {
    static constexpr int BLOCKS = 8, BYTES = 160 + 8 * plane_bytes(4);
    static constexpr Minimum MINIMUM = NO_MINIMUM;
    static constexpr bool SIXTEENS = false;
    static __device__ __forceinline__ void load(Weights& w, const uint8_t* from, int u, int lane) {
        int scale[2];
        two_f16(w.d, from, lane);
        two_signed_bytes(scale, from + 32 + u * PANEL, lane);
        UNROLL
        for (int i = 0; i < 2; i++) w.d[i] = __fmul_rn(w.d[i], __int2float_rn(scale[i]));
        chosen_bits(w.a, from + 160 + u * plane_bytes(4), lane);
    }
};
