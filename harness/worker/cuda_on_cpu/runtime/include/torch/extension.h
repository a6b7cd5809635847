// Stands in for torch/extension.h without torch::nn (EMU_FULL_TORCH asks for all of it).
#ifndef EMU_TORCH_EXTENSION_H
#define EMU_TORCH_EXTENSION_H
#ifdef EMU_FULL_TORCH
#include_next <torch/extension.h>
#else
#include "../emu/prefix.h"
namespace torch {
namespace py = pybind11;
}
#endif
#endif
