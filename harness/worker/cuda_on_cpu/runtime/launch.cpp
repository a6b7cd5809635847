// The scheduler: runs one launch on one OS thread.
//
// A fiber (a stack of its own) takes the next unstarted CUDA thread and calls the kernel. If the
// call returns, the same fiber takes the next thread, so a kernel without barriers is a plain loop.
// Only a thread that waits (barrier, warp operation, grid barrier) keeps its fiber. Blocks run one
// after another; only a cooperative launch keeps all of them resident.
#include "launch.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

namespace emu {

Current now;
const EmuLaunch* launch_now = nullptr;
uint64_t launch_serial = 0;
Settings settings;
Counters counters;

namespace {

constexpr size_t kStack = 256 * 1024;  // address space only: pages are touched as they are used
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

struct SegmentInfo {
    uint64_t block;
    uint32_t grid_epoch;
};

std::recursive_mutex lock;
std::vector<Fiber*> free_fibers;
std::vector<Fiber*> all_fibers;
void* main_stack_pointer = nullptr;
int abort_error = 0;

Block* block = nullptr;
std::vector<Block*> resident;  // cooperative: all blocks
Block single;
Fiber* running = nullptr;
std::vector<unsigned> order;  // threads of a block, in the order they start
std::vector<EmuIndex> index_of;
unsigned block_threads = 0;
uint64_t blocks_total = 0, blocks_started = 0;
uint64_t block_stride = 1, block_offset = 0, block_window = 1, block_mask = 0;
std::vector<SegmentInfo> segments;  // of this launch
uint32_t grid_epoch = 0;
uint64_t grid_waiting = 0, blocks_finished = 0;
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

}  // namespace

#if defined(__x86_64__)
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
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
.size emu_switch,.-emu_switch
)");
#elif defined(__aarch64__)
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,%function
emu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emu_switch,.-emu_switch
)");
#else
#error "cuda_on_cpu: the context switch is written for x86-64 and aarch64"
#endif

