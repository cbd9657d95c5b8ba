"""The methods by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from offaxis.predict.alpharl import AlphaRL
from offaxis.predict.linear import Linear, Stop
from offaxis.predict.methods import Predictor
from offaxis.predict.rebuilding import RankK
from offaxis.predict.relex import Relex
from offaxis.predict.scale import Scale

__all__ = ["METHODS"]


METHODS: Mapping[str, Callable[[], Predictor]] = {
    "relex": Relex,
    "alpharl": AlphaRL,
    "alpharl-code": partial(AlphaRL, variant="code"),
    "scale": Scale,
    "linear": Linear,
    "rank": RankK,
    "stop": Stop,
}
"""Name → a predictor with its defaults."""
