// State shared by the files of the run-time library. Only one OS thread at a time emulates
// (launch.cpp holds the lock). So no state is atomic or thread-local. A thread-local access from a
// shared library costs more than the whole check of an access.
#ifndef EMU_STATE_H
#define EMU_STATE_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "abi.h"

namespace emu {

constexpr unsigned kPoison = 0x7FF77FF7u;  // a NaN as float, half, bfloat16 and (doubled) double
constexpr size_t kPage = 4096;

// ---------------------------------------------------------------- allocations (memory.cpp)
struct Allocation {
    uintptr_t begin = 0, end = 0;  // exact bytes asked for
    uintptr_t map_begin = 0, map_end = 0;  // pages that are accessible
    uint64_t serial = 0;
    void* shadow = nullptr;  // cells of its pages, once a kernel has touched it
    unsigned shadow_shift = 2;  // each describes 1 << shift bytes
    bool freed = false, poisoned = false, from_cuda_malloc = false;
    uintptr_t caller = 0;  // of cudaMalloc
};
// cudaMalloc blocks that are not freed: their number, their bytes, and the caller of the newest.
struct DeviceBlocks {
    size_t count = 0, bytes = 0;
    uintptr_t newest_caller = 0;
};
DeviceBlocks device_blocks();
// Finds the allocation around an address, or the nearest one; false if none of ours is near.
bool find_allocation(uintptr_t address, Allocation* found);
void set_shadow(uintptr_t map_begin, void* shadow, unsigned shift);
bool in_guarded_region(uintptr_t address);
extern uint64_t allocations_changed;  // grows with each allocation and free: stale lookups

// ---------------------------------------------------------------- findings (findings.cpp)
struct Where {
    uintptr_t caller = 0;
    int line = 0;  // used when caller is 0
};
struct Report {
    const char* kind;
    std::string message;
    Where where;
    std::string detail;
    uintptr_t other_caller = 0;  // the conflicting access
    bool has_thread = true;
};
void report(const Report& r);
size_t finding_count();

// ---------------------------------------------------------------- scheduler (launch.cpp)
struct Current {
    bool active = false;  // a kernel thread is running
    unsigned thread = 0;  // linear index in the block
    uint32_t segment = 0;  // barrier interval of the block, unique over the process
    uint32_t warp_epoch = 0;
    uint32_t write_bits = 0, read_bits = 0;  // a cell's bits for an access right now
    uint32_t block_first_segment = 0;
    uint32_t launch_first_segment = 1;
    uintptr_t arena = 0;  // shared memory of the block
    size_t arena_size = 0;
    uintptr_t stacks = 0;  // all fiber stacks
    size_t stacks_size = 0;
    bool cooperative = false;
    uint64_t block_linear = 0;
};
extern Current now;
extern const EmuLaunch* launch_now;
extern uint64_t launch_serial;
[[noreturn]] void abort_launch(int error);
EmuIndex thread_index_of(unsigned linear);
EmuIndex block_index_of(uint64_t linear);
uint64_t block_of_segment(uint32_t segment);
uint32_t grid_epoch_of_segment(uint32_t segment);

// ---------------------------------------------------------------- checks (checks.cpp)
constexpr size_t kArenaLimit = 256 * 1024;
constexpr size_t kArenaMargin = 64 << 20;  // inaccessible address space on both sides
void checks_launch_begins();
void checks_block_begins();
void checks_forget(void* shadow, size_t mapped_bytes, unsigned shift);  // of an allocation that is freed
inline void set_current(unsigned thread, uint32_t epoch) {
    now.thread = thread;
    now.warp_epoch = epoch;
    now.write_bits = thread | epoch << 15;
    now.read_bits = thread | (epoch & 0x7ff) << 17;
}
void checks_thread_stops();  // the current thread waits or ends: decide on its deferred suspicions
void checks_grid_synchronised();
// Shared memory layout of this launch: marks [offset, offset+size) as belonging to a variable.
void checks_shared_clear();
void checks_shared_add(size_t offset, size_t size, const char* name);
std::string describe_address(uintptr_t address, size_t size);

}  // namespace emu

#endif