namespace {

void fiber_main();

void fiber_reset(Fiber* f) {
    uintptr_t top = reinterpret_cast<uintptr_t>(f->stack) + kStack;
    top &= ~static_cast<uintptr_t>(63);
    void** sp = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
    *--sp = nullptr;  // keeps the ABI's alignment at entry: rsp % 16 == 8
    *--sp = reinterpret_cast<void*>(&fiber_main);
    for (int i = 0; i < 6; ++i) *--sp = nullptr;
#else
    sp -= 20;
    std::memset(sp, 0, 160);
    sp[11] = reinterpret_cast<void*>(&fiber_main);  // x30
#endif
    f->stack_pointer = sp;
    f->started = false;
}

Fiber* take_fiber() {
    if (free_fibers.empty()) {
        if (all_fibers.size() >= kMostFibers) {
            report({"too many resident threads",
                    "more than " + std::to_string(kMostFibers) +
                        " threads wait at once; the CPU runner keeps no more",
                    {0, launch_now->line}, "", 0, false});
            abort_launch(720);
        }
        Fiber* f = new Fiber;
        if (!now.stacks) {
            void* p = mmap(nullptr, kStack * kMostFibers, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) {
                std::fprintf(stderr, "cuda_on_cpu: no address space for stacks\n");
                std::abort();
            }
            now.stacks = reinterpret_cast<uintptr_t>(p);
            now.stacks_size = kStack * kMostFibers;
        }
        f->stack = reinterpret_cast<char*>(now.stacks) + kStack * all_fibers.size();
        // A guard page per stack would use up the kernel's count of mappings: only the first
        // thousand, which is one block, get one.
        const size_t guard = all_fibers.size() < 1100 ? kPage : 0;
        if (mprotect(f->stack + guard, kStack - guard, PROT_READ | PROT_WRITE) != 0) {
            std::fprintf(stderr, "cuda_on_cpu: no memory for the stack of a thread\n");
            std::abort();
        }
        all_fibers.push_back(f);
        free_fibers.push_back(f);
    }
    Fiber* f = free_fibers.back();
    free_fibers.pop_back();
    fiber_reset(f);
    return f;
}

void switch_to(Fiber* from, Fiber* to) {
    running = to;
    emu_switch(from ? &from->stack_pointer : &main_stack_pointer, to->stack_pointer);
}

void make_current(unsigned tid) {
    set_current(tid, block->warps[tid / 32].epoch);
    emu_thread_index = index_of[tid];
}

uint32_t new_segment(Block* b) {
    segments.push_back({b->linear, grid_epoch});
    return next_segment++;
}

void enter_block(Block* b) {
    if (now.cooperative && block && block != b) {
        const size_t used = now.arena_size;
        block->arena.assign(arena, arena + used);
        // The shadow of shared memory belongs to the block as well; a block that comes back starts
        // a new segment, and shared races across a grid barrier do not exist.
        if (b->arena.size() == used) std::memcpy(arena, b->arena.data(), used);
    }
    block = b;
    now.segment = b->segment;
    now.block_first_segment = b->first_segment;
    now.block_linear = b->linear;
    emu_block_index = b->index;
}

void begin_block(Block* b, uint64_t position) {
    // Windows of neighbouring blocks stay together, which spares the caches.
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

unsigned lanes_of_warp(unsigned warp) {
    const unsigned count = std::min(32u, block_threads - warp * 32);
    return count == 32 ? 0xffffffffu : (1u << count) - 1;
}

void wake(unsigned tid) {
    block->threads[tid].wait = Wait::kNone;
    block->ready.push_back(tid);
}

void advance_segment() {
    block->segment = new_segment(block);
    now.segment = block->segment;
    for (Warp& w : block->warps) w.epoch = 0;
    set_current(now.thread, 0);
}

// ------------------------------------------------------------------------------ barriers

void release_barrier() {
    int line = 0, other = 0;
    unsigned first = 0, second = 0;
    int count = 0, all = 1, any = 0;
    for (unsigned t = 0; t < block_threads; ++t) {
        Thread& thread = block->threads[t];
        if (thread.wait != Wait::kBarrier) continue;
        if (!line) {
            line = thread.line;
            first = t;
        } else if (thread.line != line && !other) {
            other = thread.line;
            second = t;
        }
        count += thread.predicate != 0;
        all = all && thread.predicate;
        any = any || thread.predicate;
    }
    if (other) {
        now.thread = second;
        emu_thread_index = index_of[second];
        report({"divergent barrier",
                "threads of one block wait at different barriers: thread " +
                    describe_thread(first) + " at line " + std::to_string(line) + ", thread " +
                    describe_thread(second) + " at line " + std::to_string(other),
                {0, other}, "a barrier counts only if all threads of the block reach the same one", 0});
        abort_launch(719);
    }
    block->reduce_result[0] = count;
    block->reduce_result[1] = all;
    block->reduce_result[2] = any;
    block->at_barrier = 0;
    advance_segment();
    for (unsigned i = 0; i < block_threads; ++i) {
        const unsigned t = order[i];
        if (block->threads[t].wait == Wait::kBarrier) wake(t);
    }
}

void release_grid() {
    ++grid_epoch;
    grid_waiting = 0;
    now.segment = next_segment;
    checks_grid_synchronised();
    --now.segment;
    Block* mine = block;
    for (Block* b : resident) {
        b->segment = new_segment(b);
        for (Warp& w : b->warps) w.epoch = 0;
        b->at_grid = 0;
        block = b;
        for (unsigned i = 0; i < block_threads; ++i)
            if (b->threads[order[i]].wait == Wait::kGrid) wake(order[i]);
    }
    block = mine;
    now.segment = block->segment;
}

// ------------------------------------------------------------------------------ warps

const char* warp_name(int kind) {
    switch (kind) {
        case EMU_SYNCWARP: return "__syncwarp";
        case EMU_SHUFFLE_INDEX: return "__shfl_sync";
        case EMU_SHUFFLE_UP: return "__shfl_up_sync";
        case EMU_SHUFFLE_DOWN: return "__shfl_down_sync";
        case EMU_SHUFFLE_XOR: return "__shfl_xor_sync";
        case EMU_BALLOT: return "a warp vote";
        case EMU_MATCH_ANY: return "__match_any_sync";
        case EMU_MATCH_ALL: return "__match_all_sync";
        default: return "__activemask";
    }
}

// Exchanges the values of the lanes in `lanes` of `warp`, all of which wait, and wakes them.
void complete_warp(unsigned warp, unsigned lanes, unsigned mask) {
    Warp& w = block->warps[warp];
    ++w.epoch;
    const unsigned base = warp * 32;
    Thread* threads = &block->threads[base];
    const int kind = threads[__builtin_ctz(lanes)].kind;
    unsigned vote = 0;
    if (kind == EMU_BALLOT)
        for (unsigned m = lanes; m; m &= m - 1) {
            const int lane = __builtin_ctz(m);
            int predicate;
            std::memcpy(&predicate, threads[lane].value, sizeof predicate);
            if (predicate) vote |= 1u << lane;
        }
    for (unsigned m = lanes; m; m &= m - 1) {
        const int lane = __builtin_ctz(m);
        Thread& t = threads[lane];
        t.word = kind == EMU_BALLOT ? vote : lanes;
        if (kind >= EMU_SHUFFLE_INDEX && kind <= EMU_SHUFFLE_XOR) {
            const int width = t.width, start = lane & ~(width - 1);
            int source = lane;
            if (kind == EMU_SHUFFLE_INDEX) source = start + (t.lane & (width - 1));
            if (kind == EMU_SHUFFLE_UP) source = lane - t.lane < start ? lane : lane - t.lane;
            if (kind == EMU_SHUFFLE_DOWN) source = lane + t.lane >= start + width ? lane : lane + t.lane;
            if (kind == EMU_SHUFFLE_XOR) source = (lane ^ t.lane) >= start + width ? lane : lane ^ t.lane;
            const bool present = lanes >> source & 1;
            t.word = present;
            if (present) {
                std::memcpy(t.result, threads[source].value, t.size);
            } else {
                for (size_t i = 0; i < sizeof t.result; i += 4) std::memcpy(t.result + i, &kPoison, 4);
                // A tree reduction's upper lanes may read beyond the taking part: nobody uses what
                // they get. The lowest lane's value, or one asked for by number, is used.
                const bool used = kind == EMU_SHUFFLE_INDEX || kind == EMU_SHUFFLE_XOR ||
                                  (kind == EMU_SHUFFLE_DOWN && lane == __builtin_ctz(lanes));
                if (used) {
                    const unsigned keep = now.thread;
                    now.thread = base + lane;
                    report({"shuffle from an absent lane",
                            std::string(warp_name(kind)) + " in lane " + std::to_string(lane) +
                                " reads lane " + std::to_string(source) +
                                ", which does not take part in it",
                            {0, t.line}, "mask " + hex32(mask) + ", lanes present " + hex32(lanes), 0});
                    now.thread = keep;
                }
            }
        } else if (kind == EMU_MATCH_ANY || kind == EMU_MATCH_ALL) {
            unsigned same = 0;
            for (unsigned o = lanes; o; o &= o - 1) {
                const int other = __builtin_ctz(o);
                if (std::memcmp(threads[other].value, t.value, t.size) == 0) same |= 1u << other;
            }
            t.word = kind == EMU_MATCH_ANY ? same : (same == lanes ? lanes : 0);
        }
    }
    w.waiting &= ~lanes;
    for (unsigned m = lanes; m; m &= m - 1) wake(base + __builtin_ctz(m));
}

// True if the group that `tid` waits in is complete.
bool try_complete_warp(unsigned tid) {
    const unsigned warp = tid / 32;
    Warp& w = block->warps[warp];
    const Thread& me = block->threads[tid];
    const unsigned live = lanes_of_warp(warp) & ~w.exited;
    if (me.kind == EMU_CONVERGE) {  // everybody who could still come
        if ((w.waiting & live) != live) return false;
        unsigned lanes = 0;
        for (unsigned m = live; m; m &= m - 1) {
            const Thread& t = block->threads[warp * 32 + __builtin_ctz(m)];
            if (t.kind == EMU_CONVERGE && t.line == me.line) lanes |= 1u << __builtin_ctz(m);
        }
        if (lanes != live) return false;
        complete_warp(warp, lanes, lanes);
        return true;
    }
    const unsigned wanted = me.mask & live;
    if ((w.waiting & wanted) != wanted) return false;
    for (unsigned m = wanted; m; m &= m - 1) {
        const Thread& t = block->threads[warp * 32 + __builtin_ctz(m)];
        if (t.mask != me.mask || t.kind != me.kind) return false;
    }
    complete_warp(warp, wanted, me.mask);
    return true;
}

void warps_after_exit(unsigned tid) {
    const unsigned warp = tid / 32;
    unsigned m = block->warps[warp].waiting;
    while (m) {
        const unsigned lane = __builtin_ctz(m);
        m &= m - 1;
        if (try_complete_warp(warp * 32 + lane)) m = block->warps[warp].waiting;
    }
}

bool try_complete_named(unsigned tid) {
    const Thread& me = block->threads[tid];
    unsigned count = 0;
    for (const Thread& t : block->threads)
        count += t.wait == Wait::kNamed && t.key == me.key && t.mask == me.mask;
    if (count < me.mask) return false;
    const int key = me.key;
    const unsigned mask = me.mask;
    // A finer order than the block's is not kept: a group barrier orders the whole block here, so
    // a race between two groups may be missed, never invented.
    advance_segment();
    for (unsigned i = 0; i < block_threads; ++i) {
        Thread& t = block->threads[order[i]];
        if (t.wait == Wait::kNamed && t.key == key && t.mask == mask) wake(order[i]);
    }
    return true;
}

// Nothing in the block can run: let __activemask groups go with those who came.
bool resolve_idle() {
    for (unsigned warp = 0; warp < block->warps.size(); ++warp) {
        Warp& w = block->warps[warp];
        for (unsigned m = w.waiting; m; m &= m - 1) {
            const Thread& first = block->threads[warp * 32 + __builtin_ctz(m)];
            if (first.kind != EMU_CONVERGE) continue;
            unsigned lanes = 0;
            for (unsigned o = w.waiting; o; o &= o - 1) {
                const Thread& t = block->threads[warp * 32 + __builtin_ctz(o)];
                if (t.kind == EMU_CONVERGE && t.line == first.line) lanes |= 1u << __builtin_ctz(o);
            }
            complete_warp(warp, lanes, lanes);
            return true;
        }
    }
    return false;
}

[[noreturn]] void deadlock() {
    std::string text;
    unsigned culprit = 0;
    int line = launch_now->line;
    std::map<std::string, std::pair<unsigned, unsigned>> groups;  // what -> count, first thread
    const char* kind = "divergent barrier";
    for (unsigned t = 0; t < block_threads; ++t) {
        const Thread& thread = block->threads[t];
        std::string what;
        if (thread.wait == Wait::kBarrier) what = "__syncthreads at line " + std::to_string(thread.line);
        if (thread.wait == Wait::kGrid) what = "a grid barrier at line " + std::to_string(thread.line);
        if (thread.wait == Wait::kNamed) what = "a group barrier at line " + std::to_string(thread.line);
        if (thread.wait == Wait::kWarp) {
            what = std::string(warp_name(thread.kind)) + " with mask " + hex32(thread.mask) + " at line " +
                   std::to_string(thread.line);
            kind = "divergent warp operation";
        }
        if (what.empty()) continue;
        auto& g = groups[what];
        if (g.first++ == 0) g.second = t;
        culprit = t;
        line = thread.line;
    }
    for (auto& g : groups) {
        if (!text.empty()) text += "; ";
        text += std::to_string(g.second.first) + " threads wait at " + g.first + " (first is thread " +
                describe_thread(g.second.second) + ")";
    }
    now.thread = culprit;
    report({kind, "the block can never go on: " + text, {0, line}, "", 0});
    abort_launch(719);
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

// Hands the processor on. `self` has been saved by its caller's bookkeeping (waiting) or is done.
// Returns only to a fiber that may start an unstarted thread (done) or that was woken (waiting).
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
            if (done) free_fibers.push_back(self);
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
    void* unused;
    emu_switch(&unused, main_stack_pointer);
    __builtin_unreachable();
}

void run_thread(unsigned tid) {
    make_current(tid);
    try {
        launch_now->entry(launch_now->context);
    } catch (const std::exception& e) {
        report({"exception in a kernel", e.what(), {0, launch_now->line}, "", 0});
        abort_launch(719);
    } catch (...) {
        report({"exception in a kernel", "unknown type", {0, launch_now->line}, "", 0});
        abort_launch(719);
    }
    thread_ends(now.thread);
}

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

}  // namespace

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
                    " threads; the CPU runner keeps at most " + std::to_string(kMostFibers),
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
        // Warps in random order, lanes of each by a random mask: as good a shuffle for finding what
        // depends on order, at half the cost in cache misses of a shuffle of all threads.
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
    // Dynamic shared memory stands at the end, static variables grow from the front with a gap
    // (a redzone) after each.
    arena_dynamic_offset = (kArenaLimit - l.dynamic_shared) & ~static_cast<size_t>(1023);
    if (l.dynamic_shared) arena_dynamic_offset -= 1024 * ((l.dynamic_shared % 1024) == 0);
    now.arena_size = kArenaLimit;
    if (l.dynamic_shared) checks_shared_add(arena_dynamic_offset, l.dynamic_shared, "dynamic memory");

