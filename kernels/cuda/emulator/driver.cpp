// libcuda.so.1 for machines without a GPU: the part of the CUDA driver that Dunlin calls, over kernels that emu.h runs on the host.
//
// Streams are threads with queues, so what two streams do without waiting for each other happens in any order. Memory is 0xff when it is
// allocated, ends before a page that nobody may touch, and is gone when it is freed. Settings, all from the environment:
//
//   DUNLIN_EMULATED_MEMORY  bytes of the device; 1 GiB if not set
//   DUNLIN_EMULATED_GBPS    rate of copies between host and device in GB/s; unlimited if not set
//   DUNLIN_EMULATED_ORDER   order of threads: forward, backward, random or turns
//   DUNLIN_EMULATED_FAIL    what fails: launch:NAME:3 the third launch of a kernel, alloc:5 the fifth allocation, copy:2 the second copy
//
// A launch or a copy that fails takes the context with it, as on a real device: every call after it fails as well.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <tuple>
#include <type_traits>
#include "emu.h"
#include "../device/all.cu"
#include "faults.cu"

typedef int Result;
typedef unsigned long long Pointer;
typedef std::chrono::steady_clock Clock;

enum : Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    ECC_UNCORRECTABLE = 214,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
};

// Everything global is never destroyed: streams may still run when the process ends.

// ---- Settings

static double copy_rate() {
    static const double rate = [] {
        const char* text = getenv("DUNLIN_EMULATED_GBPS");
        return text ? atof(text) * 1e9 : 0.0;
    }();
    return rate;
}

static size_t memory_max() {
    static const size_t bytes = [] {
        const char* text = getenv("DUNLIN_EMULATED_MEMORY");
        return text ? (size_t)atoll(text) : (size_t)1 << 30;
    }();
    return bytes;
}

static emu::Order thread_order() {
    static const emu::Order order = [] {
        const char* text = getenv("DUNLIN_EMULATED_ORDER");
        const std::string name = text ? text : "forward";
        if (name == "forward") return emu::Order::forward;
        if (name == "backward") return emu::Order::backward;
        if (name == "random") return emu::Order::random;
        if (name == "turns") return emu::Order::turns;
        fprintf(stderr, "emulated GPU: DUNLIN_EMULATED_ORDER is %s, not forward, backward, random or turns\n", text);
        abort();
    }();
    return order;
}

// Counts down what DUNLIN_EMULATED_FAIL names.
static bool fails(const std::string& what) {
    static const std::string setting = getenv("DUNLIN_EMULATED_FAIL") ? getenv("DUNLIN_EMULATED_FAIL") : "";
    static std::atomic<long> seen{0};
    const size_t colon = setting.rfind(':');
    if (colon == std::string::npos || setting.substr(0, colon) != what) return false;
    return ++seen == atol(setting.c_str() + colon + 1);
}

// ---- The context

static std::atomic<Result> lost{SUCCESS};

static Result lose(Result why) {
    lost = why;
    return why;
}

// ---- Kernels

// A kernel's arguments are copied when it is launched, each as long as the parameter is.
typedef std::vector<std::vector<char>> Arguments;

struct Kernel {
    std::string name;
    std::function<Arguments(void**)> copy;
    std::function<void(const Arguments&)> run;
};

template <class... P, size_t... I>
static void call(void (*kernel)(P...), const Arguments& arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<P>*)arguments[I].data()...);
}

template <class... P> static Kernel kernel_of(const char* name, void (*kernel)(P...)) {
    auto copy = [](void** from) {
        const size_t sizes[] = {sizeof(P)...};
        Arguments out;
        for (size_t i = 0; i < sizeof...(P); i++) out.emplace_back((char*)from[i], (char*)from[i] + sizes[i]);
        return out;
    };
    auto run = [kernel](const Arguments& arguments) { call(kernel, arguments, std::index_sequence_for<P...>()); };
    return {name, copy, run};
}

#define KERNEL_OF(name) {#name, kernel_of(#name, &name)},
static auto& kernels = *new std::map<std::string, Kernel>{ALL_KERNELS(KERNEL_OF) FAULTY_KERNELS(KERNEL_OF)};

// ---- Streams and events

struct Event {
    std::mutex lock;
    std::condition_variable changed;
    unsigned long recorded = 0, done = 0;
    Clock::time_point at;

