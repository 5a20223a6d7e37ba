# SPDX-License-Identifier: Apache-2.0
"""No text is a signed token but those that were issued."""

import base64

from hypothesis import given
from hypothesis import strategies as st

from lessor.server.loop.token_uses import TokenUses
from lessor.server.services.signed_tokens import SignedTokens
from lessor.state.machine import Identity, StateMachine
from lessor.state.permissions import Caller

NAMES = ("u", "ué", "root", "n" * 100)
MACHINE = StateMachine(Identity(1, 2, 3))
for each in NAMES:
    MACHINE.auth.add_user(each, b"hash of " + each.encode(), no_password=False)
TOKENS = SignedTokens(MACHINE, lambda: 0.0, TokenUses(lambda: 0.0, 300.0))
names = st.sampled_from(NAMES)


@given(names, st.data())
def test_a_changed_token_is_none(name: str, data: st.DataObject) -> None:
    token = TOKENS.issue(name, 1)
    assert TOKENS.caller(token, 1) == Caller(name, 1)
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(start + 3, len(token))))
    letters = st.text(st.one_of(st.characters(max_codepoint=255), st.sampled_from("=.-_+/ \n\0Aa0")), max_size=3)
    changed = token[:start] + data.draw(letters) + token[end:]
    assert TOKENS.caller(changed, 1) == (Caller(name, 1) if changed == token else None)


@given(names, names, st.booleans())
def test_parts_of_two_tokens_make_no_third(one: str, other: str, swap: bool) -> None:
    first, second = TOKENS.issue(one, 1), TOKENS.issue(other, 1)
    front, seal = first.partition(".")[0], second.partition(".")[2]
    assert TOKENS.caller(f"{seal}.{front}" if swap else f"{front}.{seal}", 1) is None


@given(st.text())
def test_no_text_is_a_token(text: str) -> None:
    assert TOKENS.caller(text, 1) is None


@given(st.binary(max_size=60), st.text("0123456789abcdef", min_size=64, max_size=64))
def test_nothing_in_the_form_of_a_token_is_one(content: bytes, seal: str) -> None:
    assert TOKENS.caller(f"{base64.urlsafe_b64encode(content).decode()}.{seal}", 1) is None
