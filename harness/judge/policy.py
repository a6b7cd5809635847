"""Every threshold of the judge, in one record that is passed, never global."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Thresholds of one evaluation.

    Calls:
        calls, quick_calls: the judge checks at least so many calls over all modes; the second is
            for --quick.

    Errors of an output:
        reference_factor: the judge accepts an error up to this multiple of the reference's own.
            Other orders of sums err 10 times as much as torch's blocks on 4096 terms.
        eps_factor: the judge also accepts an error up to this multiple of eps * max|y|.
        own_eps_factor: the same where the reference is its own oracle and so has no error.
        low_reference_factor, low_eps_factor: the same for references in 16 bits.
        rms_factor: the root mean square error may be this multiple of what one rounding to 16 bits
            gives, or a declared precision in the reference. bfloat16 errs 8 times as much as TF32.
        slack_factor: beyond allclose, the judge takes an error up to this multiple of float32's
            roundings for rounding. Left to right over 2^20 positive terms: 3.2; Winograd
            F(4x4, 3x3): 1.1.
        order_factor: no order of float32's sums gives an error beyond this multiple. Three bfloat16
            products: 4.2; float16 accumulators over 64 to 4096 terms: 365 to 24000.
        function_factor, function_part: on inputs that the problem does not draw, an error beyond
            this multiple of the roundings (half of float32's 24 bits) or beyond this part of the
            result means another function. relu for a leaky_relu of slope 0.01: 1.7e5, 0.01.
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
        atol, rtol: allclose tolerances for float32.
        low_tolerance: both, for float16 and bfloat16.
        double_tolerance: both, for float64.

    By which arithmetic an error came about:
        match_slope, match_correlation: an error e comes from an arithmetic with error d where
            <e, d> / <d, d> is this near to 1 and the correlation is at least this. Measured on
            products over 64 to 2^17 terms, convolutions, MLPs and attention, outputs and gradients:
            0.94 to 1.03 and 0.94 to 1.00 for the arithmetic itself, at most 0.6 for all others of
            that slope.
        part_slope, part_correlation, part_elements: an arithmetic computed part of the products
            where both figures are at least this, over so many elements. Half of the rows, half of
            each sum or one of two operands gave 0.5 and 0.7; float32 in any order and three TF32
            products have a slope below 0.02 (2026-11-30).
        unasked_s: the judge looks so many seconds into the first output of each mode although its
            error is accepted: TF32 in long sums errs by less than 32 times the reference's error.
        look_s: the judge compares errors of one pair with other arithmetics for so many seconds.
            It always compares those of the first call and of one with signs flipped.
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

    The oracle:
        oracle_part: the float64 copy is an oracle where its output differs from the reference's by
            at most this part of the largest value. A bfloat16 unit in the last place is 0.008.
        oracle_noise: the copy is an oracle, too, where the difference is at most this part of the
            largest input, as where everything cancels. float32 has a unit of 1.2e-7.
        oracle_unmoved: the reference casts to a lower precision inside where more than this part of
            the copy's elements stay the same although all inputs move.

    Memory of the CPU:
        memory_floor_bytes: a worker may always use so much resident memory.
        memory_factor: a worker may use this multiple of the most that the judge itself has held.
        memory_share: no worker may use more than this share of the machine's memory: the rest is
            for the judge, which must live to say so.

    Memory of a GPU:
        gpu_memory_floor_bytes: a candidate may always use so much while it is checked: the poison
            of one output may take 16 GiB.
        poison_bytes: before a checked call, memory for outputs of up to this size is set to NaN.
        gpu_memory_factor: a candidate may use this multiple of what reference and oracle took
            together. The oracle is float64, so this is some twelve times the reference's own.
        memory_fixed_bytes: a pair takes so much before any tensor: CUDA contexts and libraries of
            judge, candidate, reference and torch.compile, about 0.5 GiB each.
        memory_states, memory_inputs, memory_outputs, memory_calls: judge and candidate together
            take these multiples of the bytes of parameters and buffers, of the inputs, of the
            outputs, and of the most that one call of the reference holds beside state and inputs.
            Measured by resident memory on the CPU, one of them being 256 MiB: 13.0, 8.7, 7.3, 3.0.

    Size:
        small_bytes, small_flops: the small size of a problem that names none takes at most so much
            for inputs, state and outputs together, and so much work per call: the CPU runner is
            slow.
        memory_overdraft: the judge tries the full size where it needs up to this multiple of what
            is free. The estimate is of the worst moment, in which the oracle can move to the CPU;
            and a pair must not change its size because other pairs' builds hold 0.5 GiB each.
        memory_named_share: a named size that needs less than this share of the memory is meant for
            quick checks, not for timing. The judge halves the full size instead.
        memory_room: a candidate that runs out of memory is at fault where the estimate for the
            pair is at most this share of what was free: it had more than all others together.
        smaller_sizes: the judge judges a pair so many times again at half of the memory that did
            not suffice.
        again_s: it then has at least so many seconds, whatever the larger size took.

    Time:
        request_part: a request to a worker may take this part of --timeout. The rest is for the
            verdict on a worker that hangs.
        build_timeout_s: all compilers of a pair together may take so long.
        build_idle_part: a build waits for something where it uses less than this part of a core
            for as long as a request may take. A compiler uses a whole core.
        overtime_s: when the pair's time is over, the timing may take so long to finish what it has
            begun: two blocks, isolated calls.
        ncu_timeout_s: one call under Nsight Compute may take so long, its start included.

    Conduct of a worker:
        stand_s: a worker that the judge stops has to stand still within so many seconds. A thread
            inside the GPU's driver takes a while.
        tensors_factor, tensors_floor: an answer with more tensors than this multiple of the
            reference's, plus this number, has the wrong structure. A smaller one that takes too
            many bytes has the wrong shape.
    """

    calls: int = 14
    quick_calls: int = 5

    reference_factor: float = 32.0
    eps_factor: float = 8.0
    own_eps_factor: float = 256.0
    low_reference_factor: float = 4.0
    low_eps_factor: float = 2.0
    rms_factor: float = 3.0
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
    atol: float = 1e-4
    rtol: float = 1e-4
    low_tolerance: float = 1e-2
    double_tolerance: float = 1e-7

    match_slope: float = 0.25
    match_correlation: float = 0.8
    part_slope: float = 0.15
    part_correlation: float = 0.45
    part_elements: int = 256
    unasked_s: float = 3.0
    look_s: float = 20.0
    compared_elements: int = 1 << 17
    least_elements: int = 8
    most_products: int = 12
    product_slope: float = 0.5
    stored_elements: int = 4
    stored_part: float = 0.5
    stored_error: float = 0.25

    oracle_part: float = 2e-2
    oracle_noise: float = 1e-6
    oracle_unmoved: float = 0.5

    memory_floor_bytes: int = 3 << 30
    memory_factor: float = 4.0
    memory_share: float = 0.6

    gpu_memory_floor_bytes: int = 24 << 30
    gpu_memory_factor: float = 4.0
    poison_bytes: int = 16 << 30
    memory_fixed_bytes: int = 2 << 30
    memory_states: float = 13.0
    memory_inputs: float = 8.7
    memory_outputs: float = 7.3
    memory_calls: float = 3.0

    small_bytes: int = 1 << 20
    small_flops: float = 5e7
    memory_overdraft: float = 1.1
    memory_named_share: float = 1 / 8
    memory_room: float = 0.5
    smaller_sizes: int = 2
    again_s: float = 30.0

    request_part: float = 0.75
    build_timeout_s: float = 600.0
    build_idle_part: float = 0.05
    overtime_s: float = 30.0
    ncu_timeout_s: float = 60.0

    stand_s: float = 2.0
    tensors_factor: int = 4
    tensors_floor: int = 64

    @property
    def near_keys(self) -> float:
        """Return by which part of the largest the equal keys of a sort may differ: by rounding."""
        return self.eps_factor * torch.finfo(torch.float32).eps

    def tolerance(self, dtype: torch.dtype) -> tuple[float, float]:
        """Return (atol, rtol) for outputs of a dtype."""
        if dtype in (torch.float16, torch.bfloat16):
            return self.low_tolerance, self.low_tolerance
        if dtype in (torch.float64, torch.complex128):
            return self.double_tolerance, self.double_tolerance
        return self.atol, self.rtol
