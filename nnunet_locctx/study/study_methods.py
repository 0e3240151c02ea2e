"""Presets and methods of a study file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_locctx.study.definition import Method, Preset, slug
from nnunet_locctx.study.reading import Table, check_known
from nnunet_locctx.study.trainer_names import NNUNET_EPOCHS, resolve_trainer

METHOD_KEYS = ("trainer", "sources", "options", "network", "presets", "epochs", "against")


def read_presets(table: Table, beside: Path) -> tuple[Preset, ...]:
    """The presets, by name or from files.

    Args:
        table: The study.
        beside: The study file's folder.
    """
    from nnunet_locctx.nnunet.plans.plans_file import check_name
    from nnunet_locctx.nnunet.plans.presets import list_presets, load_preset

    table.required("presets")
    presets = []
    for given in table.names("presets"):
        if given.endswith(".json"):
            path = beside / given
            if not path.is_file():
                raise ValueError(f"{table.where}: presets: there is no file {path}")
        else:
            check_known([given], list_presets(), "preset", f"{table.where}: presets")
            path = Path(given)
        check_name(path.stem, "preset's name")
        preset = load_preset(str(path))
        presets.append(Preset(path.stem, preset.description, preset.changes))
    names = [preset.name for preset in presets]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"{table.where}: presets must be one or more of different names, got {', '.join(names) or 'none'}"
        )
    return tuple(presets)


def read_methods(table: Table, presets: tuple[Preset, ...]) -> tuple[Method, ...]:
    """The methods, one for each of a method's location sources.

    Args:
        table: The study.
        presets: Its presets.
    """
    from nnunet_locctx.location import SOURCES

    content = table.required("methods")
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{table.where}: methods must be a table (name: {{trainer: ...}}), got {content!r}")
    usual = table.names("sources", ["voxel"])
    check_known(usual, SOURCES, "location source", f"{table.where}: sources")
    length = table.whole("epochs", NNUNET_EPOCHS, 1)
    names = [preset.name for preset in presets]
    methods = []
    for name, given in content.items():
        where = f"{table.where}: methods: {name}"
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{table.where}: a method's name must be a text, got {name!r}")
        one = Table({"trainer": given} if isinstance(given, str) else given, where, METHOD_KEYS)
        trainer = resolve_trainer(one.text("trainer"), one.whole("epochs", length, 1), where)
        at = tuple(Path(at).stem if at.endswith(".json") else at for at in one.names("presets", names))
        check_known(at, names, "preset", f"{where}: presets")
        options, network = _location(one, trainer.located), one.content.get("network")
        if network is not None and not isinstance(network, Mapping):
            raise one.error("network", "a table of options")
        sources: tuple[str | None, ...] = one.names("sources", usual) if trainer.located else (None,)
        if not trainer.located and "sources" in one:
            raise ValueError(f"{where}: the trainer {trainer.name} uses no location, so it takes no sources")
        check_known([source for source in sources if source], SOURCES, "location source", f"{where}: sources")
        for source in sources:
            title, short = (f"{part} ({source})" if len(sources) > 1 else part for part in (name, slug(name)))
            against = one.text("against") if "against" in one else None
            methods.append(Method(title, slug(short), trainer, source, options, network, at, against))
    for method in methods:
        others = [other.name for other in methods if other is not method]
        if method.against is not None:
            check_known(
                [method.against], others, "other method", f"{table.where}: methods: {method.name}: against"
            )
    return tuple(methods)


def _location(one: Table, located: bool) -> dict[str, Any]:
    options = one.content.get("options") or {}
    if not isinstance(options, Mapping):
        raise one.error("options", "a table of location options")
    if options and not located:
        raise ValueError(f"{one.where}: the trainer uses no location, so it takes no options")
    if "source" in options:
        raise ValueError(f"{one.where}: the source is given by `sources`, not among the options")
    if options:
        from nnunet_locctx.nnunet.plans.planning import check_location

        try:
            check_location(options)
        except ValueError as error:
            raise ValueError(f"{one.where}: options: {error}") from error
    return dict(options)
