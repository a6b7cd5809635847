"""A judge that speaks the fleet's protocol and plays the part that its solution is named after.

``t/passes``, ``t/dies``, ``t/hangs`` ...: the part is the pair's solution name, up to a ``-``.
It imports nothing of the harness: what it says is what is written here.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, str(Path(__file__).resolve()))
"""Starts this judge."""


def say(event: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


def phase(name: str) -> None:
    say("phase", phase=name)


def wait_for(what: str) -> None:
    say("await", what=what, bytes=1 << 30)
    grant = json.loads(sys.stdin.readline())
    assert grant["grant"] == what, grant


def journal(request: dict[str, Any], what: str) -> None:
    """Append a moment to a file that the test reads: who had what, and when."""
    path = Path(request["log"]).parent.parent / "journal"
    with path.open("a") as stream:
        stream.write(json.dumps([request["pair"]["name"], what, time.monotonic()]) + "\n")


def verdict(request: dict[str, Any], status: str = "PASSED", **more: Any) -> dict[str, Any]:
    options = request["options"]
    return {
        "pair": request["pair"]["name"],
        "status": status,
        "seed": options["seed"],
        "device": options["device"],
        "size": "small",
        "modes": request["settings"]["modes"],
        "phases": {"build": 0.1, "check": 0.2},
        **more,
    }


def main() -> None:
    request = json.loads(sys.stdin.readline())
    part = request["pair"]["name"].split("/")[1].split("-")[0]
    print(f"stderr of {part}", file=sys.stderr, flush=True)
    if part == "dies_at_once":
        os._exit(3)
    phase("build")
    journal(request, "build")
    if part == "slow_build":
        time.sleep(0.4)
    journal(request, "built")
    wait_for("device")
    journal(request, "device")
    if part in ("slow", "slow_build"):
        time.sleep(0.4)
    phase("check eval 3/12")
    play(part, request)
    journal(request, "end")
    say("verdict", verdict=verdict(request))


def play(part: str, request: dict[str, Any]) -> None:
    """Say what the part says; a part that comes to an end passes."""
    if part == "wrong":
        ending(
            verdict(
                request,
                "WRONG_VALUES",
                message="off by one. Next: look again",
                max_abs_diff=1.0,
                precision="worse",
            )
        )
    elif part == "fast":
        speed = {
            "outcome": "FASTER",
            "speedup": 2.0,
            "low": 1.9,
            "high": 2.1,
            "reference_ms": 4.0,
            "candidate_ms": 2.0,
        }
        ending(verdict(request, speed=speed, max_abs_diff=1e-7, precision="fp32"))
    elif part == "recorded":
        ending(verdict(request, **next_recorded(Path(request["pair"]["solution"]))))
    elif part == "skipped":
        ending(verdict(request, "SKIPPED", message="needs sm_90a"))
    elif part == "harness_error":
        ending(verdict(request, "HARNESS_ERROR", message="our own fault"))
    elif part == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif part == "exits_0":
        os._exit(0)
    elif part == "hangs":
        time.sleep(600)
    elif part == "hangs_and_will_not_go":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif part == "chatters":
        while True:
            phase("check eval 3/12")
            time.sleep(0.02)
    elif part == "garbage":
        print("PASSED, believe me", flush=True)
        time.sleep(600)
    elif part == "unknown_event":
        say("celebrate")
        time.sleep(600)
    elif part == "impossible":
        ending(verdict(request, "WRONG_VALUES", speed={"outcome": "FASTER", "speedup": 9.0}))
    elif part == "unknown_status":
        ending(verdict(request, "PERFECT"))
    elif part == "somebody_elses":
        ending({**verdict(request), "pair": "t/another"})
    elif part == "reference_dies":
        say("problem_code")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif part == "killed":
        say("problem_code")
        os.kill(os.getpid(), signal.SIGKILL)
    elif part in ("killed_by_solution", "segfaults_beside_solution", "stopped_by_solution"):
        say("solution_code")
        say("problem_code")
        say("harness_code")
        numbers = {"killed": signal.SIGKILL, "segfaults": signal.SIGSEGV, "stopped": signal.SIGSTOP}
        os.kill(os.getpid(), numbers[part.split("_")[0]])
    elif part == "reference_hangs":
        say("problem_code")
        time.sleep(600)
    elif part == "reference_runs_out_of_time":
        say("problem_code", left_s=0.2)
        while True:
            phase("check eval 3/12")
            time.sleep(0.02)
    elif part == "candidate_takes_its_time":
        say("problem_code", left_s=0.2)
        say("harness_code")
        time.sleep(0.6)
        say("problem_code", left_s=None)
        time.sleep(0.3)
    elif part == "reference_hangs_in_line_2":
        faulthandler.register(signal.SIGUSR1, all_threads=False)
        say("problem_code")
        slow = compile(
            "def slow():\n    time.sleep(600)\nslow()", request["pair"]["problem"], "exec"
        )
        exec(slow, {"time": time})
    elif part == "dies_after_reference":
        say("problem_code")
        say("harness_code")
        os.kill(os.getpid(), signal.SIGSEGV)
    elif part == "leaves_a_child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (Path(request["log"]).parent.parent / "child").write_text(str(child.pid))
    elif part in ("leaves_a_deep_folder", "dies_in_a_folder", "hangs_in_a_folder"):
        folder = Path(request["temporary"])
        (Path(request["log"]).parent.parent / "temporary").write_text(str(folder))
        here = os.open(folder, os.O_RDONLY)
        for _ in range(1100):
            os.mkdir("nested", dir_fd=here)
            outer, here = here, os.open("nested", os.O_RDONLY, dir_fd=here)
            os.close(outer)
        if part == "dies_in_a_folder":
            os.kill(os.getpid(), signal.SIGSEGV)
        if part == "hangs_in_a_folder":
            time.sleep(600)
    elif part == "hangs_with_a_worker":
        code = "import subprocess, time; subprocess.run(['sleep', '600'])"
        worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        (Path(request["log"]).parent.parent / "child").write_text(str(worker.pid))
        time.sleep(600)
    elif part == "lingers":
        say("verdict", verdict=verdict(request))
        time.sleep(600)
    elif part == "measures":
        time.sleep(0.3)
        journal(request, "checked")
        wait_for("clock")
        journal(request, "clock")
        time.sleep(0.1)
    elif part == "out_of_memory_beside_others":
        first = Path(request["log"]).parent.parent / "first"
        time.sleep(0.3)
        if not first.exists():
            first.touch()
            ending(verdict(request, "OUT_OF_MEMORY", message="no memory"))
    elif part == "reports_request":
        (Path(request["log"]).parent.parent / "request").write_text(json.dumps(request))


def next_recorded(solution: Path) -> dict[str, Any]:
    """Return the first verdict of the list beside the solution; the last one stays for ever."""
    path = solution.with_suffix(".json")
    first, *rest = json.loads(path.read_text())
    path.write_text(json.dumps(rest or [first]))
    return first


def ending(plain: dict[str, Any]) -> None:
    say("verdict", verdict=plain)
    sys.exit(0)


if __name__ == "__main__":
    main()
