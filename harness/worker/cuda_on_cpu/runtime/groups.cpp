// Synchronisation of threads: barriers of a block and of the grid, warp operations, groups.
#include <algorithm>
#include <cstring>
#include <map>

#include "scheduler.h"

namespace emu {

namespace {

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

// Exchanges the values of the waiting lanes `lanes` of `warp`, and wakes these lanes.
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
                // The upper lanes of a tree reduction may read from lanes that do not take part.
                // No code uses their results. It uses the result of the lowest lane, or of a lane
                // that it names by number.
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
    if (me.kind == EMU_CONVERGE) {  // every lane that could still arrive
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

bool try_complete_named(unsigned tid) {
    const Thread& me = block->threads[tid];
    unsigned count = 0;
    for (const Thread& t : block->threads)
        count += t.wait == Wait::kNamed && t.key == me.key && t.mask == me.mask;
    if (count < me.mask) return false;
    const int key = me.key;
    const unsigned mask = me.mask;
    // Here a group barrier orders the whole block. So the checks may miss a race between two groups,
    // and never report one that is not there.
    advance_segment();
    for (unsigned i = 0; i < block_threads; ++i) {
        Thread& t = block->threads[order[i]];
        if (t.wait == Wait::kNamed && t.key == key && t.mask == mask) wake(order[i]);
    }
    return true;
}

}  // namespace

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
                {0, other}, "all threads of a block must reach the same barrier", 0});
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
    begin_new_grid_interval();
    grid_waiting = 0;
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

void warps_after_exit(unsigned tid) {
    const unsigned warp = tid / 32;
    unsigned m = block->warps[warp].waiting;
    while (m) {
        const unsigned lane = __builtin_ctz(m);
        m &= m - 1;
        if (try_complete_warp(warp * 32 + lane)) m = block->warps[warp].waiting;
    }
}

// No thread of the block can run: let groups of __activemask go on with the lanes that arrived.
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

void deadlock() {
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
    report({kind, "the block is deadlocked: " + text, {0, line}, "", 0});
    abort_launch(719);
}

}  // namespace emu

using namespace emu;

extern "C" {

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
}
