"""The table of adapters: what each trains, where it comes from, and its PEFT configuration."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from offaxis.errors import InputError
from offaxis.train.adapters.targets import Targets

__all__ = ["ADAPTERS", "AdapterMethod", "AdapterSpec"]


@dataclass(frozen=True)
class AdapterSpec:
    """What is asked for: a method by name, the same few numbers for every one, and its own.

    rank: r, of every adapted matrix (AdaLoRA: on average, in the end). alpha: the update is scaled
    by s = alpha / r, for rsLoRA by alpha / √r; None: 2 r. MiSS, VeRA, (IA)³ and norms have no such
    scale. dropout: of the adapter's input, during training. target_modules: "all-linear" (every
    linear layer but the head), a list of names of modules, or, as one text, a regular expression
    of whole paths; for `ln_tuning` "all-norms". options: what only this method has, with its
    defaults in `ADAPTERS`.

    Raises InputError for what a method does not have, rather than ignore it: (IA)³ has no rank.
    """

    method: str = "lora"
    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] | list[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in ADAPTERS:
            raise InputError(f"adapter {self.method!r}: choose one of {', '.join(ADAPTERS)}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"rank {self.rank!r}: a whole number of at least 1 is needed")
        if self.alpha is not None and not (_real(self.alpha) and self.alpha > 0):
            raise InputError(f"alpha {self.alpha!r}: a positive number is needed")
        if not (_real(self.dropout) and 0 <= self.dropout < 1):
            raise InputError(f"dropout {self.dropout!r}: a share below 1 is needed")
        if isinstance(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        modules = self.target_modules
        names = modules if isinstance(modules, tuple) else (modules or "",)
        if modules is not None and not (
            names and all(isinstance(one, str) and one for one in names)
        ):
            raise InputError(f"target_modules {modules!r}: give names, or a regular expression")
        told = {name for name, value in _DEFAULTS.items() if getattr(self, name) != value}
        self._refuse({*told, *self.options})
        for name, value in self.options.items():
            allowed, words = OPTIONS[name]
            if not allowed(value):
                raise InputError(f"{name} {value!r} of {self.method}: {words} is needed")

    def _refuse(self, told: Iterable[str]) -> None:
        """InputError for a name that means nothing to the method."""
        known = [*(name for name in _DEFAULTS if name not in self.about.lacks), *self.about.options]
        if unknown := sorted(set(told) - set(known)):
            takes = f"it takes {', '.join(known)}" if known else "it takes no settings"
            raise InputError(f"{self.method} has no {', '.join(unknown)}; {takes}")

    @classmethod
    def parse(cls, text: str) -> AdapterSpec:
        """`METHOD`, or `METHOD?key=value&...` with the fields of a spec and the method's options.

        Values are JSON where they can be (`rank=16`), else text (`avoid=random`); `%26` is an &.
        """
        method, _, query = text.partition("?")
        given: dict[str, Any] = {"method": method.strip()}
        for part in query.split("&") if query else ():
            key, found, value = map(unquote, part.partition("="))
            if not found or key in given:
                raise InputError(
                    f"adapter {text!r}: {part!r} is no new key=value; write it as "
                    "METHOD?key=value&key=value"
                )
            given[key] = value
            with contextlib.suppress(ValueError):
                given[key] = json.loads(value)
        return cls.of(given)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> AdapterSpec:
        """From one mapping, as it stands in YAML: `method`, and beside it fields and options."""
        names = {one.name for one in fields(cls)} - {"options"}
        own = {key: value for key, value in given.items() if key in names}
        made = cls(**own, options={key: one for key, one in given.items() if key not in names})
        made._refuse(set(own) - {"method"})
        return made

    @property
    def about(self) -> AdapterMethod:
        """The method's row of the table."""
        return ADAPTERS[self.method]

    def option(self, name: str) -> Any:
        """An option as given, or the method's default."""
        return {**self.about.options, **self.options}[name]

    @property
    def used_rank(self) -> int:
        """The rank that is trained: `lora_rank1` has its own."""
        return 1 if self.method == "lora_rank1" else self.rank

    @property
    def used_alpha(self) -> float:
        """alpha, or 2 r: a rank of its own keeps the scale s that was asked for."""
        if self.alpha is None:
            return 2.0 * self.used_rank
        return self.alpha * self.used_rank / self.rank


_DEFAULTS = {
    one.name: one.default for one in fields(AdapterSpec) if one.name not in ("method", "options")
}

Make = Callable[[AdapterSpec, Targets], Any]


