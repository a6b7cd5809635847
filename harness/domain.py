"""Every record, enum and error of the harness. Imported by all rooms, imports none of them.

Records are frozen and keyword-only: a verdict that has been written cannot be changed by what
runs after it. Numbers keep full precision and carry their unit in their name; reports round.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 2
"""Version of the JSON document. History: 1 first form; 2 baselines, bound, blocks and hashes."""
MEASUREMENT_VERSION = 2
"""Version of the clock's protocol: times under different ones are not compared.

History: 1 hand-shake over the socket; 2 fresh inputs written while the worker is stopped, the
clock stops when random slices of the outputs have arrived.
"""


class Blame(enum.Enum):
    """Whose fault a status is: decides who has to act next."""

    NOBODY = "nobody"
    SOLUTION = "solution"
    PROBLEM = "problem"
    HARNESS = "harness"


class Status(enum.Enum):
    """What the harness found out about one pair. One status per pair, each with a fixed blame."""

    PASSED = "PASSED"
    """Every check of every mode held."""
    SKIPPED = "SKIPPED"
    """Could not be evaluated here; the message says what is missing."""
    BUILD_FAILED = "BUILD_FAILED"
    """The solution's extension did not compile, link or bind."""
    LOAD_FAILED = "LOAD_FAILED"
    """The solution file raised on import, has no ModelNew, or ModelNew could not be built."""
    NO_KERNEL_LAUNCHED = "NO_KERNEL_LAUNCHED"
    """It ships CUDA, but no kernel of its own extension ran."""
    STATE_MISMATCHED = "STATE_MISMATCHED"
    """The reference's parameters and buffers could not be given to the candidate."""
    WRONG_STRUCTURE = "WRONG_STRUCTURE"
    """The output is not of the reference's nesting, or not made of plain tensors."""
    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_DTYPE = "WRONG_DTYPE"
    NOT_FINITE = "NOT_FINITE"
    """NaN or infinity where the oracle is finite, or the other way round."""
    WRONG_VALUES = "WRONG_VALUES"
    """Values beyond the pair's tolerance."""
    PRECISION_LOST = "PRECISION_LOST"
    """Within the tolerance, but less precise than the pair declares: tf32 or fp16 in fp32."""
    WRONG_GRADIENTS = "WRONG_GRADIENTS"
    WRONG_STATE = "WRONG_STATE"
    """Parameters or buffers after the call differ from the reference's."""
    INPUT_MUTATED = "INPUT_MUTATED"
    """An input changed that the reference leaves alone, or the output aliases an input."""
    NONDETERMINISTIC = "NONDETERMINISTIC"
    """The same call under the same RNG state gave different results beyond the budget."""
    MEMORY_FAULT = "MEMORY_FAULT"
    """Out of bounds, uninitialised, racing or otherwise invalid memory use was detected."""
    CRASHED = "CRASHED"
    """The worker died or the call raised."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMED_OUT = "TIMED_OUT"
    TAMPERED = "TAMPERED"
    """What the candidate's process claims contradicts what the judge saw."""
    INVALID_REFERENCE = "INVALID_REFERENCE"
    """The reference raises, is not finite on its own inputs, or disagrees with itself."""
    WEAK_PROBLEM = "WEAK_PROBLEM"
    """The comparison cannot tell an impostor from the reference."""
    HARNESS_ERROR = "HARNESS_ERROR"
    """Our own fault."""

    @property
    def blame(self) -> Blame:
        """Return the fixed blame of this status."""
        if self in (Status.PASSED, Status.SKIPPED):
            return Blame.NOBODY
        if self in (Status.INVALID_REFERENCE, Status.WEAK_PROBLEM):
            return Blame.PROBLEM
        if self is Status.HARNESS_ERROR:
            return Blame.HARNESS
        return Blame.SOLUTION


class SpeedOutcome(enum.Enum):
    """Second axis of a verdict: what can be said about speed."""

    FASTER = "FASTER"
    SAME = "SAME"
    SLOWER = "SLOWER"
    UNDECIDED = "UNDECIDED"
    UNTIMED = "UNTIMED"


BASELINES: Mapping[str, str | None] = {
    "compile": None,
    "max-autotune": "max-autotune-no-cudagraphs",
}
"""Baselines beside eager, with the mode that torch.compile takes."""


class HarnessError(Exception):
    """Our own fault: ends as HARNESS_ERROR, never as a verdict about a solution."""


class UsageError(Exception):
    """Bad usage or bad input of the user: names the file, the fault and the next step."""


