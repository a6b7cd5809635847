// assert and printf in kernels. A failed device assert ends the launch, not the process.
#ifndef EMU_ASSERT_PRINTF_H
#define EMU_ASSERT_PRINTF_H
#include <assert.h>

namespace emu {
inline void assert_failed(const char* text, const char* file, int line) {
    if (emu_in_kernel()) emu_trap(line, "device assert", text);
    __assert_fail(text, file, static_cast<unsigned>(line), "");
}
}  // namespace emu
#endif
#undef assert
#ifdef NDEBUG
#define assert(x) ((void)0)
#else
#define assert(x) ((x) ? (void)0 : ::emu::assert_failed(#x, __FILE__, __LINE__))
#endif
#define CUDA_KERNEL_ASSERT(x) ((x) ? (void)0 : ::emu::assert_failed(#x, __FILE__, __LINE__))
