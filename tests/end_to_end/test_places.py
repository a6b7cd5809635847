"""Where users run it: default containers, private homes, umask 077. No place blames the solution.

Each place is made here, as root, for a pair that takes no compiler. CI has a job for each of them
that runs everything there (.github/workflows/places.yml).
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.domain import Options, Pair, Refusal, Status
from harness.fleet import preflight
from harness.judge.workers import identity
from harness.machine.environment import PROJECT_ROOT
from harness.pairs.settings import Settings

# What a default container of Docker or Kubernetes lacks. Names that this kernel does not know, or
# that are not held here, cannot be dropped.
LACKING = (
    "cap_dac_read_search,cap_ipc_lock,cap_linux_immutable,cap_net_admin,cap_sys_admin,"
    "cap_sys_module,cap_sys_nice,cap_sys_ptrace,cap_sys_rawio,cap_sys_resource"
)
VISITOR = 65534
"""An ordinary user: nobody."""
REFERENCE = """
import torch
class Model(torch.nn.Module):
    def forward(self, x):
        return x + 1
def get_inputs():
    return [torch.randn(4, 3)]
"""
SOLUTION = """
import os, re
import torch
CAPABILITIES = re.findall("^Cap(?:Prm|Eff|Amb):(.*)$", open("/proc/self/status").read(), re.M)
assert all(int(held, 16) == 0 for held in CAPABILITIES), f"holds capabilities {CAPABILITIES}"
{act}
class ModelNew(torch.nn.Module):
    def forward(self, x):
        import colorsys, wave  # nothing has imported these before: the interpreter is reachable
        return x + 1
"""
EVALUATE = """
import json, sys
from harness import evaluate, to_json
timed = sys.argv[4] == "timed"
verdict = evaluate(
    sys.argv[1], sys.argv[2], device=sys.argv[3], timed=timed, timeout_s=20, quick=True, cap_s=0.5
)
print(json.dumps(to_json(verdict)))
"""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this place")
needs_capsh = pytest.mark.skipif(
    shutil.which("capsh") is None, reason="needs capsh (apt-get install libcap2-bin)"
)


def in_container(*command: str) -> tuple[str, ...]:
    """Return a command that runs another one with the capabilities of a default container."""
    return ("capsh", f"--drop={LACKING}", "--", "-c", 'exec "$@"', "sh", *command)


def here(*command: str) -> tuple[str, ...]:
    """Return a command as it is."""
    return command


def evaluated(
    folder: Path,
    act: str = "",
    place: Callable[..., tuple[str, ...]] = here,
    device: str = "cpu",
    timed: bool = False,
    env: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return the verdict of a pair in a folder, evaluated in a place, as JSON."""
    for name, text in ("reference", REFERENCE), ("solution", SOLUTION.replace("{act}", act)):
        path = folder / f"{name}.py"
        if not path.exists():
            path.write_text(text)
    files = [str(folder / "reference.py"), str(folder / "solution.py")]
    done = subprocess.run(
        place(sys.executable, "-c", EVALUATE, *files, device, "timed" if timed else "untimed"),
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), **(env or {})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    verdict: dict[str, Any] = json.loads(done.stdout)
    return verdict


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="place-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def users_cache(open_folder: Path) -> Path:
    """A user's cache that holds the CPU runner's library already, where it has been built."""
    built = PROJECT_ROOT / ".cache" / "support"
    if built.is_dir():
        support = open_folder / "theirs" / "kernel-eval" / "cache" / "support"
        shutil.copytree(built, support, copy_function=_link)
        for folder in (support, *support.iterdir(), *support.parents[:3]):
            if os.geteuid() == 0 and folder.is_dir():
                os.chown(folder, VISITOR, VISITOR)
    return open_folder / "theirs"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copy2(source, target)


@pytest.fixture
def private_folder(open_folder: Path) -> Path:
    """A folder that is open below one that only its owner may enter, like one in /root."""
    folder = open_folder / "home" / "pair"
    folder.mkdir(parents=True)
    (open_folder / "home").chmod(0o700)
    return folder


