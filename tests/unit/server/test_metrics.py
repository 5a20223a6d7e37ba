# SPDX-License-Identifier: Apache-2.0
"""The counts that a client chooses the name of, and the lines of the page."""

import pytest

from lessor.api.methods import BY_PATH
from lessor.api.proto import rpc_pb2 as rpc
from lessor.base import limits
from lessor.server.loop.call import only_reads
from lessor.server.observe.families import Family, labels, number
from lessor.server.observe.histogram import Histogram
from lessor.server.observe.metrics import Metrics


def test_made_up_versions_of_clients_share_one_count() -> None:
    metrics = Metrics()
    method = BY_PATH["/etcdserverpb.KV/Range"]
    for made_up in range(10 * limits.CLIENT_VERSIONS_MAX):
        metrics.calls(method, b"%d" % made_up).begin()
    assert len(metrics.requests) == limits.CLIENT_VERSIONS_MAX + 1
    assert metrics.requests[True, b"other"].n == 9 * limits.CLIENT_VERSIONS_MAX


def test_a_txn_of_very_many_operations_is_not_looked_through_to_name_it() -> None:
    read = rpc.RequestOp(request_range=rpc.RangeRequest(key=b"a"))
    assert only_reads(rpc.TxnRequest(success=[read] * 3, failure=[read] * 3), 3)
    assert not only_reads(rpc.TxnRequest(success=[read] * 4), 3)
    assert not only_reads(rpc.TxnRequest(failure=[read] * 4), 3)
    assert not only_reads(rpc.TxnRequest(success=[read], failure=[rpc.RequestOp(request_put=rpc.PutRequest())]), 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (1.0, "1"), (True, "1"), (1796057800.0, "1796057800"), (2**63 - 1, "9223372036854775807")),
        *((0.5, "0.5"), (1e-05, "1e-05"), (float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN")),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_labels_are_in_order_and_escaped() -> None:
    assert labels([]) == ""
    assert labels([("b", 'x"y'), ("a", "\\\n")]) == '{a="\\\\\\n",b="x\\"y"}'


def test_a_histogram_adds_up_and_ends_with_all() -> None:
    histogram = Histogram((0.5, 2.0))
    for value in (0.5, 1.0, 9.0):
        histogram.observe(value)
    family = Family("histogram", "h", "Text.")
    family.add_histogram('{a="b"}', histogram)
    assert family.lines == [
        "# HELP h Text.",
        "# TYPE h histogram",
        'h_bucket{a="b",le="0.5"} 1',
        'h_bucket{a="b",le="2"} 2',
        'h_bucket{a="b",le="+Inf"} 3',
        'h_sum{a="b"} 10.5',
        'h_count{a="b"} 3',
    ]


def test_a_value_that_is_added_in_place_counts_as_one_that_is_observed() -> None:
    observed, in_place = Histogram((0.001, 0.01)), Histogram((0.001, 0.01))
    for value in (0.0005, 0.001, 0.005, 7.0):
        observed.observe(value)
        if value <= in_place.first:
            in_place.least += 1
            in_place.sum += value
        else:
            in_place.observe(value)
    assert in_place.least == 2
    assert (in_place.buckets(), in_place.count, in_place.sum) == (observed.buckets(), observed.count, observed.sum)
    assert observed.buckets() == [("0.001", 2), ("0.01", 3), ("+Inf", 4)]
