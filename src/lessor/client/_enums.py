# SPDX-License-Identifier: Apache-2.0
"""Names for the numbers that the API takes and gives. Each is an int, so the API's own constants fit as well."""

from enum import IntEnum


class SortOrder(IntEnum):
    """For `get(sort_order=...)`: RangeRequest.SortOrder."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    """For `get(sort_target=...)`: RangeRequest.SortTarget."""

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class LeaseOrder(IntEnum):
    """For `lease_list(order=...)`: LeaseListRequest.Order."""

    ID = 0
    REMAINING = 1
    KEYS = 2


class EventFilter(IntEnum):
    """For `watch(filters=[...])`, kinds of event to leave out: WatchCreateRequest.FilterType."""

    NO_PUT = 0
    NO_DELETE = 1


class EventType(IntEnum):
    """What `event.type` is: Event.EventType."""

    PUT = 0
    DELETE = 1