    void wait_for(unsigned long number) {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [&] { return done >= number; });
    }
    unsigned long last_recorded() {
        std::lock_guard<std::mutex> guard(lock);
        return recorded;
    }
    void finish(unsigned long number) {
        {
            std::lock_guard<std::mutex> guard(lock);
            done = number;
            at = Clock::now();
        }
        changed.notify_all();
    }
};
typedef std::shared_ptr<Event> SharedEvent;

class Stream {
  public:
    Stream() : worker([this] { work(); }) {}
    ~Stream() {
        {
            std::lock_guard<std::mutex> guard(lock);
            ends = true;
        }
        changed.notify_all();
        worker.join();
    }
    void push(std::function<void()> job) {
        {
            std::lock_guard<std::mutex> guard(lock);
            jobs.push_back(std::move(job));
        }
        changed.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [&] { return jobs.empty() && !busy; });
    }

  private:
    void work() {
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            changed.wait(guard, [&] { return ends || !jobs.empty(); });
            if (jobs.empty()) return;
            auto job = std::move(jobs.front());
            jobs.pop_front();
            busy = true;
            guard.unlock();
            job();
            guard.lock();
            busy = false;
            changed.notify_all();
        }
    }

    std::mutex lock;
    std::condition_variable changed;
    std::deque<std::function<void()>> jobs;
    bool ends = false, busy = false;
    std::thread worker;
};

static auto& streams_lock = *new std::mutex;
static auto& streams = *new std::map<void*, std::unique_ptr<Stream>>;

static Stream& stream_of(void* handle) {
    static Stream* by_default = new Stream;
    return handle ? *(Stream*)handle : *by_default;
}

// ---- Memory

struct Allocation {
    size_t bytes;
    char* mapped;
    size_t mapped_bytes;
};

static auto& memory_lock = *new std::mutex;
static auto& device_memory = *new std::map<char*, Allocation>;
static auto& pinned_memory = *new std::map<char*, size_t>;
static size_t memory_used = 0;

static size_t rounded_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The end lies before a page that cannot be read: a kernel that runs over it by 256 bytes or more ends the process.
static char* allocate(size_t bytes) {
    constexpr size_t PAGE = 4096, ALIGNMENT = 256;
    const size_t taken = rounded_up(std::max<size_t>(bytes, 1), ALIGNMENT), whole = rounded_up(taken, PAGE);
    char* mapped = (char*)mmap(nullptr, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    mprotect(mapped + whole, PAGE, PROT_NONE);
    memset(mapped, 0xff, whole);
    char* at = mapped + whole - taken;
    device_memory[at] = {bytes, mapped, whole + PAGE};
    memory_used += bytes;
    return at;
}

static size_t bytes_of(const Allocation& allocation) { return allocation.bytes; }
static size_t bytes_of(size_t bytes) { return bytes; }

template <class T> static bool lies_in(const std::map<char*, T>& memory, const void* at, size_t bytes) {
    std::lock_guard<std::mutex> guard(memory_lock);
    auto next = memory.upper_bound((char*)at);
    if (next == memory.begin()) return false;
    const auto& [begin, known] = *std::prev(next);
    return (char*)at + bytes <= begin + bytes_of(known);
}

static void must_be_on_device(Pointer at, size_t bytes) {
    if (bytes == 0 || lies_in(device_memory, (void*)at, bytes)) return;
    fprintf(stderr, "emulated GPU: a copy of %zu bytes at %llx leaves the memory of the device\n", bytes, at);
    abort();
}

static void take_the_time_of(size_t bytes) {
    if (copy_rate() > 0) std::this_thread::sleep_for(std::chrono::duration<double>(bytes / copy_rate()));
}

// ---- What Dunlin calls

#define API extern "C" __attribute__((visibility("default"))) Result
// Nothing works any more when the context is lost.
#define NEEDS_CONTEXT                                                                                                                          \
    if (lost != SUCCESS) return lost

API cuInit(unsigned) { return SUCCESS; }
API cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}
API cuDeviceGetCount(int* count) {
    *count = 1;
    return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int length, int) {
    snprintf(name, length, "emulated on the host");
    return SUCCESS;
}
API cuDeviceGetUuid(char* uuid, int) {
    memset(uuid, 0, 16);
    return SUCCESS;
}
API cuDeviceGetUuid_v2(char* uuid, int device) { return cuDeviceGetUuid(uuid, device); }
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory_max();
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    enum { MULTIPROCESSORS = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, SHARED_MEMORY_MAX = 97, MEMORY_POOLS = 115 };
    switch (attribute) {
    case MULTIPROCESSORS: *value = 2; break;
    case CAPABILITY_MAJOR: *value = 9; break;
    case CAPABILITY_MINOR: *value = 0; break;
    case SHARED_MEMORY_MAX: *value = emu::SHARED_BYTES; break;
    case MEMORY_POOLS: *value = 1; break;
    default: *value = 0;
    }
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, int) {
    *context = (void*)1;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void** context) {
    *context = (void*)1;
    return SUCCESS;
}
API cuCtxSetCurrent(void*) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -1;
    return SUCCESS;
}
API cuCtxSynchronize() {
    stream_of(nullptr).wait();
    std::vector<Stream*> all;
    {
        std::lock_guard<std::mutex> guard(streams_lock);
        for (auto& [handle, stream] : streams) all.push_back(stream.get());
    }
    for (Stream* stream : all) stream->wait();
    return lost;
}

