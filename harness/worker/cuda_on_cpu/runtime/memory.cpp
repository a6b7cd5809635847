// The guarded allocator, and the map from addresses to allocations.
//
// Each allocation ends at an inaccessible page. It keeps torch's base alignment of 64 bytes. So up to
// 63 bytes lie between its end and the page; they are a redzone, which is compared when the
// allocation is freed. It is filled with a NaN pattern, and its addresses are never used again. The
// address space is reserved once, so that one comparison tells whether an address is ours. Freed
// ranges are adjacent inaccessible mappings, which the kernel merges: only live allocations cost
// mappings.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "launch.h"

namespace emu {

uint64_t allocations_changed = 1;

namespace {

constexpr size_t kAlign = 64;
// The content of redzones: a signalling NaN, another one for each allocation. Arithmetic makes it
// quiet, and a copy brings the NaN of another allocation. So a redzone shows even a write of values
// that were computed from a redzone.
unsigned redzone_word(uint64_t serial) {
    const unsigned mixed = static_cast<unsigned>((serial * 0x9E3779B97F4A7C15ull) >> 40);
    return 0xFF800000u | (mixed & 0x003FFFFFu) | 1u;
}
unsigned char redzone_byte(uintptr_t address, unsigned word) {
    return static_cast<unsigned char>(word >> 8 * (address & 3));
}
void fill_redzone(uintptr_t from, uintptr_t to, unsigned word) {
    for (; from < to && (from & 3); ++from)
        *reinterpret_cast<unsigned char*>(from) = redzone_byte(from, word);
    for (; from + 4 <= to; from += 4) *reinterpret_cast<unsigned*>(from) = word;
    for (; from < to; ++from) *reinterpret_cast<unsigned char*>(from) = redzone_byte(from, word);
}
constexpr size_t kFrontRedzone = 256;  // bytes before the base that are compared
constexpr size_t kMostLive = 12000;  // two mappings each; vm.max_map_count is 65530 by default
constexpr size_t kRememberedFrees = 4096;

std::mutex lock;
uintptr_t region_begin = 0, region_end = 0, cursor = 0;
std::map<uintptr_t, Allocation> allocations;  // by map_begin: live ones and recently freed ones
std::map<uintptr_t, Allocation> externals;  // by begin: memory of other owners
std::vector<uintptr_t> freed;
size_t freed_head = 0, live = 0;
uint64_t serial = 0;
uint64_t live_bytes = 0;

bool reserve_region() {
    if (region_begin) return true;
    for (size_t size = size_t{16} << 40; size >= size_t{64} << 30; size /= 2) {
        void* p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        region_begin = reinterpret_cast<uintptr_t>(p);
        region_end = region_begin + size;
        cursor = region_begin + (1 << 20);
        return true;
    }
    return false;
}

void fill_poison(void* p, size_t bytes) {
    uint32_t* words = static_cast<uint32_t*>(p);
    const size_t n = bytes / 4;
    for (size_t i = 0; i < n; ++i) words[i] = kPoison;
    std::memcpy(words + n, &kPoison, bytes % 4);
}

void* allocate(size_t bytes, bool from_cuda_malloc, uintptr_t caller = 0) {
    if (!bytes) return nullptr;
    const size_t rounded = (bytes + kAlign - 1) / kAlign * kAlign;
    const size_t mapped = (rounded + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> guard(lock);
    if (live >= kMostLive || !reserve_region() || cursor + mapped + kPage > region_end) {
        // No mappings or addresses are left: plain memory, poisoned, without a guard page.
        void* p = nullptr;
        if (posix_memalign(&p, kAlign, rounded)) return nullptr;
        fill_poison(p, bytes);
        Allocation a;
        a.begin = reinterpret_cast<uintptr_t>(p);
        a.end = a.begin + bytes;
        a.poisoned = true;
        a.from_cuda_malloc = from_cuda_malloc;
        externals[a.begin] = a;
        ++allocations_changed;
        return p;
    }
    Allocation a;
    a.map_begin = cursor;
    a.map_end = cursor + mapped;
    if (mprotect(reinterpret_cast<void*>(a.map_begin), mapped, PROT_READ | PROT_WRITE) != 0) return nullptr;
    cursor = a.map_end + kPage;
    a.begin = a.map_end - rounded;
    a.end = a.begin + bytes;
    a.serial = ++serial;
    a.poisoned = true;
    a.from_cuda_malloc = from_cuda_malloc;
    a.caller = caller;
    fill_poison(reinterpret_cast<void*>(a.begin), bytes);
    fill_redzone(a.end, a.map_end, redzone_word(a.serial));
    const size_t front = std::min(kFrontRedzone, static_cast<size_t>(a.begin - a.map_begin));
    fill_redzone(a.begin - front, a.begin, redzone_word(a.serial));
    allocations[a.map_begin] = a;
    ++live;
    live_bytes += mapped;
    ++allocations_changed;
    return reinterpret_cast<void*>(a.begin);
}

std::map<uintptr_t, Allocation>::iterator below(std::map<uintptr_t, Allocation>& map, uintptr_t address) {
    auto it = map.upper_bound(address);
    return it == map.begin() ? map.end() : --it;
}

bool all_redzone(uintptr_t from, uintptr_t to, unsigned word, uintptr_t* where) {
    for (uintptr_t p = from; p < to; ++p)
        if (*reinterpret_cast<const unsigned char*>(p) != redzone_byte(p, word)) {
            *where = p;
            return false;
        }
    return true;
}

// Returns 0, or a cudaError_t for a pointer that cannot be freed.
int release(void* pointer) {
    if (!pointer) return 0;
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    std::string overrun;
    {
        std::lock_guard<std::mutex> guard(lock);
        auto outside = externals.find(address);
        if (outside != externals.end() && outside->second.poisoned) {
            externals.erase(outside);
            ++allocations_changed;
            std::free(pointer);
            return 0;
        }
        auto it = below(allocations, address);
        if (it == allocations.end() || it->second.begin != address || it->second.freed) return 1;
        Allocation& a = it->second;
        uintptr_t where = 0;
        const size_t front = std::min(kFrontRedzone, static_cast<size_t>(a.begin - a.map_begin));
        if (!all_redzone(a.end, a.map_end, redzone_word(a.serial), &where))
            overrun = std::to_string(where - a.end) + " bytes past the end";
        else if (!all_redzone(a.begin - front, a.begin, redzone_word(a.serial), &where))
            overrun = std::to_string(a.begin - where) + " bytes before the start";
        if (!overrun.empty())
            overrun = "host code wrote " + overrun + " of a tensor of " + std::to_string(a.end - a.begin) + " bytes";
        mmap(reinterpret_cast<void*>(a.map_begin), a.map_end - a.map_begin, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
        a.freed = true;
        if (a.shadow) checks_forget(a.shadow, a.map_end - a.map_begin, a.shadow_shift);
        a.shadow = nullptr;
        --live;
        live_bytes -= a.map_end - a.map_begin;
        ++allocations_changed;
        if (freed.size() < kRememberedFrees) {
            freed.push_back(a.map_begin);
        } else {
            allocations.erase(freed[freed_head]);
            freed[freed_head] = a.map_begin;
            freed_head = (freed_head + 1) % kRememberedFrees;
        }
    }
    if (!overrun.empty()) report({"out-of-bounds write", overrun, {0, 0}, "the runner found it when the tensor was freed", 0, false});
    return 0;
}

struct GuardedAllocator final : c10::Allocator {
    static void deleter(void* p) { release(p); }
    c10::DataPtr allocate(size_t n) override {
        void* p = emu::allocate(n, false);
        if (n && !p)
            throw std::bad_alloc();
        return {p, p, &deleter, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &deleter; }
    void copy_data(void* to, const void* from, std::size_t n) const override { std::memcpy(to, from, n); }
};

}  // namespace

void set_shadow(uintptr_t map_begin, void* shadow, unsigned shift) {
    std::lock_guard<std::mutex> guard(lock);
    Allocation& a = allocations[map_begin];
    a.shadow = shadow;
    a.shadow_shift = shift;
}

DeviceBlocks device_blocks() {
    std::lock_guard<std::mutex> guard(lock);
    DeviceBlocks blocks;
    for (auto& [begin, a] : allocations) {  // by address, which is by age
        if (!a.from_cuda_malloc || a.freed) continue;
        ++blocks.count;
        blocks.bytes += a.end - a.begin;
        blocks.newest_caller = a.caller;
    }
    return blocks;
}

bool in_guarded_region(uintptr_t address) { return address - region_begin < region_end - region_begin; }

bool find_allocation(uintptr_t address, Allocation* found) {
    std::lock_guard<std::mutex> guard(lock);
    if (!in_guarded_region(address)) {
        auto it = below(externals, address);
        if (it == externals.end() || address >= it->second.end) return false;
        *found = it->second;
        return true;
    }
    auto it = below(allocations, address);
    auto next = allocations.upper_bound(address);
    if (it == allocations.end() && next == allocations.end()) return false;
    if (it == allocations.end() ||
        (next != allocations.end() && address >= it->second.map_end &&
         next->second.begin - address < address - it->second.end))
        it = next;
    *found = it->second;
    return true;
}

}  // namespace emu

using namespace emu;

extern "C" {

// A mapping of its own costs each tensor microseconds. So timed calls use torch's own allocator.
// Each block is freed by the allocator that returned it.
void emu_guard_allocations(int guarded) {
    static GuardedAllocator allocator;
    reserve_region();
    c10::SetCPUAllocator(guarded ? &allocator : c10::GetDefaultCPUAllocator(), 100);
}


void* emu_device_malloc(size_t bytes) {
    return allocate(bytes, true, reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
int emu_device_free(void* p) { return release(p); }

int emu_pointer_is_device(const void* pointer, size_t* room) {
    Allocation a;
    const uintptr_t p = reinterpret_cast<uintptr_t>(pointer);
    if (!find_allocation(p, &a) || a.freed || p < a.begin || p >= a.end) return 0;
    if (room) *room = a.end - p;
    return 1;
}
}
