"""Adapters of the study as a reader knows them: one text each, order, names."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Mapping
from functools import lru_cache

from offaxis.errors import InputError
from offaxis.train.adapters.methods import AdapterSpec

__all__ = [
    "ADALORA",
    "DORA",
    "FULL",
    "GEORA",
    "IA3",
    "LORA",
    "LORA_FA",
    "LORA_PLUS",
    "MILORA",
    "MISS",
    "NORMS",
    "OFF_PRINCIPAL",
    "OFF_RANDOM",
    "PISSA",
    "RANK",
    "RANK1",
    "RSLORA",
    "VERA",
    "canonical",
    "label",
    "method_of",
    "ordered",
    "rank_of",
    "with_rank",
]

RANK = 8
"""The rank of every adapter that has one, but for the study of ranks."""

FULL = "full"
LORA = "lora?rank=8"
RSLORA = "rslora?rank=8"
LORA_PLUS = "lora_plus?rank=8"
LORA_FA = "lora_fa?rank=8"
RANK1 = "lora_rank1?rank=8"
DORA = "dora?rank=8"
ADALORA = "adalora?rank=8"
MISS = "miss?rank=8"
PISSA = "pissa?rank=8"
MILORA = "milora?rank=8"
GEORA = "geora?rank=8"
OFF_PRINCIPAL = "off_principal_lora?rank=8"
OFF_RANDOM = "off_principal_lora?avoid=random&rank=8"
VERA = "vera?rank=8"
IA3 = "ia3"
NORMS = "ln_tuning"

_NAMES: Mapping[str, str] = {
    FULL: "full",
    LORA: "LoRA",
    RSLORA: "rsLoRA",
    LORA_PLUS: "LoRA+",
    LORA_FA: "LoRA-FA",
    RANK1: "rank-1 LoRA",
    DORA: "DoRA",
    ADALORA: "AdaLoRA",
    MISS: "MiSS",
    PISSA: "PiSSA",
    MILORA: "MiLoRA",
    GEORA: "GeoRA",
    OFF_PRINCIPAL: "off-principal LoRA",
    OFF_RANDOM: "off-random LoRA",
    VERA: "VeRA",
    IA3: "(IA)³",
    NORMS: "norm tuning",
}


@lru_cache(maxsize=256)
def canonical(text: str) -> str:
    """`METHOD?key=value&...` with sorted keys; nothing is `full`."""
    method, _, query = text.strip().partition("?")
    options = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
    return (method or FULL) + (f"?{urllib.parse.urlencode(options)}" if options else "")


@lru_cache(maxsize=256)
def _spec(adapter: str) -> AdapterSpec | None:
    """None of a text that this version does not know."""
    try:
        return AdapterSpec.parse(adapter)
    except InputError:
        return None


def method_of(adapter: str) -> str:
    """The method's name in `ADAPTERS`."""
    return canonical(adapter).partition("?")[0]


def rank_of(adapter: str) -> int | None:
    """The rank that the text asks for; None of adapters without one."""
    spec = _spec(canonical(adapter))
    return spec.used_rank if spec and "rank=" in adapter else None


def with_rank(adapter: str, rank: int) -> str:
    """The same adapter at another rank; an alpha that is given moves with it, so that s stays."""
    method, _, query = adapter.partition("?")
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    old = AdapterSpec.parse(adapter).rank
    if "alpha" in options:
        options["alpha"] = f"{float(options['alpha']) * rank / old:g}"
    return f"{method}?{urllib.parse.urlencode(options | {'rank': str(rank)})}"


def label(adapter: str) -> str:
    """An adapter's name; a text that the study does not know keeps it."""
    own = canonical(adapter)
    if own in _NAMES:
        return _NAMES[own]
    spec = _spec(own)
    if spec is not None and rank_of(own) is not None:
        usual = canonical(with_rank(own, RANK))
        if usual in _NAMES:
            return f"{_NAMES[usual]}, r = {spec.rank}"
    return own


def ordered(adapters: Iterable[str]) -> list[str]:
    """In the study's order, each beside its other ranks; unknown ones last."""
    known = list(_NAMES)

    def place(adapter: str) -> tuple[int, int, str]:
        rank = rank_of(adapter)
        usual = adapter if rank is None else canonical(with_rank(adapter, RANK))
        return (known.index(usual) if usual in known else len(known), rank or 0, adapter)

    return sorted({canonical(one) for one in adapters}, key=place)