@root_only
@needs_capsh
def test_pair_passes_with_the_rights_of_a_default_container(open_folder: Path) -> None:
    verdict = evaluated(open_folder, place=in_container)
    assert verdict["status"] == "PASSED", verdict["message"]


@root_only
@needs_capsh
def test_compilers_yield_in_a_default_container() -> None:
    """The priority of another user's process is not the judge's to set there."""
    test = "tests/end_to_end/test_pool.py::test_compilers_yield_to_what_is_measured"
    words = in_container(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    done = subprocess.run(words, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@root_only
def test_pair_below_a_private_home_runs_as_another_user_who_sees_nothing_else(
    private_folder: Path,
) -> None:
    secret = private_folder.parent / "secret"
    secret.write_text("expected values")
    secret.chmod(0o644)
    act = (
        f"assert os.getuid() != 0\n"
        f"assert not os.path.exists({str(secret)!r})\n"
        f"assert not os.access('/etc/shadow', os.R_OK)"
    )
    verdict = evaluated(private_folder, act)
    assert verdict["status"] == "PASSED", verdict["message"]
    assert not any("user id" in note for note in verdict["notes"])
    assert stat.S_IMODE(private_folder.parent.stat().st_mode) == 0o700


@root_only
@needs_capsh
def test_pair_below_a_private_home_passes_in_a_container_with_a_note(private_folder: Path) -> None:
    verdict = evaluated(private_folder, place=in_container)
    assert verdict["status"] == "PASSED", verdict["message"]
    (note,) = [note for note in verdict["notes"] if "user id" in note]
    assert "without any capability" in note
    assert "other users may not read" in note


@root_only
@needs_capsh
def test_home_of_somebody_else_is_skipped_in_a_container_with_the_next_step(
    private_folder: Path,
) -> None:
    """Mounted from the host, say: root without capabilities may not enter it either."""
    home = private_folder.parent
    os.chown(home, VISITOR, VISITOR)
    verdict = evaluated(private_folder, place=in_container)
    assert verdict["status"] == "SKIPPED", verdict["message"]
    assert f"Next: chmod o+x {home}" in verdict["message"]
    assert evaluated(private_folder)["status"] == "PASSED"  # where root may mount


def without(capability: str) -> Callable[..., tuple[str, ...]]:
    """Return a place where root lacks one capability."""
    return lambda *command: (
        "capsh",
        f"--drop={capability}",
        "--",
        "-c",
        'exec "$@"',
        "sh",
        *command,
    )


@root_only
@pytest.mark.parametrize("missing", ["cap_setuid", "cap_chown", "cap_kill"])
@needs_capsh
def test_judge_that_may_not_change_a_user_says_so_and_goes_on(
    open_folder: Path, missing: str
) -> None:
    verdict = evaluated(open_folder, place=without(missing))
    assert verdict["status"] == "PASSED", verdict["message"]
    assert any(f"root lacks {missing.upper()} here" in note for note in verdict["notes"])


def visitor(*command: str) -> tuple[str, ...]:
    """Return a command that runs another one as an ordinary user."""
    change = f"os.setgroups([]); os.setresgid(*3*[{VISITOR}]); os.setresuid(*3*[{VISITOR}])"
    program = f"import os, sys; {change}; os.execv(sys.argv[1], sys.argv[1:])"
    return (sys.executable, "-c", program, *command)


def _visitor_can_run() -> bool:
    words = visitor(sys.executable, "-c", "import torch, harness")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT_ROOT)}
    return not subprocess.run(words, env=env, cwd="/", capture_output=True).returncode


@pytest.fixture(params=["root without CAP_SETUID", "ordinary user"])
def shared_user(request: pytest.FixtureRequest) -> Callable[..., tuple[str, ...]]:
    """Places where a solution runs under the judge's own user id."""
    if os.geteuid() != 0:
        if request.param == "ordinary user":
            return here
        pytest.skip("only root can make this place")
    if request.param == "ordinary user":
        if not _visitor_can_run():
            pytest.skip(f"no other user may run {sys.executable} and import torch")
        return visitor
    if shutil.which("capsh") is None:
        pytest.skip("needs capsh (apt-get install libcap2-bin)")
    return without("cap_setuid")


