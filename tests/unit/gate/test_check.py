"""The gate's answers: one planted fault each, over fabricated runs."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

import pytest

from harness.domain import Finding, GateClass, GateDecision, Run, Speed, Status, Verdict
from harness.gate import GatePolicy, check, stored_from_run
from tests.records import check as tensor_check
from tests.records import emulated, run, speed, verdict, with_environment

ADD = verdict("add/solution", speed=speed(1.004))
NORM = verdict("norm/solution", speed=speed(1.62))
STORED = stored_from_run(run(ADD, NORM))


def gate(*verdicts: Verdict, again: Sequence[Verdict] = ()) -> GateDecision:
    """Return the decision on a run, with the second measurements at hand."""
    return check(STORED, run(*verdicts), remeasure=_hands_out(again))[0]


def _hands_out(verdicts: Sequence[Verdict]):
    def remeasure(names: Sequence[str]) -> Sequence[Verdict]:
        found = {v.pair: v for v in verdicts}
        assert set(names) == set(found), "measured again what was not suspicious, or too little"
        return [found[name] for name in names]

    return remeasure


def class_of(decision: GateDecision, pair: str) -> tuple[GateClass, str]:
    (found,) = [d for d in decision.pairs if d.pair == pair]
    return found.gate_class, found.what


def changed(original: Verdict, **changes: object) -> Verdict:
    return dataclasses.replace(original, **changes)


def slower(original: Verdict, by: float, half_width: float = 0.003) -> Verdict:
    assert original.speed.speedup is not None
    moved = speed(original.speed.speedup * (1 - by), half_width=half_width)
    return changed(original, speed=moved)


def test_unchanged_run_is_ok() -> None:
    decision = gate(ADD, NORM)
    assert {d.gate_class for d in decision.pairs} == {GateClass.OK}
    assert decision.exit_code == 0


def test_slowdown_of_3_percent_is_regressed_after_a_second_look() -> None:
    decision = gate(slower(ADD, 0.03), NORM, again=[slower(ADD, 0.029)])
    assert class_of(decision, "add/solution") == (GateClass.REGRESSED, "speed")
    assert class_of(decision, "norm/solution") == (GateClass.OK, "")
    assert decision.exit_code == 4
    (found,) = [d for d in decision.pairs if d.pair == "add/solution"]
    assert found.measurements == 2
    assert found.high is not None and found.high < 0


def test_slowdown_that_a_second_measurement_does_not_confirm_is_ok() -> None:
    decision = gate(slower(ADD, 0.025), NORM, again=[ADD])
    assert class_of(decision, "add/solution") == (GateClass.OK, "")
    assert decision.exit_code == 0


def test_wide_interval_is_undecided_after_a_second_look() -> None:
    noisy = slower(ADD, 0.01, half_width=0.05)
    decision = gate(noisy, NORM, again=[noisy])
    assert class_of(decision, "add/solution") == (GateClass.UNDECIDED, "speed")
    assert decision.exit_code == 9


def test_undecided_pair_is_decided_by_its_second_measurement() -> None:
    decision = gate(slower(ADD, 0.0, half_width=0.04), NORM, again=[slower(ADD, 0.0)])
    assert class_of(decision, "add/solution") == (GateClass.OK, "")


def test_noise_floor_of_the_run_counts_where_it_is_larger() -> None:
    noisy = changed(ADD, speed=dataclasses.replace(slower(ADD, 0.03).speed, noise_floor=0.05))
    decision = gate(noisy, NORM, again=[noisy])
    assert class_of(decision, "add/solution")[0] is GateClass.UNDECIDED


def test_speedup_is_improved_and_passes() -> None:
    decision = gate(slower(ADD, -0.05), NORM)
    assert class_of(decision, "add/solution") == (GateClass.IMPROVED, "speed")
    assert decision.exit_code == 0


def test_what_was_measured_again_is_in_the_run_with_a_note() -> None:
    decision, whole = check(
        STORED, run(slower(ADD, 0.03), NORM), remeasure=_hands_out([slower(ADD, 0.029)])
    )
    assert whole.gate is decision
    again = whole.verdicts[0]
    assert again.speed.speedup == pytest.approx(1.004 * 0.971)
    assert again.notes[-1] == "the gate measured this pair again; speedup before: 0.974x"


def test_measurement_of_another_shape_is_taken_again() -> None:
    latency = changed(ADD, speed=speed(1.1, shape="latency"))
    decision = gate(latency, NORM, again=[ADD])
    assert class_of(decision, "add/solution") == (GateClass.OK, "")
    decision = gate(latency, NORM, again=[latency])
    assert class_of(decision, "add/solution") == (GateClass.INCOMPARABLE, "shape")
    assert decision.exit_code == 7


def test_what_is_said_to_stand_now_is_the_mean_of_the_measurements() -> None:
    decision = gate(slower(ADD, 0.04), NORM, again=[slower(ADD, 0.02)])
    (found,) = [d for d in decision.pairs if d.pair == "add/solution"]
    assert found.after == pytest.approx(1.004 * 0.97, rel=1e-3)
    assert "1.004x -> 0.974x: -3.0%" in found.reason


def test_second_run_that_fails_is_a_failure() -> None:
    failed = verdict("add/solution", status=Status.NONDETERMINISTIC)
    decision = gate(slower(ADD, 0.03), NORM, again=[failed])
    assert class_of(decision, "add/solution") == (GateClass.REGRESSED, "status")
    assert decision.exit_code == 1


def test_wrong_result_is_regressed_at_once_with_exit_code_1() -> None:
    wrong = verdict("norm/solution", status=Status.WRONG_VALUES, message="off by one")
    decision = gate(ADD, wrong)
    assert class_of(decision, "norm/solution") == (GateClass.REGRESSED, "status")
    assert decision.exit_code == 1


def test_lost_precision_has_its_own_exit_code() -> None:
    decision = gate(ADD, changed(NORM, precision="tf32"))
    assert class_of(decision, "norm/solution") == (GateClass.REGRESSED, "precision")
    assert decision.exit_code == 5


@pytest.mark.parametrize("precision", ["exact", "fp64", "fp32"])
def test_equal_or_better_precision_is_ok(precision: str) -> None:
    assert gate(ADD, changed(NORM, precision=precision)).exit_code == 0


def test_error_that_grows_within_its_budget_is_regressed() -> None:
    decision = gate(ADD, changed(NORM, checks=(tensor_check(share=0.6),)))
    assert class_of(decision, "norm/solution") == (GateClass.REGRESSED, "errors")
    assert decision.exit_code == 5


def test_error_that_fresh_inputs_explain_is_ok() -> None:
    assert gate(ADD, changed(NORM, checks=(tensor_check(share=0.2),))).exit_code == 0


def test_tensor_that_is_not_checked_any_more_is_regressed() -> None:
    decision = gate(ADD, changed(NORM, checks=()))
    assert class_of(decision, "norm/solution") == (GateClass.REGRESSED, "errors")


def test_other_mode_and_trial_of_the_same_tensor_are_the_same_check() -> None:
    moved = dataclasses.replace(tensor_check(), phase="train/9:large")
    assert gate(ADD, changed(NORM, checks=(moved,))).exit_code == 0


def test_new_finding_of_the_cpu_runner_is_regressed() -> None:
    race = Finding(kind="data race", message="two threads write y[0]")
    decision = gate(ADD, changed(NORM, findings=(race,)))
    assert class_of(decision, "norm/solution") == (GateClass.REGRESSED, "findings")
    assert decision.exit_code == 5


def test_kernel_that_is_not_launched_any_more_is_regressed() -> None:
    decision = gate(ADD, changed(NORM, launches=0))
    assert class_of(decision, "norm/solution") == (GateClass.REGRESSED, "launches")


def test_deleted_pair_is_missing() -> None:
    decision = gate(ADD)
    assert class_of(decision, "norm/solution") == (GateClass.MISSING, "pair")
    assert decision.exit_code == 6


def test_pair_outside_the_scope_is_not_missed() -> None:
    decision, _ = check(STORED, run(ADD), scope={"add/solution"})
    assert [d.pair for d in decision.pairs] == ["add/solution"]


def test_skipped_pair_is_missing() -> None:
    skipped = verdict("norm/solution", status=Status.SKIPPED, message="needs sm_90a")
    decision = gate(ADD, skipped)
    assert class_of(decision, "norm/solution") == (GateClass.MISSING, "status")
    assert decision.exit_code == 6


def test_pair_that_is_stored_as_skipped_may_be_skipped_and_may_pass() -> None:
    skipped = verdict("norm/solution", status=Status.SKIPPED, message="needs sm_90a")
    stored = stored_from_run(run(ADD, skipped))
    assert check(stored, run(ADD, skipped))[0].exit_code == 0
    passing, _ = check(stored, run(ADD, NORM))
    assert passing.exit_code == 0
    assert class_of(passing, "norm/solution") == (GateClass.IMPROVED, "status")
    failed = verdict("norm/solution", status=Status.CRASHED)
    assert check(stored, run(ADD, failed))[0].exit_code == 1


def test_pair_without_its_time_is_missing() -> None:
    decision = gate(ADD, changed(NORM, speed=Speed(note="the memory did not allow it")))
    assert class_of(decision, "norm/solution") == (GateClass.MISSING, "speed")


def test_partial_interval_is_missing() -> None:
    decision = gate(ADD, changed(NORM, speed=dataclasses.replace(NORM.speed, low=None)))
    assert class_of(decision, "norm/solution") == (GateClass.MISSING, "speed")


def test_extra_pair_has_no_baseline() -> None:
    decision = gate(ADD, NORM, verdict("new/solution"))
    assert class_of(decision, "new/solution") == (GateClass.NO_BASELINE, "")
    assert decision.exit_code == 8


def test_extra_pair_that_fails_fails_as_ever() -> None:
    decision = gate(ADD, NORM, verdict("new/solution", status=Status.CRASHED))
    assert decision.exit_code == 1


def incomparable(stored: Run, now: Run) -> GateDecision:
    return check(stored_from_run(stored), now)[0]


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (with_environment(run(NORM), gpu=["NVIDIA A100-SXM4-80GB"]), "nvidia-a100-sxm4-80gb"),
        (with_environment(run(NORM), driver="570.10"), "driver 570"),
        (run(NORM, measurement_version=1), "version 1 of the measurement"),
        (run(changed(NORM, problem_hash="c" * 64)), "problem's file has changed"),
        (run(changed(NORM, problem_hash="")), "lacks the hash"),
        (run(changed(NORM, size="small")), "stored with size small"),
        (run(changed(NORM, modes=("train",))), "stored with modes train"),
        (run(changed(NORM, speed=speed(1.62, shape="latency"))), "stored as latency"),
    ],
)
def test_unlike_runs_are_incomparable(stored: Run, said: str) -> None:
    decision = incomparable(stored, run(NORM))
    (found,) = decision.pairs
    assert found.gate_class is GateClass.INCOMPARABLE
    assert said in found.reason
    assert decision.exit_code == 7


def test_driver_minor_and_changed_solution_are_comparable() -> None:
    stored = with_environment(run(changed(NORM, solution_hash="c" * 64)), driver="580.65.06")
    assert incomparable(stored, run(NORM)).exit_code == 0


def test_untimed_pairs_on_the_cpu_runner_are_compared_by_everything_else() -> None:
    stored = stored_from_run(run(*emulated([ADD, NORM]), measurement_version=1))
    fine, _ = check(stored, run(*emulated([ADD, NORM])))
    assert fine.exit_code == 0
    worse, _ = check(stored, run(*emulated([ADD, changed(NORM, precision="bf16")])))
    assert worse.exit_code == 5


def on_card(original: Verdict, card: str) -> Verdict:
    return changed(original, speed=dataclasses.replace(original.speed, card=card))


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (0.0, GateClass.OK),
        (0.02, GateClass.OK),  # two H200s differ by so much
        (0.038, GateClass.UNDECIDED),
        (0.05, GateClass.REGRESSED),
    ],
)
@pytest.mark.parametrize("card", ["b" * 12, ""])
def test_on_another_card_more_is_allowed_and_it_is_said(
    by: float, expected: GateClass, card: str
) -> None:
    """An unchanged kernel, 1.7 % slower against eager on another H200, was REGRESSED."""
    stored = stored_from_run(run(on_card(ADD, "a" * 12)))
    now = on_card(slower(ADD, by), card)
    decision, _ = check(stored, run(now), remeasure=_hands_out([now] * (by > 0.03)))
    (found,) = decision.pairs
    assert found.gate_class is expected
    assert "stored on another card" in found.reason


def test_on_the_same_card_3_percent_is_regressed() -> None:
    stored = stored_from_run(run(on_card(ADD, "a" * 12)))
    now = on_card(slower(ADD, 0.03), "a" * 12)
    decision, _ = check(stored, run(now), remeasure=_hands_out([now]))
    assert class_of(decision, ADD.pair) == (GateClass.REGRESSED, "speed")
    assert "card" not in decision.pairs[0].reason


def test_gpu_run_against_the_cpu_runners_results_is_incomparable() -> None:
    stored = stored_from_run(run(*emulated([ADD, NORM])))
    assert check(stored, run(ADD, NORM))[0].exit_code == 7


def test_failure_outranks_whatever_else_is_wrong() -> None:
    wrong = verdict("add/solution", status=Status.WRONG_VALUES)
    assert gate(wrong, verdict("new/solution")).exit_code == 1


def test_noise_of_one_percent_is_not_regressed_and_3_percent_is_found() -> None:
    """Measured once per code version: sd 0.35 % from run to run, 0.3 % within a run."""
    policy, draw = GatePolicy(), random.Random(11)

    def measured(true: float) -> Verdict:
        got = true * math.exp(draw.gauss(0, 0.0035))
        return changed(ADD, speed=speed(got, half_width=abs(draw.gauss(0.003, 0.0005))))

    outcomes: dict[float, list[GateClass]] = {1.0: [], 0.97: []}
    for true, classes in outcomes.items():
        for _ in range(400):
            stored = stored_from_run(run(measured(1.0)))
            decision, _ = check(
                stored,
                run(measured(true)),
                policy=policy,
                remeasure=lambda names, true=true: [measured(true)],
            )
            classes.append(decision.pairs[0].gate_class)
    assert outcomes[1.0].count(GateClass.REGRESSED) == 0
    assert outcomes[0.97].count(GateClass.REGRESSED) >= 370
    assert outcomes[0.97].count(GateClass.OK) <= 8
