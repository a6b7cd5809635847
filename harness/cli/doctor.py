"""``--doctor``: checks this machine, and names a remedy for each fault."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.fleet.devices import available_bytes, default_jobs
from harness.machine.environment import (
    PROJECT_ROOT,
    cpu_name,
    driver_version,
    find_compiler,
    find_ncu,
    find_nvcc,
    nvcc_version,
    packaged_toolkit,
    said,
    torch_build,
)
from harness.machine.folders import cache_folder
from harness.machine.gpus import find_gpus
from harness.machine.packaged_nvcc import needed as nvcc_needed
from harness.machine.packaged_nvcc import remedy as nvcc_remedy

OK, NOTE, FAULT = "ok", "note", "FAULT"

_SHARED_USER = (
    "from pathlib import Path; from harness.judge.workers import identity; "
    "print(identity.confinement(Path(identity.__file__), []).note)"
)
"""Prints why a candidate would run under the judge's user id. It runs in a process of its own,
because it imports the judge's code and torch."""
_DISK_NEEDED_BYTES = 2 * 1024**3
_MEMORY_NEEDED_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the page.

    Attributes:
        what: the part of the machine.
        level: ok; note: something will be missing or skipped; FAULT: no pair can be evaluated.
        fact: its state.
        remedy: what the user can do; empty if nothing is needed.
    """

    what: str
    level: str
    fact: str
    remedy: str = ""


def main() -> int:
    """Print the page; return 1 if it has a FAULT, else 0."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.level:>5}  {finding.what:<{width}}  {finding.fact}")
        if finding.remedy:
            print(f"{'':>5}  {'':<{width}}  -> {finding.remedy}")
    faults = sum(finding.level == FAULT for finding in findings)
    gpu = bool(find_gpus().devices) and bool((build := torch_build()) and build.cuda)
    print()
    if faults:
        print(
            f"{faults} fault(s). Next: follow the remedy below each FAULT, then run --doctor again"
        )
        return 1
    print(f"pairs can be evaluated here on: {'cuda, ' if gpu else ''}emulated, cpu")
    return 0


def examine() -> list[Finding]:
    """Return every finding, in the order in which to follow the remedies."""
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _torch,
        _compilers,
        _gpus,
        _memory_and_disk,
        _rights,
    )
    return [finding for part in parts for finding in part()]


def _finding(what: str, fact: str, remedy: str = "", level: str = NOTE) -> Finding:
    """Return a finding, which is ok if it needs no remedy."""
    return Finding(what=what, level=level if remedy else OK, fact=fact, remedy=remedy)


def _python() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield _finding("machine", f"{cpu_name()}, {cores} cores, {platform.platform()}")
    remedy = "install Python 3.10 or newer" if sys.version_info < (3, 10) else ""
    yield _finding("python", f"{platform.python_version()} at {sys.executable}", remedy, FAULT)
    names = ("ninja", "numpy", "rich", "tabulate")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f"{sys.executable} -m pip install {' '.join(missing)}, or make eval"
        yield _finding("packages", f"missing: {', '.join(missing)}", remedy, FAULT)


def _torch() -> Iterator[Finding]:
    build = torch_build()
    if build is None:
        remedy = "make eval installs it; or pip install torch"
        yield _finding("torch", "not installed", remedy, FAULT)
        return
    fact = f"{build.version}, built {'for CUDA ' + build.cuda if build.cuda else 'without CUDA'}"
    error = _error_of(sys.executable, "-c", "import torch; torch.ones(1)")
    if error:
        fact += f", but cannot be imported: {error}"
    yield _finding("torch", fact, "reinstall torch" if error else "", FAULT)


def _compilers() -> Iterator[Finding]:
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        fact = f"CXX={named} was not found" if named else "c++, g++ and clang++ were not found"
        yield _finding("C++ compiler", fact, "apt-get install g++, or set CXX", FAULT)
    else:
        fact, error = said(compiler, "--version").partition("\n")[0], _compile(compiler)
        if error:
            fact += f", but it cannot compile C++17: {error}"
        remedy = "apt-get install g++ (9 or newer)" if error else ""
        yield _finding("C++ compiler", fact, remedy, FAULT)
    if not (shutil.which("ninja") or importlib.util.find_spec("ninja")):
        yield _finding("ninja", "not found", "pip install ninja, or make eval", FAULT)
    yield _nvcc()


def _nvcc() -> Finding:
    build, nvcc = torch_build(), find_nvcc()
    if nvcc is None:
        remedy = nvcc_remedy() if nvcc_needed() else "not needed without a GPU"
        return _finding("nvcc", "not found: no CUDA source can be built for a GPU here", remedy)
    wanted, release, toolkit = build.cuda if build else None, nvcc_version(nvcc), packaged_toolkit()
    fact = f"{release} at {nvcc}"
    if toolkit is not None and Path(nvcc).parent.parent == toolkit:
        fact += ", from a package of this environment"
    if wanted:
        fact += f"; torch is built for CUDA {wanted}"
    remedy = ""
    if wanted and release and wanted.split(".")[0] != release.split(".")[0]:
        remedy = f"torch needs the same major version: set CUDA_HOME to CUDA {wanted}"
    return _finding("nvcc", fact, remedy)


