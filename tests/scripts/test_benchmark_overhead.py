"""The benchmark's bookkeeping: which rounds count, how ratios are formed, what harness records and writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.harness import (
    MemoryWatch,
    apart,
    describe_machine,
    run_logged,
    spread,
    table,
    write_page,
)
from scripts.benchmarks.overhead import AGAIN, MEASURES, Bench, Settings, measure_table

WALL, RATE = MEASURES[2], MEASURES[0]
SECONDS = {"plain": 2.0, "LocBAMTrainer": 3.0, AGAIN: 2.0}


def make_bench(folder: Path, settings: Settings) -> Bench:
    return Bench(folder, folder / "records.json", ["LocBAMTrainer"], 2, "cpu", 1, settings)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, Settings(volume=64))


def fake(bench: Bench, part: str = "predict") -> list[tuple[str, int]]:
    """Measures with a method that returns the given seconds; returns its calls."""
    calls = []

    def method(trainer: str, number: int) -> dict[str, float]:
        calls.append((trainer, number))
        return {"seconds": SECONDS[trainer] * (number + 1), "cpu": 1.0, "load": 0.5, "rss": 0, "pss": 0}

    bench.measure(part, method)
    return calls


def test_trainers_alternate_and_rounds_start_elsewhere(bench: Bench) -> None:
    calls = fake(bench)
    assert [v for v, _ in calls] == ["plain", "LocBAMTrainer", AGAIN, "LocBAMTrainer", AGAIN, "plain"]
    assert [n for _, n in calls] == [0, 0, 0, 1, 1, 1]


def test_a_broken_off_round_is_measured_again_and_complete_ones_are_kept(bench: Bench) -> None:
    fake(bench)
    lines = bench.records.file.read_text().splitlines()
    bench.records.file.write_text("\n".join(lines[:-1]) + "\n")
    assert [n for _, n in fake(bench)] == [1, 1, 1]
    assert fake(bench) == []


def test_loader_and_step_are_warmed_up(bench: Bench) -> None:
    assert [n for _, n in fake(bench, "step")][:3] == [10_000] * 3
    assert fake(bench, "step") == []


def test_records_of_other_settings_and_machines_do_not_count(bench: Bench, tmp_path: Path) -> None:
    fake(bench)
    assert len(bench.complete("predict")) == 2
    assert make_bench(tmp_path, Settings()).complete("predict").empty
    bench.machine = {**bench.machine, "processor": "Abacus"}
    assert bench.complete("predict").empty


def test_ratios_are_of_the_same_round(bench: Bench) -> None:
    fake(bench, "step")
    rows = measure_table(bench, WALL)
    assert "| `LocBAMTrainer` | 4.50 (3.00 - 6.00) | 1.500 (1.500 - 1.500) | <= 1.05 |" in rows
    assert "| plain nnU-Net again (noise) | 3.00 (2.00 - 4.00) | 1.000 (1.000 - 1.000) |  |" in rows


def test_rates_are_inverted(bench: Bench) -> None:
    fake(bench, "loader")
    assert "| `LocBAMTrainer` | 0.25 (0.17 - 0.33) | 0.667 (0.667 - 0.667) |" in measure_table(bench, RATE)


def test_what_was_not_measured_has_no_table(bench: Bench) -> None:
    assert [measure_table(bench, measure) for measure in MEASURES] == [""] * len(MEASURES)
    fake(bench)
    assert [m.name for m in MEASURES if m.part == "predict" and measure_table(bench, m)] == ["seconds", "cpu"]


def test_spread_of_one_value_has_no_range() -> None:
    assert spread([1.25], 2) == "1.25"


def test_page_has_paragraphs_and_tables(tmp_path: Path) -> None:
    write_page(tmp_path / "page.md", "Title", "text\n", table(("a", "b"), [(1, 2)]), table(("c",), []), None)
    assert (tmp_path / "page.md").read_text() == "# Title\n\ntext\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_memory_of_a_process_tree_is_seen() -> None:
    child = "b = bytearray(200 * 2**20); import time; time.sleep(3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with MemoryWatch() as watch, subprocess.Popen([sys.executable, "-c", parent]) as process:
        watch.follow(process)
        process.wait()
    assert 200 * 2**20 < watch.rss < 400 * 2**20
    if Path("/proc/self/smaps_rollup").exists():
        assert 200 * 2**20 < watch.pss <= watch.rss


def test_a_failing_command_shows_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with [^0](.|\n)*no-such-file"):
        run_logged(["python", "no-such-file.py"], tmp_path / "log")


def test_a_new_process_measures_and_says_why_it_could_not() -> None:
    machine = apart("harness.describe_machine", "cpu")  # type: ignore[arg-type]
    assert machine == describe_machine("cpu")
    with pytest.raises(RuntimeError, match="no attribute 'no_such'"):
        apart("harness.no_such", {})


def test_records_are_json_lines(bench: Bench) -> None:
    fake(bench)
    records = [json.loads(line) for line in bench.records.file.read_text().splitlines()]
    assert {r["trainer"] for r in records} == set(SECONDS)
