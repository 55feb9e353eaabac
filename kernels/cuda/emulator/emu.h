// CUDA C++ for a host compiler: what kernels are written in, as macros and functions, over threads that are switched by hand.
//
// Every thread of a block is a fiber. It runs until it waits for others: at a barrier for the whole block, at a collective (a shuffle, a vote, a
// matrix product) for its warp. What CUDA leaves undefined ends the process with a message: a barrier that not all threads reach, a collective
// whose lanes have ended or are elsewhere, a lane that is not in its own mask. Memory that a kernel has not written is 0xff, which is NaN or -1.
//
// Blocks are independent, so a large grid is shared by two threads of the host. Includes of the C++ library come before this file, because some
// of its macros have names that the library uses.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#include <sys/mman.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    size_t count() const { return (size_t)x * y * z; }
};
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace emu {

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t SHARED_BYTES = 48 * 1024;

enum class State { ready, at_barrier, at_collective, done };

// In which order threads run between two points where they wait for each other. A kernel must not depend on it.
enum class Order { forward, backward, random, turns };

// Where a fiber goes on.
#if defined(__x86_64__)
typedef void* Place;
#else
typedef ucontext_t Place;
#endif

// What the lanes of a warp give each other. There are two of everything: a lane that is ahead writes into the one while others read the other.
struct Warp {
    uint64_t given[2][LANES];
    // The operands of a matrix product: 16 outputs, 8 rows, 32 inputs.
    int8_t a[2][16][32];
    int8_t b[2][8][32];
};

struct Thread {
    dim3 index;
    int lane;
    Warp* warp;
    State state;
    int turn;
    unsigned mask;
    const char* site;
    char* stack;
    Place place;
};

// A shared variable of the block that runs, found by the place where it is declared.
struct Shared {
    const void* key;
    char* at;
};

// One host thread's block of threads.
struct Machine {
    dim3 block_index, block, grid;
    Thread* current = nullptr;
    Place host;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<char*> stacks;
    std::unique_ptr<char[]> memory{new char[SHARED_BYTES + 128]};
    std::vector<Shared> shared;
    size_t shared_used = 0;
    const std::function<void()>* body = nullptr;
    Order order = Order::forward;
    uint64_t random = 88172645463325252ull;
};

static thread_local Machine* machine = nullptr;

[[noreturn]] static void die(const Thread* thread, const char* what) {
    const dim3 block = machine->block_index, index = thread ? thread->index : dim3(0, 0, 0);
    fprintf(stderr, "emulated GPU: %s, block (%u, %u, %u), thread (%u, %u, %u), %s\n", what, block.x, block.y, block.z, index.x, index.y,
            index.z, thread && thread->site ? thread->site : "before any barrier");
    abort();
}

// Switching of fibers. Registers that a function must keep are on the stack.
#if defined(__x86_64__)
extern "C" void emu_switch(void** from, void* to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, . - emu_switch
)");
static void switch_place(Place& from, Place& to) { emu_switch(&from, to); }
static void begin_at(Thread& thread, void (*entry)()) {
    void** top = (void**)(thread.stack + STACK_BYTES - 64);
    *--top = nullptr;
    *--top = (void*)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    thread.place = top;
}
#else
static void switch_place(Place& from, Place& to) { swapcontext(&from, &to); }
static void begin_at(Thread& thread, void (*entry)()) {
    getcontext(&thread.place);
    thread.place.uc_stack.ss_sp = thread.stack;
    thread.place.uc_stack.ss_size = STACK_BYTES;
    thread.place.uc_link = nullptr;
    makecontext(&thread.place, entry, 0);
}
#endif

// Threads of a warp: the last one may have fewer than 32.
static size_t lanes_of(const Machine& m, size_t warp) { return std::min<size_t>(LANES, m.threads.size() - warp * LANES); }

// The lane of the warp that runs next in this round, if lanes run in the order of their numbers.
static Thread* next_lane(Machine& m, const Thread& thread) {
    if (m.order != Order::forward && m.order != Order::turns) return nullptr;
    const size_t number = &thread - m.threads.data(), warp = number / LANES, end = warp * LANES + lanes_of(m, warp);
    for (size_t next = number + 1; next < end; next++)
        if (m.threads[next].state == State::ready) return &m.threads[next];
    return nullptr;
}

static void wait(State state, unsigned mask, const char* site) {
    Machine& m = *machine;
    Thread& thread = *m.current;
    thread.state = state;
    thread.mask = mask;
    thread.site = site;
    // Straight to the next lane: going back to the host first takes twice as long.
    m.current = next_lane(m, thread);
    switch_place(thread.place, m.current ? m.current->place : m.host);
}

static void entry() {
    (*machine->body)();
    wait(State::done, 0, machine->current->site);
    __builtin_unreachable();
}

static void resume(Machine& m, Thread& thread) {
    m.current = &thread;
    switch_place(m.host, thread.place);
    m.current = nullptr;
}

static uint64_t next_random(Machine& m) {
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return m.random;
}

// The i-th of `count` in the order that was asked for; `shift` is another number for every round.
static size_t ordered(const Machine& m, size_t i, size_t count, uint64_t shift) {
    if (m.order == Order::backward) return count - 1 - i;
    if (m.order == Order::random) return (i + shift) % count;
    return i;
}

// Has everybody arrived for whom this lane waits?
static bool have_arrived(Machine& m, size_t warp, const Thread& waiting) {
    for (size_t lane = 0; lane < LANES; lane++) {
        if (!(waiting.mask >> lane & 1)) continue;
        if (lane >= lanes_of(m, warp)) die(&waiting, "a collective waits for a lane that does not exist");
        const Thread& other = m.threads[warp * LANES + lane];
        if (other.state == State::done) die(&waiting, "a collective waits for a lane that has ended");
        if (other.state != State::at_collective || other.mask != waiting.mask) return false;
        if (other.site != waiting.site) die(&waiting, "lanes of one mask are at different collectives");
    }
    return true;
}

static bool release_collectives(Machine& m, size_t warp) {
    bool any = false;
    for (size_t lane = 0; lane < lanes_of(m, warp); lane++) {
        Thread& thread = m.threads[warp * LANES + lane];
        if (thread.state != State::at_collective || !have_arrived(m, warp, thread)) continue;
        const unsigned mask = thread.mask;
        for (size_t other = lane; other < lanes_of(m, warp); other++)
            if (mask >> other & 1) m.threads[warp * LANES + other].state = State::ready;
        any = true;
    }
    return any;
}

static bool run_warp_once(Machine& m, size_t warp) {
    bool any = false;
    const size_t lanes = lanes_of(m, warp);
    const uint64_t shift = m.order == Order::random ? next_random(m) % lanes : 0;
    for (size_t i = 0; i < lanes; i++) {
        Thread& thread = m.threads[warp * LANES + ordered(m, i, lanes, shift)];
        if (thread.state != State::ready) continue;
        resume(m, thread);
        any = true;
    }
    return release_collectives(m, warp) || any;
}

static bool run_warps(Machine& m) {
    bool any = false;
    const size_t warps = m.warps.size();
    const uint64_t shift = m.order == Order::random ? next_random(m) % warps : 0;
    for (size_t i = 0; i < warps; i++) {
        const size_t warp = ordered(m, i, warps, shift);
        while (run_warp_once(m, warp)) {
            any = true;
            // Else a warp runs as far as it can, which shows a barrier that is missing.
            if (m.order == Order::turns) break;
        }
    }
    return any;
}

static bool release_barrier(Machine& m) {
    const Thread* first = nullptr;
    size_t waiting = 0;
    for (const Thread& thread : m.threads) {
        if (thread.state == State::done) continue;
        if (thread.state != State::at_barrier) return false;
        if (!first) first = &thread;
        if (thread.site != first->site) die(&thread, "threads of a block are at different barriers");
        waiting++;
    }
    if (waiting == 0) return false;
    if (waiting < m.threads.size()) die(first, "a barrier waits for threads that have ended");
    for (Thread& thread : m.threads) thread.state = State::ready;
    return true;
}

static void run_block(Machine& m) {
    m.shared.clear();
    m.shared_used = 0;
    for (Thread& thread : m.threads) {
        thread.state = State::ready;
        thread.turn = 0;
        thread.site = nullptr;
        begin_at(thread, entry);
    }
    for (bool any = true; any;) {
        any = run_warps(m);
        any |= release_barrier(m);
    }
    for (const Thread& thread : m.threads)
        if (thread.state != State::done) die(&thread, "threads wait for each other for ever");
}

// Stacks are kept: making them takes longer than most blocks run.
static auto& idle_lock = *new std::mutex;
static auto& idle = *new std::vector<std::unique_ptr<Machine>>;

static std::unique_ptr<Machine> take_machine() {
    std::lock_guard<std::mutex> lock(idle_lock);
    if (idle.empty()) return std::make_unique<Machine>();
    auto m = std::move(idle.back());
    idle.pop_back();
    return m;
}

static void give_back(std::unique_ptr<Machine> m) {
    std::lock_guard<std::mutex> lock(idle_lock);
    idle.push_back(std::move(m));
}

static char* new_stack() {
    void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) {
        perror("emulated GPU: no memory for stacks");
        abort();
    }
    return (char*)stack;
}