    free_fibers = all_fibers;
    std::reverse(free_fibers.begin(), free_fibers.end());
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
    ++counters.kernels[l->kernel];
    return 0;
}

int emu_in_kernel() { return now.active; }
int emu_grid_is_valid() { return now.cooperative; }

void emu_barrier(int line) { emu_barrier_reduce(line, 0, 0); }

int emu_barrier_reduce(int line, int predicate, int kind) {
    Thread& t = block->threads[now.thread];
    t.line = line;
    t.predicate = predicate;
    wait_here(t, Wait::kBarrier);
    if (++block->at_barrier == block->live) release_barrier();
    suspend();
    return block->reduce_result[kind];
}

void emu_grid_barrier(int line) {
    if (!now.cooperative) {
        report({"grid barrier without a cooperative launch",
                "grid synchronisation needs cudaLaunchCooperativeKernel", {0, line}, "", 0});
        abort_launch(720);
    }
    Thread& t = block->threads[now.thread];
    t.line = line;
    wait_here(t, Wait::kGrid);
    ++block->at_grid;
    ++grid_waiting;
    suspend();
}

unsigned emu_warp(int kind, int line, unsigned mask, const void* value, void* result, int size, int lane,
                  int width) {
    const unsigned tid = now.thread, mine = 1u << (tid % 32);
    Thread& t = block->threads[tid];
    if (kind != EMU_CONVERGE && !(mask & mine)) {
        report({"warp mask without the caller",
                std::string(warp_name(kind)) + ": lane " + std::to_string(tid % 32) +
                    " calls with mask " + hex32(mask) + ", which does not contain it",
                {0, line}, "", 0});
        abort_launch(719);
    }
    t.kind = static_cast<uint8_t>(kind);
    t.line = line;
    t.mask = mask;
    t.lane = lane;
    t.width = width;
    t.size = size;
    if (size) std::memcpy(t.value, value, size);
    wait_here(t, Wait::kWarp);
    block->warps[tid / 32].waiting |= mine;
    try_complete_warp(tid);
    suspend();
    if (result && size) std::memcpy(result, t.result, size);
    return t.word;
}

void emu_named_barrier(int line, int key, int count) {
    Thread& t = block->threads[now.thread];
    t.line = line;
    t.key = key;
    t.mask = static_cast<unsigned>(count);
    wait_here(t, Wait::kNamed);
    try_complete_named(now.thread);
    suspend();
}

void* emu_shared(EmuSharedSlot* slot, const char* name, size_t size, size_t align) {
    if (slot->launch != launch_serial) {
        size_t offset = (arena_static + align - 1) / align * align;
        if (offset + size + 64 > arena_dynamic_offset) {
            report({"too much shared memory",
                    "static and dynamic shared memory of the kernel exceed what a block can have",
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
    // A thread that polls a flag must let the others run, or a right program would hang here.
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
