// Kernels with a fault each that a real device may hide, for the tests of the emulated one. All have 64 threads and a buffer of 64 values.
#include "../device/common.cuh"

struct Values {
    float of[64];
};

// None: values the other way round.
KERNEL faultless(float* values) {
    SHARED(Values, shared);
    shared.of[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = shared.of[63 - threadIdx.x];
}

// The same without the barrier.
KERNEL fault_no_barrier(float* values) {
    SHARED(Values, shared);
    shared.of[threadIdx.x] = values[threadIdx.x];
    values[threadIdx.x] = shared.of[63 - threadIdx.x];
}

// Some threads end before a barrier.
KERNEL fault_ended_thread(float*) {
    if (threadIdx.x < 32) return;
    __syncthreads();
}

// Threads wait at different barriers.
KERNEL fault_two_barriers(float*) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

// A lane ends before a shuffle.
KERNEL fault_ended_lane(float* values) {
    if (threadIdx.x == 5) return;
    values[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, values[threadIdx.x], 1);
}

// A lane is at another shuffle than the others.
KERNEL fault_two_shuffles(float* values) {
    if (threadIdx.x == 5) {
        values[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, values[threadIdx.x], 1);
    } else {
        values[threadIdx.x] = __shfl_xor_sync(WHOLE_WARP, values[threadIdx.x], 1);
    }
}

// Values behind the buffer.
KERNEL fault_outside(float* values) { values[threadIdx.x] = values[threadIdx.x + 64]; }

#define FAULTY_KERNELS(X)                                                                                                                      \
    X(faultless)                                                                                                                               \
    X(fault_no_barrier)                                                                                                                        \
    X(fault_ended_thread)                                                                                                                      \
    X(fault_two_barriers)                                                                                                                      \
    X(fault_ended_lane)                                                                                                                        \
    X(fault_two_shuffles)                                                                                                                      \
    X(fault_outside)
