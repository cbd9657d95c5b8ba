"""PEFT adapters: read as they are stored, bound to a base as the model that they make.

`bind` gives a checkpoint with the base's names. A tensor that the adapter touches reads as float64
(code F64); every other comes straight from the base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NoReturn

import torch

from offaxis.checkpoint.locate import locate
from offaxis.checkpoint.lora import LoraSettings, effective_weight, overwrites
from offaxis.checkpoint.stored import StoredCheckpoint, missing_tensor
from offaxis.checkpoint.types import Checkpoint, TensorSpec
from offaxis.errors import CheckpointError
from offaxis.names import place, rename, unwrap

__all__ = ["AdapterCheckpoint", "bind"]

_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(?:\.default)?(?:\.(?P<leaf>weight|bias))?$"
)
_HEADS = ("lm_head", "classifier", "value_head")
_OTHER_BASE = "give the base that the adapter was trained on"

Read = Callable[[], torch.Tensor]


class AdapterCheckpoint(Checkpoint):
    """An adapter directory, tensors as stored. It has to be bound before it can be compared."""

    def __init__(self, stored: Checkpoint, adapter: Mapping[str, object]) -> None:
        self.source = stored.source
        self.specs = stored.specs
        self.config: Mapping[str, object] = {}
        self.adapter = adapter
        """`adapter_config.json`."""
        self._stored = stored

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._stored[name]

    def initial(self) -> AdapterCheckpoint | None:
        """The adapter that training started from, where its start overwrote the base.

        It lies in the subfolder `ref`, as `offaxis.train.prepare_peft_model` has it saved. Raises
        CheckpointError where that holds anything else.
        """
        root = getattr(self._stored, "root", None)
        if root is None or not (root / "ref" / "adapter_config.json").is_file():
            return None
        if not overwrites(self.adapter.get("init_lora_weights")):
            return None
        located = locate(root / "ref", allow_pickle=False, revision=None)
        found = AdapterCheckpoint(StoredCheckpoint(located), located.adapter or {})
        shapes, ours = ({n: s.shape for n, s in one.specs.items()} for one in (found, self))
        keys = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
        unlike = [key for key in keys if found.adapter.get(key) != self.adapter.get(key)]
        if unlike or shapes != ours:
            what = unlike[0] if unlike else "the tensors"
            raise CheckpointError(
                f"{found.source}: not the initial adapter of {self.source}, {what} differ; put the "
                "one there that the run saved"
            )
        return found


class BoundCheckpoint(Checkpoint):
    """A base with an adapter on it. The last merged tensor is kept, for pieces of a fused one."""

    def __init__(
        self,
        adapter: AdapterCheckpoint,
        base: Checkpoint,
        touched: Mapping[str, tuple[TensorSpec, Read]],
    ) -> None:
        self.source = adapter.source
        self.config = _config(adapter, base, touched)
        self.base = base
        specs = {name: touched[name][0] if name in touched else base.specs[name] for name in base}
        specs.update({name: spec for name, (spec, _) in touched.items()})
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self._touched = touched
        self._last: tuple[str, torch.Tensor] | None = None

    @property
    def touched(self) -> frozenset[str]:
        """Names of the tensors that the adapter changes."""
        return frozenset(self._touched)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.specs:
            raise missing_tensor(name, self.specs)
        if name not in self._touched:
            return self.base[name]
        last = self._last  # read once: several threads may ask
        if last is not None and last[0] == name:
            return last[1]
        last = self._last = None  # release before the next is made
        made = self._touched[name][1]()
        self._last = (name, made)
        return made


@dataclass
class _Module:
    """The adapter's tensors for one module, by kind."""

    name: str
    factors: dict[str, str] = field(default_factory=dict)


