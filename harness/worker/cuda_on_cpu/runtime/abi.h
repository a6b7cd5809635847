// The interface between a rewritten extension and the run-time library.
//
// The library (scheduler, checks, allocator) is compiled once; each extension is compiled against
// this header through the shadow headers in include/. The interface has C symbols only, so that an
// extension built with other flags still links.
#ifndef EMU_ABI_H
#define EMU_ABI_H

#include <cstddef>
#include <cstdint>

struct EmuIndex {
    unsigned x, y, z;
};

extern "C" {

// One launch as written in the source. `entry(context)` runs the kernel once, for the current thread.
struct EmuLaunch {
    const char* kernel;
    const char* file;
    int line;
    EmuIndex grid, block;
    size_t dynamic_shared;
    void (*entry)(void* context);
    void* context;
    int cooperative;
    int without_stream;  // on the default stream, whichever stream is current
    int arguments;  // how many of the following are set
    uint64_t argument[32];  // pointer-sized view of each argument, for naming tensors in findings
};

// A place for one static __shared__ variable; `offset` is valid while `launch` is the current one.
struct EmuSharedSlot {
    uint64_t launch;
    size_t offset;
};

enum EmuWarpKind {
    EMU_SYNCWARP = 1,
    EMU_SHUFFLE_INDEX,
    EMU_SHUFFLE_UP,
    EMU_SHUFFLE_DOWN,
    EMU_SHUFFLE_XOR,
    EMU_BALLOT,
    EMU_MATCH_ANY,
    EMU_MATCH_ALL,
    EMU_CONVERGE,
};

// Runs the launch to its end; returns a cudaError_t value.
int emu_launch(const EmuLaunch* launch);

// Barriers. `line` tells source barriers apart: a compiler may duplicate a call.
void emu_barrier(int line);
int emu_barrier_reduce(int line, int predicate, int kind);  // kind 0 count, 1 and, 2 or
void emu_grid_barrier(int line);
int emu_grid_is_valid();

// Warp operation over `mask`; deposits and receives `size` <= 16 bytes. Returns the mask-wide word:
// the ballot, the match mask or the converged lanes; for shuffles 1 if the source lane took part.
unsigned emu_warp(int kind, int line, unsigned mask, const void* value, void* result, int size,
                  int lane, int width);

// A group barrier among `count` threads of the block that name the same `key` (tiles above a warp).
void emu_named_barrier(int line, int key, int count);

void* emu_shared(EmuSharedSlot* slot, const char* name, size_t size, size_t align);
void* emu_dynamic_shared();

void emu_fence(int scope);  // 0 block, 1 device, 2 system
void emu_atomic(const void* address, size_t size, const void* caller);
void emu_read(const void* address, size_t size, const void* caller, int is_volatile);
void emu_write(const void* address, size_t size, const void* caller, int is_volatile);
int emu_in_kernel();
void emu_spin_hint();  // a thread waits for another one: let the others run
[[noreturn]] void emu_trap(int line, const char* kind, const char* text);
void emu_note_failure(const char* kind, const char* text);

// Device memory and per-kernel attributes.
void* emu_device_malloc(size_t bytes);
int emu_device_free(void* pointer);
int emu_pointer_is_device(const void* pointer, size_t* room);
// Opt-in to more than 48 KiB of dynamic shared memory. Kernels are known by the name in the source,
// since the address of a template whose arguments are deduced cannot be taken; a name that never is
// launched (a function pointer handed on) counts for all.
int emu_opt_in_shared(const char* kernel, long long bytes);
int emu_last_error(int clear);
void emu_set_error(int error, const char* where);
int emu_answer_cuda();

// Shadows of the built-in variables; the extension sees them as const (see cuda_runtime.h).
extern EmuIndex emu_thread_index, emu_block_index, emu_block_dim, emu_grid_dim;
}

#endif