static void prepare(Machine& m, dim3 grid, dim3 block, Order order, const std::function<void()>& body) {
    const size_t count = block.count();
    while (m.stacks.size() < count) m.stacks.push_back(new_stack());
    m.grid = grid;
    m.block = block;
    m.order = order;
    m.body = &body;
    m.threads.resize(count);
    m.warps.resize((count + LANES - 1) / LANES);
    for (size_t i = 0; i < count; i++) {
        Thread& thread = m.threads[i];
        thread.index = dim3(i % block.x, i / block.x % block.y, i / ((size_t)block.x * block.y));
        thread.lane = i % LANES;
        thread.warp = &m.warps[i / LANES];
        thread.stack = m.stacks[i];
    }
}

// Runs blocks until there are none left.
static void run_blocks(dim3 grid, dim3 block, Order order, const std::function<void()>& body, std::atomic<size_t>& next) {
    auto own = take_machine();
    prepare(*own, grid, block, order, body);
    machine = own.get();
    for (size_t i = next++; i < grid.count(); i = next++) {
        own->block_index = dim3(i % grid.x, i / grid.x % grid.y, i / ((size_t)grid.x * grid.y));
        run_block(*own);
    }
    machine = nullptr;
    give_back(std::move(own));
}

static void launch(dim3 grid, dim3 block, Order order, const std::function<void()>& body) {
    constexpr size_t MANY_BLOCKS = 16;
    std::atomic<size_t> next{0};
    if (grid.count() < MANY_BLOCKS) return run_blocks(grid, block, order, body, next);
    std::thread helper([&] { run_blocks(grid, block, order, body, next); });
    run_blocks(grid, block, order, body, next);
    helper.join();
}

