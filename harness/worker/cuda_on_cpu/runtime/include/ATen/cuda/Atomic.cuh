#ifndef EMU_ATEN_CUDA_ATOMIC_H
#define EMU_ATEN_CUDA_ATOMIC_H
#include "../../cuda_bf16.h"
#include "../../cuda_fp16.h"
template <class T>
EMU_ACCESSOR T gpuAtomicAdd(T* p, T v) {
    emu_atomic(p, sizeof(T), EMU_HERE);
    const T old = *p;
    *p = static_cast<T>(old + v);
    return old;
}
template <class T>
EMU_ACCESSOR void gpuAtomicAddNoReturn(T* p, T v) {
    emu_atomic(p, sizeof(T), EMU_HERE);
    *p = static_cast<T>(*p + v);
}
template <class T>
EMU_ACCESSOR T gpuAtomicMax(T* p, T v) {
    emu_atomic(p, sizeof(T), EMU_HERE);
    const T old = *p;
    if (old < v) *p = v;
    return old;
}
template <class T>
EMU_ACCESSOR T gpuAtomicMin(T* p, T v) {
    emu_atomic(p, sizeof(T), EMU_HERE);
    const T old = *p;
    if (v < old) *p = v;
    return old;
}
#endif
