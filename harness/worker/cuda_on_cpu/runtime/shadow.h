// Shadow memory: what the checks remember of each byte (see checks.cpp), and what their files share.
// Symbols are hidden, because an access through the global offset table would slow the hot path down.
#ifndef EMU_SHADOW_H
#define EMU_SHADOW_H
#include "state.h"

#define EMU_COLD __attribute__((noinline, cold))

namespace emu {
#pragma GCC visibility push(hidden)

// Packed by hand: most accesses make two stores of values that `now` holds already.
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
extern Lookup lookups[kLookups];
extern uint64_t generation;  // shifted into the key's upper bits
inline uint64_t key_of(uintptr_t page) { return generation | page; }

extern Cell* const arena_levels[];
extern unsigned arena_shift;  // of this launch
extern uint8_t arena_owner[kArenaLimit / 4];  // 0: no variable here

// ---------------------------------------------------------------- shadow.cpp
[[noreturn]] void out_of_bounds(uintptr_t address, size_t size, bool write, uintptr_t caller, const char* what);
Lookup* look_up(uintptr_t address, size_t size, bool write, uintptr_t caller);
// For an access smaller than the cells: gives the memory around `address` cells of its size.
void refine(const Lookup& l, uintptr_t address, size_t size);
void refine_arena(uintptr_t address, size_t size);
inline bool finer_than(uintptr_t address, size_t size, unsigned shift) {
    return ((address | size) & ((size_t{1} << shift) - 1)) != 0;
}
inline bool is_shared(uintptr_t address) { return address - now.arena < now.arena_size; }

// ---------------------------------------------------------------- races.cpp
extern uint32_t grid_epoch_first_segment;
// Decides on the conflicts of an access with the accesses in the cell. Slow: only on suspicion.
void write_conflicts(const Cell& c, uintptr_t address, size_t size, uintptr_t caller, bool atomic);
void read_conflicts(const Cell& c, uintptr_t address, size_t size, uintptr_t caller);
void forget_plain_reads(uintptr_t address);  // an atomic orders them
void note_release();  // a block that acquires may now see the writes before the last fence
void note_acquire();
void races_launch_begins();
inline bool same_block(uint32_t segment) {
    if (!now.cooperative) return segment >= now.block_first_segment;
    return block_of_segment(segment) == now.block_linear;
}
#pragma GCC visibility pop
}  // namespace emu

#endif
