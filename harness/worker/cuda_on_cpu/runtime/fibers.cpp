// Stacks and the switch between them.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "scheduler.h"

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

namespace emu {

Fiber* running = nullptr;

namespace {

constexpr size_t kStack = 256 * 1024;  // address space only: pages are touched as they are used
std::vector<Fiber*> free_fibers;
std::vector<Fiber*> all_fibers;
void* main_stack_pointer = nullptr;

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

}  // namespace

Fiber* take_fiber() {
    if (free_fibers.empty()) {
        if (all_fibers.size() >= kMostFibers) {
            report({"too many resident threads",
                    "more than " + std::to_string(kMostFibers) +
                        " threads wait at once, which is the limit of the CPU runner",
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
        // The kernel limits the number of mappings. So only the first thousand stacks (those of one
        // block) get a guard page.
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

void free_fiber(Fiber* f) { free_fibers.push_back(f); }

void free_all_fibers() {
    free_fibers = all_fibers;
    std::reverse(free_fibers.begin(), free_fibers.end());
}

void switch_to(Fiber* from, Fiber* to) {
    running = to;
    emu_switch(from ? &from->stack_pointer : &main_stack_pointer, to->stack_pointer);
}

void switch_to_main() {
    void* unused;
    emu_switch(&unused, main_stack_pointer);
    __builtin_unreachable();
}

}  // namespace emu
