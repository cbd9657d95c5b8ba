"""The base of a run in other coordinates: which edit, and the model that it makes."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from offaxis.errors import InputError
from offaxis.intervene import Intervention, parse_layers, permute, rotate
from offaxis.intervene.drawing import KINDS

if TYPE_CHECKING:
    from offaxis.lab.queue.grid import RunConfig

__all__ = ["EDITED", "EditSpec", "edited_base"]

EDITED = "base"
"""The folder of a run that holds its edited base, beside the checkpoints."""

_OPTIONS = {
    "rotate": ("layers", "seed", "kind", "per_head"),
    "permute": ("layers", "seed", "within_groups"),
}
"""What each edit takes, as `offaxis.intervene.rotate` and `permute` do."""


@dataclass(frozen=True)
class EditSpec:
    """One edit of a base's attention: `rotate` or `permute`, and its settings."""

    verb: str
    layers: str | int
    seed: int = 0
    kind: str = "haar"
    per_head: bool = False
    within_groups: bool = False

    def __post_init__(self) -> None:
        parse_layers(self.layers)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed {self.seed!r} of {self.verb}: a whole number is needed")
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} of {self.verb}: choose {' or '.join(KINDS)}")
        for name in ("per_head", "within_groups"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} of {self.verb}: write true or false")

    @classmethod
    def parse(cls, text: str) -> EditSpec:
        """`VERB?layers=1,2&key=value&...`; values are JSON where they can be, else text.

        InputError for another verb, a key that it does not take or that is told twice, or no
        layers.
        """
        verb, _, query = text.partition("?")
        if verb not in _OPTIONS:
            raise InputError(f"edit {text!r}: {verb!r} is none; choose {' or '.join(_OPTIONS)}")
        given: dict[str, Any] = {}
        for part in query.split("&") if query else ():
            key, found, value = map(unquote, part.partition("="))
            if not found or key in given:
                raise InputError(
                    f"edit {text!r}: {part!r} is no new key=value; write it as "
                    "VERB?layers=1,2&key=value"
                )
            given[key] = value
            with contextlib.suppress(ValueError):
                given[key] = json.loads(value)
        if unknown := sorted(set(given) - set(_OPTIONS[verb])):
            takes = ", ".join(_OPTIONS[verb])
            raise InputError(f"edit {text!r}: {verb} has no {', '.join(unknown)}; it takes {takes}")
        if "layers" not in given:
            raise InputError(f"edit {text!r}: names no layers; write {verb}?layers=1,2")
        return cls(verb, **given)

    def make(self, model: Path, out: Path) -> Intervention:
        """Write the edited model into `out`, with the record of what was done."""
        edit = rotate if self.verb == "rotate" else permute
        names = {one.name for one in fields(self)} & set(_OPTIONS[self.verb]) - {"layers"}
        options = {name: getattr(self, name) for name in names}
        return edit(model, self.layers, out=out, **options)


def edited_base(base: Path, config: RunConfig, work: Path) -> Path:
    """What a run starts from and is measured against: `base`, or its edit, made in `work`."""
    if not config.edit:
        return base
    EditSpec.parse(config.edit).make(base, work / EDITED)
    return work / EDITED
