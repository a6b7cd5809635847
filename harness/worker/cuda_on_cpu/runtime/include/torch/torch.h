#ifdef EMU_FULL_TORCH
#include_next <torch/torch.h>
#else
#include "extension.h"
#endif
