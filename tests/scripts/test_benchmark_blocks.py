"""The benchmark of the networks: what is built and counted, what is repeated, what stands on the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scripts.benchmarks import blocks, networks
from scripts.benchmarks.blocks import make_job, places, run, time_table, write_report
from scripts.benchmarks.harness import PLAIN, Records
from scripts.experiments.balls import collect as collect_methods

PATCH = [16, 32, 32]
SPACING = [3.0, 1.0, 1.0]
MACHINE = {"processor": "Abacus", "memory": "1 GiB", "system": "Wood", "gpu": "", "versions": {"torch": "3"}}
PLACE = "Abacus, 1 thread(s)"


def small_plans() -> dict[str, Any]:
    return networks.make_plans(PATCH, PATCH, SPACING, [2] * 6)


def job(part: str, **changes: Any) -> dict[str, Any]:
    small = {"planned_for": PATCH, "patches": [PATCH], "features": [2] * 6, "spacing": SPACING}
    return {**make_job(part, "cpu", 1, rounds=2), **small, **changes}


class TestNetworks:
    def test_the_plain_network_is_the_planned_one(self) -> None:
        plans = networks.make_plans(
            [64, 128, 128], [64, 128, 128], [3, 0.76, 0.76], [32, 64, 128, 256, 320, 320]
        )
        with torch.device("meta"):
            network: Any = networks.build(PLAIN, plans, 14, True)
        assert list(network.encoder.output_channels) == [32, 64, 128, 256, 320, 320]
        assert network.encoder.strides[1:3] == [[1, 2, 2], [2, 2, 2]]
        assert network.decoder.seg_layers[-1].out_channels == 14

    def test_a_patch_must_fit_the_pooling(self) -> None:
        with pytest.raises(ValueError, match=r"no multiple of \[4, 8, 8\]"):
            networks.make_plans([16, 30, 32], PATCH, SPACING, [2] * 6)

    @pytest.mark.parametrize("name", [PLAIN, "PriorHeadTrainer"])
    def test_passes_of_a_planned_network(self, name: str) -> None:
        runner = networks.Runner(name, small_plans(), 3, 1, "cpu")
        assert runner.x.shape[1] == (1 if name == PLAIN else 4)
        runner.forward()
        assert all(parameter.grad is None for parameter in runner.network.parameters())
        runner.step()
        assert all(parameter.grad is not None for parameter in runner.network.parameters())

    def test_location_of_the_input_is_that_of_a_whole_volume(self) -> None:
        x = networks.make_input("PriorHeadTrainer", [4, 6, 8], 2)
        assert x.shape == (2, 4, 4, 6, 8)
        assert x[1, 1, 0, 0].tolist() == pytest.approx([(i + 0.5) / 8 - 0.5 for i in range(8)])
        assert x[0, 3, :, 0, 0].tolist() == pytest.approx([-0.375, -0.125, 0.125, 0.375])

    def test_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(networks, "build", lambda *_: nn.Conv3d(1, 2, 3, padding=1))
        counted = networks.count(PLAIN, small_plans(), 3)
        assert counted == {
            "parameters": 2 * 27 + 2,
            "multiply_adds": 2 * 27 * 16 * 32 * 32,
            "counted_on": "meta",
        }

    def test_what_needs_values_is_counted_on_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Looks(nn.Conv3d):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) if x.sum().item() != 1e9 else x

        monkeypatch.setattr(networks, "build", lambda *_: Looks(1, 2, 1))
        counted = networks.count(PLAIN, small_plans(), 3)
        assert (counted["counted_on"], counted["multiply_adds"]) == ("cpu", 2 * 16 * 32 * 32)

    def test_a_network_takes_the_first_patch_that_it_can(self) -> None:
        def plans_of(patch: list[int]) -> dict[str, Any]:
            return {"configurations": {networks.CONFIGURATION: {"patch_size": patch}}}

        patches = [[8, 32, 32], [32, 64, 64]]
        assert networks.usable_patch("UNETRTrainer", patches, plans_of) == [32, 64, 64]
        assert networks.usable_patch(PLAIN, patches, plans_of) == [8, 32, 32]
        with pytest.raises(ValueError, match="nearest allowed"):
            networks.usable_patch("UNETRTrainer", patches[:1], plans_of)

    def test_unknown_trainer(self) -> None:
        with pytest.raises(ValueError, match="no trainer 'MoonTrainer'"):
            networks.trainer_class("MoonTrainer")

    def test_times_of_both_networks_by_round(self) -> None:
        measured = networks.answer(job("time", trainer="CoordConvTrainer"))
        assert measured["patch"] == PATCH
        for kind in ("plain", "own"):
            assert [len(measured[kind][what]) for what in ("forward", "step")] == [2, 2]
            assert min(measured[kind]["forward"] + measured[kind]["step"]) > 0

    def test_memory_of_a_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Holds(networks.Runner):
            def forward(self) -> None:
                self.held = torch.ones(2**26)  # 256 MiB

            def step(self) -> None:
                self.more = torch.ones(2**26)

        monkeypatch.setattr(networks, "Runner", Holds)
        measured = networks.answer(job("memory", trainer=PLAIN))
        assert 2**28 <= measured["forward"] < 1.5 * 2**28
        assert 2**29 <= measured["step"] < 1.25 * 2**29

    @pytest.mark.parametrize("name", ["UNETRTrainer", "PriorHeadTrainer"])
    def test_deep_supervision_is_that_of_the_trainer(self, name: str) -> None:
        plans = networks.make_plans([32, 64, 64], [32, 64, 64], SPACING, [2] * 6)
        assert networks.deep_supervision(name, plans) is (name == "PriorHeadTrainer")


def timed(own: list[float], plain: list[float], patch: list[int] = PATCH) -> dict[str, Any]:
    times = {kind: {"forward": values, "step": values} for kind, values in (("own", own), ("plain", plain))}
    return {"patch": patch, "load": 0.5, **times}


def fake_measure(asked: dict[str, Any]) -> dict[str, Any]:
    if asked["part"] == "size":
        factor = 1 if asked["trainer"] == PLAIN else 2
        return {"patch": asked["patches"][0], "parameters": 10**6 * factor, "multiply_adds": 10**9 * factor}
    if asked["part"] == "memory":
        return {"patch": PATCH, "own": {"step": 3 * 2**30}, "plain": {"step": 2 * 2**30}}
    return timed([3.0, 2.0], [2.0, 1.0])


class TestRecords:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        """What was measured; nothing really is."""
        calls: list[tuple[str, str]] = []

        def measure(asked: dict[str, Any]) -> dict[str, Any]:
            calls.append((asked["part"], asked["trainer"]))
            if asked["trainer"] == "Broken":
                raise RuntimeError("log\nout of memory")
            return fake_measure(asked)

        monkeypatch.setattr(blocks, "measure", measure)
        monkeypatch.setattr(blocks, "describe_machine", lambda _: MACHINE)
        return calls

    @pytest.fixture
    def results(self, tmp_path: Path) -> Records:
        return Records(tmp_path / "new" / "blocks.json")

    JOBS = (
        ("size", PLAIN),
        ("size", "LocBAMTrainer"),
        ("time", "LocBAMTrainer"),
        ("memory", "LocBAMTrainer"),
    )

    def test_what_is_there_is_not_repeated(self, results: Records, calls: list[tuple[str, str]]) -> None:
        assert run(results, self.JOBS, "cpu", 1) == []
        assert calls == list(self.JOBS)
        assert len(results.file.read_text().splitlines()) == 4
        run(Records(results.file), self.JOBS, "cpu", 1)
        assert len(calls) == 4

    def test_other_settings_are_measured_anew(self, results: Records, calls: list[tuple[str, str]]) -> None:
        run(results, self.JOBS, "cpu", 1)
        run(results, self.JOBS, "cpu", 1, rounds=7)
        assert calls[4:] == [("time", "LocBAMTrainer")]
        record = results.find(part="time", trainer="LocBAMTrainer", place=PLACE)
        assert record is not None
        assert record["key"]["rounds"] == 7
        assert len(results.records) == 4

    def test_another_machine_has_lines_of_its_own(
        self, results: Records, calls: list[tuple[str, str]]
    ) -> None:
        run(results, self.JOBS, "cpu", 1)
        run(results, self.JOBS, "cpu", 2)
        assert calls[4:] == [("time", "LocBAMTrainer"), ("memory", "LocBAMTrainer")]
        assert places(results) == [PLACE, "Abacus, 2 thread(s)"]

    def test_a_failure_does_not_stop_the_others(self, results: Records, calls: list[tuple[str, str]]) -> None:
        assert run(results, [("size", "Broken"), ("size", PLAIN)], "cpu", 1) == ["size Broken: out of memory"]
        assert results.find(part="size", trainer=PLAIN) is not None

    def test_memory_of_the_plain_network_is_taken_at_the_same_patch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = []

        def apart(function: str, asked: dict[str, Any]) -> dict[str, Any]:
            started.append((asked["trainer"], asked["patches"]))
            return {"patch": asked["patches"][-1], "forward": 1, "step": 2}

        monkeypatch.setattr(blocks, "apart", apart)
        measured = blocks.measure(
            {"part": "memory", "trainer": "UNETRTrainer", "patches": [[8] * 3, [16] * 3]}
        )
        assert started == [("UNETRTrainer", [[8] * 3, [16] * 3]), (PLAIN, [[16] * 3])]
        assert measured["patch"] == [16] * 3

    def test_page(self, results: Records, calls: list[tuple[str, str]]) -> None:
        run(results, self.JOBS, "cpu", 1)
        write_report(results, [PLAIN, "LocBAMTrainer", "PriorHeadTrainer"])
        page = results.file.with_suffix(".md").read_text()
        assert "| planned U-Net (plain nnU-Net) | 1.000 M | 1.0000 | 1.00 G | 1.0000 |" in page
        assert "| `LocBAMTrainer` | 2.000 M | 2.0000 | 2.00 G | 2.0000 |" in page
        # ratios are of the same round: 3 / 2 and 2 / 1
        row = "| `LocBAMTrainer` | 16x32x32 | 2.500 (2.000 - 3.000) | 1.750 (1.500 - 2.000) |"
        assert row in page
        assert "| 3.00 | 1.500 |" in page
        assert "PriorHeadTrainer" not in page

    def test_without_records_there_is_no_table(self, results: Records) -> None:
        results.file.parent.mkdir()
        write_report(results, [PLAIN])
        assert time_table(results, [PLAIN], PLACE) == ""
        assert "|---" not in results.file.with_suffix(".md").read_text()

    @pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--parts", "speed"]])
    def test_wrong_usage(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit):
            blocks.parse(arguments)

    def test_jobs(self) -> None:
        size, time = make_job("size", "cuda", 3), make_job("time", "cuda", 3)
        assert (size["device"], size["patches"], "rounds" in size) == ("cpu", [[64, 128, 128]], False)
        assert (time["device"], time["patches"], time["threads"]) == ("cuda", [[64, 128, 128]], 3)
        assert [make_job("time", device, 1)["rounds"] for device in ("cpu", "cuda")] == [5, 10]

    def test_committed_sizes_are_of_todays_settings(self) -> None:
        record = Records(Path(blocks.__file__).with_suffix(".json")).find(part="size", trainer=PLAIN)
        assert record is not None
        assert {**make_job("size", "cpu", 1), "torch": record["key"]["torch"]} == record["key"]


class TestCollect:
    def write(self, file: Path, records: list[dict[str, Any]]) -> None:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def test_figures(self, tmp_path: Path) -> None:
        key = {"device": "cpu", "classes": 14, "batch": 1}
        head = {"place": PLACE, "key": key}
        sizes = [
            fake_measure({"part": "size", "trainer": t, "patches": [PATCH]})
            for t in (PLAIN, "PriorHeadTrainer")
        ]
        self.write(
            tmp_path / "blocks.json",
            [
                {**head, "part": "size", "trainer": PLAIN, "measured": sizes[0]},
                {**head, "part": "size", "trainer": "PriorHeadTrainer", "measured": sizes[1]},
                {**head, "part": "time", "trainer": "PriorHeadTrainer", "measured": timed([3.0], [2.0])},
                {
                    "place": "Big GPU",
                    "key": {**key, "device": "cuda"},
                    "part": "time",
                    "trainer": "PriorHeadTrainer",
                    "measured": timed([1.1], [1.0]),
                },
            ],
        )
        budget = {"trainer": "PriorHeadTrainer", "iterations": 400}
        self.write(
            tmp_path / "methods.json",
            [
                {"trainer": PLAIN, "iterations": 400, "seed": 0, "dice": 0.1},
                {**budget, "seed": 0, "dice": 0.8},
                {**budget, "seed": 1, "dice": 0.6},
                {**budget, "seed": 2, "dice": 0.9, "iterations": 9},
                {**budget, "trainer": "CoordConvTrainers", "seed": 0, "dice": 0.9},
            ],
        )
        report = tmp_path / "methods_heads" / "overview.csv"
        report.parent.mkdir()
        report.write_text(f"method,preset,dice,gain\n{PLAIN},p,0.31,\nPriorHeadTrainer,p,0.51239,0.2\n")
        file = tmp_path / "measured.json"
        collect_methods.collect(tmp_path / "blocks.json", tmp_path / "methods.json", file, tmp_path)
        written = json.loads(file.read_text())
        assert written["figures"] == {
            "PriorHeadTrainer": {
                "parameters": 2 * 10**6,
                "parameters_ratio": 2.0,
                "multiply_adds": 2 * 10**9,
                "multiply_adds_ratio": 2.0,
                "step_ratio": 1.1,
                "dice": 0.7,
                "dice_plain": 0.1,
                "seeds": 2,
                "heads": 0.5124,
            }
        }
        words = ("1.00 M", "Big GPU", "0.10", "human heads, 16^3 patches")
        assert [[word for word in words if word in note] for note in written["notes"]] == [
            [word] for word in words
        ]

    def test_without_files_there_are_no_figures(self, tmp_path: Path) -> None:
        collect_methods.collect(
            *(tmp_path / f"{n}.json" for n in ("blocks", "methods", "measured")), tmp_path
        )
        assert json.loads((tmp_path / "measured.json").read_text()) == {"figures": {}, "notes": []}
