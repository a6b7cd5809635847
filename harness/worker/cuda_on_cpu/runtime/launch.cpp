// The scheduler: runs one launch on one OS thread.
//
// A fiber (a stack of its own) takes the next CUDA thread that has not started, and calls the kernel.
// When the call returns, the same fiber takes the next thread. So a kernel without barriers is a plain
// loop. Only a thread that waits (barrier, warp operation, grid barrier) keeps its fiber. Blocks run
// one after another. Only a cooperative launch keeps all of them resident.
#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace emu {

Current now;
const EmuLaunch* launch_now = nullptr;
uint64_t launch_serial = 0;
Settings settings;
Counters counters;
Block* block = nullptr;
std::vector<Block*> resident;
std::vector<unsigned> order;
std::vector<EmuIndex> index_of;
unsigned block_threads = 0;
uint64_t grid_waiting = 0;

namespace {

struct SegmentInfo {
    uint64_t block;
    uint32_t grid_epoch;
};

std::recursive_mutex lock;
int abort_error = 0;

Block single;
uint64_t blocks_total = 0, blocks_started = 0;
uint64_t block_stride = 1, block_offset = 0, block_window = 1, block_mask = 0;
std::vector<SegmentInfo> segments;  // of this launch
uint32_t grid_epoch = 0;
uint64_t blocks_finished = 0;
unsigned char* arena = nullptr;
size_t arena_static = 0;  // bytes of static shared memory placed so far in this launch
size_t arena_dynamic_offset = 0;
uint32_t next_segment = 1;
uint64_t random_state = 1;

uint64_t random_next() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

void make_current(unsigned tid) {
    set_current(tid, block->warps[tid / 32].epoch);
    emu_thread_index = index_of[tid];
}

}  // namespace

uint32_t new_segment(Block* b) {
    segments.push_back({b->linear, grid_epoch});
    return next_segment++;
}

void begin_new_grid_interval() {
    ++grid_epoch;
    now.segment = next_segment;
    checks_grid_synchronised();
    --now.segment;
}

namespace {

void enter_block(Block* b) {
    if (now.cooperative && block && block != b) {
        const size_t used = now.arena_size;
        block->arena.assign(arena, arena + used);
        // The shadow of shared memory is not saved with the block. A block that resumes starts a new
        // segment, and a grid barrier orders all earlier accesses to shared memory.
        if (b->arena.size() == used) std::memcpy(arena, b->arena.data(), used);
    }
    block = b;
    now.segment = b->segment;
    now.block_first_segment = b->first_segment;
    now.block_linear = b->linear;
    emu_block_index = b->index;
}

void begin_block(Block* b, uint64_t position) {
    // Windows of neighbouring blocks stay together: fewer cache misses.
    const uint64_t windows = blocks_total / block_window;
    uint64_t linear = position;
    if (position < windows * block_window)
        linear = (position / block_window * block_stride + block_offset) % windows * block_window +
                 (position % block_window ^ block_mask);
    b->linear = linear;
    b->index = block_index_of(linear);
    b->next = 0;
    b->live = block_threads;
    b->at_barrier = b->at_grid = 0;
    b->ready.clear();
    b->ready_head = 0;
    if (b->threads.size() != block_threads) b->threads.assign(block_threads, Thread{});
    b->warps.assign((block_threads + 31) / 32, Warp{});
    b->segment = b->first_segment = new_segment(b);
    enter_block(b);
    checks_block_begins();
}

// ------------------------------------------------------------------------------ dispatch

bool next_cooperative_block() {
    const size_t n = resident.size();
    for (size_t i = 0; i < n; ++i) {
        Block* b = resident[(block->linear + 1 + i) % n];
        if (b->next < block_threads || b->ready_head < b->ready.size()) {
            enter_block(b);
            return true;
        }
    }
    return false;
}

// Switches to another thread. The caller has saved `self` if it waits; else `self` is done.
// Returns to a fiber in two cases: it may start another thread (done), or it was woken (waiting).
void dispatch(Fiber* self, bool done) {
    for (;;) {
        if (block->ready_head < block->ready.size()) {
            const unsigned tid = block->ready[block->ready_head++];
            if (block->ready_head == block->ready.size()) {
                block->ready.clear();
                block->ready_head = 0;
            }
            Fiber* target = block->threads[tid].fiber;
            make_current(tid);
            if (target == self) return;
            if (done) free_fiber(self);
            switch_to(self, target);
            if (done) return;  // a recycled fiber never resumes here: it is reset when taken
            return;
        }
        if (block->next < block_threads) {
            if (done) return;
            switch_to(self, take_fiber());
            return;
        }
        if (block->live && resolve_idle()) continue;
        if (now.cooperative) {
            if (next_cooperative_block()) continue;
            if (blocks_finished < blocks_total) {
                if (grid_waiting && grid_waiting == [] {
                        uint64_t live = 0;
                        for (Block* b : resident) live += b->live;
                        return live;
                    }()) {
                    release_grid();
                    continue;
                }
                for (Block* b : resident)
                    if (b->live) {
                        enter_block(b);
                        if (b->at_grid < b->live) break;
                    }
                deadlock();
            }
            return;  // done: all blocks have ended
        }
        if (block->live) deadlock();
        return;
    }
}

void thread_ends(unsigned tid) {
    checks_thread_stops();
    Warp& w = block->warps[tid / 32];
    w.exited |= 1u << (tid % 32);
    --block->live;
    if (w.waiting) warps_after_exit(tid);
    if (block->at_barrier && block->at_barrier == block->live) release_barrier();
    if (!block->live) ++blocks_finished;
}

[[noreturn]] void back_to_main() {
    now.active = false;
    switch_to_main();
}

void run_thread(unsigned tid) {
    make_current(tid);
    try {
        launch_now->entry(launch_now->context);
    } catch (const std::exception& e) {
        report({"exception in a kernel", e.what(), {0, launch_now->line}, "", 0});
        abort_launch(719);
    } catch (...) {
        report({"exception in a kernel", "an exception of unknown type", {0, launch_now->line}, "", 0});
        abort_launch(719);
    }
    thread_ends(now.thread);
}

}  // namespace

