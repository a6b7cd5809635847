"""Statuses of a pair, the errors that carry them, and versions of the written documents."""

from __future__ import annotations

import enum
from collections.abc import Mapping

VERSION = "0.1.0"
"""Version of the harness; pyproject.toml names it too."""
SCHEMA_VERSION = 2
"""Version of the JSON document. History: 1 first form; 2 baselines, bound, blocks and hashes."""


MEASUREMENT_VERSION = 4
"""Version of the clock's protocol: times under different ones are not compared.

History: 1 hand-shake over the socket; 2 the judge writes fresh inputs while the worker is stopped,
and stops the clock when random slices of the outputs have arrived; 3 all workers wait for inputs
in the same way, ratios by block, the hand-shake from the reference's batches in the blocks; 4 the
judge reads outputs where they lie, on the clock, and batches of all roles take about as long.
"""


class Blame(enum.Enum):
    """Whose fault a status is, and so whose turn it is to act."""

    NOBODY = "nobody"
    SOLUTION = "solution"
    PROBLEM = "problem"
    HARNESS = "harness"


class Status(enum.Enum):
    """The result of one pair's evaluation. Each status has a fixed blame."""

    PASSED = "PASSED"
    """Every check of every mode held."""
    SKIPPED = "SKIPPED"
    """This machine cannot evaluate the pair; the message says what is missing."""
    BUILD_FAILED = "BUILD_FAILED"
    """The solution's extension did not compile, link or bind."""
    LOAD_FAILED = "LOAD_FAILED"
    """The solution file raised on import, has no ModelNew, or ModelNew could not be built."""
    NO_KERNEL_LAUNCHED = "NO_KERNEL_LAUNCHED"
    """It ships CUDA, but no kernel of its own extension ran."""
    STATE_MISMATCHED = "STATE_MISMATCHED"
    """The judge cannot give the reference's parameters and buffers to the candidate."""
    WRONG_STRUCTURE = "WRONG_STRUCTURE"
    """The output is nested in another way than the reference's, or not made of plain tensors."""
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
    """The call changed an input that the reference leaves alone, or its output aliases an input."""
    NONDETERMINISTIC = "NONDETERMINISTIC"
    """The same call with the same RNG state gave results that differ by more than the budget."""
    MEMORY_FAULT = "MEMORY_FAULT"
    """The solution used memory out of bounds, uninitialised, in a race, or otherwise wrongly."""
    CRASHED = "CRASHED"
    """The worker died or the call raised."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMED_OUT = "TIMED_OUT"
    TAMPERED = "TAMPERED"
    """The judge saw something that contradicts a claim of the candidate's process."""
    INVALID_REFERENCE = "INVALID_REFERENCE"
    """The reference raises, is not finite on its own inputs, or disagrees with itself."""
    WEAK_PROBLEM = "WEAK_PROBLEM"
    """The comparison cannot tell an impostor from the reference."""
    HARNESS_ERROR = "HARNESS_ERROR"
    """The harness is at fault."""

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
    """Second axis of a verdict: the result of the speed measurement."""

    FASTER = "FASTER"
    SAME = "SAME"
    SLOWER = "SLOWER"
    UNDECIDED = "UNDECIDED"
    UNTIMED = "UNTIMED"


REFERENCE, CANDIDATE = "reference", "candidate"
"""Roles of two of a pair's workers; baselines are further ones."""
BASELINES: Mapping[str, str] = {
    "compile": "torch.compile",
    "max-autotune": "torch.compile max-autotune-no-cudagraphs",
    "defaults": "eager defaults",
}
"""Baselines beside eager: how a user asks for them, and what records call them."""


class Refusal(Exception):
    """Ends the evaluation of a pair: the verdict gets this status and this message."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class HarnessError(Refusal):
    """A fault of the harness. The verdict is HARNESS_ERROR and says nothing about the solution."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.HARNESS_ERROR, message)


class UsageError(Exception):
    """A user's mistake in usage or input; names the file, the mistake and the next step."""


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
    """The CPU runner cannot run this source; names the construct and its line. SKIPPED."""


class GateClass(enum.Enum):
    """The gate's answer about one pair, against its stored result."""

    OK = "OK"
    """As good as the stored result."""
    IMPROVED = "IMPROVED"
    """Faster by more than intervals and slack explain. ``--update-baseline`` stores it."""
    REGRESSED = "REGRESSED"
    """Status, precision, findings, errors or speed got worse; ``what`` says which."""
    MISSING = "MISSING"
    """Stored, and this run has no complete result: deleted, skipped or without a time."""
    INCOMPARABLE = "INCOMPARABLE"
    """Stored for another device, driver, clock, problem, size or modes."""
    NO_BASELINE = "NO_BASELINE"
    """Nothing is stored for this pair."""
    UNDECIDED = "UNDECIDED"
    """Two measurements do not decide whether it is slower."""