// Memory of the block, one variable for each place that declares one.
template <class T> T& shared(const void* key) {
    Machine& m = *machine;
    for (const Shared& known : m.shared)
        if (known.key == key) return *(T*)known.at;
    char* base = (char*)(((uintptr_t)m.memory.get() + 127) / 128 * 128);
    char* at = base + m.shared_used;
    m.shared_used += (sizeof(T) + 15) / 16 * 16;
    if (m.shared_used > SHARED_BYTES) die(m.current, "more shared memory than a block has");
    memset(at, 0xff, sizeof(T));
    m.shared.push_back({key, at});
    return *(T*)at;
}

// Gives a value, waits for the lanes of the mask, and takes that of lane `from`.
static uint64_t exchange(unsigned mask, uint64_t value, int from, const char* site) {
    Thread& own = *machine->current;
    if (!(mask >> own.lane & 1)) die(&own, "a lane is not in its own mask");
    const int turn = own.turn ^= 1;
    own.warp->given[turn][own.lane] = value;
    wait(State::at_collective, mask, site);
    if (!(mask >> from & 1)) die(&own, "a shuffle from a lane that is not in the mask");
    return own.warp->given[turn][from];
}

template <class T> T shuffle(unsigned mask, T value, int from, const char* site) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = exchange(mask, bits, from, site);
    memcpy(&value, &bits, sizeof value);
    return value;
}