@dataclass(frozen=True)
class AdapterMethod:
    """One row of the table."""

    name: str
    trains: tuple[str, ...]
    """The parts of a module's parameter names that get gradients, each of them at every target."""
    says: str
    """What is trained, in a formula."""
    source: str
    make: Make | None
    """Its PEFT configuration for a spec and a model's targets; None for full fine-tuning."""
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: str = "linear"
    """`linear`, `norm` (it has weights of its own only there), or `all` (every parameter)."""
    frozen: tuple[str, ...] = ()
    """Parts of an adapter that it never trains."""
    optimizer: str = ""
    """`lora_plus` or `lora_fa`, where the method is its optimizer."""
    overwrites: bool = False
    """Does its start take a part out of the base?"""
    lacks: tuple[str, ...] = ()
    """Fields of a spec that mean nothing to it, and are refused."""


def _shared(spec: AdapterSpec, targets: Targets) -> dict[str, Any]:
    return {
        "task_type": "CAUSAL_LM",
        "r": spec.used_rank,
        "lora_alpha": _plain(spec.used_alpha),
        "lora_dropout": spec.dropout,
        "target_modules": targets.given,
    }


def _plain(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _lora(**more: Any) -> Make:
    def make(spec: AdapterSpec, targets: Targets) -> Any:
        from peft import LoraConfig

        return LoraConfig(**_shared(spec, targets), **more)

    return make


def _pissa(spec: AdapterSpec, targets: Targets) -> Any:
    rounds = spec.option("niter")
    return _lora(init_lora_weights=f"pissa_niter_{rounds}" if rounds else "pissa")(spec, targets)


def _geometric(*names: str, **more: Any) -> Make:
    def make(spec: AdapterSpec, targets: Targets) -> Any:
        from offaxis.train.adapters.configs import GeometricLoraConfig

        options = {name: spec.option(name) for name in names}
        return GeometricLoraConfig(**_shared(spec, targets), **options, **more)

    return make


def _adalora(spec: AdapterSpec, targets: Targets) -> Any:
    from peft import AdaLoraConfig

    shared = _shared(spec, targets)
    target = shared.pop("r")
    first = spec.option("initial_rank") or math.ceil(1.5 * target)
    if first <= target:
        raise InputError(
            f"initial_rank {first}: AdaLoRA starts above its rank, {target}, and prunes down to it"
        )
    # PEFT divides by the first rank, so that s is alpha / r as for LoRA.
    shared["lora_alpha"] = _plain(spec.used_alpha / target * first)
    return AdaLoraConfig(
        **shared,
        init_r=first,
        target_r=target,
        deltaT=spec.option("every"),
        beta1=spec.option("beta1"),
        beta2=spec.option("beta2"),
        orth_reg_weight=spec.option("orthogonality"),
        total_step=_UNKNOWN_STEPS,  # `wire` sets the schedule when the length of the run is known
    )


_UNKNOWN_STEPS = 2**31 - 1
_AVOIDED = ("principal", "minor", "random")  # as layers.AVOIDED, which PEFT comes with


def _miss(spec: AdapterSpec, targets: Targets) -> Any:
    from peft import MissConfig

    return MissConfig(
        task_type="CAUSAL_LM",
        r=spec.used_rank,
        miss_dropout=spec.dropout,
        target_modules=targets.given,
    )


def _vera(spec: AdapterSpec, targets: Targets) -> Any:
    from peft import VeraConfig

    return VeraConfig(
        task_type="CAUSAL_LM",
        r=spec.used_rank,
        vera_dropout=spec.dropout,
        target_modules=targets.given,
        d_initial=spec.option("d_initial"),
        projection_prng_key=spec.option("projection_seed"),
        save_projection=True,
    )


def _ia3(spec: AdapterSpec, targets: Targets) -> Any:
    from peft import IA3Config

    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=list(targets.modules),
        feedforward_modules=list(targets.down),
    )


def _norms(spec: AdapterSpec, targets: Targets) -> Any:
    from peft import LNTuningConfig

    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=list(targets.modules))


