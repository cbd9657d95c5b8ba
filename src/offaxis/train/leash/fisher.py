"""The diagonal Fisher information of a language model at the weights that it has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

__all__ = ["diagonal_fisher", "local", "per_sample_loss"]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    found: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found


def diagonal_fisher(
    model: Any,
    samples: Sequence[Any],
    *,
    loss: Callable[[Any, Any], torch.Tensor],
    share: Callable[[int], bool] = lambda _: True,
) -> dict[str, torch.Tensor]:
    """F_i = mean over samples of (∂ loss / ∂ θ_i)², for every parameter that is trained.

    With loss = −ln π(y | x) and y drawn from the model itself, this is the diagonal of its Fisher
    information, estimated by Monte Carlo (not the "empirical Fisher", whose y are labels).
    Gradients are those of one sample at a time, exactly: a batch's would mix them.

    samples: whatever `loss(model, sample)` takes; each gives one backward pass. share: which of
    them this process does; the others' are zero in the result, which is divided by all.
    Returns float32 tensors of the parameters' own (local) shapes, on their device. The
    parameters' gradients are left as they were.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {n: torch.zeros_like(local(p), dtype=torch.float32) for n, p in trained.items()}
    with _set_aside(trained):
        for at, sample in enumerate(samples):
            if not share(at):
                continue
            loss(model, sample).backward()  # type: ignore[no-untyped-call]
            for name, parameter in trained.items():
                if parameter.grad is not None:
                    gradient = local(parameter.grad).float()
                    found[name].addcmul_(gradient, gradient, value=1 / len(samples))
                    parameter.grad = None
    return found


@contextlib.contextmanager
def _set_aside(parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """No gradients, and gradients allowed, until the block ends."""
    had = {name: one.grad for name, one in parameters.items()}
    for one in parameters.values():
        one.grad = None
    try:
        with torch.enable_grad():
            yield
    finally:
        for name, one in parameters.items():
            one.grad = had[name]


def per_sample_loss(model: Any, sample: tuple[Sequence[int], Sequence[int]]) -> torch.Tensor:
    """−Σ_t ln π(y_t | x, y_<t), in nats, of one prompt x and its completion y; float32 softmax."""
    prompt, completion = sample
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *completion]], device=device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    predicting = logits[0, -len(completion) - 1 : -1].float()
    return torch.nn.functional.cross_entropy(predicting, ids[0, len(prompt) :], reduction="sum")
