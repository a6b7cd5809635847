// What is precompiled: torch's types and pybind, without its C++ neural network library, which is
// two thirds of torch/extension.h. It includes nothing of ours, so that a change to the device
// headers does not cost a new one. A guard, not a pragma: a precompiled header is seen twice.
#ifndef EMU_PREFIX_H
#define EMU_PREFIX_H
#include <Python.h>
#include <torch/types.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#endif