def _real(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_Rule = tuple[Callable[[Any], bool], str]
_SHARE: _Rule = (lambda value: _real(value) and 0 <= value < 1, "a share below 1")
_DECAY: _Rule = (lambda value: _real(value) and 0 < value < 1, "a number between 0 and 1")
_COUNT: _Rule = (_whole, "a whole number of at least 0")

OPTIONS: Mapping[str, _Rule] = {
    "ratio": (lambda value: _real(value) and value >= 1, "a number of at least 1"),
    "initial_rank": (lambda value: value is None or _whole(value, 1), "a whole number, or null,"),
    "warmup": _SHARE,
    "cooldown": _SHARE,
    "every": (lambda value: _whole(value, 1), "a whole number of at least 1"),
    "beta1": _DECAY,
    "beta2": _DECAY,
    "orthogonality": (lambda value: _real(value) and value >= 0, "a number of at least 0"),
    "niter": _COUNT,
    "d_initial": (lambda value: _real(value) and value != 0, "a number other than 0"),
    "projection_seed": _COUNT,
    "avoid_rank": (lambda value: value is None or _whole(value), "a whole number, or null,"),
    "avoid": (lambda value: value in _AVOIDED, f"one of {', '.join(_AVOIDED)}"),
    "avoid_seed": _COUNT,
    "low_share": (lambda value: _real(value) and 0 < value <= 1, "a share above 0, at most 1,"),
}
"""What each option of a method may be: a test, and what is said where it fails."""

_LORA = "W₀ + s B A, s = alpha / r"
_AB = ("lora_A", "lora_B")
_SCALE = ("alpha",)
_SIZE = ("rank", "alpha", "dropout")
_OFF = {"avoid_rank": None, "avoid": "principal", "avoid_seed": 0}

_ALL = (
    AdapterMethod("full", (), "every parameter", "", None, targets="all",
                  lacks=(*_SIZE, "target_modules")),
    AdapterMethod("lora", _AB, _LORA, "arXiv 2106.09685", _lora()),
    AdapterMethod("rslora", _AB, "W₀ + s B A, s = alpha / √r", "arXiv 2312.03732",
                  _lora(use_rslora=True)),
    AdapterMethod("lora_plus", _AB, f"{_LORA}; B's rate is `ratio` times A's", "arXiv 2402.12354",
                  _lora(), {"ratio": 16.0}, optimizer="lora_plus"),
    AdapterMethod("lora_fa", ("lora_B",), f"{_LORA}; A stays at its random start, and B's gradient "
                  "is G (A Aᵀ)⁻¹ / s²", "arXiv 2308.03303", _lora(), frozen=("lora_A",),
                  optimizer="lora_fa"),
    AdapterMethod("dora", (*_AB, "lora_magnitude_vector"),
                  "m (W₀ + s B A) / ‖W₀ + s B A‖, the norm over each output's row",
                  "arXiv 2402.09353", _lora(use_dora=True)),
    AdapterMethod("adalora", ("lora_A", "lora_B", "lora_E"),
                  "W₀ + s B diag(E) A, E pruned to the rank on average, ‖AAᵀ − I‖ and ‖BᵀB − I‖ "
                  "in the loss", "arXiv 2303.10512", _adalora,
                  {"initial_rank": None, "warmup": 0.1, "cooldown": 0.3, "every": 1,
                   "beta1": 0.85, "beta2": 0.85, "orthogonality": 0.5},
                  frozen=("ranknum",)),  # which PEFT's cast of a bfloat16 base would train
    AdapterMethod("miss", ("miss_block",), "W₀ + D, one (r, out) block repeated over the inputs",
                  "arXiv 2409.15371", _miss, lacks=_SCALE),
    AdapterMethod("pissa", _AB, "W₀ + s (B A − B₀ A₀), s B₀A₀ the first r singular triples",
                  "arXiv 2404.02948", _pissa, {"niter": 0}, overwrites=True),
    AdapterMethod("milora", _AB, "W₀ + s (B A − B₀ A₀), s B₀A₀ the last r singular triples",
                  "arXiv 2406.09044", _geometric(init_lora_weights="milora"), overwrites=True),
    AdapterMethod("vera", ("vera_lambda_b", "vera_lambda_d"),
                  "W₀ + diag(b) B diag(d) A, B and A random, frozen and shared",
                  "arXiv 2310.11454", _vera, {"d_initial": 0.1, "projection_seed": 0},
                  lacks=_SCALE),
    AdapterMethod("ia3", ("ia3_l",), "l ⊙ the outputs of each linear, or the inputs of the MLP's "
                  "last", "arXiv 2205.05638", _ia3, lacks=_SIZE),
    AdapterMethod("ln_tuning", ("ln_tuning_layers",), "the weights of the norms",
                  "arXiv 2312.11420", _norms, targets="norm", lacks=_SIZE),
    AdapterMethod("lora_rank1", _AB, f"{_LORA}, r = 1", "arXiv 2106.09685", _lora()),
    AdapterMethod("off_principal_lora", _AB, "W₀ + s (I − UₖUₖᵀ) B A (I − VₖVₖᵀ), Uₖ and Vₖ the "
                  "base's first k singular vectors", "offaxis", _geometric(*_OFF), _OFF),
    AdapterMethod("geora", _AB, "W₀ + s (B A − B₀ A₀), s B₀A₀ the best rank-r fit of W₀'s small "
                  "entries", "after arXiv 2601.09361",
                  _geometric("low_share", init_lora_weights="geora"), {"low_share": 0.2},
                  overwrites=True),
)  # fmt: skip

ADAPTERS: Mapping[str, AdapterMethod] = MappingProxyType({one.name: one for one in _ALL})
"""By name. PEFT's implementation wherever it has one; MiLoRA, GeoRA and off-principal LoRA are
`offaxis.train.adapters.GeometricLoraConfig`."""
