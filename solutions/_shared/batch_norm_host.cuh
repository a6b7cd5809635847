// Refuses what the kernels cannot take. x is (N, C, H, W); the state is (C,), of x's dtype or
// float32 beside 16-bit x.
void check(const at::Tensor& x, std::initializer_list<const at::Tensor*> state) {
  TORCH_CHECK_VALUE(x.dim() == 4, "expected 4D input (got ", x.dim(), "D input)");
  TORCH_CHECK(x.layout() == at::kStrided && !x.is_neg(),
              "PROBLEM: only plain strided tensors are supported.");
  const bool narrow = x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
  for (const at::Tensor* t : state) {
    TORCH_CHECK(t->device() == x.device(), "PROBLEM: x is on ", x.device(),
                " and the state on ", t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == x.size(1) && t->is_contiguous(), "PROBLEM: x has ", x.size(1),
                " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(t->scalar_type() == x.scalar_type() || (narrow && t->scalar_type() == at::kFloat),
                "PROBLEM: x is ", x.scalar_type(), " and the state ", t->scalar_type(),
                ". Convert one.");
  }
}

// x as the kernels walk it. channels_last stays as it lies; any other layout is copied to NCHW.
at::Tensor dense(const at::Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) ? x : x.contiguous();
}

// Whether a channel lies in rows of C elements, as in channels_last. With one element per plane
// NCHW is such rows too, far longer than the planes.
bool in_rows(const at::Tensor& x) { return !x.is_contiguous() || x.size(2) * x.size(3) == 1; }

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The smallest power of two of at least `wanted` threads, from one warp to `most`.
int threads_for(int64_t wanted, int most) {
  int threads = 32;
  while (threads < most && threads < wanted) threads *= 2;
  return threads;
}
