#ifndef EMU_ATEN_DEVICE_UTILS_H
#define EMU_ATEN_DEVICE_UTILS_H
#include "../../cuda_runtime.h"
// The line is the kernel's, as these are macros there too where it matters.
#define WARP_SHFL(v, lane, ...) __shfl_sync(0xffffffffu, v, lane)
#define WARP_SHFL_XOR(v, mask, ...) __shfl_xor_sync(0xffffffffu, v, mask)
#define WARP_SHFL_DOWN(v, delta, ...) __shfl_down_sync(0xffffffffu, v, delta)
#define WARP_SHFL_UP(v, delta, ...) __shfl_up_sync(0xffffffffu, v, delta)
#define WARP_SYNC(...) __syncwarp()
#define WARP_BALLOT(p, ...) __ballot_sync(0xffffffffu, p)
#endif
