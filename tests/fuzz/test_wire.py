"""Whatever a worker writes to the wire ends in an answer or in a refusal that blames it.

A part of the cases runs by default, all of them with ``FUZZ=10000 make test ARGS=tests/fuzz``. A
case that fails names its number: ``FUZZ_ONLY=number`` runs it alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import ipc
from harness.domain import Refusal, Status
from harness.judge import requirements
from harness.judge.check.answers import AnswerJudge, Case, Report
from harness.judge.check.precision import Standard
from harness.judge.check.trials import plan
from harness.judge.policy import Policy
from harness.judge.record import Facts
from harness.judge.reference import state
from harness.judge.reference.oracle import Oracle
from harness.judge.reference.problem import Problem
from harness.judge.workers import prefork, processes, remote
from harness.judge.workers.cache import ExtensionCache
from harness.judge.workers.identity import Confinement
from harness.judge.workers.peer_memory import Layout, PeerMemory
from harness.judge.workers.remote import RemoteWorker
from harness.usercode.modules import describe_state
from tests.fuzz.mutate import framed, junk, mutated

CASES = int(os.environ.get("FUZZ", "400"))
ONLY = os.environ.get("FUZZ_ONLY")
MOST_S = 5.0
MOST_BYTES = 1 << 30
"""Of memory that the judge may have taken on top by all cases together."""
NO_SUCH_PROCESS = (1 << 22) + 1
PROBLEM = """
import torch

class Model(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.linear = torch.nn.Linear(n, n)
        self.register_buffer("mean", torch.zeros(n))

    def forward(self, x, s):
        return {"y": self.linear(x) * s, "n": 1.5}

def get_inputs():
    return [torch.randn(4, 8), 2.0]

def get_init_inputs():
    return [8]
"""


class NoProcess:
    """A worker's process that is none: what it writes comes from the test."""

    pid = NO_SUCH_PROCESS

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        reader, writer = os.pipe()
        os.close(writer)
        self.output = os.fdopen(reader, "rb", buffering=0)

    def wait(self, timeout_s: float) -> int:
        return 3

    def kill(self) -> None:
        pass


def _read(sock: socket.socket) -> dict[str, Any]:
    return ipc.Channel(sock).receive(time.monotonic() + 10)


@pytest.fixture
def make_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[], tuple[RemoteWorker, socket.socket]]]:
    made: list[tuple[RemoteWorker, socket.socket]] = []
    ends: list[socket.socket] = []

    def take(environment: Any, root: Any) -> NoProcess:
        ours, theirs = socket.socketpair()
        ends.append(theirs)

        def come_up() -> None:
            request = _read(theirs)
            ipc.Channel(theirs).send({"id": request["id"], "ok": True})

        threading.Thread(target=come_up).start()
        return NoProcess(ours)

    monkeypatch.setattr(prefork, "take", take)
    monkeypatch.setattr(processes, "kill_leftovers", lambda uid: None)
    monkeypatch.setattr(remote.os, "killpg", lambda pid, number: None)

    def make() -> tuple[RemoteWorker, socket.socket]:
        worker = RemoteWorker(
            role="candidate",
            log=tmp_path / "log",
            timeout_s=MOST_S,
            policy=Policy(),
            memory_bytes=1 << 40,
            threads=1,
            device="cpu",
            confinement=Confinement(own_user=False),
        )
        made.append((worker, ends.pop()))
        return made[-1]

    yield make
    for worker, theirs in made:
        theirs.close()
        worker.close()


class Bench:
    """What the judge does with each reply, over one small problem."""

    def __init__(self, folder: Path) -> None:
        path = folder / "problem.py"
        path.write_text(PROBLEM)
        self.solution = folder / "solution.py"
        self.solution.write_text('SOURCE = "__global__ void kernel() {}"')
        self.problem = Problem(path, {}, torch.device("cpu"), 1)
        self.described = describe_state(self.problem.reference)
        self.report = Report()
        self.oracle = Oracle(self.problem, self.report.notes, Policy())
        self.match = state.match(self.described, self.described, frozenset(), training=True)
        self.trial = plan(1, ["train"], 4, False)[0]
        inputs = self.problem.inputs(1)
        grads = [torch.ones(4, 8)]
        before = {n: t.detach().clone() for n, t in self.problem.state().items()}
        call = self.problem.call(self.problem.reference, "train", inputs, 1, grads)
        exact = self.oracle.call("train", inputs, 1, grads)
        self.case = Case(
            inputs=inputs,
            before=before,
            reference=call,
            oracle=exact,
            varied=False,
            output_grads=grads,
        )
        self.cache = ExtensionCache(folder / "cache", self.solution, "emulated")

    def honest(self, do: str) -> tuple[dict[str, Any], ipc.Arena | None]:
        """Return a right reply to a request, and the arena that holds its tensors."""
        facts = {
            "findings": [{"kind": "race", "message": "m", "block": [0, 0, 0], "thread": None}],
            "launches": 3,
            "launches_without_stream": 0,
            "build_failures": ["text"],
            "unsupported": [],
        }
        if do == "load":
            flags = {"cudnn.allow_tf32": False, "precision": "mixed"}
            return {
                "state": self.described,
                "built": ["name-" + "0" * 24],
                "failed": {"key": ["message", "log"]},
                "files": [str(self.solution)],
                "ships_cuda": True,
                "nvcc": ["a note"],
                "numeric_flags": flags,
                **facts,
            }, None
        if do == "go":
            forms = [ipc.described(torch.ones(4, 8)), None]
            return {
                "claimed_ms": 1.0,
                "allocations": [],
                "forms": forms,
                "state": ["linear.weight"],
                "moving": [ipc.described(torch.ones(8))],
                "moving_at": [4096],
                **facts,
            }, None
        call = self.case.reference
        values: dict[str, Any] = {
            "output": call.output,
            "state": call.state,
            "input_grads": call.input_grads,
            "state_grads": call.state_grads,
        }
        if do == "inputs":
            values = {"inputs": call.inputs}
        counted = ipc.Encoder(None)
        for value in values.values():
            counted.encode(value)
        arena = ipc.HostArena.create(counted.needed_bytes)
        encoder = ipc.Encoder(arena)
        described = {name: encoder.encode(value) for name, value in values.items()}
        encoder.finish()
        reply = {"values": described, "table": encoder.table, **facts}
        if do == "call":
            reply |= {"odd": [], "aliases": [], "missing_grads": "", "kernels": {"kernel": 2}}
        return reply, arena

    def use(self, do: str, worker: RemoteWorker, answer: dict[str, Any]) -> None:
        """Do with an answer what the judge does."""
        if do == "load":
            state.match(self.described, answer["state"], frozenset(), training=True)
            facts = Facts(report=self.report)
            requirements.launches(facts, worker, answer, self.solution.read_text(), "emulated")
            build_folder = self.cache.build_folder(None)
            failed = bool(answer["failed"])
            self.cache.adopt(build_folder, answer["built"], answer["files"], failed=failed)
            self.cache.discard(build_folder)
            self.cache.complete()
        elif do == "go":
            layout = Layout.of(answer)
            memory = PeerMemory(0, torch.device("cpu"), 1 << 20)
            with contextlib.suppress(ipc.WireViolation):  # TimedWorker.claims makes it TAMPERED
                memory.learn(answer["allocations"], whole=True)
            for form in layout.forms:
                if form is not None:
                    memory.whole(0, form)
        else:
            values = worker.values(answer)
            if do == "call":
                judge = AnswerJudge(
                    self.problem, self.oracle, self.match, Standard(policy=Policy()), self.report
                )
                judge.judge({**answer, "decoded": values}, self.trial, self.case)


