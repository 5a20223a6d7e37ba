from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FollowRequest(_message.Message):
    __slots__ = ("member_id", "name", "client_urls", "proof", "challenge", "nonce", "answer", "question", "uses")
    MEMBER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLIENT_URLS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    member_id: int
    name: str
    client_urls: _containers.RepeatedScalarFieldContainer[str]
    proof: bytes
    challenge: bytes
    nonce: bytes
    answer: bytes
    question: int
    uses: _containers.RepeatedCompositeFieldContainer[TokenUse]
    def __init__(self, member_id: _Optional[int] = ..., name: _Optional[str] = ..., client_urls: _Optional[_Iterable[str]] = ..., proof: _Optional[bytes] = ..., challenge: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., answer: _Optional[bytes] = ..., question: _Optional[int] = ..., uses: _Optional[_Iterable[_Union[TokenUse, _Mapping]]] = ...) -> None: ...

class TokenUse(_message.Message):
    __slots__ = ("mark", "left_s")
    MARK_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    mark: bytes
    left_s: float
    def __init__(self, mark: _Optional[bytes] = ..., left_s: _Optional[float] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("epoch", "record", "proof", "challenge", "records", "question", "batch", "uses", "downgrade")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    DOWNGRADE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    record: int
    proof: bytes
    challenge: bytes
    records: _containers.RepeatedScalarFieldContainer[bytes]
    question: int
    batch: int
    uses: _containers.RepeatedCompositeFieldContainer[TokenUse]
    downgrade: str
    def __init__(self, epoch: _Optional[int] = ..., record: _Optional[int] = ..., proof: _Optional[bytes] = ..., challenge: _Optional[bytes] = ..., records: _Optional[_Iterable[bytes]] = ..., question: _Optional[int] = ..., batch: _Optional[int] = ..., uses: _Optional[_Iterable[_Union[TokenUse, _Mapping]]] = ..., downgrade: _Optional[str] = ...) -> None: ...
