// Checks of every memory access of a kernel: bounds, never-written memory, races, alignment.
//
// The extension is compiled with -fsanitize=thread. With it the compiler calls __tsan_readN and
// __tsan_writeN before each access. This file supplies those calls instead of libtsan. A shadow cell
// per 4 bytes remembers the last writer and reader. Memory that is accessed in smaller pieces (halves,
// bytes) gets a cell per 2 bytes or per byte at its first such access, because neighbouring values
// belong to different threads. Two accesses, one of them a plain write, conflict unless they are
// ordered:
//   same block   a barrier between them (their segments differ), or a warp operation (same warp,
//                later warp epoch);
//   two blocks   a grid barrier, or the chain write, __threadfence, atomic -> atomic, read.
// A write of the value that memory already holds is not reported: kernels commonly let many threads
// set one flag, and that is correct on a GPU, too.
// The hot path is in this file; shadow.cpp finds the cells, races.cpp decides on suspicions.
#include <algorithm>
#include <cstring>

#include "shadow.h"

namespace emu {

namespace {

// Several readers in one segment: the first stays on record, because a later write by the last reader
// (`s[t] += s[t + k]`) races with it. The flags say that there were others.
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

// Checks and notes one access that covers `count` whole cells.
template <Access access>
inline void check_cells(Cell* cells, size_t count, uintptr_t address, size_t size, uintptr_t caller, bool shared) {
    for (Cell* const last = cells + count; cells != last; ++cells) {
        Cell& c = *cells;
        if (__builtin_expect(!shared && c.write_segment < now.launch_first_segment &&
                                 c.read_segment < now.launch_first_segment,
                             1)) {  // the first access of this launch conflicts with nothing
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
        // 8 bytes at a time if the access has them: half of a random double equals the pattern once
        // in 2^32, all of it once in 2^64.
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

}  // namespace

}  // namespace emu

using namespace emu;

extern "C" {

void emu_atomic(const void* pointer, size_t size, const void* from) {
    if (!now.active) return;
    const uintptr_t caller = reinterpret_cast<uintptr_t>(from);
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    if (address % size) misaligned(address, size, caller);
    forget_plain_reads(address);
    check<kAtomic>(address, size, caller);
    if (!is_shared(address)) {
        note_release();
        note_acquire();
    }
}

// A volatile access to global memory counts as a flag: it never races, and is no plain data.
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
        note_release();
    } else {
        note_acquire();
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
// The compiler calls the aligned forms if the type of the access has that alignment. A misaligned
// address faults on a GPU, and would work on x86.
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
