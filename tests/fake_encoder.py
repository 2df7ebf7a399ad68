"""Encoding without a model: a "vector" that a sequence's tokens and options alone decide."""

from __future__ import annotations

import itertools
import struct
import zlib
from array import array
from collections.abc import Sequence

from app.contract.request import EncodeRequest, Pooling
from app.contract.step import EncodeBatch, Encoded, EncodeResult
from tests.fake_pages import require


def expected_vector(
    token_ids: Sequence[int], pooling: Pooling = Pooling.MEAN, *, normalize: bool = True
) -> tuple[float, ...]:
    """What the fake runner answers; without pooling a number for each token."""
    if pooling is Pooling.NONE:
        return tuple(float(token_id) for token_id in token_ids)
    crc = zlib.crc32(array("q", token_ids).tobytes() + pooling.encode() + bytes([normalize]))
    return float(crc & 0xFFFF), float(len(token_ids))


def floats(data: bytes) -> tuple[float, ...]:
    """The elements of an answer."""
    return struct.unpack(f"<{len(data) // 4}f", data)


def fake_encode(batch: EncodeBatch) -> EncodeResult:
    """The answers to a batch, once it is what a batch has to be."""
    count = batch.num_sequences
    require(count > 0, "a batch without sequences")
    require(
        len(batch.bounds) == count + 1 and len(batch.normalize) == count, "bounds or options are not one a sequence"
    )
    require(batch.bounds[0] == 0 and batch.bounds[-1] == batch.num_tokens, "bounds do not cover the tokens")
    sequences = []
    for index, (start, end) in enumerate(itertools.pairwise(batch.bounds)):
        require(start < end, "an empty sequence")
        values = expected_vector(batch.token_ids[start:end], batch.pooling[index], normalize=batch.normalize[index])
        shape = (len(values), 1) if batch.pooling[index] is Pooling.NONE else (len(values),)
        sequences.append(Encoded(shape=shape, data=struct.pack(f"<{len(values)}f", *values)))
    return EncodeResult(sequences=sequences)


def encode_request(
    request_id: str,
    token_ids: Sequence[int],
    *,
    pooling: Pooling = Pooling.MEAN,
    normalize: bool = True,
    priority: int = 0,
    deadline: float | None = None,
    arrival_time: float = 0.0,
    client_index: int = 0,
) -> EncodeRequest:
    """A request to encode."""
    return EncodeRequest(
        request_id=request_id,
        token_ids=list(token_ids),
        pooling=pooling,
        normalize=normalize,
        priority=priority,
        deadline=deadline,
        arrival_time=arrival_time,
        client_index=client_index,
    )
