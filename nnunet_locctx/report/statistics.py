"""The report's statistics: means, bootstrap intervals over cases, Wilcoxon signed-rank tests, Holm's correction.

- Interval: 95%, bootstrap over cases (Efron 1987: bias-corrected and accelerated, BCa; the plain percentile interval
  where BCa is not defined, as when all cases are equal), 9999 resamples, seed 0, ``scipy.stats.bootstrap``.
- Test: Wilcoxon 1945, two-sided, on the cases' paired differences, differences of 0 left out, ``scipy.stats.wilcoxon``.
- Correction: Holm 1979, over all comparisons of a table.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from nnunet_locctx.report.results import BACKGROUND, CASE_KEYS, METRICS, VALIDATION, Results

Array = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 9999
SEED = 0
FEWEST_CASES = 5
"""Smallest number of cases for an interval."""

ALPHA = 0.05
"""Largest p that counts as chance."""

RELATIVE_FROM = 0.2
"""Smallest Dice of a baseline for which a relative gain is given."""

FEWEST_DIFFERENCES = 6
"""Smallest number of differences that are tested: with five the smallest two-sided p is 2 / 2**5 = 0.06."""

BATCH_NUMBERS = 20_000_000
"""Largest number of values in one batch of resamples (160 MB)."""

Interval = tuple[float, float]
"""Lower and upper end; NaN with too few cases."""


class SignedRank(NamedTuple):
    """Result of a signed-rank test.

    Attributes:
        better: Number of pairs in which the method has the higher value.
        worse: Number of pairs in which the baseline has the higher value.
        p: Two-sided p; NaN if not tested.
        reason: Reason for not testing, or empty.
    """

    better: int
    worse: int
    p: float
    reason: str = ""

    @property
    def least(self) -> float:
        """The smallest possible p of this number of pairs, reached if all differences have one sign."""
        return min(1.0, 2.0 ** (1 - self.better - self.worse))


def by_case(scores: pd.DataFrame, metric: str = "dice", *, background: bool = False) -> pd.DataFrame:
    """One run's values of a metric: a row per case (fold, case), a column per class in the classes' order.

    Args:
        scores: Rows of :attr:`Results.scores`, of one run.
        metric: Its column.
        background: Include the background as the last class.
    """
    if not background:
        scores = scores[scores["class"] != BACKGROUND]
    table = scores.pivot(index=["fold", "case"], columns="class", values=metric)
    return table[scores["class"].unique()]


def mean_known(values: npt.ArrayLike, axis: int) -> Array:
    """Mean over an axis, ignoring NaN; NaN if all values are."""
    values = _array(values)
    known = np.isfinite(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def foreground(values: npt.ArrayLike) -> Array:
    """(..., cases, classes) -> (...): mean over the classes of the class means, as nnU-Net's foreground_mean."""
    return mean_known(mean_known(values, axis=-2), axis=-1)