@pytest.mark.parametrize(
    ("number", "said"), [("SIGKILL", "killed (SIGKILL)"), ("SIGSTOP", "stopped (SIGSTOP)")]
)
def test_solution_that_ends_the_judge_of_its_user_is_blamed(
    open_folder: Path,
    users_cache: Path,
    shared_user: Callable[..., tuple[str, ...]],
    number: str,
    said: str,
) -> None:
    act = f"import signal; os.kill(os.getppid(), signal.{number})"
    env = {"XDG_CACHE_HOME": str(users_cache)}
    verdict = evaluated(open_folder, act, place=shared_user, env=env)
    assert verdict["status"] == "CRASHED", verdict["message"]
    assert verdict["blame"] == "solution"
    assert f"the judge was {said}" in verdict["message"]


def test_signals_that_a_judge_can_ignore_change_nothing(
    open_folder: Path, users_cache: Path, shared_user: Callable[..., tuple[str, ...]]
) -> None:
    act = (
        "import signal\n"
        "for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    os.kill(os.getppid(), number)"
    )
    env = {"XDG_CACHE_HOME": str(users_cache)}
    verdict = evaluated(open_folder, act, place=shared_user, env=env)
    assert verdict["status"] == "PASSED", verdict["message"]


def test_solution_that_kills_the_references_worker_is_blamed(
    open_folder: Path, users_cache: Path, shared_user: Callable[..., tuple[str, ...]]
) -> None:
    act = """
def children(pid):
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]

def kill_siblings():
    import signal, threading, time
    while True:
        for sibling in children(os.getppid()):
            if sibling != os.getpid():
                os.kill(sibling, signal.SIGKILL)
        time.sleep(0.01)

import threading
threading.Thread(target=kill_siblings, daemon=True).start()
"""
    env = {"XDG_CACHE_HOME": str(users_cache)}
    verdict = evaluated(open_folder, act, place=shared_user, timed=True, env=env)
    assert verdict["status"] == "CRASHED", verdict["message"]
    assert "the reference worker was killed" in verdict["message"]


@root_only
def test_private_solution_is_skipped_with_the_next_step(open_folder: Path) -> None:
    path = open_folder / "solution.py"
    path.write_text(SOLUTION.replace("{act}", ""))
    path.chmod(0o600)
    verdict = evaluated(open_folder)
    assert verdict["status"] == "SKIPPED", verdict["message"]
    assert f"Next: chmod o+r {path}" in verdict["message"]
    path.chmod(0o644)
    assert evaluated(open_folder)["status"] == "PASSED"


@pytest.fixture
def read_only(open_folder: Path) -> Callable[..., tuple[str, ...]]:
    """A place in which the checkout is on a read-only file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can make this place")
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" && shift'

    def place(*command: str) -> tuple[str, ...]:
        script = f'{mount} && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, "sh", str(PROJECT_ROOT), *command)

    if subprocess.run(place("true"), capture_output=True).returncode:
        pytest.skip("this root may not mount (CAP_SYS_ADMIN)")
    return place


def test_read_only_checkout_keeps_its_cache_and_log_with_the_user(
    open_folder: Path, users_cache: Path, read_only: Callable[..., tuple[str, ...]]
) -> None:
    verdict = evaluated(open_folder, place=read_only, env={"XDG_CACHE_HOME": str(users_cache)})
    assert verdict["status"] == "PASSED", verdict["message"]
    assert verdict["log"].startswith(f"{users_cache}/kernel-eval/results/logs/")
    cache = users_cache / "kernel-eval" / "cache"
    assert any(f"are kept in {cache}: {PROJECT_ROOT}" in note for note in verdict["notes"])


def test_run_of_a_read_only_checkout_is_in_the_history(
    open_folder: Path, users_cache: Path, read_only: Callable[..., tuple[str, ...]]
) -> None:
    for name, text in ("reference", REFERENCE), ("solution", SOLUTION.replace("{act}", "")):
        (open_folder / f"{name}.py").write_text(text)
    words = ("--problem", str(open_folder / "reference.py"), "--device", "cpu", "--quick")
    words = (*words, "--solution", str(open_folder / "solution.py"), "--cap", "0.2")
    done = subprocess.run(
        read_only(sys.executable, "run_eval.py", *words),
        env={**os.environ, "XDG_CACHE_HOME": str(users_cache)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = users_cache / "kernel-eval" / "results"
    assert f"{PROJECT_ROOT} is read-only, so this run is stored in {folder}" in done.stderr
    assert len(list(folder.glob("*.json"))) == 1


@root_only
def test_what_the_judge_builds_is_readable_under_umask_077(open_folder: Path) -> None:
    program = """
