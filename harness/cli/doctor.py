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


def _python() -> Iterator[Finding]:
    yield Finding(
        what="machine",
        level=OK,
        fact=f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {platform.platform()}",
    )
    old = sys.version_info < (3, 10)
    yield Finding(
        what="python",
        level=FAULT if old else OK,
        fact=f"{platform.python_version()} at {sys.executable}",
        remedy="install Python 3.10 or newer" if old else "",
    )
    names = ("ninja", "numpy", "rich", "tabulate")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(
            what="packages",
            level=FAULT,
            fact=f"missing: {', '.join(missing)}",
            remedy=f"{sys.executable} -m pip install {' '.join(missing)}, or make eval",
        )


def _torch() -> Iterator[Finding]:
    build = torch_build()
    if build is None:
        yield Finding(
            what="torch",
            level=FAULT,
            fact="not installed",
            remedy="make eval installs it; or pip install torch",
        )
        return
    error = _error_of(sys.executable, "-c", "import torch; torch.ones(1)")
    yield Finding(
        what="torch",
        level=FAULT if error else OK,
        fact=f"{build.version}, built {'for CUDA ' + build.cuda if build.cuda else 'without CUDA'}"
        + (f", but cannot be imported: {error}" if error else ""),
        remedy="reinstall torch" if error else "",
    )


def _compilers() -> Iterator[Finding]:
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        yield Finding(
            what="C++ compiler",
            level=FAULT,
            fact=f"CXX={named} was not found" if named else "c++, g++ and clang++ were not found",
            remedy="apt-get install g++, or set CXX",
        )
    else:
        error = _compile(compiler)
        yield Finding(
            what="C++ compiler",
            level=FAULT if error else OK,
            fact=said(compiler, "--version").partition("\n")[0]
            + (f", but it cannot compile C++17: {error}" if error else ""),
            remedy="apt-get install g++ (9 or newer)" if error else "",
        )
    ninja = shutil.which("ninja") or importlib.util.find_spec("ninja")
    if not ninja:
        yield Finding(
            what="ninja", level=FAULT, fact="not found", remedy="pip install ninja, or make eval"
        )
    build, nvcc = torch_build(), find_nvcc()
    wanted = build.cuda if build else None
    if nvcc is None:
        yield Finding(
            what="nvcc",
            level=NOTE,
            fact="not found: no CUDA source can be built for a GPU here",
            remedy=nvcc_remedy() if nvcc_needed() else "not needed without a GPU",
        )
        return
    release = nvcc_version(nvcc)
    toolkit = packaged_toolkit()
    packaged = toolkit is not None and Path(nvcc).parent.parent == toolkit
    clash = bool(wanted and release and wanted.split(".")[0] != release.split(".")[0])
    yield Finding(
        what="nvcc",
        level=NOTE if clash else OK,
        fact=f"{release} at {nvcc}"
        + (", from a package of this environment" if packaged else "")
        + (f"; torch is built for CUDA {wanted}" if wanted else ""),
        remedy=f"torch needs the same major version: set CUDA_HOME to CUDA {wanted}"
        if clash
        else "",
    )


def _gpus() -> Iterator[Finding]:
    gpus, build, driver = find_gpus(), torch_build(), driver_version()
    if not gpus.devices:
        fact = gpus.problem + (f"; driver {driver}" if driver else "")
        yield Finding(
            what="GPU",
            level=NOTE,
            fact=fact,
            remedy="not needed: --device auto runs the CUDA source on the CPU (emulated), untimed",
        )
        return
    for gpu in gpus.devices:
        major, minor = gpu.capability
        old = gpu.capability < (7, 5)
        yield Finding(
            what=f"GPU cuda:{gpu.index}",
            level=NOTE if old else OK,
            fact=f"{gpu.name}, sm_{major}{minor}, {gpu.memory_bytes / 1024**3:.0f} GiB",
            remedy="use a GPU of compute capability 7.5 or newer" if old else "",
        )
    cuda = build.cuda if build else None
    too_new = bool(cuda and gpus.cuda and int(cuda.split(".")[0]) > int(gpus.cuda.split(".")[0]))
    remedy = ""
    if cuda is None:
        remedy = "this torch cannot use the GPU: install a CUDA build of torch"
    elif too_new:
        remedy = f"install a newer driver, or a torch built for CUDA {gpus.cuda} or older"
    yield Finding(
        what="driver",
        level=NOTE if remedy else OK,
        fact=f"{driver or 'version unknown'}, supports CUDA {gpus.cuda}",
        remedy=remedy,
    )
    if cuda and not too_new:
        yield from _architectures([gpu.capability for gpu in gpus.devices])


