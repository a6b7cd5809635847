"""Every threshold of the judge, in one record that is passed, never global."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Thresholds of one evaluation.

    Attributes:
        calls: checked calls over all modes, at least; spread over the modes.
        quick_calls: the same under --quick.
        reference_factor: an error up to this multiple of the reference's own is not looked at.
            Other orders of sums err 10 times as much as torch's blocks on 4096 terms.
        eps_factor: nor is one up to this multiple of eps * max|y|.
        own_eps_factor: the same where the reference has to be its own oracle and errs nothing.
        low_reference_factor, low_eps_factor: the same for references in 16 bits.
        rms_factor: root mean square error as a multiple of what one rounding to 16 bits gives, or
            a declared precision in the reference. bfloat16 errs 8 times as much as TF32.
        part_slope, part_correlation, part_elements: an error is an arithmetic's in part of the
            products where both are at least this, over so many elements. Half of the rows, half of
            each sum or one of two operands gave 0.5 and 0.7; float32 in any order and three TF32
            products have a slope below 0.02 (2026-11-30).
        unasked_s: seconds for looking into the first output of each mode although its error is
            within its budget: TF32 in long sums errs by less than 32 times the reference's error.
        match_slope, match_correlation: an error is an arithmetic's where <r, d> / <d, d> is this
            near to 1 and the correlation at least this. Measured on products over 64 to 2^17
            terms, convolutions, MLPs and attention, outputs and gradients: 0.94 to 1.03 and 0.94
            to 1.00 for the arithmetic itself, at most 0.6 for all others of that slope.
        compared_elements: elements of a tensor that are compared with an arithmetic's change.
        least_elements: so many elements must carry a change before its direction says anything.
        most_products: a call with more products is not looked at product by product: each costs a
            further call of the reference.
        product_slope: a product is among those in fewer bits if more than this part of its own
            change is in the error.
        stored_elements, stored_part, stored_error: a result is stored in fewer bits if all of its
            elements fit into them that the oracle's do not. At least so many must be such (four
            float32 numbers are all bfloat16 by chance once in 2^64), and this part of all; and they
            must be the result, up to the last part of its norm.
        slack_factor: beyond allclose, an error up to this multiple of float32's roundings is
            theirs. Left to right over 2^20 positive terms: 3.2; Winograd F(4x4, 3x3): 1.1.
        order_factor: an error beyond this multiple is no order of float32's sums. Three bfloat16
            products: 4.2; float16 accumulators over 64 to 4096 terms: 365 to 24000.
        function_factor, function_part: on inputs that the problem does not draw, an error beyond
            this multiple of the roundings (half of float32's 24 bits) or this part of the result is
            another function's. relu for a leaky_relu of slope 0.01: 1.7e5, 0.01.
        least_in_slice: samples and columns of at least so many elements are judged by their own
            sizes too. The reference's own error in fewer is too often zero by chance.
        slices_elements: and only in tensors of at most so many elements: it takes further passes.
        gross_part: an impostor is refused by a sample of a large tensor where an element is off by
            more than this part of the largest sampled value. Slack follows the reference's rounding
            errors, which stay below a thousandth of that value unless other elements are hundreds
            of times larger.
        repeat_tolerance: a call is not deterministic if its results under the same RNG state differ
            by more than this part of the largest value.
        same_answer, other_answer: an answer is the same as another one if they differ by at most
            the first part of the largest value, and another one from the second part on.
        pause_s: so long the judge waits before or after a call for work on another stream, or in
            another thread, to end.
        look_s: seconds in which errors of one pair are compared with other arithmetic; the first
            such call and one with signs flipped always are.
        atol, rtol: allclose tolerances for float32.
        low_tolerance: both, for float16 and bfloat16.
        double_tolerance: both, for float64.
        memory_floor_bytes: a worker may always use this much resident memory.
        memory_factor: and this multiple of the most that the judge itself has held so far.
        build_timeout_s: limit of all compilers of a pair.
        overtime_s: so long after the pair's time is over its timing may still bring to an end
            what it has begun: two blocks, isolated calls.
        poison_bytes: before a checked call, memory for outputs of up to this size is set to NaN.
        gpu_memory_floor_bytes: a candidate may always use this much GPU memory while it is checked:
            poison_bytes and some more.
        gpu_memory_factor: and this multiple of what reference and oracle took together; the oracle
            is float64, so that this is some twelve times the reference's own.
        ncu_timeout_s: limit of one call under Nsight Compute, its start included.
        small_input_bytes: inputs of a problem without sizes of its own are halved to this.
        memory_fixed_bytes: GPU memory of a pair before any tensor: CUDA contexts and libraries of
            judge, candidate, reference and torch.compile, about 0.5 GiB each.
        memory_states, memory_inputs, memory_outputs, memory_calls: GPU memory of judge and
            candidate together, as a multiple of the bytes of the parameters and buffers, of the
            inputs, of the outputs, and of the most that one call of the reference holds beside
            state and inputs. Measured by resident memory on the CPU, one of them being 256 MiB:
            13.0, 8.7, 7.3 and 3.0.
        memory_overdraft: the full size is tried where it needs up to this multiple of what is free.
            The estimate is of the worst moment, for which the oracle can move to the CPU; and a
            pair must not change its size because other pairs' builds hold 0.5 GiB each.
        memory_named_share: a named size that needs less than this share of the memory is meant for
            quick checks, not for timing: the full size is halved instead.
        memory_room: a candidate that runs out of memory has taken too much where the estimate for
            the pair is at most this share of what was free: it had more than all others together.
        smaller_sizes: how often a pair is judged again at half of the memory that did not suffice.
    """

    calls: int = 14
    quick_calls: int = 5
    reference_factor: float = 32.0
    low_reference_factor: float = 4.0
    eps_factor: float = 8.0
    own_eps_factor: float = 256.0
    rms_factor: float = 3.0
    low_eps_factor: float = 2.0
    match_slope: float = 0.25
    part_slope: float = 0.15
    part_correlation: float = 0.45
    part_elements: int = 256
    unasked_s: float = 3.0
    match_correlation: float = 0.8
    compared_elements: int = 1 << 17
    least_elements: int = 8
    most_products: int = 12
    product_slope: float = 0.5
    stored_elements: int = 4
    stored_part: float = 0.5
    stored_error: float = 0.25
    slack_factor: float = 4.0
    order_factor: float = 16.0
    function_factor: float = 4096.0
    function_part: float = 0.0625
    least_in_slice: int = 8
    slices_elements: int = 1 << 24
    gross_part: float = 0.1
    repeat_tolerance: float = 1e-6
    same_answer: float = 1e-3
    other_answer: float = 1e-2
    pause_s: float = 0.2
    look_s: float = 20.0
    atol: float = 1e-4
    rtol: float = 1e-4
    low_tolerance: float = 1e-2
    double_tolerance: float = 1e-7
    memory_floor_bytes: int = 3 << 30
    memory_factor: float = 4.0
    build_timeout_s: float = 600.0
    overtime_s: float = 30.0
    poison_bytes: int = 16 << 30
    gpu_memory_floor_bytes: int = 24 << 30
    gpu_memory_factor: float = 4.0
    ncu_timeout_s: float = 60.0
    small_input_bytes: int = 1 << 20
    memory_fixed_bytes: int = 2 << 30
    memory_states: float = 13.0
    memory_inputs: float = 8.7
    memory_outputs: float = 7.3
    memory_calls: float = 3.0
    memory_overdraft: float = 1.1
    memory_named_share: float = 1 / 8
    memory_room: float = 0.5
    smaller_sizes: int = 2

    def tolerance(self, dtype: torch.dtype) -> tuple[float, float]:
        """Return (atol, rtol) for outputs of a dtype."""
        if dtype in (torch.float16, torch.bfloat16):
            return self.low_tolerance, self.low_tolerance
        if dtype in (torch.float64, torch.complex128):
            return self.double_tolerance, self.double_tolerance
        return self.atol, self.rtol
