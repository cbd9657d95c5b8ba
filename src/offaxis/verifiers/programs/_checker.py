"""Inside the checker's process: tests run here, away from the program, and ask it for values.

What the program returns are values of built-in types, made anew here, so an `==` that it has
redefined is never asked. A handle (an object of its own) cannot be compared, and the program's
`abs` or `len` are not the tests'.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
from typing import Any

if "offaxis" in __name__:  # in the bare interpreter one text holds both
    from offaxis.verifiers.programs._wire import pack, receive, send, unpack


class Gone(BaseException):
    """The program's process has ended, or speaks nonsense."""


class Link:
    """The way to the program's process."""

    def __init__(self, reading: Any, writing: Any) -> None:
        self.reading, self.writing = reading, writing

    def hear(self) -> Any:
        """The next message, or Gone."""
        try:
            return receive(self.reading)
        except Exception as error:
            raise Gone from error

    def value(self, data: Any) -> Any:
        """What `data` stands for, or Gone where it is nonsense."""
        try:
            return unpack(data, lambda number: Handle(self, int(number)))
        except Exception as error:
            raise Gone from error

    def _packed(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return {"handle": object.__getattribute__(value, "_number")}
        kind = type(value)
        if kind in (list, tuple, set, frozenset):
            return {kind.__name__: [self._packed(one) for one in value]}
        if kind is dict:
            return {"dict": [[self._packed(k), self._packed(v)] for k, v in value.items()]}
        own: list[Any] = []
        data = pack(value, own)
        if own:
            raise TypeError(f"a {kind.__name__} of the test cannot be handed to the program")
        return data

    def ask(self, does: str, on: int, *arguments: Any, **named: Any) -> Any:
        """The outcome of one operation; what the program raises is raised here."""
        message = {
            "does": does,
            "on": on,
            "arguments": [self._packed(one) for one in arguments],
            "named": {key: self._packed(one) for key, one in named.items()},
        }
        try:
            send(self.writing, message)
        except OSError as error:
            raise Gone from error
        reply = self.hear()
        if "raised" in reply:
            kind = getattr(builtins, str(reply["raised"]), RuntimeError)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            words = [str(one) for one in reply.get("words", ())]
            raise (
                kind(*words)
                if known and not issubclass(kind, UnicodeError)
                else RuntimeError(*words)
            )
        for mine, theirs in zip(arguments, reply.get("arguments", ()), strict=False):
            _copy_back(mine, self.value(theirs))
        return self.value(reply.get("value"))


def _copy_back(mine: Any, theirs: Any) -> None:
    """What the program did to a mutable argument happens to the test's own."""
    if type(mine) is not type(theirs):
        return
    if isinstance(mine, (list, bytearray)):
        mine[:] = theirs
    elif isinstance(mine, (dict, set)):
        mine.clear()
        mine.update(theirs)


class Handle:
    """An object of the program's: it can be called, looked into and iterated, from afar."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def _ask(self, does: str, *arguments: Any, **named: Any) -> Any:
        link = object.__getattribute__(self, "_link")
        return link.ask(does, object.__getattribute__(self, "_number"), *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("attribute", name)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __len__(self) -> int:
        return int(self._ask("length"))

    def __iter__(self) -> Any:
        return self._ask("iterate")

    def __next__(self) -> Any:
        return self._ask("next")

    def __bool__(self) -> bool:
        raise TypeError("an object of the program's own is neither true nor false here")

    def __eq__(self, other: object) -> bool:
        raise TypeError("an object of the program's own cannot be compared here")

    __hash__ = None  # type: ignore[assignment]


def _names(link: Link) -> dict[str, Any]:
    """The program's names as the tests see them: no built-in's, and modules imported anew here."""
    heard = link.hear()
    try:
        names = {str(key): link.value(value) for key, value in heard["names"].items()}
        modules = {str(key): str(value) for key, value in heard["modules"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise Gone from error
    for key, module in modules.items():
        with contextlib.suppress(ImportError, ValueError):
            names[key] = importlib.import_module(module)
    return {key: value for key, value in names.items() if not hasattr(builtins, key)}


def check(tests: list[str], nonce: str, reading: Any, writing: Any, verdicts: Any) -> None:
    """Run each test in a copy of the program's names; one verdict each, signed with the nonce."""
    link = Link(reading, writing)
    try:
        names = _names(link)
    except Gone:
        return
    send(verdicts, {"nonce": nonce, "loaded": True})
    for code in tests:
        try:
            exec(compile(code, "test.py", "exec"), {**names, "__name__": "test"})
            verdict = "passed"
        except Gone:
            return
        except AssertionError:
            verdict = "failed"
        except MemoryError:
            verdict = "memory"
        except BaseException:
            verdict = "raised"
        send(verdicts, {"nonce": nonce, "verdict": verdict})
