"""Which KernelBench problems are tried, and which fault is planted in each one's solution.

The solution of a problem is the problem: its ``Model`` renamed ``ModelNew``, nothing else. The
faulty one is that with one fault, so each file has to pass once and to fail once.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from benchmarks.own_code import own_solution

LAST = "last"
"""The last element of the output is off by one percent (by one, where it is an integer)."""

NUDGED = "nudged"
"""All of the output is off by half a percent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One problem file and the fault planted in its solution.

    Attributes:
        path: relative to the folder of KernelBench problems.
        fault: LAST, NUDGED, or a pair of texts: what is replaced, and by what.
    """

    path: str
    fault: str | tuple[str, str] = LAST


KERNELBENCH = (
    Entry(path="level1/1_Square_matrix_multiplication_.py"),
    Entry(path="level1/3_Batched_matrix_multiplication.py"),
    Entry(path="level1/5_Matrix_scalar_multiplication.py", fault=NUDGED),
    Entry(path="level1/12_Matmul_with_diagonal_matrices_.py"),
    Entry(path="level1/15_Matmul_for_lower_triangular_matrices.py"),
    Entry(path="level1/18_Matmul_with_transposed_both.py"),
    Entry(path="level1/19_ReLU.py", fault=("torch.relu(x)", "torch.nn.functional.gelu(x)")),
    Entry(path="level1/20_LeakyReLU.py", fault=("self.negative_slope)", "0.02)")),
    Entry(path="level1/23_Softmax.py"),
    Entry(path="level1/26_GELU_.py", fault=("gelu(x)", "gelu(x, approximate='tanh')")),
    Entry(path="level1/33_BatchNorm.py", fault=("num_features)", "num_features, eps=1e-3)")),
    Entry(path="level1/34_InstanceNorm.py", fault=("num_features)", "num_features, eps=1e-3)")),
    Entry(path="level1/35_GroupNorm_.py", fault=("num_features)", "num_features, eps=1e-3)")),
    Entry(path="level1/36_RMSNorm_.py"),
    Entry(path="level1/40_LayerNorm.py"),
    Entry(path="level1/42_Max_Pooling_2D.py"),
    Entry(path="level1/44_Average_Pooling_1D.py"),
    Entry(path="level1/47_Sum_reduction_over_a_dimension.py"),
    Entry(path="level1/51_Argmax_over_a_dimension.py"),
    Entry(path="level1/63_conv_standard_2D__square_input__square_kernel.py"),
    Entry(path="level1/67_conv_standard_1D.py", fault=NUDGED),
    Entry(path="level1/89_cumsum.py"),
    Entry(path="level1/93_masked_cumsum.py"),
    Entry(path="level1/94_MSELoss.py"),
    Entry(path="level1/95_CrossEntropyLoss.py"),
    Entry(path="level1/97_ScaledDotProductAttention.py"),
    Entry(path="level1/98_KLDivLoss.py"),
    Entry(path="level1/99_TripletMarginLoss.py"),
    Entry(path="level2/1_Conv2D_ReLU_BiasAdd.py", fault=("x + self.bias", "x")),
    Entry(path="level2/9_Matmul_Subtract_Multiply_ReLU.py"),
    Entry(path="level2/12_Gemm_Multiply_LeakyReLU.py"),
    Entry(path="level2/14_Gemm_Divide_Sum_Scaling.py"),
    Entry(path="level2/17_Conv2d_InstanceNorm_Divide.py"),
    Entry(path="level2/33_Gemm_Scale_BatchNorm.py", fault=("eps=eps", "eps=1e-3")),
    Entry(path="level2/39_Gemm_Scale_BatchNorm.py", fault=("x * self.scale", "x")),
    Entry(path="level2/40_Matmul_Scaling_ResidualAdd.py", fault=("x + original_x", "x")),
    Entry(path="level2/46_Conv2d_Subtract_Tanh_Subtract_AvgPool.py"),
    Entry(path="level2/57_Conv2d_ReLU_HardSwish.py"),
    Entry(path="level2/66_Matmul_Dropout_Softmax.py"),
    Entry(path="level2/70_Gemm_Sigmoid_Scaling_ResidualAdd.py"),
    Entry(path="level2/73_Conv2d_BatchNorm_Scaling.py"),
    Entry(path="level2/76_Gemm_Add_ReLU.py", fault=("x + self.bias", "x")),
    Entry(path="level2/86_Matmul_Divide_GELU.py"),
    Entry(path="level2/99_Matmul_GELU_Softmax.py"),
)

OWN = (
    Entry(path="gemm_bias_gelu.py", fault=("gelu(x)", "gelu(x, approximate='tanh')")),
    Entry(path="conv_bias_shape.py", fault=("self.conv(x) - self.bias", "self.conv(x)")),
    Entry(path="batchnorm_in_default_mode.py", fault=("eps=eps", "eps=1e-3")),
    Entry(path="softmax_rows.py"),
    Entry(path="scalar_argument.py", fault=("low, high)", "-0.4, high)")),
    Entry(path="cross_entropy.py", fault=NUDGED),
    Entry(path="masked_scan.py", fault=("x * mask", "x")),
    Entry(path="lower_triangular.py"),
    Entry(path="group_norm_3d.py", fault=("eps=eps", "eps=1e-3")),
    Entry(path="index_of_maximum.py"),
    Entry(path="dropout_in_default_mode.py", fault=("self.dropout(x)", "x")),
    Entry(path="divergence.py", fault=('reduction="batchmean"', 'reduction="mean"')),
)

_PLANTED = """

_right = ModelNew.forward


def _planted(self, *args):
    out = _right(self, *args).clone()
    size = out.abs().float().max() if out.is_floating_point() else 1
    flat = out.view(-1){where}
    flat += 1 if not out.is_floating_point() else 0.01 * (flat.abs() + size)
    return out


ModelNew.forward = _planted
"""


def faulty_solution(problem: str, fault: str | tuple[str, str]) -> str:
    """Return the same with one planted fault."""
    source = own_solution(problem)
    if isinstance(fault, tuple):
        old, new = fault
        lines = source.splitlines(keepends=True)
        tree = ast.parse(source)
        (model,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "ModelNew"]
        inside = "".join(lines[model.lineno - 1 : model.end_lineno])
        assert inside.count(old) >= 1, f"{old!r} does not occur in Model"
        head = "".join(lines[: model.lineno - 1])
        return head + inside.replace(old, new) + "".join(lines[model.end_lineno :])
    where = {LAST: "[-1:]", NUDGED: ""}[fault]
    return source + _PLANTED.format(where=where)
