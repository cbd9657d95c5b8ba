"""`rotate` and `permute`: plan from headers, draw, and write the edited model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from offaxis.checkpoint import open_checkpoint
from offaxis.checkpoint.digest import checksum
from offaxis.checkpoint.dtypes import torch_dtype
from offaxis.checkpoint.locate import locate
from offaxis.checkpoint.rewriting import Rewriting, check_target, rounded
from offaxis.checkpoint.stored import StoredCheckpoint
from offaxis.errors import CheckpointError, InputError, OutputError
from offaxis.intervene.blocks import Heads
from offaxis.intervene.drawing import KINDS, draw_order, draw_rotations
from offaxis.intervene.edits import Edit, Gather
from offaxis.intervene.planning import plan_heads
from offaxis.intervene.record import FILE, Intervention
from offaxis.intervene.selecting import parse_layers
from offaxis.intervene.step import Edited, Step
from offaxis.masks import Progress
from offaxis.output import check_output, explained, staged_directory

__all__ = ["permute", "rotate"]

_Layers = str | int | Sequence[str | int]
_Teller = Callable[[Progress], None]
_WIDE = ("BF16", "F16", "F32", "F64")


def rotate(
    model: str | Path,
    layers: _Layers,
    *,
    out: str | Path,
    kind: str = "haar",
    seed: int = 0,
    per_head: bool = False,
    overwrite: bool = False,
    progress: _Teller | None = None,
) -> Intervention:
    """Write `model` with the values of the named layers' heads in another basis, into `out`.

    W_v' = RᵀW_v, b_v' = Rᵀb_v for each KV head, W_o' = W_oR for each query head that reads it
    (weights as Hugging Face stores them, (out, in)), R orthogonal: the attention's output does not
    change. One R (`haar` or `hadamard`) serves all heads of a layer, or each KV head has its own
    (`per_head`). Computed in float64 and rounded once to each tensor's dtype; every other tensor
    is the model's byte for byte. The singular values of W_v and W_o stay, their entries change.
    progress: told after each tensor.

    Raises InputError where an edit would not be exact or a layer cannot be edited, CheckpointError
    where the model cannot be read, OutputError where `out` cannot be written.
    Source: The Path Not Taken, section 4.3 and appendix C.3.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: choose {' or '.join(KINDS)}")
    found, heads, shapes = _planned(model, layers, Path(out), overwrite)
    for one in heads:
        _refuse(found, one, one.no_rotate, "rotated")
    drawn = tuple(draw_rotations(one, kind=kind, seed=seed, per_head=per_head) for one in heads)
    settings = {"kind": kind, "per_head": per_head}
    step = Step("rotate", seed, settings, heads, shapes, rotations=drawn)
    return _written(found, step, Path(out), overwrite, progress)


def permute(
    model: str | Path,
    layers: _Layers,
    *,
    out: str | Path,
    seed: int = 0,
    within_groups: bool = False,
    overwrite: bool = False,
    progress: _Teller | None = None,
) -> Intervention:
    """Write `model` with the heads of the named layers in another order, into `out`.

    KV heads move with the query heads that read them: rows and biases of q, k and v, columns of o,
    and whatever else goes by heads (norms over all heads, sinks, gates). Never the identity. Where
    there is one KV head the query heads change places instead; `within_groups`: in each group as
    well. Bytes are moved, nothing is computed. Raises as `rotate`.
    Source: The Path Not Taken, section 4.3 and appendix C.3.
    """
    found, heads, shapes = _planned(model, layers, Path(out), overwrite)
    for one in heads:
        _refuse(found, one, one.no_permute, "permuted")
    drawn = tuple(draw_order(one, seed=seed, within_groups=within_groups) for one in heads)
    step = Step("permute", seed, {"within_groups": within_groups}, heads, shapes, orders=drawn)
    return _written(found, step, Path(out), overwrite, progress)


def _planned(
    model: str | Path, layers: _Layers, out: Path, overwrite: bool
) -> tuple[StoredCheckpoint, tuple[Heads, ...], dict[str, tuple[int, ...]]]:
    """The model, the heads of each layer, the shapes of their tensors. Nothing is written."""
    wanted = parse_layers(layers)
    check_output(out, overwrite=overwrite)
    found = _opened(model)
    if out.expanduser().resolve() == found.root.resolve():
        raise OutputError(f"{out}: is the model's own directory; choose another")
    check_target(found, out.expanduser())
    heads = plan_heads(found, wanted)
    names = [slot.name for one in heads for slot in one.slots]
    return found, heads, {name: found.specs[name].shape for name in names}


