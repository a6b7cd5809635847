"""What Nsight Compute writes is read with its units, and what cannot be read is said."""

from __future__ import annotations

import pytest

from harness.judge.timing.ncu_report import Unreadable, complaints, read_report

STALLED = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","dram__bytes_read.sum","dram__bytes_write.sum",'
    '"gpu__time_duration.sum","launch__registers_per_thread",'
    '"sm__warps_active.avg.pct_of_peak_sustained_active",'
    f'"{STALLED.format("barrier")}","{STALLED.format("long_scoreboard")}",'
    f'"{STALLED.format("not_selected")}","{STALLED.format("selected")}",'
    f'"{STALLED.format("long_scoreboard_not_issued")}"'
)
UNITS = (
    '"","","","","","","","","","","","Gbyte","Mbyte","usecond","register/thread","%",'
    '"inst","inst","inst","inst","inst"'
)
FIRST = (
    '"0","4711","python3.12","127.0.0.1","void norm_kernel<4>(float const*, float*, int)","1","13",'
    '"(256, 1, 1)","(8192, 1, 1)","0","9.0","2.15","537.13","1,234.50","40","87.25",'
    '"0.51","12.75","30.5","1.00","11.9"'
)
SECOND = (
    '"1","4711","python3.12","127.0.0.1","copy","1","13","(32, 1, 1)","(1, 1, 1)","0","9.0",'
    '"0","n/a","3.10","16","6.02","0","0","0","1.00","0"'
)
REPORT = f"""\
==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "norm_kernel" - 0: 0%....50%....100% - 9 passes
==PROF== Profiling "copy" - 1: 0%....50%....100% - 9 passes
==PROF== Disconnected from process 4711
{HEAD}
{UNITS}
{FIRST}
{SECOND}
"""


def test_report_is_read_in_our_units() -> None:
    first, second = read_report(REPORT)
    assert first.name == "void norm_kernel<4>(float const*, float*, int)"
    assert first.duration_ms == pytest.approx(1.2345)
    assert first.dram_read_bytes == 2_150_000_000
    assert first.dram_write_bytes == 537_130_000
    assert first.occupancy == pytest.approx(0.8725)
    assert first.registers == 40
    assert second.name == "copy"
    assert second.dram_read_bytes == 0
    assert second.dram_write_bytes is None


def test_top_stall_is_the_largest_that_holds_a_warp_up() -> None:
    first, second = read_report(REPORT)
    assert (first.stall, first.stall_cycles) == ("long scoreboard", 12.75)
    assert (second.stall, second.stall_cycles) == ("", None)


def test_stalls_of_older_versions_are_read_too() -> None:
    older = REPORT.replace("warps_issue_stalled", "warp_latency_issue_stalled").replace(
        "_per_issue_active", ""
    )
    assert read_report(older)[0].stall == "long scoreboard"


@pytest.mark.parametrize(
    ("unit", "milliseconds"),
    [
        ("nsecond", 1.2345e-3),
        ("ns", 1.2345e-3),
        ("us", 1.2345),
        ("msecond", 1234.5),
        ("s", 1234500),
    ],
)
def test_every_unit_of_time_is_known(unit: str, milliseconds: float) -> None:
    (first, _) = read_report(REPORT.replace('"usecond"', f'"{unit}"'))
    assert first.duration_ms == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("unit", "read"),
    [("byte", 2), ("Kbyte", 2150), ("MB", 2_150_000), ("Tbyte", 2150 * 10**9)],
)
def test_every_unit_of_memory_is_known(unit: str, read: int) -> None:
    (first, _) = read_report(REPORT.replace('"Gbyte"', f'"{unit}"'))
    assert first.dram_read_bytes == read


def test_figure_in_an_unknown_unit_is_left_out() -> None:
    (first, _) = read_report(REPORT.replace('"usecond"', '"fortnight"'))
    assert first.duration_ms is None
    assert first.registers == 40


def test_names_of_any_length_are_cut() -> None:
    (first, _) = read_report(REPORT.replace("norm_kernel<4>", "n" * 5000))
    assert len(first.name) == 300


@pytest.mark.parametrize(
    "text",
    [
        "",
        "==PROF== Connected to process 4711 (/usr/bin/python3.12)\n",
        f"{HEAD}\n{UNITS}\n",
        f'{HEAD}\n{UNITS}\n{FIRST[:-20]}\n"open',
        '"ID","Metric Name"\n"","x"\n"0","y"\n',
        "\x00\x01\x02",
    ],
    ids=["empty", "no table", "no row", "cut off", "another page", "bytes"],
)
def test_report_without_kernels_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        read_report(text)


def test_complaints_are_ncus_own_words() -> None:
    text = "==PROF== Connected\n==ERROR== ERR_NVGPUCTRPERM - The user has no   permission\n"
    assert complaints(text) == ["ERR_NVGPUCTRPERM - The user has no permission"]
