// Finds the shadow of an address, refines it, and names an address in a finding.
#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

namespace emu {

Lookup lookups[kLookups];
uint64_t generation = 0;
unsigned arena_shift = kCoarse;
uint8_t arena_owner[kArenaLimit / 4];

namespace {

uint64_t lookups_valid_for = 0;
struct OtherPage {
    Cell* cells = nullptr;
    unsigned shift = kCoarse;
};
std::unordered_map<uintptr_t, OtherPage> other_pages;  // memory outside of our allocations
std::multimap<size_t, void*> spare_shadows;
size_t spare_bytes = 0;
std::mutex spare_lock;  // tensors are freed by any thread
constexpr size_t kMostSpare = size_t{1} << 30;

Cell arena_by_word[kArenaLimit / 4], arena_by_half[kArenaLimit / 2], arena_by_byte[kArenaLimit];

struct Variable {
    const char* name;
    size_t offset, size;
};
std::vector<Variable> variables;

Cell* new_shadow(size_t bytes) {
    std::lock_guard<std::mutex> guard(spare_lock);
    auto spare = spare_shadows.find(bytes);
    if (spare != spare_shadows.end()) {  // its segments are older than those of any later launch
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

// The arena has inaccessible memory around it, so that an index far outside is still recognised.
bool near_arena(uintptr_t address) {
    return now.arena && address - (now.arena - kArenaMargin) < 2 * kArenaMargin + now.arena_size;
}

std::string hex(uintptr_t value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%zx", static_cast<size_t>(value));
    return text;
}

OtherPage& other_page(uintptr_t page) {
    OtherPage& other = other_pages[page];
    if (!other.cells) other.cells = new_shadow((kPage >> other.shift) * sizeof(Cell));
    return other;
}

size_t shadow_bytes(size_t mapped_bytes, unsigned shift) { return (mapped_bytes >> shift) * sizeof(Cell); }

// Copies what this launch has noted into smaller cells.
void refine_cells(const Cell* from, Cell* to, size_t count, unsigned by) {
    for (size_t i = 0; i < count; ++i)
        if (from[i].write_segment >= now.launch_first_segment || from[i].read_segment >= now.launch_first_segment)
            for (size_t k = 0; k < size_t{1} << by; ++k) to[(i << by) + k] = from[i];
}

}  // namespace

Cell* const arena_levels[] = {arena_by_byte, arena_by_half, arena_by_word};

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
        l.begin = 0;  // memory of the process outside of our allocations
        l.end = UINTPTR_MAX;
        l.poisoned = false;
        l.cells = other_page(page).cells;
        l.shift = other_page(page).shift;
    }
    l.key = key_of(page);
    return &l;
}

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
    munmap(before, shadow_bytes(end - begin, old));  // freed, because it has segments of this launch
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
        if (!best) return "shared memory, although the kernel has none";
        std::string text = "byte " + std::to_string(offset - static_cast<long long>(best->offset)) +
                           " of the " + std::to_string(best->size) + " bytes of shared " + best->name;
        return text;
    }
    if (address < 65536) return "address " + hex(address) + ", a null pointer plus an offset";
    Allocation a;
    if (!find_allocation(address, &a)) return "address " + hex(address) + ", which belongs to no tensor";
    std::string text;
    if (address < a.begin)
        text = std::to_string(a.begin - address) + " bytes before the start of ";
    else if (address + size > a.end)
        text = std::to_string(address >= a.end ? address - a.end : 0) + " bytes past the end of ";
    else
        text = "byte " + std::to_string(address - a.begin) + " of ";
    text += a.from_cuda_malloc ? "a cudaMalloc block" : "a tensor";
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
    races_launch_begins();
    arena_shift = kCoarse;
    generation = (allocations_changed & 0xfffff) << 40;
    if (lookups_valid_for >> 20 != allocations_changed >> 20)  // the counter has wrapped around
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