void fiber_main() {
    Fiber* self = running;
    for (;;) {
        while (block->next < block_threads) {
            const unsigned tid = order[block->next++];
            run_thread(tid);
            if (block->ready_head < block->ready.size()) break;
        }
        if (block->live || now.cooperative) {
            dispatch(self, true);
            if (block->next < block_threads) continue;
        }
        if (now.cooperative) {
            if (blocks_finished == blocks_total) back_to_main();
        } else if (!block->live) {
            if (blocks_started == blocks_total) back_to_main();
            begin_block(block, blocks_started++);
        }
    }
}

void wait_here(Thread& t, Wait what) {
    checks_thread_stops();
    t.wait = what;
    t.fiber = running;
}

void suspend() {
    Fiber* self = running;
    dispatch(self, false);
}

std::string describe_thread(unsigned tid) {
    const EmuIndex i = index_of[tid];
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

std::string hex32(unsigned value) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", value);
    return text;
}

EmuIndex thread_index_of(unsigned linear) {
    return linear < index_of.size() ? index_of[linear] : EmuIndex{linear, 0, 0};
}

EmuIndex block_index_of(uint64_t linear) {
    const EmuIndex g = launch_now->grid;
    return {static_cast<unsigned>(linear % g.x), static_cast<unsigned>(linear / g.x % g.y),
            static_cast<unsigned>(linear / g.x / g.y)};
}

uint64_t block_of_segment(uint32_t segment) {
    return segments[segment - now.launch_first_segment].block;
}

void abort_launch(int error) {
    abort_error = error;
    back_to_main();
}

