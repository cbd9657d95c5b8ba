"""Whether a checkpoint's LM head is its embedding.

Measured twice, a tied matrix would count its parameters twice. The config decides where it
speaks; where it does not, the stored bytes do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from offaxis.checkpoint.types import Checkpoint
from offaxis.names import Piece

__all__ = ["Head", "find_head"]

_WINDOWS, _WINDOW = 16, 4096


class Head:
    """The LM head and the embedding of one checkpoint, either of which may be absent."""

    def __init__(self, checkpoint: Checkpoint, head: Piece | None, embedding: Piece | None) -> None:
        self.checkpoint = checkpoint
        self.head = head
        self.embedding = embedding
        self.declared = _declared(checkpoint.config)

    def tied(self) -> bool:
        """True where the head is the embedding: declared so, not stored, or stored twice alike."""
        if self.embedding is None:
            return False
        if self.head is None:
            return self.declared is not False
        if self.head.shape != self.embedding.shape:
            return False
        return self.declared is True or _alike(self.checkpoint, self.head.name, self.embedding.name)


def find_head(checkpoint: Checkpoint, pieces: Iterable[Piece]) -> Head:
    """The head and the input embedding of a checkpoint, by role."""
    heads: dict[str, Piece] = {}
    for piece in pieces:
        if piece.place.role in ("lm_head", "embed") and len(piece.shape) == 2:
            heads.setdefault(piece.place.role, piece)
    return Head(checkpoint, heads.get("lm_head"), heads.get("embed"))


def _declared(config: Mapping[str, object]) -> bool | None:
    """`tie_word_embeddings` of the config, or None where it is silent."""
    for holder in (config, config.get("text_config")):
        if isinstance(holder, Mapping):
            value = holder.get("tie_word_embeddings")
            if isinstance(value, bool):
                return value
    return None


def _alike(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Equal bytes: a few windows first, then everything, so that a difference costs little."""
    if checkpoint.specs[one].dtype != checkpoint.specs[other].dtype:
        return False
    left = checkpoint[one].contiguous().view(-1).view(torch.uint8)
    right = checkpoint[other].contiguous().view(-1).view(torch.uint8)
    step = max(1, left.numel() // _WINDOWS)
    for start in range(0, left.numel(), step):
        window = slice(start, start + _WINDOW)
        if not torch.equal(left[window], right[window]):
            return False
    return torch.equal(left, right)