def write(theirs: socket.socket, data: bytes, fds: list[int]) -> None:
    """Write it all, as the judge reads, and go."""

    def all_of_it() -> None:
        with contextlib.suppress(OSError):
            if fds:
                socket.send_fds(theirs, [data[:1]], fds)
            theirs.sendall(data[1:] if fds else data)
        theirs.close()
        for fd in fds:
            os.close(fd)

    threading.Thread(target=all_of_it).start()


def hostile(reply: dict[str, Any], number: int, source: random.Random) -> bytes:
    """Return what a worker writes in place of a right reply."""
    before = b""
    for _ in range(source.choice((0, 0, 0, 0, 1, 3))):
        event = {"event": source.choice(("compiling", "compiled")), "name": "x"}
        before += framed(mutated(event, source) if source.random() < 0.5 else event, source)
    whole = {"id": number, "ok": True, **reply}
    how = source.randrange(20)
    if how == 0:
        whole = {"id": number, "ok": False, "error": junk(source)}
    elif how == 1:
        whole = {"id": number, "ok": True, "too_small": junk(source), "tensors": junk(source)}
    said = whole if how == 2 else mutated(whole, source)
    if isinstance(said, dict) and source.random() < 0.9:
        said["id"] = number
    return before + framed(said, source)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


DO = ("load", "call", "call", "inputs", "go", "state", "ready", "profile")


def test_right_replies_are_believed(bench: Bench, make_worker: Any) -> None:
    """The fuzzer's own replies are right before they are changed: else it would test nothing."""
    for do in ("load", "call", "inputs", "go"):
        worker, theirs = make_worker()
        reply, arena = bench.honest(do)
        worker._outbox = arena
        worker.send(do)
        number = _read(theirs)["id"]
        write(theirs, framed({"id": number, "ok": True, **reply}, random.Random(1)), [])
        bench.use(do, worker, worker.answer())
        assert worker.launches == 3 and worker.findings[0].kind == "race"


def test_any_reply_is_answer_or_refusal(bench: Bench, make_worker: Any) -> None:
    ends: dict[str, int] = {}
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    open_fds = len(list(Path("/proc/self/fd").iterdir()))
    for case in [int(ONLY)] if ONLY else range(CASES):
        source = random.Random(case)
        do = source.choice(DO)
        known = do if do in ("load", "call", "inputs", "go") else "go"
        reply, arena = bench.honest(known)
        worker, theirs = make_worker()
        worker._outbox, worker.max_outbox_bytes = arena, 1 << 22
        began, end = time.monotonic(), "believed"
        try:
            worker.send(do)
            number = _read(theirs)["id"]
            fds = [os.dup(0) for _ in range(source.choice((1, 30)))] if case % 50 == 1 else []
            write(theirs, hostile(reply if known == do else {}, number, source), fds)
            answer = worker.answer()
            if known == do:
                bench.use(do, worker, answer)
        except Refusal as refusal:
            end = refusal.status.value
            str(refusal).encode("utf-8")
        except BaseException as error:
            raise AssertionError(f"FUZZ_ONLY={case}: {error!r}") from error
        finally:
            worker.close()
        assert end != Status.HARNESS_ERROR.value, f"case {case}"
        took = time.monotonic() - began
        assert took < MOST_S, f"case {case} took {took:.1f} s"
        ends[end] = ends.get(end, 0) + 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) * 1024
    assert grown < MOST_BYTES, f"the judge took {grown >> 20} MiB"
    assert len(list(Path("/proc/self/fd").iterdir())) < open_fds + 20, "descriptors are left open"
    if not ONLY:
        assert ends.get("TAMPERED", 0) > CASES // 4, ends
        assert ends.get("believed", 0) > CASES // 50, ends
