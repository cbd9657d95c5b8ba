"""From a grid file to runs: which methods, rates, seeds and tasks, and each run's identity."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from offaxis.errors import InputError
from offaxis.lab.queue.edited import EditSpec
from offaxis.lab.training import METHODS, TrainingSettings
from offaxis.masks.expression import parse
from offaxis.train.adapters.methods import AdapterSpec

__all__ = ["BASE_METHOD", "LISTS", "RunConfig", "distinct", "expand", "read_grid"]

BASE_METHOD = "base"
"""The method of the row that holds the untrained base's scores, one a task."""

LISTS = ("save_at", "series")
"""Settings of a run that are lists."""
_STUDIES = Path(__file__).parent.parent / "studies"
_ORDER = ("seed", "learning_rate", "task", "method", "mask", "adapter")
"""What varies slowest first, so that a queue that is stopped early has whole replications."""


@dataclass(frozen=True)
class RunConfig:
    """One run: a method and its settings. Everything that a result depends on but the base."""

    method: str = "grpo"
    task: str = "arithmetic"
    learning_rate: float = 3e-5
    seed: int = 0
    steps: int = 40
    save_at: tuple[int, ...] = (5, 10, 20, 40)
    difficulty: int = 2
    prompts_per_step: int = 16
    completions_per_prompt: int = 8
    problems: int = 100
    """Held-out problems on which each checkpoint is scored."""
    samples: int = 8
    """Samples of each."""
    keep: bool = False
    """Keep the checkpoints."""
    series: tuple[int, ...] = ()
    """Further steps whose weights are saved, to be read later: neither scored nor measured, and
    gone with the run unless `keep`."""
    mask: str = ""
    """Train only what this rule selects (`offaxis.masks.build`); a random one follows the run's
    seed unless it names its own. Nothing: all parameters are trained; "all": all matrices."""
    twin_seed: int = -1
    """Also train all matrices with this seed, and tell how alike the two runs end. -1: no twin, or
    for a rule with `subnetwork`, which is that of the twin, the run's own seed."""
    own_exam: bool = False
    """Score the run's own exam alone: no other task, nothing harder."""
    mask_refresh: int = 0
    """Steps after which the mask's rule is applied again, to the weights as they are; 0: never."""
    adapter: str = ""
    """Train this adapter, `METHOD` or `METHOD?key=value` (`offaxis.train.adapters.AdapterSpec`).
    Nothing: the model itself is trained; "full" is that too."""
    optimizer: str = "adamw_torch"
    """One of `offaxis.lab.training.OPTIMIZERS`."""
    dtype: str = "float32"
    """In which the weights are stored in training: float32, or bfloat16 without masters."""
    edit: str = ""
    """Train from, and measure against, the base in other coordinates: `rotate?layers=1,2&seed=0`
    or `permute?layers=1,2` (`offaxis.lab.queue.edited.EditSpec`). Nothing: the base as it is."""

    def settings(self) -> TrainingSettings:
        """The training side of the run, checked."""
        names = {field.name for field in fields(TrainingSettings)}
        given = {name: value for name, value in asdict(self).items() if name in names}
        saved = tuple(sorted({*self.save_at, *self.series}))
        return TrainingSettings(**given | {"save_at": saved})

    def scores(self, step: int) -> bool:
        """Is the checkpoint of this step scored and measured?"""
        return step in self.save_at or step == self.steps

    @property
    def twin(self) -> RunConfig | None:
        """The run over all matrices that this one is held against, if any."""
        if self.twin_seed < 0 and "subnetwork" not in self.mask:
            return None
        seed = self.seed if self.twin_seed < 0 else self.twin_seed
        return replace(self, mask="all", mask_refresh=0, twin_seed=-1, seed=seed)

    @property
    def adapter_spec(self) -> AdapterSpec | None:
        """The adapter that is trained in the model's place, if any."""
        spec = AdapterSpec.parse(self.adapter) if self.adapter else None
        return None if spec is None or spec.about.make is None else spec

    @property
    def revision(self) -> int:
        """Of the method: which of the ways of training that its name has stood for."""
        return METHODS[self.method].revision if self.method in METHODS else 0

    @property
    def needs_teacher(self) -> bool:
        """Does it learn from the stronger model?"""
        return self.method in METHODS and METHODS[self.method].needs_teacher

    def identity(self, base: str) -> str:
        """A name of 12 hexadecimal digits: the same run from the same base has the same one.

        base: digest of the base's weights. Whether checkpoints are kept does not count; a
        method's revision does, from the first on.
        """
        later = (
            "mask", "twin_seed", "own_exam", "adapter", "mask_refresh", "optimizer", "dtype",
            "edit", "series",
        )  # fmt: skip
        plain = {one.name: one.default for one in fields(self)}  # absent from older identities
        told = {
            name: value
            for name, value in asdict(self).items()
            if name != "keep" and not (name in later and value == plain[name])
        }
        told |= {"revision": self.revision} if self.revision else {}
        text = json.dumps(told | {"base": base}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_grid(source: str | Path) -> list[RunConfig]:
    """The runs of a grid: a TOML file, or the name of a study that ships with offaxis.

    The file holds one or more `[[grid]]` tables. Each key is a field of `RunConfig`, each value
    one setting or a list of them, and the table stands for every combination (`save_at` is a
    list itself, so several of them are a list of lists). Raises InputError that names the file
    and the key.
    """
    path = Path(source)
    if not path.is_file() and (_STUDIES / f"{source}.toml").is_file():
        path = _STUDIES / f"{source}.toml"
    if not path.is_file():
        known = ", ".join(sorted(study.stem for study in _STUDIES.glob("*.toml")))
        raise InputError(f"{source}: no such grid file, and no study of that name ({known})")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    grids: Any = tables.get("grid")
    if set(tables) != {"grid"} or not _are_tables(grids):
        raise InputError(
            f"{path}: holds {sorted(tables) or 'nothing'}; one or more [[grid]] tables are needed"
        )
    return expand(grids, where=str(path))


def _are_tables(grids: Any) -> bool:
    return isinstance(grids, list) and bool(grids) and all(isinstance(one, dict) for one in grids)


def expand(grids: Sequence[Mapping[str, Any]], *, where: str = "grid") -> list[RunConfig]:
    """Every combination of every table, each run once, in the order in which they are to run."""
    runs: list[RunConfig] = []
    for number, grid in enumerate(grids, start=1):
        axes = {key: _values(key, value, f"{where}, table {number}") for key, value in grid.items()}
        for chosen in itertools.product(*axes.values()):
            config = RunConfig(**dict(zip(axes, chosen, strict=True)))
            _check(config, f"{where}, table {number}")
            runs.append(config)
    found = distinct(runs)
    # The place of a method, mask or adapter in the file, not its name, decides its turn.
    places = {
        name: list(dict.fromkeys(getattr(config, name) for config in found))
        for name in ("method", "mask", "adapter")
    }
    return sorted(
        found,
        key=lambda config: tuple(
            places[name].index(getattr(config, name)) if name in places else getattr(config, name)
            for name in _ORDER
        ),
    )


def distinct(runs: Iterable[RunConfig]) -> list[RunConfig]:
    """Each run once, its checkpoints to be kept if any mention of it says so."""
    found: dict[RunConfig, RunConfig] = {}
    for run in runs:
        plain = replace(run, keep=False)
        found[plain] = replace(plain, keep=run.keep or found.get(plain, plain).keep)
    return list(found.values())


def _values(key: str, value: Any, where: str) -> list[Any]:
    """The settings that a key of the file stands for, each of the field's type."""
    kinds = {field.name: field for field in fields(RunConfig)}
    if key not in kinds:
        raise InputError(f"{where}: {key!r} is no setting of a run; choose among {list(kinds)}")
    default = kinds[key].default
    if isinstance(default, tuple):
        nested = isinstance(value, list) and bool(value) and isinstance(value[0], list)
        lists = [_typed(key, one, list, where) for one in (value if nested else [value])]
        return [tuple(_typed(key, step, int, where) for step in one) for one in lists]
    many = value if isinstance(value, list) else [value]
    if not many:
        raise InputError(f"{where}: {key} is an empty list, so there is nothing to run")
    return [_typed(key, one, type(default), where) for one in many]


def _typed(key: str, value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: {key} = {value!r} should be of type {kind.__name__}")
    return value


def _check(config: RunConfig, where: str) -> None:
    if config.method != BASE_METHOD and config.method not in METHODS:
        raise InputError(
            f"{where}: method {config.method!r}: choose among {BASE_METHOD}, {', '.join(METHODS)}"
        )
    if not 0 < config.learning_rate < math.inf or config.problems < 1 or config.samples < 1:
        raise InputError(
            f"{where}: learning_rate {config.learning_rate}, problems {config.problems} and "
            f"samples {config.samples} must be positive"
        )
    try:
        config.settings()
        if config.mask:
            parse(config.mask)
        if config.mask_refresh < 0 or (config.mask_refresh and not config.mask):
            raise InputError(f"mask_refresh {config.mask_refresh}: steps, for a run with a mask")
        if config.adapter:
            AdapterSpec.parse(config.adapter)
            if config.mask:
                raise InputError("mask and adapter: a run has one of them")
            if config.dtype != "float32":
                raise InputError(f"dtype {config.dtype} and adapter: adapters are float32 here")
        _check_edit(config)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_edit(config: RunConfig) -> None:
    if not config.edit:
        return
    EditSpec.parse(config.edit)
    given = {"mask": config.mask, "adapter": config.adapter, "twin_seed": config.twin_seed >= 0}
    if besides := [name for name, one in given.items() if one]:
        raise InputError(
            f"edit and {', '.join(besides)}: a run from an edited base trains all of it, alone; "
            "leave one of them out"
        )
