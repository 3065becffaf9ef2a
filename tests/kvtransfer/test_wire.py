"""The wire format: any bytes give a message within its ranges or `BadFrame`, and only the secret seals."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baton.kvtransfer import wire

from .blocks import SECRET, TestTicket

ID = b"r" * 16
MESSAGES: list[Any] = [
    wire.Hello(1, "importer-1", "layout"),
    wire.Welcome(1, "exporter-1", "layout"),
    wire.Fetch(ID, 3, "layout", 2, 4, b"h" * 32),
    wire.Fetch(ID, 3, "layout", 2, 4, b"h" * 32, wire.Reads.RING),
    wire.Credit(ID, 3, 9),
    wire.Done(ID, 3),
    wire.Cancel(ID, 3),
    wire.Blocks(ID, 3, "layout", 2, b"h" * 32, b"c" * 32),
    wire.State(ID, 3, 5, 4),
    wire.End(ID, 3, 5, 0.25, b"meta"),
    wire.Fail(ID, 3, "expired"),
]


def decoder_of(message: Any) -> Any:
    return wire.TO_EXPORTER if isinstance(message, wire.ToExporter) else wire.TO_IMPORTER


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_sealed_message_is_read_back_and_known_by_its_secret(message: Any) -> None:
    parsed, sealed = wire.parse(wire.seal(message, SECRET), decoder_of(message))
    assert parsed == message
    assert sealed.is_authentic(SECRET)
    assert not sealed.is_authentic(b"t" * 16)
    assert not sealed.is_authentic(b"")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_no_message_is_taken_in_the_other_direction(message: Any) -> None:
    other = wire.TO_IMPORTER if decoder_of(message) is wire.TO_EXPORTER else wire.TO_EXPORTER
    with pytest.raises(wire.BadFrame):
        wire.parse(wire.seal(message, SECRET), other)


@given(st.sampled_from(MESSAGES), st.integers(min_value=0), st.integers(0, 7))
def test_no_flipped_bit_of_a_header_goes_unseen(message: Any, at: int, bit: int) -> None:
    header = bytearray(wire.seal(message, SECRET))
    header[at % len(header)] ^= 1 << bit
    try:
        _, sealed = wire.parse(header, decoder_of(message))
    except wire.BadFrame:
        return
    assert not sealed.is_authentic(SECRET)


@given(st.binary(max_size=200), st.booleans())
@example(b"", True)
@example(b"x" * 16 + b"\xdd\xff\xff\xff\xff", True)  # an array of 4 Gi elements that is not there
@example(b"x" * 16 + b"\xc6\xff\xff\xff\xff", False)  # 4 GiB of bytes that are not there
@example(b"x" * 16 + b"\x91" * 150, True)  # arrays in arrays
@example(b"x" * 16 + b"\x93\x01\x01\xa3\xff\xfe\xfd\xa0", True)  # text that is no UTF-8
def test_any_bytes_are_a_message_or_a_bad_frame(frame: bytes, to_exporter: bool) -> None:
    try:
        message, _ = wire.parse(frame, wire.TO_EXPORTER if to_exporter else wire.TO_IMPORTER)
    except wire.BadFrame:
        return
    assert isinstance(message, wire.ToExporter | wire.ToImporter)


BODY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=70)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=12,
)


@given(st.integers(0, 12), st.lists(BODY, max_size=7), st.booleans())
def test_fields_out_of_range_are_refused(tag: int, fields: list[Any], to_exporter: bool) -> None:
    frame = bytes(16) + msgspec.msgpack.encode([tag, *fields])
    try:
        message, _ = wire.parse(frame, wire.TO_EXPORTER if to_exporter else wire.TO_IMPORTER)
    except wire.BadFrame:
        return
    for name in ("from_block", "limit", "first_block", "num_blocks", "num_computed", "num_sent"):
        if isinstance(value := getattr(message, name, 0), int):
            assert 0 <= value <= wire.MAX_BLOCKS
    assert len(getattr(message, "request_id", ID)) == 16
    assert len(getattr(message, "checksums", b"")) == len(getattr(message, "hashes", b"")) or isinstance(
        message, wire.Fetch
    )


@pytest.mark.parametrize(
    "message",
    [
        wire.Fetch(ID, 0, "layout", 0, 0, b"h" * 17),
        wire.Fetch(ID, 0, "layout", wire.MAX_BLOCKS, 0, b"h" * 16),
        wire.Fetch(ID, -1, "layout", 0, 0, b""),
        wire.Fetch(ID, 0, "l" * 129, 0, 0, b""),
        wire.Fetch(b"short", 0, "layout", 0, 0, b""),
        wire.Fetch(ID, 0, "layout", 0, 0, b"", 7),  # type: ignore[arg-type]
        wire.Credit(ID, 0, wire.MAX_BLOCKS + 1),
        wire.Credit(ID, 0, 0, wire.MAX_BLOCKS + 1),
        wire.Blocks(ID, 0, "layout", 0, b"h" * 32, b"c" * 16),
        wire.Blocks(ID, 0, "layout", 0, b"h" * 17, b"c" * 17),
        wire.Blocks(ID, 0, "layout", 0, b"", b""),
        wire.Blocks(ID, 0, "layout", 0, b"h" * 16 * 257, b"c" * 16 * 257),
        wire.End(ID, 0, 1, float("nan"), b""),
        wire.End(ID, 0, 1, -1.0, b""),
    ],
    ids=repr,
)
def test_each_limit_is_checked(message: Any) -> None:
    with pytest.raises(wire.BadFrame):
        wire.parse(wire.seal(message, SECRET), decoder_of(message))


def test_a_header_over_its_limit_is_not_even_decoded() -> None:
    with pytest.raises(wire.BadFrame, match="bytes"):
        wire.parse(bytes(wire.MAX_HEADER_NBYTES + 1), wire.TO_EXPORTER)


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 12))
def test_a_payload_is_cut_into_whole_blocks_only(runs: list[int], num_blocks: int) -> None:
    frames = [bytes(run * 8) for run in runs]
    if sum(runs) == num_blocks and 0 not in runs:
        blocks = wire.split_payload(num_blocks, 8, frames)
        assert [len(block) for block in blocks] == [8] * num_blocks
    else:
        with pytest.raises(wire.BadFrame):
            wire.split_payload(num_blocks, 8, frames)
    with pytest.raises(wire.BadFrame):
        wire.split_payload(num_blocks, 8, [*frames, b"odd"])


def test_every_part_of_a_layout_changes_its_fingerprint() -> None:
    prints = {
        wire.layout_fingerprint(4096, "model", "bfloat16"),
        wire.layout_fingerprint(8192, "model", "bfloat16"),
        wire.layout_fingerprint(4096, "model", "float16"),
        wire.layout_fingerprint(4096, "modelbfloat16"),
        wire.layout_fingerprint(4096, "model", "bfloat", "16"),
    }
    assert len(prints) == 5


@pytest.mark.parametrize(
    "ticket",
    [
        TestTicket(b"short"),
        TestTicket(ID, epoch=-1),
        TestTicket(ID, epoch=1 << 32),
        TestTicket(ID, secret=b"short"),
        TestTicket(ID, layout="l" * 129),
    ],
    ids=["request_id", "epoch", "late epoch", "secret", "layout"],
)
def test_a_ticket_with_a_wrong_field_is_refused(ticket: TestTicket) -> None:
    with pytest.raises(wire.BadTicket):
        wire.check_ticket(ticket)
