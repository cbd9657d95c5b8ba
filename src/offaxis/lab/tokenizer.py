"""The lab's character tokenizer and model shape, built in code: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

__all__ = [
    "CHARACTERS",
    "CONTEXT",
    "LARGE",
    "SMALL",
    "VOCABULARY_SIZE",
    "Shape",
    "build_tokenizer",
    "model_config",
]

CHARACTERS = "0123456789+-*=()#;? \n>,:@abcdefghijklmnopqrstuvwxyz"
"""Every character the tokenizer knows; any other becomes the pad token."""

VOCABULARY_SIZE = 64
"""Rows of the embedding: 3 special tokens and the characters, with room for more."""

CONTEXT = 128
"""Positions the model is made for, in characters."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token a character, `<bos>` in front, padding on the left."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<bos>", "<eos>")
    vocabulary = {token: index for index, token in enumerate((*special, *CHARACTERS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class Shape:
    """The size of a lab model. Its attention is grouped: half as many key-value heads as heads."""

    layers: int = 4
    hidden: int = 144
    heads: int = 4
    intermediate: int = 448
    head_dim: int = 32


SMALL = Shape()
"""The bundled base: 1 006 272 parameters."""

LARGE = Shape(layers=10, hidden=512, heads=8, intermediate=1536, head_dim=64)
"""A second lab model for a GPU: 31 million parameters."""


def model_config(shape: Shape = SMALL) -> Qwen3Config:
    """Qwen3 of that size, input and output embedding tied."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        head_dim=shape.head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
