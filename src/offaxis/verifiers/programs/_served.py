"""Inside the sandbox: the untrusted program runs, and its names are served to the checker."""

from __future__ import annotations

import builtins
import sys
from typing import Any

if "offaxis" in __name__:  # in the bare interpreter one text holds both
    from offaxis.verifiers.programs._wire import pack, receive, send, unpack


def run_script(program: str) -> None:
    """The program as a script. Its exit status is the process's."""
    exec(compile(program, "program.py", "exec"), {"__name__": "__main__", "__builtins__": builtins})


def _operate(message: Any, handles: list[Any]) -> Any:
    """One operation on a handle: get an attribute or an item, call, iterate, take the length."""
    target = handles[message["on"]]
    arguments = [unpack(one, handles.__getitem__) for one in message["arguments"]]
    named = {key: unpack(value, handles.__getitem__) for key, value in message["named"].items()}
    does = message["does"]
    if does == "call":
        value = target(*arguments, **named)
        return {
            "value": pack(value, handles),
            "arguments": [pack(one, handles) for one in arguments],
        }
    if does == "attribute":
        return {"value": pack(getattr(target, *arguments), handles)}
    if does == "item":
        return {"value": pack(target[arguments[0]], handles)}
    if does == "length":
        return {"value": pack(len(target), handles)}
    if does == "iterate":
        return {"value": pack(iter(target), handles)}
    return {"value": pack(next(target), handles)}


def _kind(error: BaseException) -> str:
    """The nearest built-in class of an error."""
    names = [one.__name__ for one in type(error).__mro__]
    return next((name for name in names if hasattr(builtins, name)), "RuntimeError")


def serve(program: str, reading: Any, writing: Any) -> None:
    """Load the program as a module, tell its names, then answer the checker until it hangs up."""
    names: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}
    exec(compile(program, "program.py", "exec"), names)
    handles: list[Any] = []
    mine = {key: value for key, value in names.items() if not str(key).startswith("__")}
    modules = {key: value.__name__ for key, value in mine.items() if type(value) is type(sys)}
    public = {key: pack(value, handles) for key, value in mine.items() if key not in modules}
    send(writing, {"names": public, "modules": modules})
    while True:
        try:
            message = receive(reading)
        except (EOFError, ValueError):
            return
        try:
            reply = _operate(message, handles)
        except BaseException as error:  # SystemExit included: it must not end the tests
            reply = {"raised": _kind(error), "words": [str(one) for one in error.args[:3]]}
        send(writing, reply)
        sys.stdout.flush()
