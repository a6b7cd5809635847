"""Lets KernelBench judge the pairs of a folder, each in a process of its own.

``python benchmarks/kernelbench_verdicts.py ROOT --kernelbench SRC --out FILE [PAIR ...]`` runs
``eval_kernel_against_ref`` of a KernelBench checkout. SRC is its ``src`` folder, which holds
``kernelbench/``. Packages that KernelBench imports and does not need for this (pydantic, openai,
...) may be missing. PAIR may be a pattern, and ``@NAMES`` reads patterns from a file, one a line.

Each line of FILE is a JSON object: ``pair``, ``compiled``, ``correctness`` (null: no verdict),
``runtime`` and ``ref_runtime`` (milliseconds, -1 if not measured), ``metadata``, and the SHA-256 of
the two files. A pair that FILE holds already is skipped, unless one of its files has changed.

``--jobs`` solutions are built side by side. A pair is evaluated as soon as it is built, so its
times are taken on a busy host.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.verdicts import json_lines
from harness.domain import Pair, UsageError
from harness.pairs.discover import discover, select

CHILD = Path(__file__).with_name("kernelbench_process.py")
Ask = Callable[[], dict[str, Any]]
_TAIL = 300  # characters of a dead process's output that the verdict keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How pairs are built and evaluated.

    Attributes:
        kernelbench: the folder that holds the package ``kernelbench``.
        cache: one folder of builds and logs per solution.
        device: as torch names it.
        trials: calls that are compared, on fresh inputs each.
        timed_trials: calls that are timed; 0 times nothing.
        time_limit_s: for the build and for the evaluation of one pair, seconds each.
        jobs: builds side by side.
        at_once: evaluations side by side.
    """

    kernelbench: Path
    cache: Path
    device: str = "cuda:0"
    trials: int = 5
    timed_trials: int = 100
    time_limit_s: float = 300.0
    jobs: int = 1
    at_once: int = 1


@dataclass(slots=True)
class Processes:
    """The running processes, so that an interrupt can end them.

    Attributes:
        running: their process ids; each leads a group of its own.
        stopped: whether kill_all() ended them. Their results are then no verdicts.
        lock: guards the two.
    """

    running: set[int] = field(default_factory=set)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, job: dict[str, Any], folder: Path, limit_s: float) -> dict[str, Any]:
        """Run one step in a process of its own.

        Returns:
            The step's result; ``timed_out`` or ``died`` says why it is missing.

        Raises:
            InterruptedError: the process was ended by ``kill_all``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = job["step"]
        given, result, log = (folder / f"{name}.{end}" for end in ("job.json", "json", "log"))
        result.unlink(missing_ok=True)
        given.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(CHILD), str(given), str(result)]
        environment = {**os.environ, "MAX_JOBS": os.environ.get("MAX_JOBS", "2")}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            with self.lock:
                self.running.add(process.pid)
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                return {"timed_out": f"{name}: no result within {limit_s:g} s"}
            finally:
                _kill(process.pid)  # and its remaining children
                process.wait()
                with self.lock:
                    self.running.discard(process.pid)
        if self.stopped:
            raise InterruptedError(f"{name}: ended before it had a result")
        if result.is_file():
            found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return found
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        tail = log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]
        return {"died": f"{name}: ended with {why}: {tail}"}

    def kill_all(self) -> None:
        """End all running processes."""
        with self.lock:
            self.stopped = True
            for pid in self.running:
                _kill(pid)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def verdict_on(pair: Pair, settings: Settings, processes: Processes) -> Ask:
    """Build a pair's solution; return a function that returns KernelBench's verdict."""
    hashes = hashes_of(pair)
    folder = settings.cache / hashes["solution_hash"][:24] / hashes["problem_hash"][:8]
    job = {
        "kernelbench": str(settings.kernelbench.resolve()),
        "problem": str(pair.problem.resolve()),
        "solution": str(pair.solution.resolve()),
        "build_dir": str((folder / "build").resolve()),
        "device": settings.device,
        "trials": settings.trials,
        "timed_trials": settings.timed_trials,
    }
    built = processes.step({**job, "step": "build"}, folder, settings.time_limit_s)

    def ask() -> dict[str, Any]:
        if built.get("built") or "died" in built:  # a build that died gives no verdict
            answer = processes.step({**job, "step": "evaluate"}, folder, settings.time_limit_s)
        elif "timed_out" in built:
            answer = built
        else:
            answer = {
                "compiled": False,
                "correctness": False,
                "metadata": {"compilation_error": built["error"]},
            }
        return {**plain_verdict(pair.name, answer), **hashes}

    return ask


def plain_verdict(pair: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return one line of the file.

    If the process died, the solution is not correct. If it took too long, there is no verdict.
    """
    metadata = dict(answer.get("metadata") or {})
    correct = answer.get("correctness")
    if "died" in answer:
        correct, metadata["error"] = False, answer["died"]
    if "timed_out" in answer:
        correct, metadata["error"] = None, answer["timed_out"]
    return {
        "pair": pair,
        "compiled": answer.get("compiled"),
        "correctness": correct,
        "runtime": answer.get("runtime", -1.0),
        "ref_runtime": answer.get("ref_runtime", -1.0),
        "metadata": metadata,
    }


