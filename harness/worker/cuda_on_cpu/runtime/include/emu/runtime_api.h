// The CUDA runtime API, as far as extensions use it: one device, whose memory is the host's.
//
// Work on streams and events completes at once and in order. Errors are remembered as on a GPU:
// cudaGetLastError, C10_CUDA_KERNEL_LAUNCH_CHECK and the next synchronisation return that of a failed
// launch.
#ifndef EMU_RUNTIME_API_H
#define EMU_RUNTIME_API_H

#include <chrono>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "device.h"

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidSymbol = 13,
    cudaErrorInvalidDevicePointer = 17,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchTimeout = 702,
    cudaErrorAssert = 710,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999
};
typedef cudaError cudaError_t;
typedef struct CUstream_st* cudaStream_t;
struct CUevent_st {
    std::chrono::steady_clock::time_point at;
};
typedef CUevent_st* cudaEvent_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9,
    cudaFuncAttributeNonPortableClusterSizeAllowed = 15
};
enum cudaFuncCache { cudaFuncCachePreferNone, cudaFuncCachePreferShared, cudaFuncCachePreferL1, cudaFuncCachePreferEqual };
enum cudaSharedMemConfig { cudaSharedMemBankSizeDefault, cudaSharedMemBankSizeFourByte, cudaSharedMemBankSizeEightByte };
enum cudaSharedCarveout { cudaSharedmemCarveoutDefault = -1, cudaSharedmemCarveoutMaxShared = 100, cudaSharedmemCarveoutMaxL1 = 0 };
enum cudaLimit { cudaLimitStackSize, cudaLimitPrintfFifoSize, cudaLimitMallocHeapSize, cudaLimitPersistingL2CacheSize = 6 };
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxBlockDimX = 2,
    cudaDevAttrMaxBlockDimY = 3,
    cudaDevAttrMaxBlockDimZ = 4,
    cudaDevAttrMaxGridDimX = 5,
    cudaDevAttrMaxGridDimY = 6,
    cudaDevAttrMaxGridDimZ = 7,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrTotalConstantMemory = 9,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMaxRegistersPerBlock = 12,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxRegistersPerMultiprocessor = 82,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMaxBlocksPerMultiprocessor = 106,
    cudaDevAttrReservedSharedMemoryPerBlock = 111
};
#define cudaStreamDefault 0x00
#define cudaStreamNonBlocking 0x01
#define cudaStreamLegacy (static_cast<cudaStream_t>(nullptr))
#define cudaStreamPerThread (static_cast<cudaStream_t>(nullptr))
#define cudaEventDefault 0x00
#define cudaEventBlockingSync 0x01
#define cudaEventDisableTiming 0x02
#define cudaHostAllocDefault 0x00
#define cudaHostAllocMapped 0x02
#define cudaOccupancyDefault 0x00
#define CUDART_VERSION 12080
#define CUDA_VERSION 12080

// The emulated device has compute capability 8.0 and few multiprocessors, so that grids sized by the
// device (persistent and cooperative kernels) stay small.
struct cudaDeviceProp {
    char name[256] = "cuda_on_cpu (compute capability 8.0)";
    size_t totalGlobalMem = size_t{16} << 30;
    size_t sharedMemPerBlock = 48 * 1024;
    int regsPerBlock = 65536;
    int warpSize = 32;
    size_t memPitch = 2147483647;
    int maxThreadsPerBlock = 1024;
    int maxThreadsDim[3] = {1024, 1024, 64};
    int maxGridSize[3] = {2147483647, 65535, 65535};
    int clockRate = 1410000;
    size_t totalConstMem = 65536;
    int major = 8, minor = 0;
    int multiProcessorCount = 4;
    int integrated = 0;
    int canMapHostMemory = 1;
    int concurrentKernels = 1;
    int memoryClockRate = 1215000;
    int memoryBusWidth = 5120;
    int l2CacheSize = 40 << 20;
    int persistingL2CacheMaxSize = 0;
    int maxThreadsPerMultiProcessor = 2048;
    size_t sharedMemPerMultiprocessor = 164 * 1024;
    int regsPerMultiprocessor = 65536;
    int managedMemory = 1;
    int cooperativeLaunch = 1;
    size_t sharedMemPerBlockOptin = 163 * 1024;
    int maxBlocksPerMultiProcessor = 32;
    size_t reservedSharedMemPerBlock = 1024;
    int unifiedAddressing = 1;
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes = 0, constSizeBytes = 0, localSizeBytes = 0;
    int maxThreadsPerBlock = 1024, numRegs = 32, ptxVersion = 80, binaryVersion = 80;
    int maxDynamicSharedSizeBytes = 48 * 1024, preferredShmemCarveout = -1;
};
struct cudaPointerAttributes {
    int type = 0;
    int device = 0;
    void* devicePointer = nullptr;
    void* hostPointer = nullptr;
};
enum { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };

