// What the files of the scheduler share: fibers.cpp, groups.cpp, launch.cpp. One launch at a time.
#ifndef EMU_SCHEDULER_H
#define EMU_SCHEDULER_H
#include <vector>

#include "launch.h"

namespace emu {
#pragma GCC visibility push(hidden)

constexpr size_t kMostFibers = 1 << 16;

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    bool started = false;
};

enum class Wait : uint8_t { kNone, kBarrier, kGrid, kWarp, kNamed };

struct Thread {
    Fiber* fiber = nullptr;
    Wait wait = Wait::kNone;
    uint8_t kind = 0;
    int line = 0;
    unsigned mask = 0;  // warp operations; the count for named barriers
    int key = 0;
    int predicate = 0;
    int lane = 0, width = 32, size = 0;
    unsigned word = 0;
    unsigned char value[16], result[16];
};

struct Warp {
    uint32_t exited = 0, waiting = 0;  // lanes
    uint32_t epoch = 0;
};

struct Block {
    uint64_t linear = 0;
    EmuIndex index{0, 0, 0};
    unsigned next = 0;  // position in `order` of the next unstarted thread
    unsigned live = 0;
    unsigned at_barrier = 0, at_grid = 0;
    uint32_t segment = 0, first_segment = 0;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned> ready;
    size_t ready_head = 0;
    int reduce_result[3] = {0, 0, 0};
    std::vector<unsigned char> arena;  // cooperative only: its shared memory while others run
};

extern Block* block;  // the one whose threads run
extern std::vector<Block*> resident;  // cooperative: all blocks
extern std::vector<unsigned> order;  // threads of a block, in the order they start
extern std::vector<EmuIndex> index_of;
extern unsigned block_threads;
extern uint64_t grid_waiting;

// ---------------------------------------------------------------- fibers.cpp
extern Fiber* running;
Fiber* take_fiber();
void free_fiber(Fiber* f);
void free_all_fibers();
void switch_to(Fiber* from, Fiber* to);
[[noreturn]] void switch_to_main();
[[noreturn]] void fiber_main();  // launch.cpp: what a fiber runs

// ---------------------------------------------------------------- groups.cpp
void release_barrier();
void release_grid();
void warps_after_exit(unsigned tid);
bool resolve_idle();
[[noreturn]] void deadlock();

// ---------------------------------------------------------------- launch.cpp
uint32_t new_segment(Block* b);
void begin_new_grid_interval();
void wait_here(Thread& t, Wait what);
void suspend();
#pragma GCC visibility pop
}  // namespace emu

#endif