def bind(adapter: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The model that `adapter` makes of `base`, lazily.

    adapter: an opened PEFT directory (LoRA, rsLoRA or DoRA; PiSSA and kin with their initial
    adapter in the subfolder `ref`). base: the model it was trained on.
    Raises CheckpointError for other methods and variants, for PiSSA and kin without `ref`, and
    where an adapter tensor fits no base tensor.
    """
    if not isinstance(adapter, AdapterCheckpoint):
        raise CheckpointError(
            f"{adapter.source}: not a PEFT adapter; compare it with its base directly"
        )
    initial = adapter.initial()
    settings = LoraSettings.parse(adapter.source, adapter.adapter, initial=initial is not None)
    modules, whole = _sort(adapter)
    wanted: dict[str, tuple[int, ...]] = {
        f"{name}.weight": _shape(adapter, item) for name, item in modules.items()
    }
    wanted.update({name: adapter.specs[stored].shape for name, stored in whole.items()})
    home = _Home(adapter, base, wanted, initial)
    touched: dict[str, tuple[TensorSpec, Read]] = {}
    for name, stored in whole.items():
        spec = home.whole(name, adapter.specs[stored])
        if spec is not None:
            touched[spec.name] = (spec, _reader(adapter, stored))
    for item in modules.values():
        touched.update(home.module(item, settings, touched))
    return BoundCheckpoint(adapter, base, touched)


def _config(
    adapter: AdapterCheckpoint, base: Checkpoint, touched: Mapping[str, tuple[TensorSpec, Read]]
) -> Mapping[str, object]:
    """The base's config. A head that the adapter changes is no longer tied to the embedding."""
    heads = [
        name for name, (spec, _) in touched.items() if place(name, spec.shape).role == "lm_head"
    ]
    if not heads or adapter.adapter.get("ensure_weight_tying") is True:
        return base.config
    return MappingProxyType({**base.config, "tie_word_embeddings": False})


def _reader(checkpoint: Checkpoint, name: str) -> Read:
    def read() -> torch.Tensor:
        return checkpoint[name].double()

    return read


def _sort(adapter: AdapterCheckpoint) -> tuple[dict[str, _Module], dict[str, str]]:
    """Low-rank factors by module, and whole tensors by the name of what they replace."""
    modules: dict[str, _Module] = {}
    whole: dict[str, str] = {}
    for stored in adapter.specs:
        name = unwrap(stored).removeprefix("base_model.model.")
        if "trainable_tokens" in name:
            raise CheckpointError(
                f"{adapter.source}: tensor {stored!r} trains single rows of the embedding, which "
                "is not supported; merge the adapter with PEFT and compare the merged model"
            )
        match = _FACTOR.match(name)
        if match is None:
            plain = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
            whole[plain.replace(".base_layer.", ".")] = stored
            continue
        module = modules.setdefault(match["module"], _Module(match["module"]))
        kind = match["kind"] + (".bias" if match["leaf"] == "bias" else "")
        module.factors[kind] = stored
    return modules, whole


def _pair(item: _Module) -> tuple[str | None, str | None, bool]:
    """(A, B, embedding?) of a module."""
    if "lora_embedding_A" in item.factors or "lora_embedding_B" in item.factors:
        return item.factors.get("lora_embedding_A"), item.factors.get("lora_embedding_B"), True
    return item.factors.get("lora_A"), item.factors.get("lora_B"), False


def _shape(adapter: AdapterCheckpoint, item: _Module) -> tuple[int, int]:
    """(out, in) of the weight that A (r, in) and B (out, r) change; (in, out) for an embedding."""
    down, up, embedding = _pair(item)
    if down is None or up is None:
        raise CheckpointError(
            f"{adapter.source}: {item.name} has {sorted(item.factors)} but not both factors A and "
            "B; save the adapter again"
        )
    a, b = adapter.specs[down].shape, adapter.specs[up].shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise CheckpointError(
            f"{adapter.source}: {item.name} has A {a} and B {b}, which are not (r, in) and "
            "(out, r) of one rank (convolutions are not supported); merge the adapter with PEFT "
            "and compare the merged model"
        )
    return (a[1], b[0]) if embedding else (b[0], a[1])


class _Home:
    """Where the adapter's tensors land in the base."""

    def __init__(
        self,
        adapter: AdapterCheckpoint,
        base: Checkpoint,
        wanted: Mapping[str, tuple[int, ...]],
        initial: AdapterCheckpoint | None,
    ) -> None:
        self.adapter = adapter
        self.initial = initial
        self.base = base
        self.shapes = {unwrap(name): spec.shape for name, spec in base.specs.items()}
        self.stored = {unwrap(name): name for name in base.specs}
        self.names = rename(self._fitting(wanted), wanted).names

    def _fitting(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The base's shapes, those of Conv1D weights turned if only so they fit any factor."""
        asked = set(wanted.values())
        out: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            turned = shape not in asked and shape[::-1] in asked
            out[name] = shape[::-1] if turned else shape
        return out

    def whole(self, name: str, spec: TensorSpec) -> TensorSpec | None:
        """The spec of a tensor saved whole. A head that the base lacks becomes a new tensor."""
        target = self.names.get(name)
        if target is None:
            if place(name, spec.shape).role not in _HEADS:
                self._homeless(spec.name, spec.shape)
            return replace(spec, name=name, dtype="F64")
        return replace(spec, name=self.stored[target], dtype="F64")

    def module(
        self,
        item: _Module,
        settings: LoraSettings,
        already: Mapping[str, tuple[TensorSpec, Read]],
    ) -> dict[str, tuple[TensorSpec, Read]]:
        """The merged weight (and bias) of one module."""
        down, up, embedding = _pair(item)
        assert down is not None  # _shape has checked both
        assert up is not None
        shape = _shape(self.adapter, item)
        name = self._target(f"{item.name}.weight", down, shape)
        transposed = embedding or self._turned(unwrap(name), shape, settings)
        scaling = settings.scaling(item.name, self.adapter.specs[down].shape[0])
        magnitude = self._magnitude(item, settings, shape[1] if embedding else shape[0])
        source = already[name][1] if name in already else _reader(self.base, name)
        start = self.initial

        def read() -> torch.Tensor:
            return effective_weight(
                source(),
                self.adapter[down],
                self.adapter[up],
                scaling=scaling,
                transposed=transposed,
                magnitude=None if magnitude is None else self.adapter[magnitude],
                initial=None if start is None else (start[down], start[up]),
            )

        spec = already[name][0] if name in already else self.base.specs[name]
        out: dict[str, tuple[TensorSpec, Read]] = {name: (replace(spec, dtype="F64"), read)}
        extra = item.factors.get("lora_B.bias")
        if extra is not None:
            out.update(self._bias(name, extra, scaling, already))
        return out

    def _bias(
        self,
        weight: str,
        extra: str,
        scaling: float,
        already: Mapping[str, tuple[TensorSpec, Read]],
    ) -> dict[str, tuple[TensorSpec, Read]]:
        """bias + s b, the bias of B scaled as B is."""
        name = weight.removesuffix("weight") + "bias"
        spec = self.base.specs.get(name)
        if spec is None or spec.shape != self.adapter.specs[extra].shape:
            self._homeless(extra, self.adapter.specs[extra].shape)
        source = already[name][1] if name in already else _reader(self.base, name)

        def read() -> torch.Tensor:
            return source() + scaling * self.adapter[extra].double()

        return {name: (replace(spec, dtype="F64"), read)}

    def _target(self, wanted: str, factor: str, shape: tuple[int, int]) -> str:
        """The stored name of the base weight that a module adapts, its shape checked."""
        target = self.names.get(wanted)
        if target is None:
            self._homeless(factor, shape)
        found = self.shapes[target]
        if found not in (shape, shape[::-1]):
            spec = self.base.specs[self.stored[target]]
            raise CheckpointError(
                f"{self.adapter.source}: {factor!r} adapts a weight {shape}, but {spec.name!r} in "
                f"{self.base.source} ({spec.shard}) is {found}; {_OTHER_BASE}"
            )
        return self.stored[target]

    def _turned(self, name: str, shape: tuple[int, int], settings: LoraSettings) -> bool:
        """True where the base stores (in, out). A square weight is judged by name, then config."""
        found = self.shapes[name]
        if shape[0] != shape[1]:
            return found != shape
        where = place(name, found, shapes=self.shapes)
        return settings.fan_in_fan_out if where.kind == "other" else where.transposed

    def _magnitude(self, item: _Module, settings: LoraSettings, outputs: int) -> str | None:
        """The name of DoRA's m, which is there if and only if the config says so."""
        name = item.factors.get("lora_magnitude_vector")
        if (name is not None) != settings.dora:
            raise CheckpointError(
                f"{self.adapter.source}: {item.name} has {'a' if name else 'no'} magnitude vector, "
                f"but use_dora is {settings.dora}; save the adapter again"
            )
        if name is not None:
            spec = self.adapter.specs[name]
            if spec.numel != outputs:
                raise CheckpointError(
                    f"{self.adapter.source}: {name!r} has shape {spec.shape}, the module has "
                    f"{outputs} outputs; save the adapter again"
                )
        return name

    def _homeless(self, stored: str, shape: Iterable[int]) -> NoReturn:
        raise CheckpointError(
            f"{self.adapter.source}: {stored!r} (for {tuple(shape)}) matches no tensor of the base "
            f"{self.base.source}; {_OTHER_BASE}, or merge the adapter with PEFT if it adapts a "
            "tied head or stacked experts"
        )
