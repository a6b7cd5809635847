"""The command line: reads the options, lets the fleet evaluate, prints and writes the reports."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from harness.cli import guard, outputs
from harness.cli.secret import hide_seed
from harness.domain import Options, Pair, Run, Status, UsageError, Verdict
from harness.fleet import Interrupted, run_pairs
from harness.fleet.devices import make_plan
from harness.fleet.resume import ResumeFile, open_resume
from harness.machine.environment import (
    PROJECT_ROOT,
    describe_environment,
    find_nvcc,
    nvcc_architectures,
    torch_build,
)
from harness.machine.gpus import find_gpus
from harness.machine.packaged_nvcc import remedy
from harness.pairs.discover import Catalogue, discover, pair_from_files, select
from harness.pairs.sizes import at_sizes

OK, NOT_PASSED, BAD_USAGE, HARNESS_FAILED = 0, 1, 2, 3

_EPILOG = """\
exit codes: 0 all pairs passed or were skipped; 1 a pair did not pass; 2 bad usage or input, or no
pair was evaluated; 3 the harness itself failed; 128 + N signal N ended the run (130: Ctrl-C).
with --check-baseline also: 4 slower, 5 less precise, 6 a result is missing, 7 incomparable,
8 no baseline, 9 undecided.

examples:
  run_eval.py                                  every pair
  run_eval.py groupnorm 'batchnorm*'           some problems
  run_eval.py 'gemm*/hopper' --device cuda:1   one solution, on the second GPU
  run_eval.py --problem p.py --solution s.py   any two files
  run_eval.py --resume done.jsonl              continue an interrupted run
  run_eval.py --check-baseline                 every pair against baselines/DEVICE.json
  run_eval.py --report results/*.json --html report.html
"""


def main(
    argv: Sequence[str] | None = None,
    *,
    root: Path = PROJECT_ROOT,
    judge_command: Sequence[str] | None = None,
) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: arguments without the program's name; None is ``sys.argv``.
        root: folder with problems/ and solutions/; ``--root`` names another.
        judge_command: command that starts one judge; None is the real judge.
    """
    hide_seed()
    arguments = _parser().parse_args(argv)
    session = _Session(arguments, (arguments.root or root).resolve(), judge_command)
    code, error = HARNESS_FAILED, None
    try:
        with _signals_interrupt(session.note_signal):
            code = session.run()
    except UsageError as usage:
        code, error = BAD_USAGE, str(usage)
    except KeyboardInterrupt:
        code = session.interrupted_code
    except BrokenPipeError:
        # The reader of our output has closed it, so no error message can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as failure:  # noqa: BLE001 - the last handler of the process: exit code 3
        error = f"the harness failed: {failure!r}"
        traceback.print_exc()
    if error:
        print(f"run_eval.py: {error}", file=sys.stderr)
    return session.leave(code, error)


class _Session:
    """One invocation: its options and its results so far."""

    def __init__(
        self, arguments: argparse.Namespace, root: Path, judge_command: Sequence[str] | None
    ) -> None:
        self._arguments = arguments
        self._root = root
        self._judge_command = judge_command
        self._pairs: tuple[Pair, ...] = ()
        self._run = Run(verdicts=())
        self._documented = False
        self._resume: ResumeFile | None = None
        self.interrupted_code = 128 + signal.SIGINT

    def note_signal(self, number: int) -> None:
        """Note which signal ends the run."""
        self.interrupted_code = 128 + number

    def run(self) -> int:
        """Do what the options ask for; return the exit code."""
        arguments = self._arguments
        if arguments.root and not self._root.is_dir():
            raise UsageError(f"--root {arguments.root}: no such folder")
        if arguments.doctor:
            from harness.cli.doctor import main as doctor

            return doctor()
        if arguments.new is not None:
            return self._write_new_pair(arguments.new)
        if arguments.list:
            return self._list()
        if arguments.report:
            return outputs.rebuild(arguments, self._root, self._existing(()))
        if arguments.compare:
            return outputs.compare(arguments)
        outputs.check_targets(arguments)
        self._documented = True
        self._pairs = self._chosen_pairs()
        with ExitStack() as stack:
            if arguments.resume:
                self._resume = stack.enter_context(open_resume(arguments.resume, _environment()))
                for number in self._resume.ignored:
                    print(
                        f"warning: --resume {arguments.resume}: line {number} is ignored: it holds "
                        "no verdict of this version",
                        file=sys.stderr,
                    )
            return self._evaluate(self._pairs)

    def leave(self, code: int, error: str | None) -> int:
        """Write the reports and keep the run in the history; return the exit code."""
        if not self._documented:
            return code
        from harness.report import keep_log_tails

        environment = self._run.environment or _environment()
        run = dataclasses.replace(
            keep_log_tails(self._run), environment=environment, exit_code=code, error=error
        )
        try:
            outputs.write_all(
                run,
                self._arguments,
                history=lambda: outputs.stored_runs(self._root, run),
                pairs=self._pairs,
                root=self._root,
            )
        except OSError as failure:
            print(f"run_eval.py: {failure.filename}: {failure.strerror}", file=sys.stderr)
            code = code or HARNESS_FAILED
        if run.verdicts and not self._arguments.no_history:
            outputs.keep(run, self._root)
        return code

    @property
    def _root_option(self) -> str:
        """The ``--root`` that a later command needs to find the same pairs."""
        root = self._arguments.root
        return "" if root is None else f" --root {shlex.quote(str(root))}"

    def _write_new_pair(self, name: str) -> int:
        from harness.pairs.new_pair import write_pair

        for path in write_pair(name, self._root):
            print(f"wrote {path}")
        command = f"python run_eval.py {name}{self._root_option}"
        print(f"next: {command}; once it passes, {command} --update-baseline")
        return OK

    def _chosen_pairs(self) -> tuple[Pair, ...]:
        arguments = self._arguments
        if arguments.problem or arguments.solution:
            if not (arguments.problem and arguments.solution):
                raise UsageError("--problem and --solution go together. Next: give both")
            if arguments.patterns:
                raise UsageError("give names of pairs, or --problem and --solution, not both")
            return self._sized((pair_from_files(arguments.problem, arguments.solution),))
        pairs = select(self._discover().pairs, arguments.patterns)
        if not pairs:
            raise UsageError(
                "no pairs found. Next: write a first one with "
                f"run_eval.py --new NAME{self._root_option}"
            )
        return self._sized(pairs)

    def _sized(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Return each pair at every size that --sizes asks for."""
        arguments = self._arguments
        if arguments.sizes is None:
            return pairs
        if arguments.size is not None:
            raise UsageError("--size evaluates one size, --sizes several. Next: give one of them")
        kind = arguments.device.partition(":")[0]
        on_gpu = kind == "cuda" or (kind == "auto" and bool(find_gpus().devices))
        return at_sizes(pairs, arguments.sizes, full=on_gpu)

    def _discover(self) -> Catalogue:
        catalogue = discover(self._root)
        for warning in catalogue.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        return catalogue

    def _list(self) -> int:
        pairs = select(self._discover().pairs, self._arguments.patterns)
        for pair in pairs:
            print(pair.name)
        return OK if pairs else BAD_USAGE

    def _evaluate(self, pairs: Sequence[Pair]) -> int:
        from harness.report import open_progress

        if torch_build() is None:
            raise UsageError(
                f"PyTorch is not installed for {sys.executable}. "
                "Next: run make eval, which installs it, or pip install torch"
            )
        arguments = self._arguments
        options = _options(arguments)
        guarded = guard.make_guard(
            arguments,
            root=self._root,
            devices=make_plan(options, len(pairs)).devices,
            gpus=_gpu_names(),
            chosen=[pair.name for pair in pairs],
        )
        began = time.monotonic()

        def evaluate(some: Sequence[Pair], resume: ResumeFile | None = None) -> list[Verdict]:
            with open_progress(len(some), verbose=arguments.verbose) as progress:
                return run_pairs(
                    some,
                    options,
                    listener=progress,
                    judge_command=self._judge_command,
                    resume=resume,
                )

        def again(names: Sequence[str]) -> list[Verdict]:
            print(f"measuring again: {', '.join(names)}", file=sys.stderr)
            return evaluate([pair for pair in pairs if pair.name in names])

        try:
            self._run = Run(verdicts=tuple(evaluate(pairs, self._resume)))
        except Interrupted as interrupted:
            self._run = Run(verdicts=tuple(interrupted.verdicts))
            self._print_report(time.monotonic() - began)
            self._all_kept()
            raise
        code = exit_code(self._run.verdicts)
        self._run = dataclasses.replace(self._run, environment=_environment(), exit_code=code)
        if guarded and not guarded.updating:
            self._run = guarded.check(self._run, again)
            code = exit_code(self._run.verdicts)
        self._print_report(time.monotonic() - began)
        if guarded and guarded.updating:
            print(guarded.update(self._run, self._existing(pairs)), file=self._out)
        if not self._all_kept():
            return HARNESS_FAILED
        return code or (self._run.gate.exit_code if self._run.gate else OK)

    def _all_kept(self) -> bool:
        """Return whether the resume file holds every verdict; warn if it does not."""
        problem = self._resume.problem() if self._resume else ""
        if problem:
            print(f"warning: {problem}", file=sys.stderr)
        return not problem

    def _existing(self, pairs: Sequence[Pair]) -> set[str]:
        """Return the names of all pairs on disk and of some further pairs."""
        return {pair.name for pair in (*discover(self._root).pairs, *pairs)}

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self._arguments.json == "-" else sys.stdout

    def _print_report(self, wall_s: float) -> None:
        """Print the table, then the details of pairs."""
        from harness.report import explain_gate, explain_run, render_table, summarize

        out, run = self._out, self._run
        width, colour = outputs.terminal(self._arguments)
        table = render_table(
            run.verdicts, self._arguments.format, width=width, colour=colour, gate=run.gate
        )
        print(f"\n{table}\n", file=out)
        said = explain_run(run.verdicts, in_full=self._arguments.verbose)
        if said:
            print(f"{said}\n", file=out)
        if run.gate:
            print(f"{explain_gate(run.gate)}\n", file=out)
        reused = ""
        if self._resume and self._resume.reused:
            reused = f"{len(self._resume.reused)} of them from {self._resume.path}"
        print(summarize(run.verdicts, wall_s, reused=reused), file=out)


def _gpu_names() -> tuple[str, ...]:
    return tuple(gpu.name for gpu in find_gpus().devices)


def _environment() -> dict[str, Any]:
    return describe_environment(_gpu_names())


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """Return the exit code for a run's verdicts."""
    statuses = {verdict.status for verdict in verdicts}
    if Status.HARNESS_ERROR in statuses:
        return HARNESS_FAILED
    if statuses <= {Status.SKIPPED}:
        return BAD_USAGE
    return OK if statuses <= {Status.PASSED, Status.SKIPPED} else NOT_PASSED


def _options(arguments: argparse.Namespace) -> Options:
    order = arguments.thread_order
    orders: dict[str, Any] = {"thread_orders": (order,)} if order else {}
    return Options(
        device=arguments.device,
        mode=arguments.mode,
        size=arguments.size,
        quick=arguments.quick,
        seed=arguments.seed,
        timeout_s=arguments.timeout,
        time_limit_s=arguments.time_limit,
        jobs=arguments.jobs,
        fail_fast=arguments.fail_fast,
        baselines=arguments.baselines,
        precision=arguments.precision,
        warm_l2=arguments.warm_l2,
        cap_s=arguments.cap,
        ncu=arguments.ncu,
        fast_headers=not arguments.no_fast_headers,
        nvcc=() if arguments.nvcc is None else nvcc_list(arguments.nvcc),
        memory_bytes=None if arguments.memory is None else int(arguments.memory * 2**30),
        **orders,
    )


def nvcc_list(text: str) -> tuple[str, ...]:
    """Return the architectures that ``--nvcc`` names, or the usual ones.

    Raises:
        UsageError: nvcc is missing, or does not know one of them.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise UsageError(f"--nvcc: nvcc was not found. Next: {remedy()}, or leave out --nvcc")
    known = nvcc_architectures(nvcc)
    named = tuple(part for part in text.replace(",", " ").split() if part)
    unknown = [a for a in named if a.rstrip("af") not in known]
    if unknown:
        raise UsageError(
            f"--nvcc: this nvcc has no architecture {unknown[0]!r}. "
            f"Next: name one of {', '.join(known)}, or put --nvcc last on the line"
        )
    return named or tuple(a for a in ("sm_75", "sm_80", "sm_90") if a in known)


def _baselines(text: str) -> tuple[str, ...]:
    """Return the baselines that a list names, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@contextmanager
def _signals_interrupt(note: Callable[[int], None]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a run as cleanly as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        note(number)
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    except ValueError:  # not the main thread, so the signals belong to the calling program
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    from harness.report import FORMATS

    parser = argparse.ArgumentParser(
        prog="run_eval.py",
        description="Check that each solution computes the same as its PyTorch reference, and "
        "measure how much faster it is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("patterns", nargs="*", metavar="PAIR", help="glob over problem or problem/solution")
    add("--list", action="store_true", help="list the pairs and exit")
    add("--problem", type=Path, metavar="FILE", help="a reference file, from anywhere")
    add("--solution", type=Path, metavar="FILE", help="a solution file, from anywhere")
    add("--new", metavar="NAME", help="write a new pair that already passes")
    add("--doctor", action="store_true", help="check this machine and exit")
    add(
        "--device",
        default="auto",
        help="auto (default: a GPU if there is one, else emulated), cuda, cuda:N, emulated (the "
        "CUDA source runs on the CPU) or cpu (CPU tensors; no CUDA)",
    )
    add("--mode", choices=("forward", "eval", "train"), help="check this mode only")
    add(
        "--size",
        metavar="NAME",
        help="full, small (default off the GPU), a problem's size, or constants: NAME=VALUE,... "
        "(default on a GPU: the largest size that fits into its free memory)",
    )
    add("--memory", type=float, metavar="GIB", help=argparse.SUPPRESS)  # for tests of sizes
    add(
        "--sizes",
        nargs="?",
        const="all",
        metavar="LIST",
        help="evaluate each pair at several sizes: names with commas (no LIST: all of its sizes)",
    )
    add("--quick", action="store_true", help="small size, few trials")
    add(
        "--seed",
        type=int,
        help="replay the checks of this seed; timed inputs are always new (default: a secret one)",
    )
    add("--jobs", type=int, metavar="N", help="run N builds, or pairs on the CPU, side by side")
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds per phase (60)")
    add(
        "--time-limit",
        type=float,
        default=300.0,
        metavar="S",
        help="seconds for all phases of a pair; waiting and compiling do not count (300)",
    )
    add(
        "--baselines",
        type=_baselines,
        metavar="LIST",
        help="baselines of the speedup: eager (always), compile, max-autotune, defaults (eager "
        "with PyTorch's default numeric flags: TF32 in cuDNN). Default: eager, and compile on a "
        "GPU; eager alone with --quick",
    )
    add(
        "--precision",
        choices=("fp32", "tf32"),
        help="require this precision of every solution, instead of the problem's own; tf32 allows "
        "TF32 to the solution and to the baselines",
    )
    add("--warm-l2", action="store_true", help="leave the inputs of timed calls in the L2 cache")
    add("--cap", type=float, metavar="S", help="seconds for the timed blocks of a pair (8)")
    add(
        "--ncu",
        action="store_true",
        help="on a GPU: measure each kernel's DRAM bytes, occupancy, top stall with Nsight Compute",
    )
    add(
        "--nvcc",
        nargs="?",
        const="",
        metavar="LIST",
        help="off the GPU: also compile the CUDA source with nvcc (no LIST: sm_75, sm_80, sm_90)",
    )
    add(
        "--no-fast-headers",
        action="store_true",
        help="build CUDA sources with torch's own headers only (five times slower)",
    )
    add(
        "--thread-order",
        choices=("forward", "reverse", "shuffled"),
        help="emulated: start threads in this order only (default: all three orders)",
    )
    add(
        "--resume",
        type=Path,
        metavar="FILE",
        help="write every verdict to FILE at once, and reuse the verdicts in it: so an interrupted "
        "run continues",
    )
    add("--json", metavar="FILE", help="write a JSON document; - is stdout")
    outputs.add_options(parser)
    guard.add_options(parser)
    add("--root", type=Path, metavar="FOLDER", help="folder with problems/ and solutions/")
    add("--format", default="simple", choices=FORMATS, metavar="FMT", help="any tabulate format")
    add("--fail-fast", action="store_true", help="stop at the first pair that does not pass")
    add("-v", "--verbose", action="store_true", help="print every phase, check and note")
    return parser
