#include "CUDAContext.h"
