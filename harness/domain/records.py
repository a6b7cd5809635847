"""The records: frozen and keyword-only, so that later code cannot change a verdict.

Numbers keep full precision and carry their unit in their name; reports round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.domain.statuses import (
    MEASUREMENT_VERSION,
    Blame,
    GateClass,
    HarnessError,
    SpeedOutcome,
    Status,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One defect that the CPU runner saw while a kernel ran.

    Attributes:
        kind: short name, e.g. ``out-of-bounds write``, ``data race``, ``divergent barrier``.
        message: one sentence with kernel, line, block, thread and address.
        kernel: name of the kernel, as written in the source.
        file: source file the line belongs to (the solution, or the name of the inline source).
        line: 1-based line of the access; 0 where unknown.
        block: block index (x, y, z) of the thread at fault, None where it has none.
        thread: thread index (x, y, z) within the block.
        detail: further facts: the conflicting access, distance from the tensor, ...
    """

    kind: str
    message: str
    kernel: str = ""
    file: str = ""
    line: int = 0
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A problem and a solution on disk.

    Attributes:
        name: ``problem/solution``, unique in one run.
        problem: file with Model, get_inputs and get_init_inputs.
        solution: file with ModelNew.
        size: the pair's size, in place of the options'; the name then ends in ``@size``.
    """

    name: str
    problem: Path
    solution: Path
    size: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison of one call: the worst element of one tensor.

    Attributes:
        phase: mode and trial, e.g. ``eval/3:signs``.
        what: which tensor, e.g. ``output``, ``output[1]``, ``grad x``, ``state bn.running_mean``.
        max_abs_diff: largest |candidate - reference| over the tensor; None where not comparable.
        error: largest |candidate - oracle|.
        budget: largest error that the precision budget allows.
        precision: effective precision seen: fp64, fp32, tf32, bf16, fp16, exact or worse.
    """

    phase: str
    what: str
    max_abs_diff: float | None
    error: float | None
    budget: float | None
    precision: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The candidate against another baseline, from the same blocks as Speed.

    Attributes:
        name: ``torch.compile``, ``torch.compile max-autotune-no-cudagraphs`` or ``eager defaults``
            (PyTorch's default numeric flags). Speed has the figures against eager PyTorch with
            strict flags, the reference.
        outcome: of the candidate against this baseline; UNTIMED where it failed.
        speedup, low, high: baseline time / candidate time with its 95 % interval.
        baseline_ms: time of one call (trimmed mean), milliseconds.
        note: why it failed.
    """

    name: str
    outcome: SpeedOutcome = SpeedOutcome.UNTIMED
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    baseline_ms: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Speed of light: the least time that the device allows the reference's algorithm.

    Attributes:
        bound_ms: the larger of bytes / bandwidth and flops / rate, forward and backward added.
        share: bound / the candidate's time; above 1 for a better algorithm.
        moved_bytes: inputs, state and outputs, once each per pass.
        flops: counted by the dispatcher on the reference; 0 where it has no matrix product.
        limited_by: ``bandwidth`` or the rate's name, e.g. ``3 x float16``.
        copy_gb_s: measured copy bandwidth, read and write, GB/s.
        rate_tflop_s: the matrix rate used, TFLOP/s; None where there are no flops.
    """

    bound_ms: float
    share: float
    moved_bytes: int
    flops: int = 0
    limited_by: str = "bandwidth"
    copy_gb_s: float | None = None
    rate_tflop_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The judge's measurement of speed. Figures are None where untimed.

    Attributes:
        outcome: see SpeedOutcome; against the reference in eager PyTorch.
        speedup: reference time / candidate time, trimmed mean of the blocks' ratios.
        low: lower end of the 95 % bootstrap interval of the ratio.
        high: upper end.
        reference_ms: time of one call of the reference (trimmed mean), milliseconds.
        candidate_ms: the same for the candidate.
        claimed_ms: time of a call by the candidate's own CUDA events; None where there are none.
        batches: how many batches of each went into the figures.
        calls_per_batch: calls in one batch of the candidate.
        note: why untimed, or what limits the figure.
        shape: of the figures above: ``throughput`` (batched calls) or ``latency`` (isolated ones).
        reference_latency_ms, candidate_latency_ms: median time of a call that is alone.
        reference_device_ms, candidate_device_ms: kernel time of one call as the worker claims it,
            by its profiler, from 1 ms by its CUDA events. The rest of a call is host overhead.
        noise_floor: relative; the reference against itself in the same blocks.
        late_bound: relative; the most that work finished after *done* could have gained.
        handshake_ms: time of a batch beside its calls; already subtracted.
        discarded: blocks left out because the GPU was throttled or the host busy; see note.
        capped: whether time ran out before the interval was narrow enough.
        baselines: other baselines.
        bound: speed of light, None where unknown.
        card: a hash of the GPU's UUID; empty where it is not known.
        gpu: NVML's figures while blocks ran: clocks, temperature, power, other processes.
        blocks: milliseconds per call by role, one entry per block: statistics can be redone.
    """

    outcome: SpeedOutcome = SpeedOutcome.UNTIMED
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    reference_ms: float | None = None
    candidate_ms: float | None = None
    claimed_ms: float | None = None
    batches: int = 0
    calls_per_batch: int = 0
    note: str = ""
    shape: str = "throughput"
    reference_latency_ms: float | None = None
    candidate_latency_ms: float | None = None
    reference_device_ms: float | None = None
    candidate_device_ms: float | None = None
    noise_floor: float | None = None
    late_bound: float | None = None
    handshake_ms: float | None = None
    discarded: int = 0
    capped: bool = False
    baselines: tuple[Baseline, ...] = ()
    bound: Bound | None = None
    card: str = ""
    gpu: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProfile:
    """Nsight Compute's counters for one kernel launch; None where its report has no figure.

    A process of its own takes them after the timing. They explain a time and decide nothing.

    Attributes:
        name: of the kernel, demangled.
        duration_ms: of this launch under the profiler, milliseconds.
        dram_read_bytes, dram_write_bytes: bytes read from DRAM and written to it.
        occupancy: achieved: active warps as a share of those that an SM can hold.
        registers: per thread.
        stall: most frequent reason for a warp to wait, e.g. ``long scoreboard``; may be empty.
        stall_cycles: cycles that a warp waited for that reason, per instruction.
    """

    name: str
    duration_ms: float | None = None
    dram_read_bytes: int | None = None
    dram_write_bytes: int | None = None
    occupancy: float | None = None
    registers: int | None = None
    stall: str = ""
    stall_cycles: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything the harness knows about one pair after one evaluation.

    Attributes:
        pair: name of the pair.
        status: see Status; blame follows from it.
        message: one line: what happened and what to do next; empty for PASSED.
        seed: the secret seed, shown afterwards so that the verdict can be replayed.
        device: ``cuda:0``, ``emulated`` or ``cpu``.
        size: named size that was evaluated.
        modes: modes that were checked, in order.
        phases: seconds per phase, in order.
        checks: one per tensor, the worst over all calls.
        max_abs_diff: worst over all output checks.
        precision: worst effective precision over all checks.
        state_match: one line per state tensor that was not matched by its name.
        findings: defects that the CPU runner saw.
        notes: for the reader: changed sizes, dropped variants, missing rights.
        warnings: suspicious facts about a solution that passed; one sentence each. Empty for any
            other status.
        numeric_flags: torch's numeric flags by process: judge, reference, candidate. The
            candidate's are a claim.
        launches: kernel launches of the solution's own extension, None where not counted.
        speed: second axis.
        ncu: kernel launches of one call under Nsight Compute, in order; empty without ``--ncu``.
            A solution's process reports them, so they are a claim.
        replay: command that replays this verdict.
        reproducer: stand-alone script that shows the mismatch without the harness.
        log: file with the compiler's output and the workers' stderr.
        peak_bytes: peak resident memory by process role: judge, reference, candidate.
        problem_hash: SHA-256 of the problem's file, hexadecimal.
        solution_hash: the same of the solution's.
    """

    pair: str
    status: Status
    message: str = ""
    seed: int = 0
    device: str = ""
    size: str = ""
    modes: tuple[str, ...] = ()
    phases: Mapping[str, float] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    max_abs_diff: float | None = None
    precision: str | None = None
    state_match: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    numeric_flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    launches: int | None = None
    speed: Speed = field(default_factory=Speed)
    ncu: tuple[KernelProfile, ...] = ()
    replay: str = ""
    reproducer: str | None = None
    log: str | None = None
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    problem_hash: str = ""
    solution_hash: str = ""

    def __post_init__(self) -> None:
        """Refuse records that cannot be true."""
        if self.status is not Status.PASSED and self.speed.outcome is not SpeedOutcome.UNTIMED:
            raise HarnessError(f"{self.pair}: a {self.status.value} verdict cannot carry a speedup")
        if self.status is not Status.PASSED and self.warnings:
            raise HarnessError(f"{self.pair}: only a PASSED verdict carries warnings")

    @property
    def blame(self) -> Blame:
        """Return whose fault the status is."""
        return self.status.blame


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDecision:
    """The gate's answer for one pair.

    Attributes:
        pair: name of the pair.
        gate_class: see GateClass.
        what: the property that decided: ``status``, ``precision``, ``findings``, ``launches``,
            ``errors``, ``speed``; may be empty.
        reason: one line: what was compared and what to do next.
        before, after: the stored speedup and this run's; None where untimed.
        change: relative change of the speedup, e.g. -0.03; None where not compared.
        low, high: ends of its 95 % interval, run-to-run spread included.
        measurements: how many runs of the pair the answer rests on.
    """

    pair: str
    gate_class: GateClass
    what: str = ""
    reason: str = ""
    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    measurements: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecision:
    """The gate's answer for a run.

    Attributes:
        baseline: file of the stored results.
        pairs: one per pair that is stored or was run.
        exit_code: see docs/baselines.md.
    """

    baseline: str
    pairs: tuple[PairDecision, ...]
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One JSON document: everything that one invocation found out.

    Attributes:
        verdicts: exactly one per pair.
        environment: of the machine.
        exit_code: of the command.
        error: why nothing was evaluated; None after an evaluation.
        measurement_version: of the clock that took the times.
        gate: the comparison with stored results; None without ``--check-baseline``.
        log_tails: last lines of the logs, by pair: records are kept longer than logs.
        source: file that holds the run; empty for the present run.
    """

    verdicts: tuple[Verdict, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    error: str | None = None
    measurement_version: int = MEASUREMENT_VERSION
    gate: GateDecision | None = None
    log_tails: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The user's options: the same for all pairs of a run.

    Attributes:
        device: ``auto``, ``cuda``, ``cuda:N``, ``emulated`` or ``cpu``.
        mode: ``forward``, ``eval``, ``train``, or None for the modes of the problem's settings.
        size: ``full``, ``small``, another named size of the problem, its constants as
            ``NAME=VALUE,...``, or None: on a GPU the largest that fits into memory, else small.
        quick: small size and fewest trials.
        seed: replay this seed; None draws a secret one.
        timeout_s: limit for one phase of one pair, seconds.
        time_limit_s: limit for all phases of one pair, seconds; waiting for a device and
            compiling do not count.
        jobs: pairs or builds side by side; None lets the fleet decide.
        fail_fast: stop at the first pair that does not pass.
        timed: measure speed where the device allows it.
        cache_dir: built extensions; None is the default cache.
        log_dir: one log file per pair; None is the default folder.
        thread_orders: orders in which the CPU runner runs threads.
        baselines: compare with these: ``eager``, which always is one, and names of
            ``harness.domain.BASELINES``; None lets the device decide.
        precision: every solution must have this precision, ``fp32`` or ``tf32``; None for that of
            the problem's settings. ``tf32`` also allows it in the baselines.
        warm_l2: time with inputs that stay in the L2 cache.
        cap_s: seconds for the timed blocks of one pair.
        ncu: read Nsight Compute's counters for one call of each solution.
        nvcc: off the GPU, nvcc also compiles the CUDA source, for these architectures.
        fast_headers: build CUDA sources with headers cut to the names that the source uses.
        memory_bytes: choose sizes as if the device had so much free memory; None asks the device.
    """

    device: str = "auto"
    mode: str | None = None
    size: str | None = None
    quick: bool = False
    seed: int | None = None
    timeout_s: float = 60.0
    time_limit_s: float = 300.0
    jobs: int | None = None
    fail_fast: bool = False
    timed: bool = True
    cache_dir: Path | None = None
    log_dir: Path | None = None
    thread_orders: tuple[str, ...] = ("forward", "reverse", "shuffled")
    baselines: tuple[str, ...] | None = None
    precision: str | None = None
    warm_l2: bool = False
    cap_s: float | None = None
    ncu: bool = False
    nvcc: tuple[str, ...] = ()
    fast_headers: bool = True
    memory_bytes: int | None = None
