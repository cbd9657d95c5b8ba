"""Leashes: what holds a model near its base while it trains, by one small interface."""

from offaxis.train.leash.callback import LeashCallback
from offaxis.train.leash.leash import Leash
from offaxis.train.leash.named import LEASHES, leash_named

__all__ = ["LEASHES", "Leash", "LeashCallback", "leash_named"]
