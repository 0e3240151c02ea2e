"""The findings of a check, as data and as text."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from nnunet_locctx.datasets.grids import PATIENT_AXES, Grid
from nnunet_locctx.names import named

SEVERITIES = ("error", "warning", "note")
"""``error``: training would stop or learn from wrong data; ``warning``: probably wrong; ``note``: worth knowing."""


@dataclass(frozen=True)
class Finding:
    """A fault or a peculiarity of a dataset.

    Attributes:
        severity: One of :data:`SEVERITIES`.
        kind: The subject, in one or two words.
        case: The case that has it, None if it concerns the dataset.
        message: The observation and its meaning; the same for every case that has it.
        detail: A value that differs from case to case, such as an angle.
    """

    severity: str
    kind: str
    case: str | None
    message: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class CaseSummary(Grid):
    """A readable case: its :class:`~nnunet_locctx.datasets.grids.Grid`, obliquity and labels.

    Attributes:
        split: ``"train"`` or ``"test"``.
        oblique: Largest angle in degrees between a file axis and its patient axis.
        positions: Label value -> mean position of its voxels as a fraction of the volume (R, A, S), -0.5..0.5.
        volumes: Label value -> volume in ml, of the labels that do not reach an outer face.
        stored: Orientation code of the file before a reader turns the scan; empty if not known.
    """

    split: str
    oblique: float
    positions: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    volumes: dict[int, float] = field(default_factory=dict)
    stored: str = ""


@dataclass
class DatasetReport:
    """The result of :func:`~nnunet_locctx.check.check_dataset`."""

    dataset: str
    reader: str
    channels: int
    training_cases: int
    test_cases: int
    labels: dict[int, str]
    cases: list[CaseSummary]
    findings: list[Finding]

    @property
    def clean(self) -> bool:
        """Nothing worse than a note was found."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def orientations(self) -> dict[str, int]:
        """Orientation code -> number of cases, most frequent first."""
        return dict(Counter(case.orientation for case in self.cases).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "clean": self.clean, "orientations": self.orientations}


def format_report(report: DatasetReport, cases_shown: int = 5) -> str:
    """The report as text for a terminal.

    Args:
        cases_shown: Cases named per finding; the rest is counted.
    """
    counts = [
        (report.training_cases, "training case"),
        (report.test_cases, "test case"),
        (report.channels, "channel"),
    ]
    lines = [f"{report.dataset}: {', '.join(_count(*count) for count in counts)}, read with {report.reader}"]
    if report.cases:
        lines += ["", *_orientation_table(report), "", *_extent_table(report)]
    lines += ["", *_findings(report, cases_shown)]
    return "\n".join(lines)


def _orientation_table(report: DatasetReport) -> list[str]:
    lines = ["orientation   cases   (where x, y and z of the file grow to)"]
    for code, number in report.orientations.items():
        tilt = max(case.oblique for case in report.cases if case.orientation == code)
        oblique = f"   oblique by up to {tilt:.1f} degrees" if tilt > 0.05 else ""
        lines.append(f"{code:<11}{number:>8}{oblique}")
    return lines


def _extent_table(report: DatasetReport) -> list[str]:
    tables = {}
    for title, values, digits in (
        ("voxel size in mm", [case.spacing for case in report.cases], ".3g"),
        ("extent in mm", [case.extent for case in report.cases], ".1f"),
    ):
        numbers = pd.DataFrame(values, columns=PATIENT_AXES).agg(["min", "median", "max"]).T
        tables[title] = numbers.map(lambda number, digits=digits: f"{number:{digits}}")
    table = pd.concat(tables, axis=1).rename_axis(columns=["", "patient axis"]).to_string(col_space=9)
    return [line.rstrip() for line in table.splitlines()]


def _findings(report: DatasetReport, cases_shown: int) -> list[str]:
    if not report.findings:
        return ["nothing suspicious found"]
    numbers = Counter(finding.severity for finding in report.findings)
    lines = [", ".join(_count(numbers[severity], severity) for severity in SEVERITIES if numbers[severity])]
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for finding in report.findings:
        cases = grouped.setdefault((finding.severity, finding.kind, finding.message), [])
        if finding.case is not None:
            cases.append(f"{finding.case} ({finding.detail})" if finding.detail else finding.case)
    for severity in SEVERITIES:
        for (rank, kind, message), cases in grouped.items():
            if rank != severity:
                continue
            lines.append(f"  {severity}: {kind}: {message}")
            if cases:
                lines.append(f"      in {named(cases, cases_shown)}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