namespace emu {
static inline cudaError_t fail(cudaError_t error, const char* where) {
    if (error != cudaSuccess) emu_set_error(error, where);
    return error;
}
}  // namespace emu

static inline const char* cudaGetErrorName(cudaError_t e) {
    switch (e) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevicePointer: return "cudaErrorInvalidDevicePointer";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
        case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
        case cudaErrorAssert: return "cudaErrorAssert";
        case cudaErrorMisalignedAddress: return "cudaErrorMisalignedAddress";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        case cudaErrorCooperativeLaunchTooLarge: return "cudaErrorCooperativeLaunchTooLarge";
        case cudaErrorNotSupported: return "cudaErrorNotSupported";
        default: return "cudaErrorUnknown";
    }
}
static inline const char* cudaGetErrorString(cudaError_t e) {
    switch (e) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevicePointer: return "invalid device pointer";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
        case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
        case cudaErrorAssert: return "device-side assert triggered";
        case cudaErrorMisalignedAddress: return "misaligned address";
        case cudaErrorLaunchFailure: return "unspecified launch failure";
        case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
        case cudaErrorNotSupported: return "operation not supported";
        default: return "unknown error";
    }
}
static inline cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(emu_last_error(1)); }
static inline cudaError_t cudaPeekAtLastError() { return static_cast<cudaError_t>(emu_last_error(0)); }
static inline cudaError_t cudaDeviceSynchronize() {
    const int e = emu_last_error(0);  // a synchronisation returns faults of kernels only
    return static_cast<cudaError_t>(e >= 700 ? e : 0);
}
static inline cudaError_t cudaThreadSynchronize() { return cudaDeviceSynchronize(); }
static inline cudaError_t cudaDeviceReset() { return cudaSuccess; }

// ---------------------------------------------------------------- devices
static inline cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
static inline cudaError_t cudaSetDevice(int d) {
    return d <= 0 ? cudaSuccess : ::emu::fail(cudaErrorInvalidDevice, "cudaSetDevice");
}
static inline cudaError_t cudaGetDeviceCount(int* n) { *n = emu_answer_cuda() ? 1 : 0; return cudaSuccess; }
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { *p = cudaDeviceProp(); return cudaSuccess; }
static inline cudaError_t cudaDriverGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
static inline cudaError_t cudaRuntimeGetVersion(int* v) { *v = CUDART_VERSION; return cudaSuccess; }
static inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const cudaDeviceProp p;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxBlockDimX: *value = p.maxThreadsDim[0]; break;
        case cudaDevAttrMaxBlockDimY: *value = p.maxThreadsDim[1]; break;
        case cudaDevAttrMaxBlockDimZ: *value = p.maxThreadsDim[2]; break;
        case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY: *value = p.maxGridSize[1]; break;
        case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[2]; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(p.sharedMemPerBlock); break;
        case cudaDevAttrTotalConstantMemory: *value = static_cast<int>(p.totalConstMem); break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMaxRegistersPerBlock: *value = p.regsPerBlock; break;
        case cudaDevAttrClockRate: *value = p.clockRate; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrMemoryClockRate: *value = p.memoryClockRate; break;
        case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
        case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(p.sharedMemPerMultiprocessor); break;
        case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerMultiprocessor; break;
        case cudaDevAttrCooperativeLaunch: *value = 1; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
        case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
        case cudaDevAttrReservedSharedMemoryPerBlock: *value = static_cast<int>(p.reservedSharedMemPerBlock); break;
        default: return ::emu::fail(cudaErrorInvalidValue, "cudaDeviceGetAttribute");
    }
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
static inline cudaError_t cudaDeviceGetLimit(size_t* v, cudaLimit) { *v = 1024; return cudaSuccess; }
static inline cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return cudaSuccess; }
static inline cudaError_t cudaDeviceSetSharedMemConfig(cudaSharedMemConfig) { return cudaSuccess; }

