from lessor.api.proto import rpc_pb2 as _rpc_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LeaseListRequest(_message.Message):
    __slots__ = ("key_prefix", "remaining_ms_max", "order", "limit", "keys_limit", "page_token")
    class Order(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ID: _ClassVar[LeaseListRequest.Order]
        REMAINING: _ClassVar[LeaseListRequest.Order]
        KEYS: _ClassVar[LeaseListRequest.Order]
    ID: LeaseListRequest.Order
    REMAINING: LeaseListRequest.Order
    KEYS: LeaseListRequest.Order
    KEY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    KEYS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    key_prefix: bytes
    remaining_ms_max: int
    order: LeaseListRequest.Order
    limit: int
    keys_limit: int
    page_token: bytes
    def __init__(self, key_prefix: _Optional[bytes] = ..., remaining_ms_max: _Optional[int] = ..., order: _Optional[_Union[LeaseListRequest.Order, str]] = ..., limit: _Optional[int] = ..., keys_limit: _Optional[int] = ..., page_token: _Optional[bytes] = ...) -> None: ...

class LeaseListResponse(_message.Message):
    __slots__ = ("header", "leases", "next_page_token", "lease_count")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LEASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    header: _rpc_pb2.ResponseHeader
    leases: _containers.RepeatedCompositeFieldContainer[LeaseItem]
    next_page_token: bytes
    lease_count: int
    def __init__(self, header: _Optional[_Union[_rpc_pb2.ResponseHeader, _Mapping]] = ..., leases: _Optional[_Iterable[_Union[LeaseItem, _Mapping]]] = ..., next_page_token: _Optional[bytes] = ..., lease_count: _Optional[int] = ...) -> None: ...

class LeaseItem(_message.Message):
    __slots__ = ("ID", "TTL", "remaining_ms", "key_count", "keys")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    KEY_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ID: int
    TTL: int
    remaining_ms: int
    key_count: int
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ID: _Optional[int] = ..., TTL: _Optional[int] = ..., remaining_ms: _Optional[int] = ..., key_count: _Optional[int] = ..., keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LeaseWatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeaseWatchResponse(_message.Message):
    __slots__ = ("header", "created", "events")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    header: _rpc_pb2.ResponseHeader
    created: bool
    events: _containers.RepeatedCompositeFieldContainer[LeaseEvent]
    def __init__(self, header: _Optional[_Union[_rpc_pb2.ResponseHeader, _Mapping]] = ..., created: _Optional[bool] = ..., events: _Optional[_Iterable[_Union[LeaseEvent, _Mapping]]] = ...) -> None: ...

class LeaseEvent(_message.Message):
    __slots__ = ("type", "ID", "TTL", "key_count", "revision")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        GRANTED: _ClassVar[LeaseEvent.Type]
        EXPIRED: _ClassVar[LeaseEvent.Type]
        REVOKED: _ClassVar[LeaseEvent.Type]
        ENDED: _ClassVar[LeaseEvent.Type]
    GRANTED: LeaseEvent.Type
    EXPIRED: LeaseEvent.Type
    REVOKED: LeaseEvent.Type
    ENDED: LeaseEvent.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    KEY_COUNT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    type: LeaseEvent.Type
    ID: int
    TTL: int
    key_count: int
    revision: int
    def __init__(self, type: _Optional[_Union[LeaseEvent.Type, str]] = ..., ID: _Optional[int] = ..., TTL: _Optional[int] = ..., key_count: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...
