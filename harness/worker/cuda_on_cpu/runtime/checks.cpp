// Checks of every memory access of a kernel: bounds, never-written memory, races, alignment.
//
// The extension is compiled with -fsanitize=thread, which makes the compiler call __tsan_readN and
// __tsan_writeN before each access; this file supplies those calls instead of libtsan. A shadow
// cell per 4 bytes remembers the last writer and reader; memory that is accessed in smaller pieces
// (halves, bytes) gets a cell per 2 bytes or per byte once that is seen, for neighbouring values
// belong to different threads. Two accesses of which one is a plain write conflict unless something
// orders them:
//   same block   a barrier between them (their segments differ), or a warp operation (same warp,
//                later warp epoch);
//   two blocks   a grid barrier, or the chain write, __threadfence, atomic -> atomic, read.
// A write that stores the value that is there already is not reported: many threads setting one
// flag is common, right, and the same on a GPU.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

#include "state.h"

#define EMU_COLD __attribute__((noinline, cold))

namespace emu {

namespace {

// Packed by hand: the common case is two stores of values that are ready in `now`.
struct Cell {
    uint32_t write_segment, write_caller;  // callers: low 32 bits
    uint32_t read_segment, read_caller;
    uint32_t write_bits;  // thread 0..9, atomic 14, warp epoch 15..31
    uint32_t read_bits;  // thread 0..9, flags 14..16, epoch 17..27, written by this block 28