// ---------------------------------------------------------------- memory
template <class T>
static inline cudaError_t cudaMalloc(T** p, size_t n) {
    *p = static_cast<T*>(emu_device_malloc(n));
    return *p || !n ? cudaSuccess : ::emu::fail(cudaErrorMemoryAllocation, "cudaMalloc");
}
template <class T>
static inline cudaError_t cudaMallocAsync(T** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
template <class T>
static inline cudaError_t cudaMallocManaged(T** p, size_t n, unsigned = 1) { return cudaMalloc(p, n); }
template <class T>
static inline cudaError_t cudaMallocHost(T** p, size_t n, unsigned = 0) { return cudaMalloc(p, n); }
template <class T>
static inline cudaError_t cudaHostAlloc(T** p, size_t n, unsigned) { return cudaMalloc(p, n); }
template <class T>
static inline cudaError_t cudaMallocPitch(T** p, size_t* pitch, size_t width, size_t height) {
    *pitch = (width + 511) / 512 * 512;
    return cudaMalloc(p, *pitch * height);
}
static inline cudaError_t cudaFree(void* p) {
    const int e = emu_device_free(p);
    if (e) emu_note_failure("invalid free", "cudaFree of a pointer that is not allocated, or was freed before");
    return ::emu::fail(static_cast<cudaError_t>(e), "cudaFree");
}
static inline cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
static inline cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
namespace emu {
// One copy of `n` bytes for the host, checked against our own allocations.
static inline cudaError_t copy(void* to, const void* from, size_t n, const char* where) {
    size_t room = 0;
    if ((emu_pointer_is_device(to, &room) && room < n) || (emu_pointer_is_device(from, &room) && room < n)) {
        emu_note_failure("out-of-bounds copy", where);
        return fail(cudaErrorInvalidValue, where);
    }
    if (n) std::memmove(to, from, n);
    return cudaSuccess;
}
}  // namespace emu
static inline cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) {
    return ::emu::copy(to, from, n, "cudaMemcpy beyond the end of a tensor");
}
static inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t = nullptr) {
    return ::emu::copy(to, from, n, "cudaMemcpyAsync beyond the end of a tensor");
}
static inline cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                       size_t height, cudaMemcpyKind) {
    for (size_t row = 0; row < height; ++row) {
        const cudaError_t e = ::emu::copy(static_cast<char*>(to) + row * to_pitch,
                                          static_cast<const char*>(from) + row * from_pitch, width,
                                          "cudaMemcpy2D beyond the end of a tensor");
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}
static inline cudaError_t cudaMemcpy2DAsync(void* to, size_t tp, const void* from, size_t fp, size_t w, size_t h,
                                            cudaMemcpyKind k, cudaStream_t = nullptr) {
    return cudaMemcpy2D(to, tp, from, fp, w, h, k);
}
static inline cudaError_t cudaMemset(void* p, int value, size_t n) {
    size_t room = 0;
    if (emu_pointer_is_device(p, &room) && room < n) {
        emu_note_failure("out-of-bounds copy", "cudaMemset beyond the end of a tensor");
        return ::emu::fail(cudaErrorInvalidValue, "cudaMemset");
    }
    if (n) std::memset(p, value, n);
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t = nullptr) {
    return cudaMemset(p, value, n);
}
template <class T>
static inline cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, size_t n, size_t offset = 0,
                                             cudaMemcpyKind = cudaMemcpyHostToDevice) {
    if (offset + n > sizeof(T)) return ::emu::fail(cudaErrorInvalidValue, "cudaMemcpyToSymbol");
    std::memcpy(reinterpret_cast<char*>(const_cast<std::remove_const_t<T>*>(&symbol)) + offset, from, n);
    return cudaSuccess;
}
template <class T>
static inline cudaError_t cudaMemcpyToSymbolAsync(T& symbol, const void* from, size_t n, size_t offset, cudaMemcpyKind k,
                                                  cudaStream_t = nullptr) {
    return cudaMemcpyToSymbol(symbol, from, n, offset, k);
}
template <class T>
static inline cudaError_t cudaMemcpyFromSymbol(void* to, const T& symbol, size_t n, size_t offset = 0,
                                               cudaMemcpyKind = cudaMemcpyDeviceToHost) {
    if (offset + n > sizeof(T)) return ::emu::fail(cudaErrorInvalidValue, "cudaMemcpyFromSymbol");
    std::memcpy(to, reinterpret_cast<const char*>(&symbol) + offset, n);
    return cudaSuccess;
}
template <class P, class T>
static inline cudaError_t cudaGetSymbolAddress(P** p, const T& symbol) {
    *p = reinterpret_cast<P*>(const_cast<T*>(&symbol));
    return cudaSuccess;
}
template <class T>
static inline cudaError_t cudaGetSymbolSize(size_t* size, const T&) {
    *size = sizeof(T);
    return cudaSuccess;
}
static inline cudaError_t cudaMemset2D(void* p, size_t pitch, int value, size_t width, size_t height) {
    for (size_t row = 0; row < height; ++row) {
        const cudaError_t e = cudaMemset(static_cast<char*>(p) + row * pitch, value, width);
        if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
}
static inline cudaError_t cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
static inline cudaError_t cudaHostUnregister(void*) { return cudaSuccess; }
static inline cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
    *device = host;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*work)(void*), void* data) {
    work(data);
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
    *free_bytes = size_t{12} << 30;
    *total = size_t{16} << 30;
    return cudaSuccess;
}
static inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
    *a = cudaPointerAttributes();
    if (emu_pointer_is_device(p, nullptr)) {
        a->type = cudaMemoryTypeDevice;
        a->devicePointer = const_cast<void*>(p);
    }
    return cudaSuccess;
}
static inline cudaError_t cudaMemPrefetchAsync(const void*, size_t, int, cudaStream_t = nullptr) { return cudaSuccess; }