int run(const EmuLaunch& l) {
    const int refused = check_configuration(l);
    if (refused) return refused;
    block_threads = l.block.x * l.block.y * l.block.z;
    blocks_total = static_cast<uint64_t>(l.grid.x) * l.grid.y * l.grid.z;
    if (l.cooperative && blocks_total * block_threads > kMostFibers) {
        report({"too many resident threads",
                "a cooperative launch of " + std::to_string(blocks_total * block_threads) +
                    " threads exceeds the CPU runner's limit of " + std::to_string(kMostFibers),
                {0, l.line}, "size the grid with cudaOccupancyMaxActiveBlocksPerMultiprocessor", 0, false});
        return 720;
    }
    ++launch_serial;
    launch_now = &l;
    emu_block_dim = l.block;
    emu_grid_dim = l.grid;
    random_state = settings.seed * 0x9E3779B97F4A7C15ull + launch_serial * 0xD1B54A32D192ED03ull + 1;

    order.resize(block_threads);
    index_of.resize(block_threads);
    for (unsigned i = 0; i < block_threads; ++i) {
        order[i] = settings.order == 1 ? block_threads - 1 - i : i;
        index_of[i] = {i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y};
    }
    block_stride = block_window = 1;
    block_offset = block_mask = 0;
    if (settings.order == 1) {
        block_stride = blocks_total - 1 ? blocks_total - 1 : 1;  // -1 modulo the number of blocks
        block_offset = blocks_total - 1;
    } else if (settings.order == 2) {
        // Warps in random order, and the lanes of each by a random mask. This finds code that depends
        // on the order as well as a shuffle of all threads does, with half of its cache misses.
        std::vector<unsigned> warps((block_threads + 31) / 32);
        for (unsigned w = 0; w < warps.size(); ++w) warps[w] = w;
        for (size_t w = warps.size(); w > 1; --w) std::swap(warps[w - 1], warps[random_next() % w]);
        size_t at = 0;
        for (unsigned w : warps) {
            const unsigned mask = random_next() & 31;
            for (unsigned lane = 0; lane < 32; ++lane)
                if (w * 32 + (lane ^ mask) < block_threads) order[at++] = w * 32 + (lane ^ mask);
        }
        block_window = blocks_total >= 64 ? 8 : 1;
        const uint64_t windows = blocks_total / block_window;
        block_mask = random_next() & (block_window - 1);
        block_offset = random_next() % windows;
        auto coprime = [](uint64_t a, uint64_t b) {
            while (b) { const uint64_t r = a % b; a = b; b = r; }
            return a == 1;
        };
        block_stride = random_next() % windows % 1000003;
        while (block_stride < 1 || !coprime(block_stride, windows)) ++block_stride;
    }

    if (next_segment > 0xC0000000u) {
        std::fprintf(stderr, "cuda_on_cpu: more barrier intervals than one process can number\n");
        std::abort();
    }
    segments.clear();
    grid_epoch = 0;
    now.launch_first_segment = next_segment;
    now.cooperative = l.cooperative;
    arena_static = 0;
    checks_shared_clear();
    checks_launch_begins();
    if (!arena) {
        char* p = static_cast<char*>(mmap(nullptr, kArenaLimit + 2 * kArenaMargin, PROT_NONE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (p == MAP_FAILED || mprotect(p + kArenaMargin, kArenaLimit, PROT_READ | PROT_WRITE) != 0) {
            std::fprintf(stderr, "cuda_on_cpu: no memory for shared memory\n");
            std::abort();
        }
        arena = reinterpret_cast<unsigned char*>(p + kArenaMargin);
    }
    now.arena = reinterpret_cast<uintptr_t>(arena);
    // Dynamic shared memory lies at the end. Static variables lie at the front, each with a gap (a
    // redzone) behind it.
    arena_dynamic_offset = (kArenaLimit - l.dynamic_shared) & ~static_cast<size_t>(1023);
    if (l.dynamic_shared) arena_dynamic_offset -= 1024 * ((l.dynamic_shared % 1024) == 0);
    now.arena_size = kArenaLimit;
    if (l.dynamic_shared) checks_shared_add(arena_dynamic_offset, l.dynamic_shared, "dynamic memory");

    free_all_fibers();
    abort_error = 0;
    blocks_finished = 0;
    grid_waiting = 0;
    block = nullptr;
    if (l.cooperative) {
        for (Block* b : resident) delete b;
        resident.clear();
        for (uint64_t i = 0; i < blocks_total; ++i) {
            Block* b = new Block;
            begin_block(b, i);
            resident.push_back(b);
        }
        std::sort(resident.begin(), resident.end(),
                  [](Block* a, Block* b) { return a->linear < b->linear; });
        blocks_started = blocks_total;
    } else {
        begin_block(&single, 0);
        blocks_started = 1;
    }
    now.active = true;
    switch_to(nullptr, take_fiber());
    now.active = false;
    launch_now = nullptr;
    return abort_error;
}

}  // namespace emu

using namespace emu;

extern "C" {

EmuIndex emu_thread_index, emu_block_index, emu_block_dim, emu_grid_dim;

int emu_launch(const EmuLaunch* l) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (now.active) {
        report({"kernel launch from a kernel", "dynamic parallelism is not supported", {0, l->line}, "", 0});
        abort_launch(801);
    }
    if (!settings.answer_cuda) {
        launch_now = l;
        report({"kernel launch on device cpu",
                "the solution launched a kernel although its tensors are on the CPU",
                {0, l->line}, "", 0, false});
        launch_now = nullptr;
        emu_set_error(100, l->kernel);
        return 100;  // cudaErrorNoDevice
    }
    note_kernel(l->kernel);
    const int error = run(*l);
    launch_now = nullptr;
    if (error) {
        emu_set_error(error, l->kernel);
        return error;
    }
    ++counters.launches;
    counters.without_stream += l->without_stream;
    return 0;
}

int emu_in_kernel() { return now.active; }
int emu_grid_is_valid() { return now.cooperative; }

void* emu_shared(EmuSharedSlot* slot, const char* name, size_t size, size_t align) {
    if (slot->launch != launch_serial) {
        size_t offset = (arena_static + align - 1) / align * align;
        if (offset + size + 64 > arena_dynamic_offset) {
            report({"too much shared memory",
                    "the static and dynamic shared memory of the kernel exceeds the limit of a block",
                    {0, launch_now->line}, "", 0});
            abort_launch(701);
        }
        slot->offset = offset;
        slot->launch = launch_serial;
        arena_static = offset + (size + 3) / 4 * 4 + 64;
        checks_shared_add(offset, size, name);
        counters.static_shared += size;
    }
    return arena + slot->offset;
}

void* emu_dynamic_shared() { return arena + arena_dynamic_offset; }

void emu_spin_hint() {
    // A thread that polls a flag must let other threads run. Else a correct program would hang here.
    static uint64_t polls = 0;
    if (++polls % 64 || !now.active) return;
    if (block->ready_head >= block->ready.size() && block->next >= block_threads && !now.cooperative) return;
    Thread& t = block->threads[now.thread];
    wait_here(t, Wait::kNone);
    block->ready.push_back(now.thread);
    if (block->next < block_threads) {
        switch_to(running, take_fiber());
        return;
    }
    if (now.cooperative && polls % 256 == 0) next_cooperative_block();
    suspend();
}

void emu_trap(int line, const char* kind, const char* text) {
    report({kind, text, {0, line}, "", 0});
    abort_launch(710);
}
}
