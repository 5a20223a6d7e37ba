# SPDX-License-Identifier: Apache-2.0
"""Looks at what a caller passes, before anything is sent: each argument has the type that its annotation names.

Laws
- A wrong type is a TypeError that names the argument. Without it protobuf takes None for "not given": `put("a", None)`
  would write an empty value, and `grant(None)` ask for no time at all.
- Only what is passed is looked at, so that a call with few arguments costs little.
- Values are the server's business; here is only what no server could read: a number beyond 64 bits, a time that is no
  number or lies in the past.

`checked` is for classes and for functions. What an annotation means is found out at the first call.
"""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar, cast

C = TypeVar("C", bound=Callable[..., Any])
Check = Callable[[str, Any], None]

INT64_MAX = (1 << 63) - 1
UNSIGNED = ("member_id", "target_id")  # of 64 bits without a sign
# Times that may not be negative. None stands for no limit, so infinity does not.
SECONDS = ("timeout_s", "connect_timeout_s", "ping_after_s", "ping_answer_s_max", "remaining_s_max")


def checked(what: C) -> C:
    """The class or function, with a look at the arguments of each public method, the constructor included."""
    if not isinstance(what, type):
        return cast(C, _wrapped(what, 0))
    for name, member in list(vars(what).items()):
        if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_")):
            setattr(what, name, _wrapped(member, 1))
    return cast(C, what)


def _wrapped(function: Callable[..., Any], skip: int) -> Callable[..., Any]:
    checks: dict[str, Check] = {}
    names: list[str] = []  # of the arguments by position; the last one is that of all the rest
    name_of = f"{function.__qualname__.removeprefix('Async')}()"

    def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not checks:
            names.extend(_learn(function, checks))
        for name, value in zip_longest(names[skip : skip + len(args)], args, fillvalue=names[-1]):
            checks[name](name_of, value)
        for name, value in kwargs.items():
            check = checks.get(name)
            if check is not None:  # otherwise the call itself says that there is no such argument
                check(name_of, value)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waits(*args: Any, **kwargs: Any) -> Any:
            look(args[skip:], kwargs)
            return await function(*args, **kwargs)

        return waits

    @functools.wraps(function)
    def calls(*args: Any, **kwargs: Any) -> Any:
        look(args[skip:], kwargs)
        return function(*args, **kwargs)

    return calls


def _learn(function: Callable[..., Any], checks: dict[str, Check]) -> list[str]:
    """Fills in the check of each argument; returns the names of those that can be given by position."""
    positional = []
    several = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter.name)
        several = several or parameter.kind is parameter.VAR_POSITIONAL
        if parameter.name != "self":
            checks[parameter.name] = _check(parameter.name, parameter.annotation, function)
    if not several:
        positional.append("")  # more are too many, and the call itself says so
        checks[""] = lambda call, value: None
    return positional


def _check(name: str, annotation: Any, function: Callable[..., Any]) -> Check:
    kinds = _kinds(annotation, vars(inspect.getmodule(function)))
    said = _said(kinds)
    number = int in kinds or float in kinds
    exact = tuple(kind for kind in kinds if kind not in (int, float, Sequence, Iterable, Mapping, Any))
    listed = tuple(kind for kind in kinds if kind in (Sequence, Iterable, Mapping))
    anything = Any in kinds
    least, most = (0, 2 * INT64_MAX + 1) if name in UNSIGNED else (-INT64_MAX - 1, INT64_MAX)

    def check(call: str, value: Any) -> None:
        if anything or (exact and isinstance(value, exact)):
            return
        if listed and isinstance(value, listed) and not isinstance(value, (str, bytes)):
            return
        if not number or isinstance(value, bool) or not isinstance(value, (int, float) if float in kinds else int):
            raise TypeError(f"{call}: {name} has to be {said}, not {_shown(value)}")
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"{call}: {name} has to be a finite number, not {value}")
        elif not least <= value <= most:
            raise ValueError(f"{call}: {name} has to fit into 64 bits, and {value} does not")
        if value < 0 and name in SECONDS:
            raise ValueError(f"{call}: {name} has to be 0 or more, not {value}")

    return check


def _kinds(annotation: Any, names: Mapping[str, Any]) -> list[Any]:
    """The types that an annotation allows. Any stands for one that nothing can be said about."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, dict(names))
        except NameError:  # imported for the type checker alone
            return [Any]
    if annotation is None:
        return [type(None)]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [kind for each in typing.get_args(annotation) for kind in _kinds(each, names)]
    if origin is Callable:
        return [Callable]
    if origin is not None:
        return [origin]
    if isinstance(annotation, type) and annotation is not inspect.Parameter.empty:
        return [annotation]
    return [int] if "EnumTypeWrapper" in type(annotation).__name__ else [Any]


_WORDS = {
    bytes: "bytes",
    str: "str",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    type(None): "None",
    Sequence: "a list",
    Iterable: "a list",
    Callable: "a function",
}


def _said(kinds: Sequence[Any]) -> str:
    words = [_WORDS.get(kind) or getattr(kind, "__name__", str(kind)) for kind in kinds]
    words = [word for word in dict.fromkeys(words) if word != "Default"]
    return " or ".join(words)


def _shown(value: Any) -> str:
    """Its type, and itself where that is short. What may be a secret or long is not shown."""
    return "None" if value is None else repr(value) if isinstance(value, (bool, int, float)) else type(value).__name__
