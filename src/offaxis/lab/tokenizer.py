"""The lab's character tokenizer and model shape, built in code: nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

__all__ = ["CHARACTERS", "CONTEXT", "VOCABULARY_SIZE", "build_tokenizer", "model_config"]

CHARACTERS = "0123456789+-*=()#;? \n"
"""Every character the tokenizer knows; any other becomes the pad token."""

VOCABULARY_SIZE = 64
"""Rows of the embedding: 3 special tokens and the characters, with room for later families."""

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


def model_config() -> Qwen3Config:
    """Qwen3 with 4 layers of width 128: 796 032 parameters, input and output embedding tied."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
