#ifdef EMU_FULL_TORCH
#include_next <torch/all.h>
#else
#include "extension.h"
#endif
