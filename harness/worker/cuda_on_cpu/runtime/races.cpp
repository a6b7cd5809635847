// Decides which accesses conflict, and what orders two blocks. Called only on suspicion (checks.cpp).
#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "shadow.h"

namespace emu {

uint32_t grid_epoch_first_segment = 0;

namespace {

// Suspicions that later events of the same thread confirm or clear (see the file comment).
struct ChangedValue {
    uintptr_t address;
    unsigned size;
    unsigned char before[16];
    Report report;
};
std::vector<ChangedValue> changed_values;
struct PlainReadOfAtomic {
    uintptr_t address;
    Report report;
};
std::vector<PlainReadOfAtomic> reads_of_atomics;

struct BlockOrder {
    uint32_t fenced = 0, released = 0;  // segments
};
std::unordered_map<uint64_t, BlockOrder> block_orders;
bool block_acquired = false;
std::unordered_map<uint64_t, bool> blocks_acquired;  // cooperative launches only

std::string index_text(EmuIndex i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

bool ordered_blocks(uint32_t segment) {
    if (segment < grid_epoch_first_segment) return true;
    const uint64_t other = block_of_segment(segment);
    if (other == now.block_linear) return true;
    const bool acquired =
        now.cooperative ? blocks_acquired.count(now.block_linear) > 0 : block_acquired;
    if (!acquired) return false;
    auto found = block_orders.find(other);
    return found != block_orders.end() && segment <= found->second.released;
}

EMU_COLD Report race_report(const char* kind, const char* mine, const char* theirs, uintptr_t address,
                            size_t size, uintptr_t caller, uint32_t segment, unsigned thread,
                            uint32_t other_low) {
    Report r{kind, "", {caller, 0}, "", 0};
    const bool inside = same_block(segment);
    r.kind = is_shared(address) ? "shared memory race" : inside ? "data race" : "data race between blocks";
    const EmuIndex other_block = block_index_of(block_of_segment(segment));
    r.message = std::string(mine) + " of " + std::to_string(size) + " bytes at " +
                describe_address(address, size) + " races with " + theirs + " by ";
    if (inside && thread == now.thread)
        r.message += "another thread of the block";  // this one is only the first of several readers
    else
        r.message += "thread " + index_text(thread_index_of(thread)) + " of block " + index_text(other_block);
    r.detail = inside ? "no barrier orders the two accesses"
                      : "nothing orders the two blocks: no __threadfence with an atomic, no grid barrier";
    // The other caller mostly lies within 4 GiB of this one. findings.cpp checks that.
    uintptr_t full = (caller & ~static_cast<uintptr_t>(0xffffffffu)) | other_low;
    r.other_caller = full;
    return r;
}

void defer_until_value_changes(uintptr_t address, size_t size, Report r) {
    if (changed_values.size() > 4096) return;
    ChangedValue c{address, static_cast<unsigned>(std::min<size_t>(size, 16)), {}, std::move(r)};
    std::memcpy(c.before, reinterpret_cast<const void*>(address), c.size);
    changed_values.push_back(std::move(c));
}

void settle() {
    for (ChangedValue& c : changed_values)
        if (std::memcmp(c.before, reinterpret_cast<const void*>(c.address), c.size) != 0)
            report(c.report);
    changed_values.clear();
    for (PlainReadOfAtomic& p : reads_of_atomics) report(p.report);
    reads_of_atomics.clear();
}

}  // namespace

EMU_COLD void write_conflicts(const Cell& c, uintptr_t address, size_t size, uintptr_t caller, bool atomic) {
    const unsigned t = now.thread;
    if (c.write_segment >= now.launch_first_segment && !(c.write_atomic() && atomic)) {
        bool conflict = false;
        if (c.write_segment == now.segment) {
            if (c.write_thread() != t)
                conflict = (c.write_thread() / 32 != t / 32) || c.write_epoch() == (now.warp_epoch & 0x1ffff);
        } else if (!same_block(c.write_segment)) {
            if (is_shared(address)) return;  // another resident block used the same arena
            conflict = !ordered_blocks(c.write_segment);
            if (c.write_atomic() || atomic) conflict = false;
        }
        if (conflict) {
            Report r = race_report("", atomic ? "atomic" : "write", c.write_atomic() ? "an atomic" : "a write",
                                   address, size, caller, c.write_segment, c.write_thread(), c.write_caller);
            defer_until_value_changes(address, size, std::move(r));
            return;
        }
    }
    if (c.read_segment >= now.launch_first_segment && !atomic) {
        bool conflict = false;
        if (c.read_segment == now.segment) {
            if ((c.read_bits & kReadWarps) || c.read_thread() / 32 != t / 32)
                conflict = true;
            else if (c.read_epoch() == (now.warp_epoch & 0x7ff))
                conflict = (c.read_bits & kReadMany) || c.read_thread() != t;
        } else if (!same_block(c.read_segment)) {
            if (is_shared(address)) return;
            conflict = !ordered_blocks(c.read_segment);
        }
        if ((c.read_bits & kReadBlocks) && !is_shared(address) && block_orders.empty() && c.read_segment >= grid_epoch_first_segment)
            conflict = true;
        if (conflict) {
            Report r = race_report("", "write", "a read", address, size, caller, c.read_segment,
                                   c.read_thread(), c.read_caller);
            defer_until_value_changes(address, size, std::move(r));
        }
    }
}

EMU_COLD void read_conflicts(const Cell& c, uintptr_t address, size_t size, uintptr_t caller) {
    if (c.write_segment < now.launch_first_segment) return;
    const unsigned t = now.thread;
    if (c.write_segment == now.segment) {
        if (c.write_thread() == t) return;
        if (c.write_thread() / 32 == t / 32 && c.write_epoch() != (now.warp_epoch & 0x1ffff)) return;
    } else {
        if (is_shared(address)) return;
        if (same_block(c.write_segment) || ordered_blocks(c.write_segment)) return;
        if (c.write_atomic()) return;
    }
    if (c.write_atomic() && !is_shared(address)) return;  // a test before an atomicMax is correct and common
    Report r = race_report("", "read", c.write_atomic() ? "an atomic" : "a write", address, size, caller,
                           c.write_segment, c.write_thread(), c.write_caller);
    if (c.write_atomic()) {
        if (reads_of_atomics.size() < 4096) reads_of_atomics.push_back({address, std::move(r)});
    } else {
        report(r);
    }
}

void forget_plain_reads(uintptr_t address) {
    for (size_t i = 0; i < reads_of_atomics.size();)
        if (reads_of_atomics[i].address == address) {
            reads_of_atomics[i] = std::move(reads_of_atomics.back());
            reads_of_atomics.pop_back();
        } else {
            ++i;
        }
}

void note_release() {
    auto found = block_orders.find(now.block_linear);
    if (found != block_orders.end() && found->second.fenced) found->second.released = found->second.fenced;
}

void note_acquire() {
    block_acquired = true;
    if (now.cooperative) blocks_acquired[now.block_linear] = true;
}

void races_launch_begins() {
    changed_values.clear();
    reads_of_atomics.clear();
    block_orders.clear();
    blocks_acquired.clear();
    block_acquired = false;
    grid_epoch_first_segment = 0;
}

void checks_block_begins() { block_acquired = false; }
void checks_thread_stops() {
    if (__builtin_expect(!changed_values.empty() || !reads_of_atomics.empty(), 0)) settle();
}
void checks_grid_synchronised() { grid_epoch_first_segment = now.segment + 1; }

}  // namespace emu

extern "C" void emu_fence(int scope) {
    using namespace emu;
    if (now.active && scope > 0) block_orders[now.block_linear].fenced = now.segment;
}
