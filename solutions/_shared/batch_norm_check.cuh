// Refuses what the kernels cannot take. x is (N, C, H, W); the state is (C,), of x's dtype or
// float32 beside 16-bit x.
void check(const at::Tensor& x, std::initializer_list<const at::Tensor*> state) {
  const char* const who = "PROBLEM: ";
  TORCH_CHECK_VALUE(x.dim() == 4, "expected 4D input (got ", x.dim(), "D input)");
  TORCH_CHECK(x.layout() == at::kStrided && !x.is_neg(), who, "x must be a plain strided tensor.");
  const auto dtype = x.scalar_type();
  const bool narrow = dtype == at::kHalf || dtype == at::kBFloat16;
  for (const at::Tensor* t : state) {
    TORCH_CHECK(t->device() == x.device(), who, "x is on ", x.device(), " and the state on ",
                t->device(), ". Move one.");
    TORCH_CHECK(t->numel() == x.size(1) && t->is_contiguous(), who, "x has ", x.size(1),
                " channels, the state has shape ", t->sizes(), ".");
    TORCH_CHECK(t->scalar_type() == dtype || (narrow && t->scalar_type() == at::kFloat), who,
                "x is ", dtype, " and the state ", t->scalar_type(), ". Convert one.");
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
