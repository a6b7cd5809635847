#include "CUDAException.h"
