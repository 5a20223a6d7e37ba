# SPDX-License-Identifier: Apache-2.0
"""A page of leases: what is on it, in which order, what its token leads to, and how little a step does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessor.api.proto import leases_pb2, rpc_pb2
from lessor.base import errors, limits
from lessor.base.errors import EtcdError
from lessor.state.journal import Journal
from lessor.state.lease import Lease
from lessor.state.lease_list import LeaseList
from lessor.state.leases import Lessor

ID, REMAINING, KEYS = 0, 1, 2
HEADER = rpc_pb2.ResponseHeader(revision=7)


def lessor(*leases: tuple[int, int, int]) -> Lessor:
    """Leases by (id, TTL, number of keys), granted at 0; keys are `k<id>/<number>`."""
    made = Lessor(Journal(1))
    for lease_id, ttl_s, keys in leases:
        made.grant(lease_id, ttl_s, 0.0)
        for number in range(keys):
            made.attach(lease_id, b"k%d/%d" % (lease_id, number))
    return made


def page(leases: Lessor, now: float = 0.0, work_max: int = 1_000_000, may_read: Any = None, **request: Any) -> Any:
    listing = LeaseList(leases, leases_pb2.LeaseListRequest(**request), may_read)
    while not listing.step(now, work_max):
        pass
    return listing.page(HEADER)


def ids(reply: Any) -> list[int]:
    return [item.ID for item in reply.leases]


def all_ids(leases: Lessor, **request: Any) -> list[list[int]]:
    """The pages, until a token is empty."""
    reply = page(leases, **request)
    found = [ids(reply)]
    while reply.next_page_token:
        reply = page(leases, page_token=reply.next_page_token, **request)
        found.append(ids(reply))
        assert len(found) < 100
    return found


def refusal(call: Any) -> errors.ErrorText:
    with pytest.raises(EtcdError) as caught:
        call()
    return errors.ErrorText(caught.value.code, caught.value.message)


LEASES = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1).filter(bool), st.integers(1, 5), st.integers(0, 3)),
    max_size=12,
    unique_by=lambda lease: lease[0],
)


@given(LEASES, st.sampled_from([ID, REMAINING, KEYS]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 5000))
def test_the_pages_together_are_the_leases_that_pass_in_order(
    leases: list[tuple[int, int, int]], order: int, limit: int, work_max: int, remaining_ms_max: int
) -> None:
    column, sign = {ID: (0, 0), REMAINING: (1, 1), KEYS: (2, -1)}[order]
    passing = [lease for lease in leases if remaining_ms_max == 0 or lease[1] * 1000 <= remaining_ms_max]
    expected = [lease[0] for lease in sorted(passing, key=lambda lease: (sign * lease[column], lease[0]))]
    request = {"order": order, "limit": limit, "remaining_ms_max": remaining_ms_max}
    pages = all_ids(lessor(*leases), work_max=work_max, **request)
    assert [lease_id for found in pages for lease_id in found] == expected
    assert all(len(found) == limit for found in pages[:-1])


def test_what_is_shown_of_a_lease() -> None:
    leases = lessor((1, 10, 0), (2, 20, 3))
    reply = page(leases, now=5.25, keys_limit=2)
    assert reply.header == HEADER
    assert reply.lease_count == 2
    assert reply.leases[0] == leases_pb2.LeaseItem(ID=1, TTL=10, remaining_ms=4750)
    assert reply.leases[1] == leases_pb2.LeaseItem(
        ID=2, TTL=20, remaining_ms=14750, key_count=3, keys=[b"k2/0", b"k2/1"]
    )
    assert page(leases, now=12.0).leases[0].remaining_ms == 0  # due, and not ended yet


def test_keys_only_where_they_are_asked_for() -> None:
    assert [list(item.keys) for item in page(lessor((1, 10, 2))).leases] == [[]]


def test_leases_by_a_prefix_of_their_keys() -> None:
    leases = lessor((1, 10, 1), (11, 10, 1), (2, 10, 1), (3, 10, 0))
    assert ids(page(leases, key_prefix=b"k1")) == [1, 11]
    assert ids(page(leases, key_prefix=b"k1/")) == [1]
    assert ids(page(leases, key_prefix=b"x")) == []
    assert page(leases, key_prefix=b"x").lease_count == 4


def test_pages_have_a_size_unless_asked_and_no_more_than_the_most() -> None:
    leases = lessor(*((number, 10, 0) for number in range(1, limits.LEASE_PAGE_MAX + 3)))
    assert len(page(leases).leases) == len(page(leases, limit=-1).leases) == limits.LEASE_PAGE_DEFAULT
    assert len(page(leases, limit=2_000_000_000).leases) == limits.LEASE_PAGE_MAX
    leases = lessor((1, 10, limits.LEASE_PAGE_KEYS_MAX + 1))
    assert len(page(leases, keys_limit=2_000_000_000).leases[0].keys) == limits.LEASE_PAGE_KEYS_MAX
    assert not page(leases, keys_limit=-1).leases[0].keys


def test_a_page_of_large_keys_ends_early_and_goes_on() -> None:
    leases = lessor((1, 10, 0), (2, 10, 0), (3, 10, 0))
    for lease_id in (1, 2, 3):
        leases.attach(lease_id, b"%d" % lease_id * (limits.LEASE_PAGE_BYTES - 1))
        leases.attach(lease_id, b"%dx" % lease_id * 2)
    reply = page(leases, keys_limit=5)
    assert ids(reply) == [1]
    assert [len(item.keys) for item in reply.leases] == [1]
    assert reply.leases[0].key_count == 2
    assert all_ids(leases, keys_limit=5) == [[1], [2], [3]]


def test_a_step_looks_at_no_more_than_it_was_asked_to() -> None:
    listing = LeaseList(lessor(*((number, 10, 0) for number in range(1, 8))), leases_pb2.LeaseListRequest())
    assert [listing.step(0.0, 3) for _ in range(5)] == [False, False, False, False, True]
    # Where keys are looked at they count as well, be it for the filter or for the page.
    listing = LeaseList(lessor((1, 10, 3), (2, 10, 3)), leases_pb2.LeaseListRequest(keys_limit=1))
    assert [listing.step(0.0, 4) for _ in range(3)] == [False, False, True]
    listing = LeaseList(lessor((1, 10, 3), (2, 10, 3)), leases_pb2.LeaseListRequest(key_prefix=b"k"))
    assert [listing.step(0.0, 4) for _ in range(3)] == [False, False, True]


def test_what_ends_or_is_granted_while_the_page_is_made() -> None:
    leases = lessor((1, 10, 0), (2, 10, 0), (3, 10, 0))
    listing = LeaseList(leases, leases_pb2.LeaseListRequest())
    listing.step(0.0, 2)
    leases.revoke(1)
    leases.revoke(3)
    leases.grant(4, 10, 0.0)
    assert listing.step(0.0)
    reply = listing.page(HEADER)
    assert (ids(reply), reply.lease_count) == ([2], 2)


def test_one_that_has_ended_takes_no_place_and_several_may_end_behind() -> None:
    leases = lessor(*((number, 10, 0) for number in range(1, 7)))
    listing = LeaseList(leases, leases_pb2.LeaseListRequest(limit=4))
    assert not listing.step(0.0, 1)
    leases.revoke(2)
    assert not listing.step(0.0, 8)  # 1, 3, 4 and 5 are chosen, and three of them written
    leases.revoke(1)
    leases.revoke(4)
    assert listing.step(0.0)
    assert ids(listing.page(HEADER)) == [3, 5]


def test_what_is_kept_is_twice_a_page_and_a_step_at_most() -> None:
    listing = LeaseList(lessor(*((number, 10, 0) for number in range(99, 0, -1))), leases_pb2.LeaseListRequest(limit=3))
    kept = []
    while not listing.step(0.0, 2):
        kept.append(len(listing._found))
    assert max(kept) <= 2 * 3 + 2
    assert ids(listing.page(HEADER)) == [1, 2, 3]


def test_a_page_whose_leases_have_all_ended_leads_on() -> None:
    leases = lessor((1, 10, 0), (2, 10, 0))
    listing = LeaseList(leases, leases_pb2.LeaseListRequest(limit=1))
    listing.step(0.0)
    leases.revoke(1)
    reply = listing.page(HEADER)
    assert ids(reply) == []
    assert ids(page(leases, limit=1, page_token=reply.next_page_token)) == [2]


def test_a_lease_that_is_renewed_between_pages_is_not_missed() -> None:
    leases = lessor((1, 10, 0), (2, 11, 0), (3, 12, 0))
    first = page(leases, order=REMAINING, limit=1)
    leases.renew(2, 5.0)
    rest = page(leases, now=5.0, order=REMAINING, page_token=first.next_page_token)
    assert (ids(first), ids(rest)) == ([1], [3, 2])


def test_what_is_no_request() -> None:
    leases = lessor((1, 10, 0), (2, 10, 0))
    token = page(leases, limit=1).next_page_token
    assert refusal(lambda: page(leases, order=3)) == errors.UNKNOWN_LEASE_ORDER
    assert refusal(lambda: page(leases, page_token=token[:-1])) == errors.INVALID_PAGE_TOKEN
    assert refusal(lambda: page(leases, page_token=token + b"x")) == errors.INVALID_PAGE_TOKEN
    assert refusal(lambda: page(leases, page_token=token, order=REMAINING)) == errors.INVALID_PAGE_TOKEN
    assert (
        refusal(lambda: page(leases, page_token=b"\0\x7f\xf8" + bytes(14))) == errors.INVALID_PAGE_TOKEN
    )  # not a number


def test_each_lease_is_asked_for_the_right_to_read_it_whether_or_not_it_is_shown() -> None:
    def may_read(lease: Lease) -> None:
        if lease.id == 3:
            raise errors.PERMISSION_DENIED.error()

    leases = lessor((1, 10, 1), (2, 10, 1), (3, 10, 1))
    for request in ({"limit": 1}, {"key_prefix": b"k1"}, {"remaining_ms_max": 1}):
        assert refusal(lambda request=request: page(leases, may_read=may_read, **request)) == errors.PERMISSION_DENIED
    leases.revoke(3)
    assert ids(page(leases, may_read=may_read)) == [1, 2]