API cuStreamCreate(void** handle, unsigned) {
    NEEDS_CONTEXT;
    auto stream = std::make_unique<Stream>();
    *handle = stream.get();
    std::lock_guard<std::mutex> guard(streams_lock);
    streams[*handle] = std::move(stream);
    return SUCCESS;
}
API cuStreamCreateWithPriority(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }
API cuStreamDestroy_v2(void* handle) {
    std::unique_ptr<Stream> stream;
    std::lock_guard<std::mutex> guard(streams_lock);
    stream = std::move(streams[handle]);
    streams.erase(handle);
    return SUCCESS;
}
API cuStreamSynchronize(void* handle) {
    stream_of(handle).wait();
    return lost;
}

API cuEventCreate(void** handle, unsigned) {
    NEEDS_CONTEXT;
    *handle = new SharedEvent(std::make_shared<Event>());
    return SUCCESS;
}
API cuEventDestroy_v2(void* handle) {
    delete (SharedEvent*)handle;
    return SUCCESS;
}
API cuEventRecord(void* handle, void* stream) {
    NEEDS_CONTEXT;
    SharedEvent event = *(SharedEvent*)handle;
    unsigned long number;
    {
        std::lock_guard<std::mutex> guard(event->lock);
        number = ++event->recorded;
    }
    stream_of(stream).push([event, number] { event->finish(number); });
    return SUCCESS;
}
API cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    NEEDS_CONTEXT;
    SharedEvent event = *(SharedEvent*)handle;
    const unsigned long number = event->last_recorded();
    stream_of(stream).push([event, number] { event->wait_for(number); });
    return SUCCESS;
}
API cuEventSynchronize(void* handle) {
    SharedEvent event = *(SharedEvent*)handle;
    event->wait_for(event->last_recorded());
    return lost;
}
API cuEventQuery(void* handle) {
    NEEDS_CONTEXT;
    SharedEvent event = *(SharedEvent*)handle;
    std::lock_guard<std::mutex> guard(event->lock);
    return event->done >= event->recorded ? SUCCESS : NOT_READY;
}
API cuEventElapsedTime(float* ms, void* from, void* to) {
    SharedEvent first = *(SharedEvent*)from, last = *(SharedEvent*)to;
    *ms = std::chrono::duration<float, std::milli>(last->at - first->at).count();
    return SUCCESS;
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    NEEDS_CONTEXT;
    std::lock_guard<std::mutex> guard(memory_lock);
    *total = memory_max();
    *free = memory_max() - memory_used;
    return SUCCESS;
}
API cuMemAlloc_v2(Pointer* at, size_t bytes) {
    NEEDS_CONTEXT;
    if (fails("alloc")) return OUT_OF_MEMORY;
    std::lock_guard<std::mutex> guard(memory_lock);
    if (bytes > memory_max() - memory_used) return OUT_OF_MEMORY;
    char* memory = allocate(bytes);
    *at = (Pointer)memory;
    return memory ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemFree_v2(Pointer at) {
    std::lock_guard<std::mutex> guard(memory_lock);
    auto found = device_memory.find((char*)at);
    if (found == device_memory.end()) return INVALID_VALUE;
    memory_used -= found->second.bytes;
    munmap(found->second.mapped, found->second.mapped_bytes);
    device_memory.erase(found);
    return SUCCESS;
}
API cuMemAllocAsync(Pointer* at, size_t bytes, void* stream) {
    // Memory whose freeing is under way counts as free.
    stream_of(stream).wait();
    return cuMemAlloc_v2(at, bytes);
}
API cuMemFreeAsync(Pointer at, void* stream) {
    stream_of(stream).push([at] { cuMemFree_v2(at); });
    return SUCCESS;
}
API cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = (void*)1;
    return SUCCESS;
}
API cuDeviceGetMemPool(void** pool, int device) { return cuDeviceGetDefaultMemPool(pool, device); }
API cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

API cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    *at = aligned_alloc(4096, rounded_up(std::max<size_t>(bytes, 1), 4096));
    std::lock_guard<std::mutex> guard(memory_lock);
    pinned_memory[(char*)*at] = bytes;
    return SUCCESS;
}
API cuMemFreeHost(void* at) {
    std::lock_guard<std::mutex> guard(memory_lock);
    pinned_memory.erase((char*)at);
    free(at);
    return SUCCESS;
}

// Pinned memory is read when the copy takes place; other memory is copied aside before the call returns, and the caller waits for it.
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    if (fails("copy")) return lose(ECC_UNCORRECTABLE);
    must_be_on_device(to, bytes);
    if (lies_in(pinned_memory, from, bytes)) {
        stream_of(stream).push([=] {
            take_the_time_of(bytes);
            memcpy((void*)to, from, bytes);
        });
        return SUCCESS;
    }
    auto aside = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    stream_of(stream).push([=] {
        take_the_time_of(bytes);
        memcpy((void*)to, aside->data(), bytes);
    });
    if (copy_rate() > 0) stream_of(stream).wait();
    return SUCCESS;
}
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    if (fails("copy")) return lose(ECC_UNCORRECTABLE);
    must_be_on_device(from, bytes);
    stream_of(stream).push([=] {
        take_the_time_of(bytes);
        memcpy(to, (void*)from, bytes);
    });
    if (!lies_in(pinned_memory, to, bytes)) stream_of(stream).wait();
    return SUCCESS;
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    must_be_on_device(to, bytes);
    must_be_on_device(from, bytes);
    stream_of(stream).push([=] { memcpy((void*)to, (void*)from, bytes); });
    return SUCCESS;
}
API cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    must_be_on_device(at, bytes);
    stream_of(stream).push([=] { memset((void*)at, value, bytes); });
    return SUCCESS;
}

API cuModuleLoadData(void** module, const void*) {
    NEEDS_CONTEXT;
    *module = (void*)1;
    return SUCCESS;
}
API cuModuleUnload(void*) { return SUCCESS; }
API cuModuleGetFunction(void** function, void*, const char* name) {
    NEEDS_CONTEXT;
    auto found = kernels.find(name);
    if (found == kernels.end()) return NOT_FOUND;
    *function = &found->second;
    return SUCCESS;
}
API cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
API cuFuncGetAttribute(int* value, int, void*) {
    *value = 0;
    return SUCCESS;
}
API cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared_bytes, void* stream, void** parameters, void**) {
    NEEDS_CONTEXT;
    const dim3 grid(grid_x, grid_y, grid_z), block(block_x, block_y, block_z);
    constexpr unsigned GRID_MAX = 65535, THREADS_MAX = 1024;
    const bool is_valid = grid.count() > 0 && grid_x < 1u << 31 && grid_y <= GRID_MAX && grid_z <= GRID_MAX && block.count() > 0 &&
                          block.count() <= THREADS_MAX && shared_bytes == 0;
    if (!is_valid) return INVALID_VALUE;
    const Kernel* kernel = (const Kernel*)function;
    if (fails("launch:" + kernel->name)) return lose(LAUNCH_FAILED);
    auto arguments = std::make_shared<Arguments>(kernel->copy(parameters));
    stream_of(stream).push([=] { emu::launch(grid, block, thread_order(), [&] { kernel->run(*arguments); }); });
    return SUCCESS;
}

static const char* name_of(Result error) {
    switch (error) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case ECC_UNCORRECTABLE: return "CUDA_ERROR_ECC_UNCORRECTABLE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case NOT_READY: return "CUDA_ERROR_NOT_READY";
    case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
    default: return nullptr;
    }
}
API cuGetErrorName(Result error, const char** name) {
    *name = name_of(error);
    return *name ? SUCCESS : INVALID_VALUE;
}
API cuGetErrorString(Result error, const char** text) { return cuGetErrorName(error, text); }