// ---------------------------------------------------------------- streams and events
// All work is done at once. So a handle only says which stream the source named: the current one, a
// stream of its own, or none, which is the default stream.
namespace emu {
inline const cudaStream_t current_stream = reinterpret_cast<cudaStream_t>(uintptr_t{0x10});
inline const cudaStream_t own_stream = reinterpret_cast<cudaStream_t>(uintptr_t{0x20});
}  // namespace emu
static inline cudaError_t cudaStreamCreate(cudaStream_t* s) { *s = emu::own_stream; return cudaSuccess; }
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
static inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return cudaStreamCreate(s); }
static inline cudaError_t cudaDeviceGetStreamPriorityRange(int* a, int* b) { *a = *b = 0; return cudaSuccess; }
static inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
static inline cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0) { return cudaSuccess; }
static inline cudaError_t cudaEventCreate(cudaEvent_t* e) { *e = new CUevent_st; return cudaSuccess; }
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t = nullptr) {
    e->at = std::chrono::steady_clock::now();
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
static inline cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
static inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return cudaSuccess;
}

// ---------------------------------------------------------------- launches
namespace emu {
struct Config {
    const char* kernel;
    const char* file;
    int line;
    dim3 grid, block;
    size_t shared = 0;
    cudaStream_t stream = nullptr;
};

template <size_t I, class T>
struct Argument {
    T value;
};
template <class F, class Indices, class... A>
struct Call;
template <class F, size_t... I, class... A>
struct Call<F, std::index_sequence<I...>, A...> : Argument<I, A>... {
    F function;
    Call(F f, A... a) : Argument<I, A>{a}..., function(f) {}
    static __attribute__((no_sanitize("thread"))) void run(void* self) {
        Call& c = *static_cast<Call*>(self);
        c.function(static_cast<Argument<I, A>&>(c).value...);
    }
};

template <class T>
uint64_t pointer_bits(const T& value) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<uint64_t>(value);
    return 0;
}