class BuildFailed(Exception):
    """A solution's extension did not build.

    Args:
        message: one line: the compiler's first error with the solution's own file and line.
        log: everything the tool chain printed.
    """

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Unsupported(Exception):
    """The CPU runner cannot run this source; says which construct on which line. SKIPPED."""


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
        size: evaluated at this size, whatever the options say; the name then ends in ``@size``.
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
    """The candidate against one more baseline, in the blocks that Speed comes from.

    Attributes:
        name: ``torch.compile`` or ``torch.compile max-autotune-no-cudagraphs``; eager PyTorch is
            the reference itself and stands in Speed.
        outcome: of the candidate against this baseline; UNTIMED where it failed.
        speedup, low, high: baseline time / candidate time with its 95 % interval.
        baseline_ms: median time of one call, milliseconds.
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
        share: bound / the candidate's time; above 1 it beat the bound (a better algorithm).
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
    """What the judge's clock says. Null figures where untimed.

    Attributes:
        outcome: see SpeedOutcome; against the reference in eager PyTorch.
        speedup: reference time / candidate time, ratio of medians.
        low: lower end of the 95 % bootstrap interval of the ratio.
        high: upper end.
        reference_ms: median time of one call of the reference, milliseconds.
        candidate_ms: the same for the candidate.
        claimed_ms: what the candidate's own CUDA events claim; None where there is none.
        batches: how many batches of each went into the figures.
        calls_per_batch: calls in one batch.
        note: why untimed, or what bounds the figure.
        shape: ``throughput`` (calls back to back) or ``latency`` (synchronized after each): which
            of the two the figures above are.
        reference_latency_ms, candidate_latency_ms: median time of one synchronized call.
        reference_device_ms, candidate_device_ms: kernel time of one call as the profiler in the
            worker claims it; what a call takes beyond it is host overhead.
        noise_floor: relative; the reference against itself in the same blocks.
        late_bound: relative; the most that work finished after *done* could have gained.
        handshake_ms: cost of an empty batch, already subtracted.
        discarded: blocks thrown away because the GPU was throttled.
        capped: whether time ran out before the interval was narrow enough.
        baselines: other baselines.
        bound: speed of light, None where unknown.
        gpu: what NVML saw while blocks ran: clocks, temperature, power, others' processes.
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
    gpu: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything the harness knows about one pair after one evaluation.

    Attributes:
        pair: name of the pair.
        status: see Status; blame follows from it.
        message: one line: what happened and what to do next; empty for PASSED.
        seed: the secret seed, revealed afterwards so that the verdict can be replayed.
        device: what it ran on: ``cuda:0``, ``emulated`` or ``cpu``.
        size: named size that was evaluated.
        modes: modes that were checked, in order.
        phases: seconds per phase, in order.
        checks: one per tensor, the worst over all calls.
        max_abs_diff: worst over all output checks.
        precision: worst effective precision over all checks.
        state_match: how the state was matched, one line per name that needed more than its name.
        findings: what the CPU runner saw.
        notes: what the reader should know: changed sizes, dropped variants, missing rights.
        launches: kernel launches of the solution's own extension, None where not counted.
        speed: second axis.
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
    launches: int | None = None
    speed: Speed = field(default_factory=Speed)
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

    @property
    def blame(self) -> Blame:
        """Return whose fault the status is."""
        return self.status.blame


