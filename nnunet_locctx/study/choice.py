"""Which jobs of a study are asked for (`locctx study --only`)."""

from collections.abc import Mapping, Sequence

from nnunet_locctx.study.definition import Study
from nnunet_locctx.study.jobs import Job
from nnunet_locctx.study.reading import check_known
from nnunet_locctx.study.runs import runs_of
from nnunet_locctx.study.study_file import KINDS


def choose(study: Study, graph: Mapping[str, Job], only: Sequence[str]) -> set[str]:
    """The jobs that belong to what was asked for, with all they wait for.

    Args:
        study: The study.
        graph: Its jobs.
        only: Kinds, and runs, methods or presets; a job must be of one of each that is named.

    Raises:
        ValueError: Unknown names.
    """
    runs = {run.slug: {run.slug, run.method.name, run.method.slug, run.preset.name} for run in runs_of(study)}
    names = set().union(*runs.values())
    check_known(only, [*KINDS, *sorted(names)], "kind, run, method or preset", "--only")
    kinds, wanted = [name for name in only if name in KINDS], [name for name in only if name not in KINDS]
    found: set[str] = set()
    for name, job in graph.items():
        of_run = not wanted or (job.run is not None and bool(runs[job.run] & set(wanted)))
        if of_run and (not kinds or job.kind in kinds):
            found.add(name)
    for name in reversed(list(graph)):  # a job stands behind those it waits for
        if name in found:
            found.update((*graph[name].needs, *graph[name].after))
    return found
