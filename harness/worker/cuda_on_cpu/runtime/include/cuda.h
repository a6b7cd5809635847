// Stands in for the driver API's header: its types only. A driver call is an undeclared function.
#ifndef EMU_CUDA_H
#define EMU_CUDA_H
#include "cuda_runtime.h"
typedef cudaStream_t CUstream;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
#endif