class GateClass(enum.Enum):
    """What the gate says about one pair against its stored result."""

    OK = "OK"
    """As good as what is stored."""
    IMPROVED = "IMPROVED"
    """Faster by more than what intervals and slack explain. ``--update-baseline`` keeps it."""
    REGRESSED = "REGRESSED"
    """Status, precision, findings, errors or speed got worse; ``what`` says which."""
    MISSING = "MISSING"
    """Stored, and this run has no complete result: deleted, skipped or without a time."""
    INCOMPARABLE = "INCOMPARABLE"
    """Stored for another device, driver, clock, problem, size or modes."""
    NO_BASELINE = "NO_BASELINE"
    """Nothing is stored for this pair."""
    UNDECIDED = "UNDECIDED"
    """Measured twice, and the intervals still allow both: slower, and not slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDecision:
    """The gate's answer for one pair.

    Attributes:
        pair: name of the pair.
        gate_class: see GateClass.
        what: which property decided: ``status``, ``precision``, ``findings``, ``launches``,
            ``errors``, ``speed``; empty where none stands out.
        reason: one line: what was compared and what to do next.
        before, after: the stored speedup and this run's; None where untimed.
        change: relative change of the speedup, e.g. -0.03; None where not compared.
        low, high: ends of its 95 % interval, run-to-run spread included.
        measurements: how many runs of the pair stand behind the answer.
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
        baseline: file that the run was compared with.
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
        environment: what the machine was.
        exit_code: what the command returned.
        error: why nothing was evaluated, None where something was.
        measurement_version: of the clock that took the times.
        gate: the comparison with the stored results, None where none was asked for.
        log_tails: last lines of the logs, by pair: logs do not live as long as records.
        source: file the run was read from; empty for the run at hand.
    """

    verdicts: tuple[Verdict, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    error: str | None = None
    measurement_version: int = MEASUREMENT_VERSION
    gate: GateDecision | None = None
    log_tails: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    source: str = ""


def to_json(value: Any) -> Any:
    """Return plain dicts, lists and scalars for any record; non-finite floats become strings."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Verdict):
            plain["blame"] = value.blame.value
        return plain
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for: one evaluation's settings, the same for all pairs of a run.

    Attributes:
        device: ``auto``, ``cuda``, ``cuda:N``, ``emulated`` or ``cpu``.
        mode: ``forward``, ``eval``, ``train``, or None for what the problem's settings say.
        size: ``full``, ``small``, another named size of the problem, or None for the default.
        quick: small size and fewest trials.
        seed: replay this seed; None draws a secret one.
        timeout_s: limit for one phase of one pair, seconds.
        jobs: pairs or builds side by side; None lets the fleet decide.
        fail_fast: stop at the first pair that does not pass.
        timed: whether speed is measured where the device allows it.
        cache_dir: built extensions; None is the default cache.
        log_dir: one log file per pair; None is the default folder.
        thread_orders: orders in which the CPU runner runs threads.
        baselines: what else to compare with: names of ``harness.domain.BASELINES``; None lets the
            device decide.
        warm_l2: time with inputs that stay in the L2 cache.
        cap_s: seconds for the timed blocks of one pair.
        ncu: read Nsight Compute's counters for one call of each solution.
        nvcc: architectures for which nvcc compiles the CUDA source too, where no GPU runs it.
    """

    device: str = "auto"
    mode: str | None = None
    size: str | None = None
    quick: bool = False
    seed: int | None = None
    timeout_s: float = 60.0
    jobs: int | None = None
    fail_fast: bool = False
    timed: bool = True
    cache_dir: Path | None = None
    log_dir: Path | None = None
    thread_orders: tuple[str, ...] = ("forward", "reverse", "shuffled")
    baselines: tuple[str, ...] | None = None
    warm_l2: bool = False
    cap_s: float | None = None
    ncu: bool = False
    nvcc: tuple[str, ...] = ()


def verdict_from_json(plain: Mapping[str, Any]) -> Verdict:
    """Return the verdict that ``to_json`` wrote.

    Raises:
        HarnessError: a field is missing, unknown or of the wrong type, or the record is illegal.
    """
    try:
        given = dict(plain)
        given.pop("blame", None)
        given["status"] = Status(given["status"])
        given["checks"] = tuple(_record(Check, c) for c in given.get("checks", ()))
        given["findings"] = tuple(_record(Finding, f) for f in given.get("findings", ()))
        speed = dict(given.get("speed") or {})
        if "outcome" in speed:
            speed["outcome"] = SpeedOutcome(speed["outcome"])
        speed["baselines"] = tuple(
            _record(Baseline, {**b, "outcome": SpeedOutcome(b["outcome"])})
            for b in speed.get("baselines", ())
        )
        if speed.get("bound") is not None:
            speed["bound"] = _record(Bound, speed["bound"])
        speed["blocks"] = {k: tuple(map(float, v)) for k, v in speed.get("blocks", {}).items()}
        given["speed"] = _record(Speed, speed)
        verdict: Verdict = _record(Verdict, given)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarnessError(f"not a verdict: {error!r}") from error
    return verdict


_NUMBERS = ("float", "float | None")


def _record(cls: type[Any], plain: Mapping[str, Any]) -> Any:
    """Return a record from plain JSON: lists become tuples, names of floats become floats."""
    values: dict[str, Any] = {}
    annotations = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    for name, value in plain.items():
        annotation = annotations.get(name)
        if annotation in _NUMBERS and isinstance(value, (str, int)):
            values[name] = float(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
        else:
            values[name] = value
        if annotation == "str" and not isinstance(value, str):
            raise TypeError(f"{cls.__name__}.{name} must be text, not {value!r}")
    return cls(**values)


def run_from_json(plain: Mapping[str, Any], source: str = "") -> Run:
    """Return the run that a JSON document holds. Reads schema 1 and 2.

    Args:
        plain: the parsed document.
        source: the file it comes from, for messages.

    Raises:
        HarnessError: not such a document, or of a schema that this version does not know.
    """
    try:
        schema = plain["schema_version"]
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA_VERSION:
            raise HarnessError(
                f"schema {schema!r} of the document is not one of 1 to {SCHEMA_VERSION}: it was "
                "written by another version. Next: update the harness, or run again"
            )
        gate = plain.get("gate")
        decisions = tuple(
            _record(PairDecision, {**d, "gate_class": GateClass(d["gate_class"])})
            for d in (gate or {}).get("pairs", ())
        )
        return Run(
            verdicts=tuple(verdict_from_json(v) for v in plain["verdicts"]),
            environment=dict(plain["environment"]),
            exit_code=int(plain["exit_code"]),
            error=plain.get("error"),
            measurement_version=int(plain.get("measurement_version", 1)),
            gate=_record(GateDecision, {**gate, "pairs": decisions}) if gate else None,
            log_tails={k: tuple(map(str, v)) for k, v in plain.get("log_tails", {}).items()},
            source=source,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HarnessError(f"not a document of a run: {error!r}") from error
