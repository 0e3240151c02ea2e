"""The benchmark's bookkeeping: which rounds count, how ratios are formed, what happens to the page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks.harness import apart, describe_machine
from scripts.benchmarks.overhead import (
    AGAIN,
    BEGIN,
    END,
    GOALS,
    Bench,
    MemoryWatch,
    Settings,
    architecture,
    goal_table,
    replace_section,
    report,
    run_logged,
    spread,
)

WALL, RATE = GOALS[2], GOALS[0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, Settings.quick(), ["LocBAMTrainer"], rounds=2, device="cpu")


def fake(bench: Bench, seconds: dict[str, float], part: str = "step") -> list[tuple[str, int]]:
    """Measures with a method that returns the given seconds; returns its calls."""
    calls = []

    def method(variant: str, number: int) -> dict[str, float]:
        calls.append((variant, number))
        return {"seconds": seconds[variant] * (number + 1), "cpu": 1.0, "load": 0.5}

    bench.measure(part, method, warm_up=False)
    return calls


SECONDS = {"plain": 2.0, "LocBAMTrainer": 3.0, AGAIN: 2.0}


def test_variants_alternate_and_rounds_start_elsewhere(bench: Bench) -> None:
    calls = fake(bench, SECONDS)
    assert [v for v, _ in calls] == ["plain", "LocBAMTrainer", AGAIN, "LocBAMTrainer", AGAIN, "plain"]
    assert [n for _, n in calls] == [0, 0, 0, 1, 1, 1]


def test_a_broken_off_round_is_measured_again_and_complete_ones_are_kept(bench: Bench) -> None:
    fake(bench, SECONDS)
    lines = bench.records.file.read_text().splitlines()
    bench.records.file.write_text("\n".join(lines[:-1]) + "\n")
    assert [n for _, n in fake(bench, SECONDS)] == [1, 1, 1]
    assert fake(bench, SECONDS) == []


def test_records_of_other_settings_do_not_count(bench: Bench, tmp_path: Path) -> None:
    fake(bench, SECONDS)
    other = Bench(tmp_path, Settings(), ["LocBAMTrainer"], rounds=2, device="cpu")
    assert bench.load("step")
    assert other.load("step") == {}


def test_ratios_are_of_the_same_round(bench: Bench) -> None:
    fake(bench, SECONDS)
    rows = "\n".join(goal_table(bench, WALL))
    assert "| `LocBAMTrainer` | 4.50 (3.00 - 6.00) | 1.500 (1.500 - 1.500) | <= 1.05 |" in rows
    assert "| plain nnU-Net again (noise) | 3.00 (2.00 - 4.00) | 1.000 (1.000 - 1.000) |  |" in rows


def test_rates_are_inverted(bench: Bench) -> None:
    fake(bench, SECONDS, part="loader")
    assert "| `LocBAMTrainer` | 0.25 (0.17 - 0.33) | 0.667 (0.667 - 0.667) |" in "\n".join(
        goal_table(bench, RATE)
    )


def test_report_of_no_records_has_no_tables(bench: Bench) -> None:
    assert "###" not in report(bench, "command", quick=False)
    assert "says nothing about cost" in report(bench, "command", quick=True)


def test_spread_of_one_value_has_no_range() -> None:
    assert spread([1.25], 2) == "1.25"


def test_page_keeps_what_people_wrote(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    replace_section(page, BEGIN, END, "new\n")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "new" in text
    assert "old" not in text


def test_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="must contain the lines"):
        replace_section(page, BEGIN, END, "new\n")
    assert page.read_text() == "no marks\n"


def test_architecture_has_one_entry_per_stage() -> None:
    network = Settings.quick().predict_network
    kwargs = architecture({"arch_kwargs": {"conv_bias": True}}, network)["arch_kwargs"]
    stages = len(network.features)
    assert kwargs["conv_bias"] is True
    assert [
        len(kwargs[k]) for k in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")
    ] == [stages] * 4
    assert len(kwargs["n_conv_per_stage_decoder"]) == stages - 1


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


def test_a_new_process_measures_and_says_why_it_could_not(tmp_path: Path) -> None:
    machine = apart("harness.describe_machine", "cpu")  # type: ignore[arg-type]
    assert machine == describe_machine("cpu")
    with pytest.raises(RuntimeError, match="no attribute 'no_such'"):
        apart("harness.no_such", {})


def test_records_are_json_lines(bench: Bench) -> None:
    fake(bench, SECONDS)
    records = [json.loads(line) for line in bench.records.file.read_text().splitlines()]
    assert {r["variant"] for r in records} == set(SECONDS)