import sys
from pathlib import Path
from harness.judge.__main__ import share_what_is_made
from harness.judge.workers.cache import ExtensionCache
from harness.worker.cuda_on_cpu import support
share_what_is_made()
cache = ExtensionCache(Path(sys.argv[1]) / "cache", Path(sys.argv[2]), "cpu")
support._obtain(cache.support, "runtime-1", lambda folder: (folder / "it.so").touch())
"""
    (open_folder / "solution.py").write_text("")
    words = [sys.executable, "-c", program, str(open_folder), str(open_folder / "solution.py")]
    subprocess.run(words, cwd=PROJECT_ROOT, check=True, umask=0o077)
    made = [*(open_folder / "cache").rglob("*"), open_folder / "cache"]
    assert any(path.name == "it.so" for path in made)
    for path in made:
        if path.name != ".lock":
            assert path.stat().st_mode & 0o004, path
            assert not path.is_dir() or path.stat().st_mode & 0o001, path


def test_solution_that_the_user_may_not_read_is_skipped_with_the_next_step(
    make_pair: Callable[..., Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair("p/s")

    def refused(path: Path, **how: str) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preflight, "read_settings", lambda path: Settings())
    monkeypatch.setattr(Path, "read_text", refused)
    said = "Permission denied. Next: let the user who runs this read it"
    with pytest.raises(Refusal, match=said) as refusal:
        preflight.preflight(pair, Options(device="cpu"))
    assert refusal.value.status is Status.SKIPPED


def test_worker_whose_memory_cannot_be_looked_at_is_not_timed(tmp_path: Path) -> None:
    """Seen on kernels that close /proc/self/mem: it was a fault of the harness."""
    (tmp_path / "reference.py").write_text(REFERENCE)
    (tmp_path / "solution.py").write_text(REFERENCE.replace("Model", "ModelNew"))
    program = """
import json, os, sys
from pathlib import Path
from harness.domain import Options, Pair, to_json
from harness.judge.workers import remote
from harness.judge.judge import Judge
from harness.pairs.settings import Settings
remote.ipc.Channel.take_fds = lambda self: []
pair = Pair(name="p", problem=Path(sys.argv[1]), solution=Path(sys.argv[2]))
log = Path(sys.argv[3])
options = Options(device="cpu", quick=True, seed=1)
judge = Judge(pair, options, Settings(), log, lambda *e, **f: None, lambda what, need: None)
print(json.dumps(to_json(judge.verdict())))
os._exit(0 if not sys.stdout.flush() else 1)
"""
    words = [str(tmp_path / name) for name in ("reference.py", "solution.py", "log")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=PROJECT_ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["status"] == "PASSED", verdict["message"]
    assert verdict["speed"]["speedup"] is None
    assert "/proc/self/mem" in verdict["speed"]["note"]


def test_user_namespace_gets_a_user_id_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rootless containers map some 65536 ids: what lies beyond cannot be changed to."""
    whole = identity.fresh_uid()
    monkeypatch.setattr(Path, "read_text", lambda path: "         0     100000      65536\n")
    mapped = identity.fresh_uid()
    assert 50_000 <= mapped < 60_000
    assert whole == mapped or whole > 1_000_000_000