    unsigned write_thread() const { return write_bits & 1023; }
    bool write_atomic() const { return write_bits >> 14 & 1; }
    unsigned write_epoch() const { return write_bits >> 15; }
    unsigned read_thread() const { return read_bits & 1023; }
    unsigned read_epoch() const { return read_bits >> 17 & 0x7ff; }
};
constexpr uint32_t kReadMany = 1u << 14;  // several threads of one warp in one epoch
constexpr uint32_t kReadWarps = 1u << 15;  // several warps of one block in one segment
constexpr uint32_t kReadBlocks = 1u << 16;  // several blocks in this launch
constexpr uint32_t kWritten = 1u << 28;
static_assert(sizeof(Cell) == 24, "one cell per 4 bytes; its size is most of the checks' memory");

constexpr unsigned kCoarse = 2;  // a cell describes 1 << kCoarse bytes to begin with

// One page of checked memory. The key holds the generation of the allocations too, so that a free
// makes all entries stale at once.
struct Lookup {
    uint64_t key = ~0ull;
    Cell* cells = nullptr;  // of the page
    uintptr_t begin = 0, end = 0;  // object on this page
    bool poisoned = false;
    unsigned shift = kCoarse;
};

constexpr size_t kLookups = 4096;
Lookup lookups[kLookups];
uint64_t lookups_valid_for = 0;
uint64_t generation = 0;  // shifted into the key's upper bits
struct OtherPage {
    Cell* cells = nullptr;
    unsigned shift = kCoarse;
};
std::unordered_map<uintptr_t, OtherPage> other_pages;  // memory that no allocation of ours describes
std::multimap<size_t, void*> spare_shadows;
size_t spare_bytes = 0;
std::mutex spare_lock;  // tensors are freed by any thread
constexpr size_t kMostSpare = size_t{1} << 30;

inline uint64_t key_of(uintptr_t page) { return generation | page; }

Cell arena_by_word[kArenaLimit / 4], arena_by_half[kArenaLimit / 2], arena_by_byte[kArenaLimit];
Cell* const arena_levels[] = {arena_by_byte, arena_by_half, arena_by_word};
unsigned arena_shift = kCoarse;  // of this launch
uint8_t arena_owner[kArenaLimit / 4];  // 0: no variable here
struct Variable {
    const char* name;
    size_t offset, size;
};
std::vector<Variable> variables;

// Suspicions that later events of the same thread settle (see the file comment).
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
uint32_t grid_epoch_first_segment = 0;

Cell* new_shadow(size_t bytes) {
    std::lock_guard<std::mutex> guard(spare_lock);
    auto spare = spare_shadows.find(bytes);
    if (spare != spare_shadows.end()) {  // its stale segments are older than any launch to come
        Cell* cells = static_cast<Cell*>(spare->second);
        spare_shadows.erase(spare);
        spare_bytes -= bytes;
        return cells;
    }
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        std::fprintf(stderr, "cuda_on_cpu: no memory for the shadow of a kernel's data\n");
        std::abort();
    }
    return static_cast<Cell*>(p);
}

bool is_shared(uintptr_t address) { return address - now.arena < now.arena_size; }

// The arena has inaccessible memory around it, so that an index far off is still recognised.
bool near_arena(uintptr_t address) {
    return now.arena && address - (now.arena - kArenaMargin) < 2 * kArenaMargin + now.arena_size;
}

std::string hex(uintptr_t value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%zx", static_cast<size_t>(value));
    return text;
}

std::string index_text(EmuIndex i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

EMU_COLD void out_of_bounds(uintptr_t address, size_t size, bool write, uintptr_t caller,
                            const char* what) {
    Report r{write ? "out-of-bounds write" : "out-of-bounds read", "", {caller, 0}, "", 0};
    if (std::strcmp(what, "freed") == 0) r.kind = write ? "write to freed memory" : "read of freed memory";
    if (std::strcmp(what, "null") == 0) r.kind = write ? "null pointer write" : "null pointer read";
    r.message = std::string(r.kind) + " of " + std::to_string(size) + " bytes at " +
                describe_address(address, size);
    report(r);
    abort_launch(700);  // cudaErrorIllegalAddress, as the GPU would report
}

OtherPage& other_page(uintptr_t page) {
    OtherPage& other = other_pages[page];
    if (!other.cells) other.cells = new_shadow((kPage >> other.shift) * sizeof(Cell));
    return other;
}

size_t shadow_bytes(size_t mapped_bytes, unsigned shift) { return (mapped_bytes >> shift) * sizeof(Cell); }

EMU_COLD Lookup* look_up(uintptr_t address, size_t size, bool write, uintptr_t caller) {
    if (near_arena(address)) {
        Report r{write ? "out-of-bounds shared write" : "out-of-bounds shared read", "", {caller, 0}, "", 0};
        r.message = std::string(r.kind) + " of " + std::to_string(size) + " bytes at " +
                    describe_address(address, size);
        report(r);
        abort_launch(700);
    }
    const uintptr_t page = address / kPage;
    Lookup& l = lookups[page % kLookups];
    if (l.key == key_of(page)) return &l;
    if (address < 65536) out_of_bounds(address, size, write, caller, "null");
    Allocation a;
    if (find_allocation(address, &a)) {
        if (a.freed) out_of_bounds(address, size, write, caller, "freed");
        if (address < a.begin || address + size > a.end)
            out_of_bounds(address, size, write, caller, "");
        l.begin = a.begin;
        l.end = a.end;
        l.poisoned = a.poisoned;
        if (a.map_end) {
            if (!a.shadow) {
                a.shadow = new_shadow(shadow_bytes(a.map_end - a.map_begin, kCoarse));
                a.shadow_shift = kCoarse;
                set_shadow(a.map_begin, a.shadow, kCoarse);
            }
            l.shift = a.shadow_shift;
            l.cells = static_cast<Cell*>(a.shadow) + ((page * kPage - a.map_begin) >> l.shift);
        } else {
            l.cells = other_page(page).cells;
            l.shift = other_page(page).shift;
            if (page * kPage < a.begin) l.begin = 0;  // the page holds something else as well
            if (page * kPage + kPage > a.end) l.end = UINTPTR_MAX;
        }
    } else {
        if (in_guarded_region(address)) out_of_bounds(address, size, write, caller, "");
        l.begin = 0;  // memory of the process that no allocation of ours describes
        l.end = UINTPTR_MAX;
        l.poisoned = false;
        l.cells = other_page(page).cells;
        l.shift = other_page(page).shift;
    }
    l.key = key_of(page);
    return &l;
}

// Copies what this launch has noted into cells that describe less each.
void refine_cells(const Cell* from, Cell* to, size_t count, unsigned by) {
    for (size_t i = 0; i < count; ++i)
        if (from[i].write_segment >= now.launch_first_segment || from[i].read_segment >= now.launch_first_segment)
            for (size_t k = 0; k < size_t{1} << by; ++k) to[(i << by) + k] = from[i];
}

// An access smaller than the cells: gives the memory around `address` cells of its size.
EMU_COLD void refine(const Lookup& l, uintptr_t address, size_t size) {
    const unsigned old = l.shift, shift = (address | size) & 1 ? 0 : 1;
    Allocation a;
    uintptr_t begin = address / kPage * kPage, end = begin + kPage;
    const bool ours = find_allocation(address, &a) && a.map_end && !a.freed;
    if (ours) {
        begin = a.map_begin;
        end = a.map_end;
    }
    Cell* const before = ours ? static_cast<Cell*>(a.shadow) : other_page(begin / kPage).cells;
    Cell* const after = new_shadow(shadow_bytes(end - begin, shift));
    refine_cells(before, after, (end - begin) >> old, old - shift);
    munmap(before, shadow_bytes(end - begin, old));  // not kept: it has segments of this launch
    if (ours)
        set_shadow(begin, after, shift);
    else
        other_pages[begin / kPage] = {after, shift};
    for (uintptr_t page = begin / kPage; page < end / kPage; ++page)
        if (lookups[page % kLookups].key == key_of(page)) lookups[page % kLookups].key = ~0ull;
}

EMU_COLD void refine_arena(uintptr_t address, size_t size) {
    const unsigned shift = (address | size) & 1 ? 0 : 1, by = arena_shift - shift;
    for (size_t w = 0; w < kArenaLimit / 4; ++w) {
        if (!arena_owner[w]) continue;
        const size_t count = size_t{1} << (kCoarse - arena_shift), first = w * count;
        refine_cells(arena_levels[arena_shift] + first, arena_levels[shift] + (first << by), count, by);
    }
    arena_shift = shift;
}

inline bool finer_than(uintptr_t address, size_t size, unsigned shift) {
    return ((address | size) & ((size_t{1} << shift) - 1)) != 0;
}

// ------------------------------------------------------------------------- races

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

bool same_block(uint32_t segment) {
    if (!now.cooperative) return segment >= now.block_first_segment;
    return block_of_segment(segment) == now.block_linear;
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
    // Code of one process lies within 4 GiB of the caller often enough; findings.cpp checks.
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

// Conflicts of a write (plain or atomic) with what the cell remembers. Slow: only on suspicion.
EMU_COLD void write_conflicts(const Cell& c, uintptr_t address, size_t size, uintptr_t caller, bool atomic) {
    const unsigned t = now.thread;
    if (c.write_segment >= now.launch_first_segment && !(c.write_atomic() && atomic)) {
        bool conflict = false;
        if (c.write_segment == now.segment) {
            if (c.write_thread() != t)
                conflict = (c.write_thread() / 32 != t / 32) || c.write_epoch() == (now.warp_epoch & 0x1ffff);
        } else if (!same_block(c.write_segment)) {
            if (is_shared(address)) return;  // another resident block's use of the same arena
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
    if (c.write_atomic() && !is_shared(address)) return;  // test-then-atomicMax is right and common
    Report r = race_report("", "read", c.write_atomic() ? "an atomic" : "a write", address, size, caller,
                           c.write_segment, c.write_thread(), c.write_caller);
    if (c.write_atomic()) {
        if (reads_of_atomics.size() < 4096) reads_of_atomics.push_back({address, std::move(r)});
    } else {
        report(r);
    }
}

// Several readers in one segment: the first stays on record, for it is the one that a later write
// by the last (`s[t] += s[t + k]`) races with; the flags say that there were others.
inline void note_read(Cell& c, uintptr_t caller) {
    uint32_t flags = 0;
    if (c.read_segment == now.segment) {
        flags = c.read_bits & (kReadWarps | kReadBlocks);
        const bool other_warp = c.read_thread() / 32 != now.thread / 32;
        const bool same_epoch = c.read_epoch() == (now.warp_epoch & 0x7ff);
        if (other_warp || flags & kReadWarps || same_epoch) {
            if (other_warp)
                flags |= kReadWarps;
            else if (same_epoch)
                flags |= c.read_thread() != now.thread ? kReadMany : c.read_bits & kReadMany;
            c.read_bits = (c.read_bits & ~kReadMany) | flags;
            return;
        }
    } else if (c.read_segment >= now.launch_first_segment && c.read_segment >= grid_epoch_first_segment &&
               ((c.read_bits & kReadBlocks) || !same_block(c.read_segment))) {
        flags = kReadBlocks;
    }
    c.read_bits = (c.read_bits & kWritten) | now.read_bits | flags;
    c.read_segment = now.segment;
    c.read_caller = static_cast<uint32_t>(caller);
}

inline void note_write(Cell& c, uintptr_t caller, bool atomic) {
    c.write_segment = now.segment;
    c.write_bits = now.write_bits | static_cast<uint32_t>(atomic) << 14;
    c.write_caller = static_cast<uint32_t>(caller);
}

enum Access { kRead, kWrite, kAtomic };

EMU_COLD void uninitialised(uintptr_t address, size_t size, uintptr_t caller, bool shared) {
    Report r{shared ? "uninitialised shared memory" : "uninitialised read", "", {caller, 0}, "", 0};
    r.message = "read of " + std::to_string(size) + " bytes that nothing has written, at " +
                describe_address(address, size);
    report(r);
}

EMU_COLD void misaligned(uintptr_t address, size_t size, uintptr_t caller) {
    Report r{"misaligned access", "", {caller, 0}, "a GPU stops with 'misaligned address'", 0};
    r.message = "access of " + std::to_string(size) + " bytes at " + describe_address(address, size) +
                ", an address that is not a multiple of " + std::to_string(size);
    report(r);
    abort_launch(716);  // cudaErrorMisalignedAddress
}

// Checks and notes one access in `count` cells, each of which it covers as a whole.
template <Access access>
inline void check_cells(Cell* cells, size_t count, uintptr_t address, size_t size, uintptr_t caller, bool shared) {
    for (Cell* const last = cells + count; cells != last; ++cells) {
        Cell& c = *cells;
        if (__builtin_expect(!shared && c.write_segment < now.launch_first_segment &&
                                 c.read_segment < now.launch_first_segment,
                             1)) {  // the first access of this launch: nothing to conflict with
            if (access == kRead) {
                c.read_bits = now.read_bits;
                c.read_segment = now.segment;
                c.read_caller = static_cast<uint32_t>(caller);
            } else {
                note_write(c, caller, access == kAtomic);
            }
            continue;
        }
        if (shared && !now.cooperative) {
            // `written` counts for this block only; the first write of a block resets it.
            if (c.write_segment < now.block_first_segment) c.read_bits &= ~kWritten;
            if (access != kWrite && !(c.read_bits & kWritten)) uninitialised(address, size, caller, true);
            c.read_bits |= kWritten;
        }
        if (access == kRead) {
            if (c.write_segment >= now.launch_first_segment &&
                !(c.write_segment == now.segment && c.write_thread() == now.thread))
                read_conflicts(c, address, size, caller);
            note_read(c, caller);
        } else {
            if ((c.write_segment >= now.launch_first_segment &&
                 !(c.write_segment == now.segment && c.write_thread() == now.thread)) ||
                c.read_segment >= now.launch_first_segment)
                write_conflicts(c, address, size, caller, access == kAtomic);
            if (access == kAtomic && c.read_segment == now.segment && c.read_thread() == now.thread &&
                !(c.read_bits & (kReadMany | kReadWarps)))
                c.read_segment = 0;  // a plain read before a compare-and-swap loop
            note_write(c, caller, access == kAtomic);
        }
    }
}

EMU_COLD void check_shared(uintptr_t address, size_t size, Access access, uintptr_t caller) {
    const size_t offset = address - now.arena;
    const uint8_t owner = arena_owner[offset / 4];
    if (!owner || offset + size > now.arena_size || arena_owner[(offset + size - 1) / 4] != owner) {
        Report r{access == kRead ? "out-of-bounds shared read" : "out-of-bounds shared write", "",
                 {caller, 0}, "", 0};
        r.message = std::string(r.kind) + " of " + std::to_string(size) + " bytes at " +
                    describe_address(address, size);
        report(r);
        abort_launch(700);
    }
    if (__builtin_expect(finer_than(address, size, arena_shift), 0)) refine_arena(address, size);
    Cell* const cells = arena_levels[arena_shift] + (offset >> arena_shift);
    const size_t count = size >> arena_shift;
    if (access == kRead)
        check_cells<kRead>(cells, count, address, size, caller, true);
    else if (access == kWrite)
        check_cells<kWrite>(cells, count, address, size, caller, true);
    else
        check_cells<kAtomic>(cells, count, address, size, caller, true);
}

template <Access access>
inline void check(uintptr_t address, size_t size, uintptr_t caller) {
    if (address - now.stacks < now.stacks_size) return;  // the thread's own local memory
    if (address - now.arena < now.arena_size) {
        check_shared(address, size, access, caller);
        return;
    }
    const uintptr_t page = address / kPage;
    Lookup* l = &lookups[page % kLookups];
    if (__builtin_expect(l->key != key_of(page), 0)) l = look_up(address, size, access != kRead, caller);
    if (__builtin_expect(address < l->begin || address + size > l->end, 0))
        out_of_bounds(address, size, access != kRead, caller, "");
    const size_t room = kPage - address % kPage;
    if (__builtin_expect(size > room, 0)) {  // crosses into another page of the same object
        check<access>(address, room, caller);
        check<access>(address + room, size - room, caller);
        return;
    }
    if (access != kWrite && l->poisoned) {
        // 8 bytes at a time where the access has them: a random double's half equals the pattern
        // once in 2^32, all of it once in 2^64.
        const uintptr_t first = address & ~static_cast<uintptr_t>(3);
        const uint32_t* word = reinterpret_cast<const uint32_t*>(first);
        bool untouched = word[0] == kPoison;
        if (size >= 8) {
            untouched = false;
            for (size_t i = 0; i + 1 < size / 4; i += 2)
                untouched = untouched || (word[i] == kPoison && word[i + 1] == kPoison);
        }
        if (__builtin_expect(untouched, 0)) uninitialised(address, size, caller, false);
    }
    if (__builtin_expect(finer_than(address, size, l->shift), 0)) {
        refine(*l, address, size);
        l = look_up(address, size, access != kRead, caller);
    }
    check_cells<access>(l->cells + (address % kPage >> l->shift), size >> l->shift, address, size, caller, false);
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

std::string describe_address(uintptr_t address, size_t size) {
    if (near_arena(address)) {
        const long long offset = static_cast<long long>(address) - static_cast<long long>(now.arena);
        const Variable* best = nullptr;
        long long distance = INT64_MAX;
        for (const Variable& v : variables) {
            const long long begin = static_cast<long long>(v.offset), end = begin + static_cast<long long>(v.size);
            const long long d = offset < begin ? begin - offset : offset < end ? 0 : offset - end;
            if (d < distance) {
                distance = d;
                best = &v;
            }
        }
        if (!best) return "shared memory, where the kernel has none";
        std::string text = "byte " + std::to_string(offset - static_cast<long long>(best->offset)) +
                           " of the " + std::to_string(best->size) + " bytes of shared " + best->name;
        return text;
    }
    if (address < 65536) return "address " + hex(address) + ", a null pointer plus an offset";
    Allocation a;
    if (!find_allocation(address, &a)) return "address " + hex(address) + ", which is no tensor's";
    std::string text;
    if (address < a.begin)
        text = std::to_string(a.begin - address) + " bytes before the start of ";
    else if (address + size > a.end)
        text = std::to_string(address >= a.end ? address - a.end : 0) + " bytes past the end of ";
    else
        text = "byte " + std::to_string(address - a.begin) + " of ";
    text += a.name.empty() ? (a.from_cuda_malloc ? "a cudaMalloc block" : "a tensor") : a.name;
    text += " of " + std::to_string(a.end - a.begin) + " bytes";
    if (launch_now)
        for (int i = 0; i < launch_now->arguments; ++i) {
            const uintptr_t p = launch_now->argument[i];
            if (p >= a.begin && p < std::max(a.end, a.begin + 1)) {
                text += " (kernel argument " + std::to_string(i + 1) + ")";
                break;
            }
        }
    return text;
}

void checks_launch_begins() {
    changed_values.clear();
    reads_of_atomics.clear();
    block_orders.clear();
    blocks_acquired.clear();
    block_acquired = false;
    grid_epoch_first_segment = 0;
    arena_shift = kCoarse;
    generation = (allocations_changed & 0xfffff) << 40;
    if (lookups_valid_for >> 20 != allocations_changed >> 20)  // the generation has gone round
        for (Lookup& l : lookups) l.key = ~0ull;
    lookups_valid_for = allocations_changed;
}

void checks_forget(void* shadow, size_t mapped_bytes, unsigned shift) {
    const size_t bytes = shadow_bytes(mapped_bytes, shift);
    std::lock_guard<std::mutex> guard(spare_lock);
    if (spare_bytes + bytes > kMostSpare) {
        munmap(shadow, bytes);
        return;
    }
    spare_shadows.emplace(bytes, shadow);
    spare_bytes += bytes;
}

void checks_block_begins() { block_acquired = false; }
void checks_thread_stops() {
    if (__builtin_expect(!changed_values.empty() || !reads_of_atomics.empty(), 0)) settle();
}
void checks_grid_synchronised() { grid_epoch_first_segment = now.segment + 1; }

void checks_shared_clear() {
    std::memset(arena_owner, 0, sizeof arena_owner);
    variables.clear();
}

void checks_shared_add(size_t offset, size_t size, const char* name) {
    variables.push_back({name, offset, size});
    const uint8_t owner = static_cast<uint8_t>(1 + (variables.size() - 1) % 255);
    for (size_t w = offset / 4; w < (offset + size + 3) / 4; ++w) arena_owner[w] = owner;
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_fence(int scope) {
    if (now.active && scope > 0) block_orders[now.block_linear].fenced = now.segment;
}

void emu_atomic(const void* pointer, size_t size, const void* from) {
    if (!now.active) return;
    const uintptr_t caller = reinterpret_cast<uintptr_t>(from);
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address % size) misaligned(address, size, caller);
    for (size_t i = 0; i < reads_of_atomics.size();)
        if (reads_of_atomics[i].address == address) {
            reads_of_atomics[i] = std::move(reads_of_atomics.back());
            reads_of_atomics.pop_back();
        } else {
            ++i;
        }
    check<kAtomic>(address, size, caller);
    if (!is_shared(address)) {
        auto found = block_orders.find(now.block_linear);
        if (found != block_orders.end() && found->second.fenced)
            found->second.released = found->second.fenced;
        block_acquired = true;
        if (now.cooperative) blocks_acquired[now.block_linear] = true;
    }
}

// A volatile access of global memory is taken as a flag: it neither races nor counts as plain data.
static void volatile_access(uintptr_t address, size_t size, bool write, uintptr_t caller) {
    if (!now.active) return;
    if (address - now.stacks < now.stacks_size) return;
    if (is_shared(address)) {
        check_shared(address, size, write ? kWrite : kRead, caller);
        if (!write) emu_spin_hint();
        return;
    }
    Lookup* l = look_up(address, size, write, caller);
    if (address < l->begin || address + size > l->end)
        out_of_bounds(address, size, write, caller, "");
    if (write) {
        if (finer_than(address, size, l->shift)) {
            refine(*l, address, size);
            l = look_up(address, size, write, caller);
        }
        note_write(l->cells[address % kPage >> l->shift], caller, true);
        auto found = block_orders.find(now.block_linear);
        if (found != block_orders.end() && found->second.fenced)
            found->second.released = found->second.fenced;
    } else {
        block_acquired = true;
        if (now.cooperative) blocks_acquired[now.block_linear] = true;
        emu_spin_hint();
    }
}

void emu_read(const void* pointer, size_t size, const void* caller, int is_volatile) {
    if (!now.active) return;
    const uintptr_t a = reinterpret_cast<uintptr_t>(pointer);
    const uintptr_t c = reinterpret_cast<uintptr_t>(caller);
    if (is_volatile)
        volatile_access(a, size, false, c);
    else
        check<kRead>(a, size, c);
}

void emu_write(const void* pointer, size_t size, const void* caller, int is_volatile) {
    if (!now.active) return;
    const uintptr_t a = reinterpret_cast<uintptr_t>(pointer);
    const uintptr_t c = reinterpret_cast<uintptr_t>(caller);
    if (is_volatile)
        volatile_access(a, size, true, c);
    else
        check<kWrite>(a, size, c);
}

#define EMU_CALLER reinterpret_cast<uintptr_t>(__builtin_return_address(0))
// The aligned forms are called where the access's type has that alignment: a wrong address there is
// a fault on a GPU, which x86 would let pass.
#define EMU_CALLBACKS(N)                                                                        \
    void __tsan_read##N(void* p) {                                                              \
        if (!now.active) return;                                                                \
        const uintptr_t a = reinterpret_cast<uintptr_t>(p);                                     \
        if (__builtin_expect(a % N != 0, 0)) misaligned(a, N, EMU_CALLER);                      \
        check<kRead>(a, N, EMU_CALLER);                                                         \
    }                                                                                           \
    void __tsan_write##N(void* p) {                                                             \
        if (!now.active) return;                                                                \
        const uintptr_t a = reinterpret_cast<uintptr_t>(p);                                     \
        if (__builtin_expect(a % N != 0, 0)) misaligned(a, N, EMU_CALLER);                      \
        check<kWrite>(a, N, EMU_CALLER);                                                        \
    }                                                                                           \
    void __tsan_volatile_read##N(void* p) {                                                     \
        volatile_access(reinterpret_cast<uintptr_t>(p), N, false, EMU_CALLER);                  \
    }                                                                                           \
    void __tsan_volatile_write##N(void* p) {                                                    \
        volatile_access(reinterpret_cast<uintptr_t>(p), N, true, EMU_CALLER);                   \
    }
#define EMU_UNALIGNED_CALLBACKS(N)                                                              \
    void __tsan_unaligned_read##N(void* p) {                                                    \
        if (now.active) check<kRead>(reinterpret_cast<uintptr_t>(p), N, EMU_CALLER);            \
    }                                                                                           \
    void __tsan_unaligned_write##N(void* p) {                                                   \
        if (now.active) check<kWrite>(reinterpret_cast<uintptr_t>(p), N, EMU_CALLER);           \
    }                                                                                           \
    void __tsan_unaligned_volatile_read##N(void* p) {                                           \
        volatile_access(reinterpret_cast<uintptr_t>(p), N, false, EMU_CALLER);                  \
    }                                                                                           \
    void __tsan_unaligned_volatile_write##N(void* p) {                                          \
        volatile_access(reinterpret_cast<uintptr_t>(p), N, true, EMU_CALLER);                   \
    }
EMU_CALLBACKS(1)
EMU_CALLBACKS(2)
EMU_CALLBACKS(4)
EMU_CALLBACKS(8)
EMU_CALLBACKS(16)
EMU_UNALIGNED_CALLBACKS(2)
EMU_UNALIGNED_CALLBACKS(4)
EMU_UNALIGNED_CALLBACKS(8)
EMU_UNALIGNED_CALLBACKS(16)

void __tsan_read_range(void* p, size_t size) {
    if (now.active && size) check<kRead>(reinterpret_cast<uintptr_t>(p), size, EMU_CALLER);
}
void __tsan_write_range(void* p, size_t size) {
    if (now.active && size) check<kWrite>(reinterpret_cast<uintptr_t>(p), size, EMU_CALLER);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
