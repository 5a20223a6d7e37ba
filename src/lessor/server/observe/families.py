# SPDX-License-Identifier: Apache-2.0
"""Prometheus' text format: families of samples, as lines.

Laws
- A whole number is written without a fraction and without an exponent: there are readers that take nothing else.
- Labels stand in the order of their names, as etcd writes them.

Beside prometheus-client, whose text has `1.0` for 1 and whose objects cost more than all the figures together.
"""

import math
from collections.abc import Iterable, Sequence

from lessor.server.observe.histogram import Histogram


class Family:
    """The samples of one name."""

    __slots__ = ("_name", "lines")

    def __init__(self, kind: str, name: str, text: str) -> None:
        """`kind`: counter, gauge or histogram. `name`: as it is shown; that of a counter mostly ends with _total."""
        self._name = name
        self.lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]

    def add(self, labels: str, value: float) -> None:
        """`labels`: as `labels` below gives them."""
        self.lines.append(f"{self._name}{labels} {number(value)}")

    def add_histogram(self, labels: str, histogram: Histogram) -> None:
        self.add_buckets(labels, histogram.buckets(), histogram.sum)

    def add_buckets(self, labels: str, buckets: Iterable[tuple[str, int]], total: float) -> None:
        """`buckets`: upper bounds, ascending, each with the number of values up to it."""
        name, count = self._name, 0
        first = f"{name}_bucket{{{labels[1:-1]}," if labels else f"{name}_bucket{{"
        for bound, count in buckets:
            self.lines.append(f'{first}le="{bound}"}} {count}')
        self.lines.append(f"{name}_sum{labels} {number(total)}")
        self.lines.append(f"{name}_count{labels} {count}")


def labels(pairs: Sequence[tuple[str, str]]) -> str:
    """{a="x",b="y"}; empty without any."""
    if not pairs:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(pairs)) + "}"


def number(value: float) -> str:
    if isinstance(value, int) or value.is_integer():
        return str(int(value))
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else f"{value:+}".replace("inf", "Inf")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
