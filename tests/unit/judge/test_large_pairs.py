"""What tensors of gigabytes need: copies that are complete, and an answer where memory runs out."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import ipc
from harness.domain import Status
from harness.judge import record
from harness.judge.check.checker import Checker
from harness.judge.check.fingerprint import Evidence, Looks
from harness.judge.judge import Judge
from harness.judge.policy import Policy
from harness.judge.reference.problem import Problem, is_out_of_memory
from harness.judge.workers.remote import RemoteWorker, WorkerFailed
from harness.worker import calls
from harness.worker.__main__ import Worker


def test_private_copies_are_complete_before_the_worker_may_write_again(monkeypatch) -> None:
    """A copy of gigabytes takes milliseconds; the next answer would go to the same memory."""
    arena = ipc.HostArena.create(1 << 12)
    encoder = ipc.Encoder(arena)
    described = {"output": encoder.encode(torch.arange(4.0)), "state": encoder.encode({})}
    encoder.finish()
    worker = object.__new__(RemoteWorker)
    worker._outbox, worker._device, worker._asked = arena, "cuda:1", "call"
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    values = worker.values({"values": described, "table": encoder.table})
    assert values["output"].tolist() == [0, 1, 2, 3]
    assert waited == ["cuda:1"]


def no_memory(*args: Any, **named: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_without_memory_for_the_evidence_there_is_none(monkeypatch) -> None:
    """A wrong answer of gigabytes is wrong, and no fault of the harness."""
    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    tried: list[bool] = []

    def call(*args: Any, stand_in: bool) -> Any:
        tried.append(stand_in)
        return no_memory()

    notes: list[str] = []
    evidence = Evidence(
        SimpleNamespace(device=torch.device("cpu"), reference=torch.nn.Identity(), state=dict),
        SimpleNamespace(is_reference=False, on_cpu=False, call=call),
        Policy(),
        mode="eval",
        inputs=[torch.ones(3)],
        rng=1,
        grads=None,
        before={},
        exact={"output": torch.ones(3, dtype=torch.float64)},
        seed=1,
        notes=notes,
        looks=Looks(),
    )
    assert evidence.noise("output", "fp32") is None
    assert evidence.match("output", torch.ones(3), "fp32") is None
    assert tried[:2] == [False, True], "the reference itself takes half the memory"
    assert given_back and "memory" in notes[0]


def test_without_memory_a_refusal_is_not_repeated(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    checker = object.__new__(Checker)
    monkeypatch.setattr(checker, "_send_state", lambda values: None, raising=False)
    monkeypatch.setattr(checker, "_call", no_memory, raising=False)
    with pytest.raises(torch.OutOfMemoryError):
        checker._call()
    checker._answers = SimpleNamespace(forget=lambda: None)
    assert checker._compared_again(None, SimpleNamespace(before={}))(0.0, 0.0) is None


def test_a_worker_answers_when_its_copies_are_done(monkeypatch) -> None:
    """The judge writes to the arena again as soon as it has the answer."""
    events: list[str] = []
    requests = iter([{"id": 1, "do": "state"}])

    class Channel:
        take_fds = None

        def receive(self) -> dict[str, Any]:
            for request in requests:
                return request
            raise ipc.WireClosed

        def send(self, message: dict[str, Any], fds: object) -> None:
            events.append("answered" if message["ok"] else message["error"]["message"])

    worker = Worker(Channel())
    worker.handlers["state"] = lambda request: events.append("copies queued")
    monkeypatch.setattr(calls, "synchronize", lambda device: events.append("copies done"))
    worker.serve()
    assert events == ["copies queued", "copies done", "answered"]


def test_inputs_that_do_not_fit_are_not_drawn_elsewhere(tmp_path: Path) -> None:
    """The CPU draws other numbers for the same seed: an honest solution was INPUT_MUTATED."""
    reference = Path(__file__).parents[2] / "corpus" / "problems" / "add.py"
    problem = Problem(reference, {}, torch.device("cpu"), 1)
    problem.device = torch.device("cuda")
    drawn = []

    def get_inputs() -> list[torch.Tensor]:
        drawn.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    problem._namespace = SimpleNamespace(get_inputs=get_inputs)
    with pytest.raises(torch.OutOfMemoryError):
        problem.inputs(1)
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory of what happened"), False),
    ],
)
def test_want_of_memory_is_known_by_type_or_by_cudas_words(error, wanted) -> None:
    assert is_out_of_memory(error) is wanted


@pytest.mark.parametrize(
    ("kind", "status", "goes_on"),
    [
        ("cuda", Status.OUT_OF_MEMORY, True),
        ("cuda", Status.BUILD_FAILED, False),
        ("emulated", Status.OUT_OF_MEMORY, False),
    ],
)
def test_a_build_beside_a_pair_that_has_all_memory_is_put_off(kind, status, goes_on) -> None:
    """A build worker found no memory beside another pair, and its solution was blamed."""
    worker = SimpleNamespace(role="build", uid=None, close=lambda: None)
    judge = object.__new__(Judge)

    def load(*arguments: object) -> None:
        raise WorkerFailed(status, "CUDA error: out of memory")

    judge._imported, judge._text, judge._kind = (), "load_inline", kind
    judge._facts = record.Facts()
    judge._gather = lambda worker: None
    judge._log = None
    judge._pair = SimpleNamespace(solution=Path("solution.py"))
    judge._budget = SimpleNamespace(compiling=lambda: contextlib.nullcontext())
    judge._pool = SimpleNamespace(start=lambda role: worker, load=load, workers=[worker])
    judge._cache = SimpleNamespace(
        complete=lambda: False,
        prepare_support=lambda log: "",
        build_folder=lambda uid: Path("staging"),
        discard=lambda build_folder: None,
    )
    if goes_on:
        judge._build(None)
        assert "built late" in judge._facts.notes[0]
    else:
        with pytest.raises(WorkerFailed):
            judge._build(None)