template <class F, class... A>
cudaError_t launch_as(const Config& c, int cooperative, F function, A... arguments) {
    Call<F, std::index_sequence_for<A...>, A...> call(function, arguments...);
    EmuLaunch l{};
    l.kernel = c.kernel;
    l.file = c.file;
    l.line = c.line;
    l.grid = {c.grid.x, c.grid.y, c.grid.z};
    l.block = {c.block.x, c.block.y, c.block.z};
    l.dynamic_shared = c.shared;
    l.entry = &decltype(call)::run;
    l.context = &call;
    l.cooperative = cooperative;
    l.without_stream = c.stream == nullptr;
    ((l.arguments < 32 ? (void)(l.argument[l.arguments++] = pointer_bits(arguments)) : (void)0), ...);
    return static_cast<cudaError_t>(emu_launch(&l));
}
template <class F, class... A>
void launch(const Config& c, F function, A... arguments) {
    launch_as(c, 0, function, arguments...);
}
static inline Config config(const char* kernel, const char* file, int line, dim3 grid, dim3 block, size_t shared = 0,
                            cudaStream_t stream = nullptr) {
    return {kernel, file, line, grid, block, shared, stream};
}

template <class... P, size_t... I>
cudaError_t launch_array(const Config& c, int cooperative, void (*kernel)(P...), void** a, std::index_sequence<I...>) {
    return launch_as(
        c, cooperative, [kernel](P... p) { kernel(p...); }, *static_cast<std::remove_reference_t<P>*>(a[I])...);
}
// cudaLaunchKernel and cudaLaunchCooperativeKernel; the rewriter drops the cast to void*, because
// the parameter types are needed to read the array.
template <class... P>
cudaError_t launch_by_array(const char* name, const char* file, int line, int cooperative, void (*kernel)(P...),
                            dim3 grid, dim3 block, void** arguments, size_t shared = 0, cudaStream_t stream = nullptr) {
    return launch_array(Config{name, file, line, grid, block, shared, stream}, cooperative, kernel, arguments,
                        std::index_sequence_for<P...>{});
}
template <class F>
cudaError_t set_attribute(const char* kernel, F, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    return static_cast<cudaError_t>(emu_opt_in_shared(kernel, value));
}
}  // namespace emu

template <class F>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, F) { *a = cudaFuncAttributes(); return cudaSuccess; }
template <class F>
static inline cudaError_t cudaFuncSetCacheConfig(F, cudaFuncCache) { return cudaSuccess; }
template <class F>
static inline cudaError_t cudaFuncSetSharedMemConfig(F, cudaSharedMemConfig) { return cudaSuccess; }
// Occupancy by threads and shared memory alone: the number of registers is unknown here.
template <class F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F, int threads, size_t shared) {
    const int by_threads = threads > 0 ? 2048 / threads : 0;
    const int by_shared = static_cast<int>(size_t{164 * 1024} / (shared + 1024));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    if (*blocks > 2) *blocks = 2;  // keeps cooperative grids small; see cudaDeviceProp
    return cudaSuccess;
}
template <class F>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* b, F f, int t, size_t s, unsigned) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(b, f, t, s);
}
template <class F>
static inline cudaError_t cudaOccupancyMaxPotentialBlockSize(int* grid, int* block, F, size_t = 0, int limit = 0) {
    *block = limit > 0 && limit < 256 ? limit : 256;
    *grid = 8;
    return cudaSuccess;
}
static inline int cudaProfilerStart() { return 0; }
static inline int cudaProfilerStop() { return 0; }

#endif