def _architectures(capabilities: list[tuple[int, int]]) -> Iterator[Finding]:
    """Compare torch's architectures with those of the GPUs."""
    program = "import torch; print(torch.cuda.is_available(), *torch.cuda.get_arch_list())"
    words = said(sys.executable, "-c", program).split()
    if words[:1] != ["True"]:
        yield Finding(
            what="torch on the GPU",
            level=NOTE,
            fact="torch.cuda.is_available() is not True",
            remedy=f'{sys.executable} -c "import torch; torch.ones(1).cuda()" prints the reason',
        )
        return
    compiled = {tuple(divmod(int(n), 10)) for n in re.findall(r"(?:sm|compute)_(\d+)", str(words))}
    missing = [c for c in capabilities if not any(a[0] == c[0] and a <= c for a in compiled)]
    yield Finding(
        what="architectures",
        level=NOTE if missing else OK,
        fact=f"torch is compiled for {', '.join(words[1:])}",
        remedy=f"it lacks {', '.join(f'sm_{a}{b}' for a, b in missing)}: install a torch with it"
        if missing
        else "",
    )


def _memory_and_disk() -> Iterator[Finding]:
    cache = cache_folder()
    free, size = shutil.disk_usage(cache).free, _folder_bytes(cache)
    short = free < _DISK_NEEDED_BYTES
    yield Finding(
        what="cache",
        level=NOTE if short else OK,
        fact=f"{cache}: {size / 1024**2:.0f} MiB used, {free / 1024**3:.0f} GiB free on its disk"
        + ("" if cache.parent == PROJECT_ROOT else f"; {PROJECT_ROOT} is read-only"),
        remedy="free space on this disk" if short else "",
    )
    free = available_bytes()
    short = free < _MEMORY_NEEDED_BYTES
    yield Finding(
        what="memory",
        level=NOTE if short else OK,
        fact=f"{free / 1024**3:.1f} GiB available, enough for --jobs {default_jobs(on_gpu=False)}",
        remedy="run with --jobs 1 --size small, or use a larger machine" if short else "",
    )
    try:
        os.close(os.memfd_create("doctor", os.MFD_ALLOW_SEALING))
    except OSError as error:
        yield Finding(
            what="shared memory",
            level=FAULT,
            fact=f"the system refuses memfd_create: {error.strerror}",
            remedy="allow it in the seccomp profile: judge and workers share tensors through it",
        )


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
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    if scope == "0" and not root:
        yield Finding(
            what="ptrace",
            level=NOTE,
            fact="kernel.yama.ptrace_scope is 0, so processes of one user may trace each other",
            remedy="sysctl kernel.yama.ptrace_scope=1",
        )
    if not find_gpus().devices:
        return
    yield _nvml()
    yield _counters()


def _nvml() -> Finding:
    try:
        code = ctypes.CDLL("libnvidia-ml.so.1").nvmlInit_v2()
    except OSError:
        code = -1
    return Finding(
        what="NVML",
        level=NOTE if code else OK,
        fact=f"NVML fails with error {code}: no clocks, power, temperature"
        if code
        else "clocks, power and temperature can be read",
        remedy="in a container: set NVIDIA_DRIVER_CAPABILITIES=compute,utility" if code else "",
    )


def _counters() -> Finding:
    ncu = find_ncu()
    if ncu is None:
        return Finding(
            what="ncu",
            level=NOTE,
            fact="not found: --ncu cannot measure kernels",
            remedy="install nsight-compute, a part of the CUDA toolkit",
        )
    # For root, too: a solution is profiled without root's rights.
    refused = "RmProfilingAdminOnly: 1" in _read("/proc/driver/nvidia/params")
    return Finding(
        what="ncu",
        level=NOTE if refused else OK,
        fact=ncu + (", but the driver allows its counters to root only" if refused else ""),
        remedy="put options nvidia NVreg_RestrictProfilingToAdminUsers=0 into /etc/modprobe.d"
        if refused
        else "",
    )


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
