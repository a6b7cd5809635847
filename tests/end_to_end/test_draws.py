"""What a judge has drawn reaches the candidate as copies."""

from __future__ import annotations

from pathlib import Path

from harness.domain import Options, Pair, Status
from harness.fleet import JudgeServer, run_pairs
from tests.unit.ipc.test_draws import LARGE


def test_the_candidate_copies_what_the_judge_drew(tmp_path: Path, judges: JudgeServer) -> None:
    """It says so itself: its constructor refuses to draw."""
    problem, solution = tmp_path / "reference.py", tmp_path / "solution.py"
    problem.write_text(LARGE)
    refuses = LARGE.replace("class Model(", "class ModelNew(").replace(
        "        super().__init__()\n",
        "        super().__init__()\n"
        "        assert torch.Tensor.uniform_.__name__ == 'uniform_'\n"
        "        assert 'uniform_' in torch.Tensor.__dict__, 'nothing was shared'\n",
    )
    solution.write_text(refuses.partition("def get_inputs")[0])
    tmp_path.chmod(0o755)
    pair = Pair(name="p/s", problem=problem, solution=solution)
    options = Options(device="cpu", size="full", timed=False, quick=True)
    (verdict,) = run_pairs((pair,), options, judges=judges)
    assert (verdict.status, verdict.message) == (Status.PASSED, "")