def hashes_of(pair: Pair) -> dict[str, str]:
    """Return the SHA-256 of a pair's two files."""
    return {
        "problem_hash": hashlib.sha256(pair.problem.read_bytes()).hexdigest(),
        "solution_hash": hashlib.sha256(pair.solution.read_bytes()).hexdigest(),
    }


def left_to_do(pairs: Sequence[Pair], out: Path) -> list[Pair]:
    """Return the pairs without a line in a file; remove an incomplete last line from the file."""
    if not out.exists():
        return list(pairs)
    data = out.read_bytes()
    if not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        out.write_bytes(data)
    done = {
        (line["pair"], line["problem_hash"], line["solution_hash"])
        for line in json_lines(data.decode(), out)
    }
    return [p for p in pairs if (p.name, *hashes_of(p).values()) not in done]


def ask_all(pairs: Sequence[Pair], settings: Settings, out: Path) -> None:
    """Build and evaluate pairs, and append one line each.

    Raises:
        UsageError: KernelBench cannot be imported, or there is no GPU.
    """
    processes = Processes()
    probe = {"step": "probe", "kernelbench": str(settings.kernelbench.resolve())}
    answer = processes.step(probe, settings.cache, settings.time_limit_s)
    if "cuda" not in answer:
        raise UsageError(
            f"{settings.kernelbench}: KernelBench cannot be imported: {next(iter(answer.values()))}"
        )
    if not answer["cuda"]:
        raise UsageError("KernelBench needs a GPU, and torch finds none here")
    lock, finished = threading.Lock(), [0]

    def evaluate(building: Future[Ask]) -> None:
        line = building.result()()
        with lock, out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            finished[0] += 1
            print(
                f"[{finished[0]}/{len(pairs)}] {line['pair']}: compiled {line['compiled']}, "
                f"correct {line['correctness']}, {line['runtime']} ms",
                file=sys.stderr,
                flush=True,
            )

    with (
        ThreadPoolExecutor(settings.at_once) as evaluators,
        ThreadPoolExecutor(settings.jobs) as builders,
    ):
        waiting: list[Future[None]] = []
        try:
            for pair in pairs:
                building = builders.submit(verdict_on, pair, settings, processes)
                building.add_done_callback(
                    lambda done: waiting.append(evaluators.submit(evaluate, done))
                )
            builders.shutdown(wait=True)
            for evaluating in waiting:
                evaluating.result()
        except BaseException:
            builders.shutdown(wait=False, cancel_futures=True)
            evaluators.shutdown(wait=False, cancel_futures=True)
            processes.kill_all()
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0], fromfile_prefix_chars="@"
    )
    add = parser.add_argument
    add("root", type=Path, help="folder with problems/ and solutions/")
    add("pairs", nargs="*", metavar="PAIR", help="patterns over problem/solution; @FILE: a list")
    add("--kernelbench", type=Path, required=True, help="folder that holds kernelbench/")
    add("--out", type=Path, required=True, help="JSON lines; an existing file is continued")
    add("--cache", type=Path, default=Path(".cache/kernelbench"), help="builds and logs")
    add("--device", default="cuda:0")
    add("--trials", type=int, default=5, help="calls that are compared")
    add("--timed-trials", type=int, default=100, help="calls that are timed; 0: none")
    add("--time-limit", type=float, default=300.0, help="seconds per build and per evaluation")
    add("--jobs", type=int, default=1, help="builds side by side")
    add("--at-once", type=int, default=1, help="evaluations side by side, which disturbs the times")
    options = parser.parse_intermixed_args(argv)
    settings = Settings(
        kernelbench=options.kernelbench,
        cache=options.cache,
        device=options.device,
        trials=options.trials,
        timed_trials=options.timed_trials,
        time_limit_s=options.time_limit,
        jobs=options.jobs,
        at_once=options.at_once,
    )
    try:
        chosen = select(discover(options.root).pairs, options.pairs)
        pairs = left_to_do(chosen, options.out)
        if pairs:
            ask_all(pairs, settings, options.out)
    except UsageError as error:
        print(f"kernelbench_verdicts.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