def mean_of_classes(scores: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Every metric, grouped by `names`: mean over the classes of the class means over the cases."""
    return scores.groupby([*names, "class"])[METRICS].mean().groupby(names).mean()


def paper_dice(scores: pd.DataFrame, convention: object) -> float:
    """Mean ``paper_dice`` of one run; NaN without values.

    Args:
        scores: Rows of :attr:`Results.scores`.
        convention: ``gpe``: mean over the cases of a class, then over the classes. Otherwise as in LocBAM's evaluation:
            mean over the classes of a case, background included, then over the cases.
    """
    if convention == "gpe":
        return float(foreground(by_case(scores, "paper_dice")))
    return float(mean_known(mean_known(by_case(scores, "paper_dice", background=True), axis=1), axis=0))


def compare(study: Results, part: str = VALIDATION) -> pd.DataFrame:
    """Compares each run that has scores with its baseline at the same preset, in the order of presets and methods.

    Args:
        study: The study.
        part: Part of the scores.

    Returns:
        A row per run, with Dice as fractions and NaN where something is not defined: preset, method, cases (with any
        Dice), folds, dice (mean over the classes of the class means) with its interval, dice_base (the baseline's),
        gain (difference to the baseline over the seeds, cases and classes that both have) with its interval and
        relative to the baseline's mean (above :data:`RELATIVE_FROM`), pairs (cases that both have), better and worse
        (in how many of them), p, p_holm (after Holm's correction over all rows), p_least_alone and p_least (the
        smallest possible p and p_holm with this number of pairs, other rows unchanged) and test (reason for not
        testing). part, run and base identify the scores; base is missing for a baseline and if the baseline has no
        scores of one of the run's seeds. Several seeds add the results of the single seeds: seeds (number with scores),
        dice_seed_low and dice_seed_high, gain_seeds (number with a gain), gain_seed_low and gain_seed_high, and
        seeds_agree (number of gains with the sign of the mean's).
    """
    tables = {run: by_case(rows) for run, rows in study.scores[study.scores["part"] == part].groupby("run")}
    rows = []
    for run in study.runs[study.runs.index.isin(list(tables))].itertuples():
        dice = tables[run.Index]
        row = {"part": part, "run": run.Index, "base": None, "preset": run.preset, "method": run.method}
        row |= {"cases": int(dice.notna().any(axis=1).sum())}
        row |= {"folds": dice.index.get_level_values("fold").nunique(), "dice": float(foreground(dice))}
        row |= dict(zip(("dice_low", "dice_high"), mean_interval(dice), strict=True))
        row |= dict.fromkeys(("dice_base", "gain", "gain_low", "gain_high", "gain_relative"), math.nan)
        row |= {"pairs": 0, "better": 0, "worse": 0, "p": math.nan, "p_holm": math.nan, "test": ""}
        row |= {"p_least_alone": math.nan, "p_least": math.nan}
        base = study.find(study.baseline_of(run.method), run.preset)
        if base is not None and base in tables and base != run.Index:
            mine, theirs = study.paired_scores(part, run.Index, base)
            if len(mine):  # they share a seed
                row |= {"base": base, **_gain(by_case(mine), by_case(theirs))}
        rows.append(row)
    compared = pd.DataFrame(rows)
    if not rows:
        return compared
    p, least = compared["p"], compared["p_least_alone"]
    # an untested comparison has too few pairs, whatever the other rows
    corrected = [holm(p.where(p.index != at, least))[at] if p.notna()[at] else least[at] for at in p.index]
    compared = compared.assign(p_holm=holm(p), p_least=corrected)
    return compared.join(_each_seed(study, part, compared)) if len(study.seeds) > 1 else compared


def _common(dice: pd.DataFrame, dice_base: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables of :func:`by_case` with only the cases and classes in which both have a Dice; NaN elsewhere.

    A class that a case lacks has a Dice for whoever predicts it there (0) and none for whoever does not.
    """
    mine, theirs = dice.align(dice_base, join="inner")
    known = mine.notna() & theirs.notna()
    some = known.any(axis=1)
    return mine.where(known)[some], theirs.where(known)[some]


def _gain(dice: pd.DataFrame, dice_base: pd.DataFrame) -> dict[str, Any]:
    """The gain over a baseline in their common cases and classes, as entries of a row of :func:`compare`."""
    mine, theirs = _common(dice, dice_base)
    start = float(foreground(theirs))
    gain = float(foreground(mine)) - start
    low, high = gain_interval(mine, theirs)
    test = signed_rank(mean_known(mine, axis=1), mean_known(theirs, axis=1))
    return {
        "dice_base": start,
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
        "gain_relative": gain / start if start > RELATIVE_FROM else math.nan,
        "pairs": len(mine),
        "better": test.better,
        "worse": test.worse,
        "p": test.p,
        "p_least_alone": test.least,
        "test": test.reason,
    }


def _each_seed(study: Results, part: str, compared: pd.DataFrame) -> pd.DataFrame:
    """The results of the single seeds: the columns of :func:`compare` for several seeds."""
    scores = study.foreground_scores(part, each_seed=True)
    tables = {names: by_case(rows) for names, rows in scores.groupby(["run", "seed"])}
    rows = []
    for row in compared.itertuples():
        mine = {seed: tables[row.run, seed] for seed in study.seeds if (row.run, seed) in tables}
        pairs = [
            _common(table, tables[row.base, seed])
            for seed, table in mine.items()
            if (row.base, seed) in tables
        ]
        dice = pd.Series([float(foreground(table)) for table in mine.values()], dtype=float)
        gains = pd.Series(
            [float(foreground(one)) - float(foreground(base)) for one, base in pairs], dtype=float
        )
        entry = {"seeds": len(mine), "dice_seed_low": dice.min(), "dice_seed_high": dice.max()}
        entry |= {"gain_seeds": len(gains), "gain_seed_low": gains.min(), "gain_seed_high": gains.max()}
        rows.append({**entry, "seeds_agree": int((np.sign(gains) == np.sign(row.gain)).sum())})
    return pd.DataFrame(rows, index=compared.index)


def with_base(study: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """Adds to the runs' scores the Dice of run and baseline in the same case and class over the seeds that both have.

    Args:
        study: The study.
        rows: Rows of :func:`compare` of one part.

    Returns:
        Rows of :attr:`Results.scores` without the background, with base, dice_paired, dice_base (NaN without a
        baseline) and paired (whether both have a Dice there).
    """
    scores = study.foreground_scores(*rows["part"].unique()).merge(rows[["run", "base"]], on="run")
    keys, pairs = ["run", *CASE_KEYS], []
    for row in rows[rows["base"].notna()].itertuples():
        mine, theirs = study.paired_scores(row.part, row.run, row.base)
        own, base = mine[[*keys, "dice"]], theirs[[*CASE_KEYS, "dice"]]
        pairs.append(own.merge(base, on=CASE_KEYS, suffixes=("_paired", "_base")))
    none = pd.DataFrame(columns=[*keys, "dice_paired", "dice_base"])
    both = scores.merge(pd.concat(pairs or [none]), how="left", on=keys)
    return both.assign(paired=both["dice_paired"].notna() & both["dice_base"].notna())


def swap_rates(study: Results, rows: pd.DataFrame) -> pd.DataFrame:
    """The share of swapped voxels of runs and of their baselines, over the seeds that both have.

    Args:
        study: The study.
        rows: Rows of :func:`compare` of one part.

    Returns:
        own, base: fractions, mean over the classes of the class means; NaN without a baseline. Index as `rows`.
    """
    rates = pd.DataFrame(math.nan, index=rows.index, columns=["own", "base"])
    for row in rows[rows["base"].notna()].itertuples():
        pair = study.paired_scores(row.part, row.run, row.base)
        rates.loc[row.Index] = [mean_of_classes(scores, ["run"])["swap_rate"].iloc[0] for scores in pair]
    return rates


def class_sizes(scores: pd.DataFrame) -> pd.Series:
    """Class -> median volume in ml over the cases with the class; ascending, unknown volumes last."""
    volumes = by_case(scores, "reference_ml")
    return volumes.where(volumes > 0).median().sort_values(kind="stable")


def class_gains(scores: pd.DataFrame) -> pd.DataFrame:
    """Gain of each method in each class, over the cases in which method and baseline have a Dice.

    Args:
        scores: Rows of :func:`with_base` of one preset.

    Returns:
        method, class, gain (points of Dice as a fraction), gain_low, gain_high, pairs (cases).
    """
    columns = ["method", "class", "gain", "gain_low", "gain_high", "pairs"]
    rows = []
    for names, pairs in scores[scores["paired"]].groupby(["method", "class"], sort=False):
        mine, theirs = pairs[["dice_paired"]], pairs[["dice_base"]]
        gain = float(foreground(mine)) - float(foreground(theirs))
        rows.append((*names, gain, *gain_interval(mine, theirs), len(pairs)))
    return pd.DataFrame(rows, columns=columns)


def mean_interval(values: npt.ArrayLike) -> Interval:
    """Bootstrap interval of the foreground mean.

    Args:
        values: (cases, classes), NaN where undefined.
    """
    table = _array(values)
    return _bootstrap(table, lambda chosen: foreground(table[chosen]))


def gain_interval(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Bootstrap interval of the difference of two foreground means over the same resampled cases.

    Args:
        values: (cases, classes) of a method.
        baseline: (cases, classes) of the baseline, in the same order.
    """
    mine, theirs = _array(values), _array(baseline)
    return _bootstrap(mine, lambda chosen: foreground(mine[chosen]) - foreground(theirs[chosen]))


def signed_rank(values: npt.ArrayLike, baseline: npt.ArrayLike) -> SignedRank:
    """Tests the paired differences of two methods.

    Args:
        values: (cases,) of a method; NaN where undefined.
        baseline: (cases,) of the baseline.
    """
    from scipy.stats import wilcoxon

    differences = _array(values) - _array(baseline)
    differences = differences[np.isfinite(differences)]
    changed = differences[differences != 0]
    n = len(changed)
    counts = int((changed > 0).sum()), int((changed < 0).sum())
    if len(differences) and not n:
        return SignedRank(*counts, math.nan, f"not tested: equal in all {len(differences)} cases")
    if n < FEWEST_DIFFERENCES:
        return SignedRank(*counts, math.nan, f"not tested: n = {n}")
    return SignedRank(*counts, float(wilcoxon(changed).pvalue))


def holm(values: pd.Series) -> pd.Series:
    """Holm's step-down correction of p values.

    Args:
        values: p values; NaN ones were not tested and do not count.

    Returns:
        Corrected p values, at most 1; NaN stays NaN.
    """
    tested = values.dropna().sort_values()
    return (tested * np.arange(len(tested), 0, -1)).clip(upper=1).cummax().reindex(values.index)


def _array(values: npt.ArrayLike) -> Array:
    # one memory order, so that equal numbers have bit-equal sums
    return np.ascontiguousarray(values, dtype=np.float64)


def _bootstrap(values: Array, statistic: Callable[[np.ndarray], Array]) -> Interval:
    from scipy.stats import bootstrap

    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    if len(known) < FEWEST_CASES:
        return math.nan, math.nan
    batch = max(1, BATCH_NUMBERS // max(1, values.size))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # if BCa is not defined, scipy warns and its ends are NaN
            ends = bootstrap(
                (known,),
                # the resampled cases are the last axis
                lambda chosen, axis: statistic(chosen),
                n_resamples=RESAMPLES,
                confidence_level=LEVEL,
                method=method,
                batch=batch,
                random_state=SEED,
            ).confidence_interval
        if np.isfinite([ends.low, ends.high]).all():
            return float(ends.low), float(ends.high)
    return math.nan, math.nan