def _gpus() -> Iterator[Finding]:
    gpus, build, driver = find_gpus(), torch_build(), driver_version()
    if not gpus.devices:
        remedy = "not needed: --device auto runs the CUDA source on the CPU (emulated), untimed"
        yield _finding("GPU", gpus.problem + (f"; driver {driver}" if driver else ""), remedy)
        return
    for gpu in gpus.devices:
        major, minor = gpu.capability
        remedy = "use a GPU of compute capability 7.5 or newer" if gpu.capability < (7, 5) else ""
        fact = f"{gpu.name}, sm_{major}{minor}, {gpu.memory_bytes / 1024**3:.0f} GiB"
        yield _finding(f"GPU cuda:{gpu.index}", fact, remedy)
    cuda = build.cuda if build else None
    too_new = bool(cuda and gpus.cuda and int(cuda.split(".")[0]) > int(gpus.cuda.split(".")[0]))
    remedy = ""
    if cuda is None:
        remedy = "this torch cannot use the GPU: install a CUDA build of torch"
    elif too_new:
        remedy = f"install a newer driver, or a torch built for CUDA {gpus.cuda} or older"
    yield _finding("driver", f"{driver or 'version unknown'}, supports CUDA {gpus.cuda}", remedy)
    if cuda and not too_new:
        yield _architectures([gpu.capability for gpu in gpus.devices])


def _architectures(capabilities: list[tuple[int, int]]) -> Finding:
    """Compare torch's architectures with those of the GPUs."""
    program = "import torch; print(torch.cuda.is_available(), *torch.cuda.get_arch_list())"
    words = said(sys.executable, "-c", program).split()
    if words[:1] != ["True"]:
        remedy = f'{sys.executable} -c "import torch; torch.ones(1).cuda()" prints the reason'
        return _finding("torch on the GPU", "torch.cuda.is_available() is not True", remedy)
    compiled = {tuple(divmod(int(n), 10)) for n in re.findall(r"(?:sm|compute)_(\d+)", str(words))}
    missing = [c for c in capabilities if not any(a[0] == c[0] and a <= c for a in compiled)]
    lacking = ", ".join(f"sm_{a}{b}" for a, b in missing)
    remedy = f"it lacks {lacking}: install a torch with it" if missing else ""
    return _finding("architectures", f"torch is compiled for {', '.join(words[1:])}", remedy)


def _memory_and_disk() -> Iterator[Finding]:
    cache = cache_folder()
    free, size = shutil.disk_usage(cache).free, _folder_bytes(cache)
    fact = f"{cache}: {size / 1024**2:.0f} MiB used, {free / 1024**3:.0f} GiB free on its disk"
    if cache.parent != PROJECT_ROOT:
        fact += f"; {PROJECT_ROOT} is read-only"
    yield _finding("cache", fact, "free space on this disk" if free < _DISK_NEEDED_BYTES else "")
    free, jobs = available_bytes(), default_jobs(on_gpu=False)
    remedy = "run with --jobs 1 --size small, or use a larger machine"
    yield _finding(
        "memory",
        f"{free / 1024**3:.1f} GiB available, enough for --jobs {jobs}",
        remedy if free < _MEMORY_NEEDED_BYTES else "",
    )
    try:
        os.close(os.memfd_create("doctor", os.MFD_ALLOW_SEALING))
    except OSError as error:
        fact = f"the system refuses memfd_create: {error.strerror}"
        remedy = "allow it in the seccomp profile: judge and workers share tensors through it"
        yield _finding("shared memory", fact, remedy, FAULT)


def _rights() -> Iterator[Finding]:
    root = os.geteuid() == 0
    shared = said(sys.executable, "-c", _SHARED_USER).strip()
    yield Finding(
        what="sandbox",
        level=NOTE if shared else OK,
        fact=shared or "a candidate runs as a user of its own",
        remedy="run untrusted solutions in a container, as its root user"
        if shared and not root
        else "",
    )
    if _read("/proc/sys/kernel/yama/ptrace_scope") == "0" and not root:
        fact = "kernel.yama.ptrace_scope is 0, so processes of one user may trace each other"
        yield _finding("ptrace", fact, "sysctl kernel.yama.ptrace_scope=1")
    if find_gpus().devices:
        yield _nvml()
        yield _counters()


def _nvml() -> Finding:
    try:
        code = ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2()
    except OSError:
        code = -1
    if not code:
        return _finding("NVML", "clocks, power and temperature can be read")
    remedy = "in a container: set NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    return _finding("NVML", f"it fails with error {code}: no clocks, power, temperature", remedy)


def _counters() -> Finding:
    ncu = find_ncu()
    if ncu is None:
        remedy = "install nsight-compute, a part of the CUDA toolkit"
        return _finding("ncu", "not found: --ncu cannot measure kernels", remedy)
    # For root, too: a solution is profiled without root's rights.
    if "RmProfilingAdminOnly: 1" not in _read("/proc/driver/nvidia/params"):
        return _finding("ncu", ncu)
    remedy = "put options nvidia NVreg_RestrictProfilingToAdminUsers=0 into /etc/modprobe.d"
    return _finding("ncu", f"{ncu}, but the driver allows its counters to root only", remedy)


def _compile(compiler: str) -> str:
    """Return why a C++17 program does not compile and link; empty if it does."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "doctor.cpp"
        source.write_text("#include <optional>\nint main() { return *std::optional<int>{0}; }\n")
        return _error_of(compiler, "-std=c++17", str(source), "-o", str(source.with_suffix("")))


def _error_of(*command: str) -> str:
    """Return the last line that a failing command prints; empty if it succeeds."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it did not end within 120 s"
    except OSError as error:
        return str(error)
    if not done.returncode:
        return ""
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
