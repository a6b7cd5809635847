// The safety net for faults that no check foresaw. A fault inside a kernel ends the launch with a
// finding, and the process lives on. A fault elsewhere leaves one JSON line in a file, which the judge
// reads after the process has died.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "launch.h"

namespace emu {

namespace {

int crash_file = -1;
struct sigaction previous[64];

uintptr_t program_counter(void* context) {
#if defined(__x86_64__)
    return static_cast<uintptr_t>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return static_cast<uintptr_t>(static_cast<ucontext_t*>(context)->uc_mcontext.pc);
#endif
}

// Only code of the extension itself is certain to hold no lock of the C library.
bool in_extension(uintptr_t pc) {
    Dl_info here, kernel;
    if (!launch_now || !dladdr(reinterpret_cast<void*>(pc), &here)) return false;
    if (!dladdr(reinterpret_cast<void*>(launch_now->entry), &kernel)) return false;
    return here.dli_fbase == kernel.dli_fbase;
}

void on_fault(int signal, siginfo_t* info, void* context) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
    const uintptr_t pc = program_counter(context);
    const char* name = signal == SIGFPE ? "integer division by zero" : "memory fault";
    if (now.active && in_extension(pc)) {
        const bool stack = address - now.stacks < now.stacks_size;
        now.active = false;
        Report r{stack ? "stack overflow in a kernel" : name, "", {pc + 1, 0}, "", 0};
        if (signal == SIGFPE)
            r.message = "integer division by zero (a GPU gives an undefined value and goes on)";
        else if (stack)
            r.message = "a thread's local memory exceeds 256 KiB";
        else
            r.message = "access to " + describe_address(address, 1);
        report(r);
        abort_launch(signal == SIGFPE ? 710 : 700);
    }
    if (crash_file >= 0) {
        // snprintf of integers takes no lock in the C libraries that torch runs on.
        static char line[1024];
        const int n = std::snprintf(
            line, sizeof line,
            "{\"kind\":\"%s\",\"message\":\"signal %d at address 0x%zx\",\"kernel\":\"%s\",\"line\":0,"
            "\"file\":\"\",\"detail\":\"%s\",\"times\":1}\n",
            name, signal, static_cast<size_t>(address), now.active && launch_now ? launch_now->kernel : "",
            in_guarded_region(address) ? "the address lies beside a tensor" : "");
        if (n > 0 && write(crash_file, line, static_cast<size_t>(n)) < 0) _exit(128 + signal);
    }
    sigaction(signal, &previous[signal], nullptr);  // the fault happens again, and the former handler ends it
}

}  // namespace
}  // namespace emu

extern "C" void emu_install_crash_handler(const char* path) {
    using namespace emu;
    if (path && *path) crash_file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    static bool installed = false;
    if (installed) return;
    installed = true;
    constexpr size_t size = 256 * 1024;
    stack_t alternative{};
    alternative.ss_sp = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    alternative.ss_size = size;
    sigaltstack(&alternative, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    // SA_NODEFER: the handler may leave by switching stacks, and must be ready for the next fault.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(signal, &action, &previous[signal]);
}
