"""Flags for nvcc are taken and refused as nvcc does; where nvcc is installed it is asked."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from harness.domain import BuildFailed
from harness.machine.environment import find_nvcc, nvcc_version
from harness.worker.cuda_on_cpu.nvcc_options import RELEASE, TABLE
from harness.worker.cuda_on_cpu.toolchain import cuda_flags

NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(
    NVCC is None or nvcc_version(NVCC) != RELEASE, reason=f"nvcc {RELEASE} is not installed here"
)

TAKEN = re.split(
    ";",
    "-std=c++17;-std c++17;--std c++17;--default-stream per-thread;-default-stream=per-thread;"
    "--diag-suppress 177;-diag-suppress=177,550;--relocatable-device-code=true;-rdc true;-dlto;"
    "--dlink-time-opt;-Xfatbin -compress-all;-Xfatbin=-compress-all;-Xcudafe --diag_suppress=1;"
    "-x cu;-x=cu;-O3;-O 3;-O=3;--optimize=3;-DX;-D X;-D=X;--define-macro=X;-I.;-I .;-I=.;"
    "--include-path .;-isystem .;-isystem=.;-include a.h;--pre-include=a.h;-lfoo;-l foo;-L.;"
    "-Xcompiler -Wall,-fopenmp;-Xcompiler=-Wall;--compiler-options -fopenmp;-Xptxas -O3,-v;"
    "-Xptxas=-v;--ptxas-options=-v;-use_fast_math;--use_fast_math;-expt-relaxed-constexpr;"
    "--relaxed-constexpr;--extended-lambda;-lineinfo;--generate-line-info;-arch=sm_90;-arch sm_90;"
    "--gpu-architecture=sm_90;-gencode arch=compute_80,code=sm_80;"
    "-gencode=arch=compute_80,code=[sm_80,compute_80];-maxrregcount 64;--maxrregcount=64;"
    "-ftz=true;--ftz true;-fmad=false;--prec-sqrt=false;-t 4;-t4;--threads=4;-m64;-m 64;"
    "--machine=64;-shared;-Wno-deprecated-gpu-targets;-Werror all-warnings;-Werror=reorder;"
    "--forward-unknown-to-host-compiler -Wall;-ffast-math --forward-unknown-opts;-Xlinker -lfoo;"
    "-Xnvlink -v;--split-compile=0;-Ofc max;-src-in-ptx;-res-usage;--keep;-save-temps;-ccbin g++;"
    "-allow-unsupported-compiler;-restrict;--diag-warn=177;-err-no;-O3 -O2;-w -w;-v;-G;-g;"
    "-cudart static;-frandom-seed=1;-ftemplate-depth 100;-brief-diag=true;--compress-mode=size;"
    '-DFOO="a b";-Xcompiler "-fPIC -O3";-O3 --optimize=2;-lineinfo -lineinfo',
)
REFUSED = re.split(
    ";",
    "-Wall;-Wextra;-fopenmp;-ffast-math;-fPIC;-march=native;-mavx2;-pthread;-funroll-loops;-m32;"
    "-Os;-O;-Ofast;-g1;-xcu;-isystem.;-std=c++23;-std=gnu++17;-std=;--lineinfo;-generate-line-info;"
    "-gpu-architecture=sm_90;--arch=sm_90;--gencode arch=compute_80,code=sm_80;--ccbin g++;"
    "--Xptxas -v;-Xptxas-v;-Xcompiler-Wall;-Xcompiler=-Wall -fopenmp;--use-fast-math;"
    "-use_fast_math=true;--expt-relaxed-constexpr=true;--expt_relaxed_constexpr;--maxregcount=64;"
    "-maxrregcount;-maxrregcount=a;-fmad=no;-ftz;--ftz=1;--relocatable-device-code;-rdc;"
    "--default-stream;--default-stream=bogus;-cudart bogus;-diag-suppress a;-Xcompiler;-D;-I;-arch;"
    "--threads4;--O3;--D X;--g;--w;-Werror;-Werror=bogus;-Wno-unused;-Wl,-rpath,x;nonsense;"
    "--nonsense;--fast-as-light;--forward-unknown-to-host-compiler nonsense",
)


@pytest.mark.parametrize("flags", TAKEN)
def test_flag_that_nvcc_takes_is_taken(flags: str) -> None:
    words = re.findall(r'(?:"[^"]*"|\S)+', flags)
    assert cuda_flags([flags]) == cuda_flags(words), "one string or one word each: the same flags"


@pytest.mark.parametrize("flags", REFUSED)
def test_flag_that_nvcc_refuses_fails_the_build_in_words_of_our_own(flags: str) -> None:
    with pytest.raises(BuildFailed, match=r"^extra_cuda_cflags: ") as failure:
        cuda_flags([flags])
    assert "fatal" not in str(failure.value)


def test_host_compilers_flag_is_pointed_at_its_place() -> None:
    with pytest.raises(BuildFailed, match="-Xcompiler -fopenmp"):
        cuda_flags(["-O3", "-fopenmp"])


def test_quote_that_is_not_closed_fails_the_build() -> None:
    with pytest.raises(BuildFailed, match="No closing quotation"):
        cuda_flags(['-DX="a'])


def test_flags_that_change_the_text_reach_the_host_compiler() -> None:
    given = ["-D=A", "-D B=2", "--define-macro", "C", "-UD", "--include-path=/e", "-include f.h"]
    given += ["-isystem=/g", "-Xcompiler=-DH,-O3,-fopenmp", "-arch=sm_90"]
    assert cuda_flags(given)[4:] == [
        *("-DA", "-DB=2", "-DC", "-UD", "-I/e", "-include", "f.h", "-isystem", "/g", "-DH"),
        "-fopenmp",
    ]


@needs_nvcc
def test_nvcc_agrees_about_every_spelling(tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text("")

    def taken(flags: str) -> bool:
        command = f"{NVCC} --dryrun -c a.cu -o a.o {flags}"
        done = subprocess.run(command, shell=True, capture_output=True, cwd=tmp_path)
        return done.returncode == 0

    assert [f for f in TAKEN if not taken(f)] == []
    assert [f for f in REFUSED if taken(f)] == []


@needs_nvcc
def test_table_holds_what_nvccs_help_lists() -> None:
    done = subprocess.run([str(NVCC), "--help"], capture_output=True, text=True, check=True)
    assert TABLE.split("\n")[1:-1] == options_in_help(done.stdout)


def options_in_help(text: str) -> list[str]:
    """Return the table's lines for what ``nvcc --help`` prints."""
    lines = []
    for part in re.split(r"^(?=--\S)", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"--(\S+?)(?: (.+?))?\s+\(?--?(\S+?)\)?\s*\n", part)
        assert head, part
        long, value, short = head.group(1), (head.group(2) or "").strip(), head.group(3)
        comma = "," if value.endswith(",...") else ""
        value = value.removesuffix(",...")
        listed = re.search(r"Allowed values for this option:\s*((?:'[^']*',?\s*)+)", part)
        if listed and long not in ("gpu-architecture", "gpu-code"):  # these differ by release
            kind = "|".join(sorted(re.findall(r"'([^']*)'", listed.group(1))))
        elif value.startswith("{"):
            kind = "|".join(sorted(value.strip("{}").split("|")))
        elif value in ("<number>", "<level>", "<amount>", "<limit>", "<error-number>"):
            kind = "#"
        else:
            kind = "*" if value else ""
        lines.append(f"{long} {'=' if short == long else short} {kind}{comma}".rstrip())
    return lines