static unsigned ballot(unsigned mask, bool vote, const char* site) {
    const Thread& own = *machine->current;
    exchange(mask, vote, own.lane, site);
    unsigned votes = 0;
    for (int lane = 0; lane < LANES; lane++)
        if (mask >> lane & 1 && own.warp->given[own.turn][lane]) votes |= 1u << lane;
    return votes;
}

// The operands of the warp's matrix product, from the registers of its lanes as PTX lays them out: lane 4 g + t has of `a` the rows g (registers
// 0 and 2) and g + 8 (1 and 3), of `b` column g, inputs 4 t.. in the first and 16 + 4 t.. in the last registers.
static int gather_operands(const uint32_t (&a)[4], const uint32_t (&b)[2], const char* site) {
    Thread& own = *machine->current;
    const int g = own.lane / 4, t = own.lane % 4, turn = own.turn ^= 1;
    for (int i = 0; i < 4; i++) memcpy(&own.warp->a[turn][g + i % 2 * 8][i / 2 * 16 + 4 * t], &a[i], 4);
    for (int i = 0; i < 2; i++) memcpy(&own.warp->b[turn][g][i * 16 + 4 * t], &b[i], 4);
    wait(State::at_collective, 0xffffffffu, site);
    return turn;
}

__attribute__((optimize("O3"))) static int dot_16(const int8_t* a, const int8_t* b) {
    int sum = 0;
    for (int i = 0; i < 16; i++) sum += (int)a[i] * (int)b[i];
    return sum;
}

// Each lane has four results: rows g and g + 8, columns 2 t and 2 t + 1. Both halves of the inputs by themselves.
static void product(int (&first)[4], int (&last)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* site) {
    const int turn = gather_operands(a, b, site);
    const Thread& own = *machine->current;
    for (int i = 0; i < 4; i++) {
        const int8_t* row = own.warp->a[turn][own.lane / 4 + i / 2 * 8];
        const int8_t* column = own.warp->b[turn][own.lane % 4 * 2 + i % 2];
        first[i] = dot_16(row, column);
        last[i] = dot_16(row + 16, column + 16);
    }
}

} // namespace emu

#define EMU_TEXT_OF(x) #x
#define EMU_TEXT(x) EMU_TEXT_OF(x)
#define EMU_SITE __FILE__ ":" EMU_TEXT(__LINE__)

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (emu::machine->current->index)
#define blockIdx (emu::machine->block_index)
#define blockDim (emu::machine->block)
#define gridDim (emu::machine->grid)
#define __syncthreads() emu::wait(emu::State::at_barrier, 0, EMU_SITE)
#define __shfl_sync(mask, value, lane) emu::shuffle(mask, value, (lane) % emu::LANES, EMU_SITE)
#define __shfl_xor_sync(mask, value, bits) emu::shuffle(mask, value, emu::machine->current->lane ^ (bits), EMU_SITE)
#define __any_sync(mask, vote) (emu::ballot(mask, vote, EMU_SITE) != 0)

static inline float __int_as_float(int i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}
static inline int __float_as_int(float f) {
    int i;
    memcpy(&i, &f, 4);
    return i;
}
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __int2float_rn(int i) { return (float)i; }

// Four of the eight bytes of `low` and `high`: a nibble of `selector` each. The sign bit of a nibble is not used here.
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return out;
}

static inline unsigned atomicMin(unsigned* at, unsigned value) {
    unsigned old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value < old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
