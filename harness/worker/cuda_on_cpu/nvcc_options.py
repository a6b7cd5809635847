"""nvcc's options in all their forms: reads extra_cuda_cflags as nvcc would, without asking it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.domain import BuildFailed

RELEASE = "13.0"

# An option a line, as ``nvcc --help`` of that release lists them: long name, short name (= where
# it is the same), and the value it takes: * any, # a number, else one of these; a comma where it
# takes a list. tests/emulator/test_nvcc_options.py compares this with nvcc.
TABLE = """
cuda =
cubin =
fatbin =
ptx =
optix-ir =
ltoir =
preprocess E
generate-dependencies M
generate-nonsystem-dependencies MM
generate-dependencies-with-compile MD
generate-nonsystem-dependencies-with-compile MMD
dependency-output MF
generate-dependency-targets MP
compile c
device-c dc
device-w dw
device-link dlink
link =
lib =
run =
output-file o *
pre-include include *,
objdir-as-tempdir objtemp
library l *,
define-macro D *,
undefine-macro U *,
include-path I *,
system-include isystem *,
library-path L *,
output-directory odir *
compiler-bindir ccbin *
allow-unsupported-compiler =
archiver-binary arbin *
cudart = none|shared|static
cudadevrt = none|static
libdevice-directory ldir *
target-directory target-dir *
use-local-env =
force-cl-env-setup =
profile pg
debug g
device-debug G
generate-line-info lineinfo
optimization-info opt-info inline,
optimize O #
Ofast-compile Ofc 0|max|mid|min
dopt = on
dlink-time-opt dlto
lto =
gen-opt-lto =
ftemplate-backtrace-limit = #
ftemplate-depth = #
no-exceptions noeh
shared =
x = c|c++|cu
std = c++03|c++11|c++14|c++17|c++20
no-host-device-initializer-list nohdinitlist
no-host-device-move-forward nohdmoveforward
expt-relaxed-constexpr =
extended-lambda =
expt-extended-lambda =
machine m 64
m64 =
compiler-options Xcompiler *,
linker-options Xlinker *,
archive-options Xarchive *,
ptxas-options Xptxas *,
nvlink-options Xnvlink *,
static-global-template-stub = false|true
device-entity-has-hidden-visibility = false|true
forward-unknown-to-host-compiler =
forward-unknown-to-host-linker =
forward-unknown-opts =
dont-use-profile noprof
dryrun =
verbose v
threads t #
split-compile = #
split-compile-extended = #
fdevice-syntax-only =
fdevice-time-trace = *
keep =
keep-dir = *
save-temps =
clean-targets clean
time = *
run-args = *,
input-drive-prefix idp *
dependency-drive-prefix ddp *
drive-prefix dp *
dependency-target-name MT *
no-align-double =
no-device-link nodlink
gpu-architecture arch *
gpu-code code *,
generate-code gencode *,
relocatable-device-code rdc false|true
entries e *,
maxrregcount = #
use_fast_math =
ftz = false|true
prec-div = false|true
prec-sqrt = false|true
fmad = false|true
extra-device-vectorization =
default-stream = legacy|null|per-thread
disable-warnings w
keep-device-functions =
source-in-ptx src-in-ptx
restrict =
Wreorder =
Wdefault-stream-launch =
Wmissing-launch-bounds =
Wext-lambda-captures-this =
Wno-deprecated-declarations =
Wno-deprecated-gpu-targets =
Werror = all-warnings|cross-execution-space-call|default-stream-launch|deprecated-declarations|ext-lambda-captures-this|missing-launch-bounds|reorder,
resource-usage res-usage
extensible-whole-program ewp
no-compress =
qpp-config =
compile-as-tools-patch astoolspatch
list-gpu-code code-ls
list-gpu-arch arch-ls
display-error-number err-no
no-display-error-number no-err-no
diag-error = #,
diag-suppress = #,
diag-warn = #,
host-linker-script hls gen-lcs|use-lcs
augment-host-linker-script aug-hls
relocatable-link r
brief-diagnostics brief-diag false|true
jump-table-density jtd #
relocatable-ptx reloc-ptx
device-stack-protector = false|true
compress-mode = *
frandom-seed = *
sanitize = *
jobserver =
help h
version V
options-file optf *,
"""  # noqa: E501

# What nvcc takes and its help does not list.
_UNLISTED = """
fatbin-options Xfatbin *,
cudafe-options Xcudafe *,
cicc-options Xcicc *,
relaxed-constexpr =
"""

_ATTACHED = "DILOUlt"
"""One-letter options whose value may follow without a blank: ``-O3``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option as it was given.

    Attributes:
        name: its long name.
        value: "" for an option that takes none.
    """

    name: str
    value: str


def _options() -> dict[str, tuple[str, str]]:
    """Return long name and kind of value by spelling."""
    found = {}
    for line in [*TABLE.split("\n"), *_UNLISTED.split("\n")]:
        if line:
            long, short, kind = f"{line}  ".split(" ")[:3]
            found[f"--{long}"] = long, kind
            found[f"-{long if short == '=' else short}"] = long, kind
    return found


_OPTIONS = _options()


def read_flags(words: Sequence[str]) -> list[Flag]:
    """Return the options that words of a command line give.

    Raises:
        BuildFailed: nvcc refuses one of them; the message is ours.
    """
    forwards = any(_OPTIONS.get(w, ("",))[0].startswith("forward-unknown") for w in words)
    flags = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        spelling, equals, value = word.partition("=")
        if word not in _OPTIONS and spelling not in _OPTIONS and word[1:2] in set(_ATTACHED):
            spelling, equals, value = word[:2], "=", word[2:]
        if spelling not in _OPTIONS or not word.startswith("-"):
            if forwards and word.startswith("-"):
                continue
            raise _refused(word)
        name, kind = _OPTIONS[spelling]
        if not kind and equals:
            raise BuildFailed(f"extra_cuda_cflags: nvcc's {spelling} takes no value: {word!r}")
        if kind and not equals:
            if not rest:
                raise BuildFailed(f"extra_cuda_cflags: nvcc's {spelling} needs a value after it")
            value = rest.pop(0)
        _check(spelling, value, kind)
        flags.append(Flag(name=name, value=value))
    return flags


def _refused(word: str) -> BuildFailed:
    if not word.startswith("-"):
        return BuildFailed(
            f"extra_cuda_cflags: {word!r} belongs to no option; nvcc takes it for a source file"
        )
    advice = f"; a flag for the host compiler is written -Xcompiler {word}"
    host = re.match(r"-[WfmpsO]|-l?pthread", word) and not word.startswith("--")
    return BuildFailed(
        f"extra_cuda_cflags: nvcc {RELEASE} has no option {word!r}" + (advice if host else "")
    )


def _check(spelling: str, value: str, kind: str) -> None:
    values = value.split(",") if kind.endswith(",") else [value]
    allowed = kind.removesuffix(",")
    for part in values:
        if allowed in ("", "*"):
            continue
        if allowed == "#":
            if re.fullmatch(r"\d*", part):
                continue
            allowed = "a number"
        elif part in allowed.split("|"):
            continue
        raise BuildFailed(f"extra_cuda_cflags: nvcc's {spelling} takes {allowed}, not {part!r}")
