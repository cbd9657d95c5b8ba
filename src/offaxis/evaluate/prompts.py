"""From a problem to the tokens that a model reads: instructions, chat template, tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from offaxis.checkpoint.digest import checksum
from offaxis.errors import InputError
from offaxis.evaluate.problems import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "Prompt", "Style", "render"]

ChatTemplate = Literal["auto", "none"]
_SLOT = "{problem}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a sampler is given."""

    text: str
    tokens: tuple[int, ...]
    key: int
    """Where its random numbers start: 128 bits from the problem's own text, so that they depend
    neither on its place nor on the other problems."""


@dataclass(frozen=True, slots=True)
class Style:
    """How problems become prompts."""

    template: str = _SLOT
    """Instructions around `{problem}`; every other brace stands for itself."""
    system: str | None = None
    """A system message; it needs a chat template."""
    chat_template: ChatTemplate = "auto"
    """auto: the tokenizer's chat template where it has one. none: the bare text."""

    def __post_init__(self) -> None:
        if _SLOT not in self.template:
            raise InputError(f"template {self.template!r}: has no {_SLOT}; say where it goes")
        if self.chat_template not in ("auto", "none"):
            raise InputError(f"chat template {self.chat_template!r}: choose auto or none")


def render(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], style: Style
) -> list[Prompt]:
    """One prompt a problem, in their order.

    With a chat template: the system message if there is one, the user's turn, and the start of
    the assistant's. Without: the filled template, with the tokenizer's own special tokens. Of two
    problems with the same text the second has other random numbers. Raises InputError for a system
    message that the tokenizer has no place for.
    """
    chat = style.chat_template == "auto" and bool(tokenizer.chat_template)
    if style.system is not None and not chat:
        raise InputError(
            "a system message needs a chat template, and none is used; put the words in --template"
        )
    seen: dict[str, int] = {}
    found = []
    for problem in problems:
        words = style.template.replace(_SLOT, problem.prompt)
        text = _chat(tokenizer, words, style.system) if chat else words
        tokens = tokenizer(text, add_special_tokens=not chat)["input_ids"]
        if not tokens:
            raise InputError(f"problem {problem.id}: its prompt has no token; use --template")
        times = seen[problem.prompt] = seen.get(problem.prompt, -1) + 1
        key = checksum(f"{times}\n{problem.prompt}".encode("utf-8", "surrogatepass"))
        found.append(Prompt(text, tuple(tokens), int(key, 16)))
    return found


def _chat(tokenizer: PreTrainedTokenizerBase, words: str, system: str | None) -> str:
    turns = [{"role": "system", "content": system}] if system is not None else []
    turns.append({"role": "user", "content": words})
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything, for example at a system turn
        raise InputError(
            f"the tokenizer's chat template refuses this prompt ({type(error).__name__}: {error}); "
            "leave --system out, or pass --chat-template none"
        ) from error
    return str(text)