def _opened(model: str | Path) -> StoredCheckpoint:
    """The model. Adapters and pickles are refused with what to do instead."""
    path = Path(model).expanduser()
    if path.exists() and locate(path, allow_pickle=True, revision=None).pickled:
        raise CheckpointError(f"{model}: holds pickles; save the model as safetensors first")
    found = open_checkpoint(model)
    if not isinstance(found, StoredCheckpoint):
        raise InputError(
            f"{model}: an adapter, which has no heads of its own; edit its base, or write the "
            "merged model first"
        )
    return found


def _refuse(model: StoredCheckpoint, heads: Heads, why: str | None, what: str) -> None:
    if why is not None:
        raise InputError(
            f"{model.source}: layer {heads.layer} cannot be {what} without changing what the model "
            f"computes: {why}"
        )


def _written(
    model: StoredCheckpoint, step: Step, out: Path, overwrite: bool, progress: _Teller | None
) -> Intervention:
    """Write the edited model and its record; both appear whole or not at all."""
    if step.verb == "rotate":
        _check_values(model, step)
    earlier = _earlier(model)
    with staged_directory(out, overwrite=overwrite) as staged:
        files = Rewriting(model, staged, changed=step.edits, told=_counted(model, progress))
        with explained(out):
            files.begin()
        tensors: dict[str, Edited] = {}
        for name, edit in step.edits.items():
            value, tensors[name] = _edited(model, name, edit)
            with explained(out):
                files.put(name, value)
        done = replace(step, heads=_moved(step), tensors=tensors)
        steps = (*(earlier.steps if earlier else ()), done)
        touched = {name for one in steps for name in one.tensors or ()}
        made = Intervention(model.source, steps, frozenset(model) - touched)
        with explained(out):
            files.finish()
            made.save(staged)
    return made


def _counted(model: StoredCheckpoint, progress: _Teller | None) -> Callable[[str], None]:
    """From the name of a tensor that was written to how many entries were."""
    total, done = sum(spec.numel for spec in model.specs.values()), 0

    def told(name: str) -> None:
        nonlocal done
        done += model.specs[name].numel
        if progress is not None:
            progress(Progress(done, total, name))

    return told


def _moved(step: Step) -> tuple[Heads, ...]:
    """The heads with the slots of edited tensors alone: k and v stay where there is one KV head."""
    return tuple(
        replace(one, slots=tuple(slot for slot in one.slots if slot.name in step.edits))
        for one in step.heads
    )


def _edited(model: StoredCheckpoint, name: str, edit: Edit) -> tuple[torch.Tensor, Edited]:
    """One edited tensor as it is stored, and what became of it."""
    code = model.specs[name].dtype
    dtype = torch_dtype(code)
    assert dtype is not None  # `tensor` would have refused it
    before = model[name]
    exact = edit.apply(before)
    value = exact if isinstance(edit, Gather) else rounded(exact, dtype)
    if not isinstance(edit, Gather) and not bool(torch.isfinite(value).all()):
        raise CheckpointError(
            f"{name}: does not fit into {code} once it is rotated; widen it first"
        )
    loss = 0.0
    if not isinstance(edit, Gather):
        norm = float(torch.linalg.vector_norm(exact))
        loss = float(torch.linalg.vector_norm(value.double() - exact)) / norm if norm else 0.0
    return value, Edited(model.specs[name].shape, code, _digest(before), _digest(value), loss)


def _digest(tensor: torch.Tensor) -> str:
    return checksum(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _check_values(model: StoredCheckpoint, step: Step) -> None:
    """A rotation mixes channels: each must be finite, and of a type that rounds to some digits."""
    for name in step.edits:
        code = model.specs[name].dtype
        if code not in _WIDE:
            raise InputError(f"{name}: is {code}, too coarse to be rotated; save it in bfloat16")
        if not bool(torch.isfinite(model[name]).all()):
            raise CheckpointError(f"{name}: holds NaN or infinity, which a rotation would spread")


def _earlier(model: StoredCheckpoint) -> Intervention | None:
    """The record of a model that is itself an edited one, if it is still about these weights."""
    if not (model.root / FILE).is_file():
        return None
    found = Intervention.load(model.root)
    for name, one in found.tensors.items():
        if name not in model or _digest(model[name]) != one.after:
            raise InputError(
                f"{model.root / FILE}: is about other weights ({name} has changed since); remove "
                "it to edit the model as it is"
            )
    return found
