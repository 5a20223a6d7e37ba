# SPDX-License-Identifier: Apache-2.0
"""Each argument of each public method, given each wrong type: an error that names it, and nothing is sent."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lessor.client import AsyncClient, Client, ClientError, Key, op

# By annotation: values that fit, and values that do not.
RIGHT: dict[str, Any] = {
    "bytes | str": b"k",
    "int": 1,
    "bool": False,
    "str": "x",
    "float": 1.0,
    "float | None": None,
    "float | None | lessor.client._asker.Default": None,
}
NUMBERS = ["1", b"1", True, math.nan, math.inf, [], object()]
WRONG: dict[str, list[Any]] = {
    "bytes | str": [None, 7, 1.5, True, [], ["k"], bytearray(b"k"), object()],
    "int": [None, "7", b"7", 1.5, True, [], 1 << 63, -(1 << 63) - 1, object()],
    "bool": [None, "no", 1, 0, [], object()],
    "str": [None, 7, b"x", ["x"], True, object()],
    "float": [*NUMBERS, None],
    "float | None": [*NUMBERS, -1],
    "float | None | lessor.client._asker.Default": [*NUMBERS, -1],
}
LIST = [None, 7, "ab", b"ab", object()]
OTHERS = [7, object()]
NOWHERE = "127.0.0.1:1"

PARTS: dict[str, Callable[[AsyncClient], Any]] = {
    "client": lambda client: client,
    "maintenance": lambda client: client.maintenance,
    "cluster": lambda client: client.cluster,
    "auth": lambda client: client.auth,
    "lock": lambda client: client.lock("k"),
    "election": lambda client: client.election("k"),
    "lease": lambda client: client.lease(5),
    "lost": lambda client: client.lease(5).lost,
    "events": lambda client: client.events("k"),
}
NOT_HERE = {"call", "ask", "with_token", "limit_s", "spawn", "more", "request_progress"}


def text_of(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    return str(annotation)


def wrong_values(annotation: str) -> list[Any]:
    if annotation in WRONG:
        return WRONG[annotation]
    if annotation.startswith(("rpc.", "auth.")) or annotation.endswith(" | int"):  # a number of the API
        return [None, "7", 1.5, object()]
    return LIST if "Sequence" in annotation or "Iterable" in annotation else OTHERS


def cases() -> Iterator[tuple[str, str, str, Any]]:
    client = AsyncClient(NOWHERE)
    for part, get in PARTS.items():
        owner = get(client)
        for name, method in inspect.getmembers(type(owner), inspect.isfunction):
            if name.startswith("_") or name in NOT_HERE:
                continue
            for parameter in list(inspect.signature(method).parameters.values())[1:]:
                for wrong in wrong_values(text_of(parameter.annotation)):
                    if parameter.name in ("member_id", "target_id") and wrong == 1 << 63:
                        continue  # these are numbers without a sign
                    yield part, name, parameter.name, wrong


def right(parameter: inspect.Parameter) -> Any:
    text = text_of(parameter.annotation)
    return RIGHT.get(text, [] if "Sequence" in text else 0)


async def outcome(method: Any, arguments: dict[str, Any]) -> None:
    result = method(**arguments)
    if inspect.isawaitable(result):
        await result
    elif inspect.isasyncgen(result):
        await result.__anext__()


def test_each_wrong_type_is_told_by_its_name() -> None:
    count = 0
    bad: list[str] = []

    async def main() -> None:
        nonlocal count
        async with AsyncClient(NOWHERE, connect_timeout_s=0.1) as client:
            for part, name, wrong_name, wrong in cases():
                method = getattr(PARTS[part](client), name)
                needed = {
                    each.name: right(each)
                    for each in inspect.signature(method).parameters.values()
                    if each.default is each.empty
                }
                count += 1
                try:
                    await outcome(method, needed | {wrong_name: wrong})
                except (TypeError, ValueError) as error:
                    if wrong_name in str(error):
                        continue
                    said = str(error)
                except ClientError as error:
                    said = f"sent: {error}"
                else:
                    said = "taken"
                bad.append(f"{part}.{name}({wrong_name}={wrong!r}): {said}")

    asyncio.run(main())
    assert bad == []
    assert count > 700


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        *(("endpoints", wrong) for wrong in (None, 7, b"a:1")),
        *(("connect_timeout_s", wrong) for wrong in (None, "1", -1, math.nan)),
        *(("timeout_s", wrong) for wrong in ("1", -1, math.inf, True)),
        *(("ssl", wrong) for wrong in (True, "ca.pem")),
        *((name, wrong) for name in ("user", "password", "server_name") for wrong in (None, b"x", 7)),
        *(("request_bytes_max", wrong) for wrong in ("1", 1.5)),
    ],
)
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_each_option_of_the_client_too(kind: Any, argument: str, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=argument):
        kind(**{argument: wrong})


def test_the_error_shows_no_secret() -> None:
    with pytest.raises(TypeError) as caught:
        AsyncClient(NOWHERE, user="root", password=b"secret")  # type: ignore[arg-type]
    assert str(caught.value) == "Client.__init__(): password has to be str, not bytes"


def test_the_blocking_client_has_the_same_errors() -> None:
    with Client(NOWHERE) as client:
        with pytest.raises(TypeError, match=r"put\(\): value has to be bytes or str, not None"):
            client.put("a", None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"lease_id has to be a whole number, not str"):
            client.put("a", "b", lease_id="7")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="conditions has to be Compare, not True"):
            client.transaction().when(True)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, "7", 1.5, True])
def test_conditions_and_steps_of_a_txn(wrong: Any) -> None:
    key = Key("a")
    for term in (key.version, key.create_revision, key.mod_revision, key.lease_id):
        with pytest.raises(TypeError, match="whole number"):
            term == wrong  # noqa: B015
    with pytest.raises(TypeError, match="lease_id"):
        op.put("a", "b", lease_id=wrong)
    with pytest.raises(TypeError):
        key.value == 7  # noqa: B015
    with pytest.raises(TypeError, match="key has to be"):
        Key(None)  # type: ignore[arg-type]
