"""A study: what its file (YAML) asks for, checked before anything is written, and its runs.

:class:`Study` is the one model of it. The work folder's ``study.json`` holds it as JSON, resolved (paths absolute,
presets with their content, one method for each source), and every step reads it back from there.
"""

import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nnunet_locctx.names import check_known
from nnunet_locctx.nnunet.data.paths import dataset_in
from nnunet_locctx.nnunet.plans.presets import Preset, list_presets, load_preset
from nnunet_locctx.resources import studies_folder
from nnunet_locctx.study.methods import (
    NNUNET_EPOCHS,
    Configuration,
    Method,
    Run,
    data_name,
    own_configurations,
    read_methods,
)
from nnunet_locctx.study.settings import (
    KINDS,
    Count,
    Evaluation,
    Flag,
    Folders,
    Names,
    Numbers,
    Resources,
    Robustness,
    Table,
    Text,
    all_different,
    beside,
    explain,
    preset_name,
    read_yaml,
)

STUDY = "study.json"
"""In the work folder: the study under the key ``study``, beside what the report needs to know."""

PAPERS = Path(__file__).parent / "papers"


class Study(Table):
    """A study; keys as in docs/how-to/studies.md.

    Attributes:
        file: The file that it was read from.
        dataset: Full name of the dataset.
        splits: File of case lists per fold; None: the dataset's, or nnU-Net's own.
        seeds: Of weights and patches; every method is trained with each. The first also seeds `locctx fit`.
        test: Whether there is a test set to predict.
    """

    # the order matters: a key is checked with those above it
    file: Path
    name: Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9](?:_?[A-Za-z0-9-])*_?$")]
    title: Annotated[Text | None, Field(validate_default=True)] = None
    folders: Folders = Field(default_factory=dict, validate_default=True)
    dataset: Annotated[str, Field(coerce_numbers_to_str=True)]
    work: Annotated[Path, Field(validate_default=True)] = Path()
    base_plans: Text = Field("nnUNetPlans", alias="plans")
    base_configuration: Text = Field("3d_fullres", alias="configuration")
    presets: tuple[Preset, ...]
    sources: Names = ("voxel",)
    epochs: Count = NNUNET_EPOCHS
    methods: tuple[Method, ...]
    baseline: Text
    folds: Numbers = (0, 1, 2, 3, 4)
    splits: Path | None = None
    seeds: Numbers = (0,)
    test: Annotated[Flag, Field(validate_default=True)] = True
    robustness: Robustness | None = None
    postprocessing: Annotated[
        tuple[Literal["largest_component", "atlas", "sides"], ...], AfterValidator(all_different)
    ] = ()
    evaluation: Evaluation = Evaluation()
    papers: Names = ()
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    gpus: Count = 1
    processes: Count = 2
    resources: dict[str, Resources] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _seed_alone(cls, table: Any) -> Any:
        """``seed: N`` stands for ``seeds: [N]``."""
        if not isinstance(table, Mapping) or "seed" not in table:
            return table
        if "seeds" in table:
            raise ValueError(f"give seed or seeds, not both; got {table['seed']!r} and {table['seeds']!r}")
        return {**{key: value for key, value in table.items() if key != "seed"}, "seeds": [table["seed"]]}

    @field_validator("title")
    @classmethod
    def _titled(cls, title: str | None, info: ValidationInfo) -> str:
        return title or str(info.data.get("name"))

    @field_validator("dataset")
    @classmethod
    def _full_name(cls, dataset: str, info: ValidationInfo) -> str:
        folders = info.data.get("folders")
        return dataset_in(folders.raw, dataset, "the raw data").name if folders and info.context else dataset

    @field_validator("work", "splits")
    @classmethod
    def _absolute(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is None or not info.context:
            return path
        return (
            Path(beside(path, info)) if path != Path() else Path.cwd().resolve() / str(info.data.get("name"))
        )

    @field_validator("presets", mode="before")
    @classmethod
    def _with_their_content(cls, presets: Any, info: ValidationInfo) -> Any:
        if not isinstance(presets, list) or not info.context:
            return presets
        if not presets:
            raise ValueError("must name one or more presets, got none")
        loaded = [_read_preset(preset, info) for preset in presets]
        all_different(tuple(preset.name for preset in loaded))
        return loaded

    @field_validator("sources")
    @classmethod
    def _known_sources(cls, sources: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.context:
            from nnunet_locctx.location import SOURCES  # with torch, which the steps need not wait for

            check_known(sources, SOURCES, "location source")
        return sources

    @field_validator("methods", mode="before")
    @classmethod
    def _one_for_each_source(cls, methods: Any, info: ValidationInfo) -> Any:
        if not info.context:
            return methods
        if not {"presets", "sources", "epochs"} <= set(info.data):
            return ()  # the keys before have errors of their own
        return read_methods(methods, info.data)

    @field_validator("baseline")
    @classmethod
    def _a_method(cls, baseline: str, info: ValidationInfo) -> str:
        if info.data.get("methods"):
            check_known([baseline], [method.name for method in info.data["methods"]], "method")
        return baseline

    @field_validator("test")
    @classmethod
    def _there_are_test_cases(cls, test: bool, info: ValidationInfo) -> bool:
        if not test or not info.context or not {"folders", "dataset"} <= set(info.data):
            return test
        images = info.data["folders"].raw / info.data["dataset"] / "imagesTs"
        return images.is_dir() and any(images.iterdir())

    @field_validator("robustness")
    @classmethod
    def _at_presets(cls, robustness: Robustness | None, info: ValidationInfo) -> Robustness | None:
        if robustness is None or "presets" not in info.data:
            return robustness
        known = tuple(preset.name for preset in info.data["presets"])
        presets = known if robustness.presets is None else tuple(map(preset_name, robustness.presets))
        check_known(presets, known, "preset")
        return robustness.model_copy(update={"presets": presets})

    @field_validator("papers")
    @classmethod
    def _known_papers(cls, papers: tuple[str, ...]) -> tuple[str, ...]:
        check_known(papers, [file.stem for file in sorted(PAPERS.glob("*.json"))], "paper's table")
        return papers

    @field_validator("gpus")
    @classmethod
    def _several_gpus(cls, gpus: int, info: ValidationInfo) -> int:
        if gpus > 1 and info.data.get("device") != "cuda":
            raise ValueError(f"{gpus} GPUs need the device cuda, got {info.data.get('device')!r}")
        return gpus

    @field_validator("resources")
    @classmethod
    def _of_kinds(cls, resources: dict[str, Resources]) -> dict[str, Resources]:
        check_known(resources, [*KINDS, "default"], "key")
        return resources

    @property
    def plans(self) -> str:
        """Name of the study's own plans."""
        return f"nnUNetPlans_{self.name}"

    @property
    def raw(self) -> Path:
        """The dataset's raw folder."""
        return self.folders.raw / self.dataset

    @property
    def preprocessed(self) -> Path:
        """The dataset's folder of plans and preprocessed data."""
        return self.folders.preprocessed / self.dataset

    @property
    def number(self) -> str:
        """nnU-Net's number of the dataset."""
        return str(int(self.dataset[7:10]))

    @property
    def fitted(self) -> dict[str, str]:
        """Location sources that are fitted, each with its argument of `locctx fit`."""
        return {method.source: method.fit for method in self.methods if method.source and method.fit}

    @functools.cached_property
    def runs(self) -> dict[str, Run]:
        """All runs by their slug, in the order of the presets, methods and seeds of the file."""
        runs = {}
        for preset, method, seed in itertools.product(self.presets, self.methods, self.seeds):
            if preset.name in method.presets:
                ending = "" if seed == self.seeds[0] else f"seed{seed}"
                slug = "__".join(filter(None, (method.slug, preset.name, ending)))
                own = own_configurations(method, preset, ending)
                configuration = own[-1].name if own else preset.name
                model = f"{method.trainer}__{self.plans}__{configuration}"
                folder = self.folders.results / self.dataset / model
                runs[slug] = Run(slug, method, preset, seed, configuration, own, folder)
        return runs

    @functools.cached_property
    def configurations(self) -> dict[str, Configuration]:
        """Every configuration the study adds to the plans, each after the one it inherits from."""
        added = {
            preset.name: Configuration(preset.name, self.base_configuration, preset.changes)
            for preset in self.presets
        }
        for run in self.runs.values():
            for configuration in run.own_configurations:
                added.setdefault(configuration.name, configuration)
        return added

    def title_of(self, run: Run) -> str:
        """What to call a run in a line for people."""
        seed = f", seed {run.seed}" if len(self.seeds) > 1 else ""
        return f"{run.method.name}, {run.preset.name}{seed}"

    def data_configuration(self, data: str) -> str:
        """A configuration that is preprocessed to the data of that name."""
        first = next(preset for preset in self.presets if data_name(preset) == data)
        return self.base_configuration if "spacing" not in first.changes else first.name


def find_study(name: str) -> Path:
    """The file of a study: a path, or the name of one that comes with the package.

    Raises:
        ValueError: It is neither; lists those that come with the package.
    """
    file = Path(name)
    if file.is_file() or file.suffix in (".yaml", ".yml"):
        return file
    shipped = {path.stem: path for path in sorted(studies_folder().glob("*.yaml"))}
    check_known([name], shipped, "study (and no file of that name)")
    return shipped[name]


def read_study(file: Path) -> Study:
    """Reads a study file; nothing is written.

    Raises:
        ValueError: Something is not allowed; names file, key, value and what is allowed.
    """
    file = file.resolve()
    content = {key: value for key, value in read_yaml(file).items() if value is not None}
    if "file" in content:
        raise ValueError(f"{file.name}: unknown key 'file'")
    try:
        return Study.model_validate({**content, "file": file}, context={"folder": file.parent})
    except ValidationError as error:
        raise ValueError(explain(error, file.name)) from error


def load_study(file: Path) -> Study:
    """The study that a ``study.json`` holds.

    Raises:
        ValueError: It holds no study, or a study of another version of this package.
    """
    try:
        return Study.model_validate(json.loads(file.read_text(encoding="utf-8"))["study"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} holds no study that can be read: {error}") from error


def _read_preset(preset: Any, info: ValidationInfo) -> Preset:
    from nnunet_locctx.nnunet.plans.plans_file import check_name

    if not isinstance(preset, str):
        raise ValueError(f"must be names of presets or JSON files, got {preset!r}")
    file = preset
    if preset.endswith(".json"):
        file = str(beside(preset, info))
        if not Path(file).is_file():
            raise ValueError(f"there is no file {file}")
    else:
        check_known([preset], list_presets(), "preset")
    check_name(preset_name(preset), "preset's name")
    return load_preset(file)
