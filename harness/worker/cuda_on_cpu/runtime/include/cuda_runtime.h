// Stands in for CUDA's header of this name; see emu/.
#ifndef EMU_CUDA_RUNTIME_H
#define EMU_CUDA_RUNTIME_H
#include "emu/device_math.h"
#include "emu/runtime_api.h"
// Host and device code are compiled once, together, so both see the same architecture.
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif
#include "emu/assert_printf.h"
#endif
