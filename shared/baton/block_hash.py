"""Names for KV blocks: chained, keyed hashes that workers and routers compute alike.

A block's hash covers, through the chain, every token before it, and, through the root, everything else that changes
the KV: model, revision, LoRA, KV dtype, layout, tenant salt. The root is also the BLAKE2b key of every block, so
without the key of the deployment nobody can compute a hash, or search for two prompts that share one.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from baton.prompt import Span

HASH_NBYTES = 16
_NO_PARENT = bytes(HASH_NBYTES)
_TOKEN_NBYTES = array("I").itemsize
assert _TOKEN_NBYTES == 4, "the hashes need 4-byte token ids"


def cache_root(key: bytes, *parts: str | bytes) -> bytes:
    """Make the start of the hash chains, 32 bytes, from everything but tokens that changes the KV.

    `key` is a secret of the deployment, at most 64 bytes. Each part is preceded by its length and kind, so no two
    lists of parts read alike.
    """
    digest = blake2b(key=key, digest_size=32, person=b"baton kv root")
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(b"s" if isinstance(part, str) else b"b")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def hash_block(root: bytes, parent: bytes | None, token_ids: Iterable[int]) -> bytes:
    """Hash one block after `parent` (None: it is the first). Hash whole chains with `hash_blocks`."""
    return blake2b((parent or _NO_PARENT) + _encode(token_ids), key=root, digest_size=HASH_NBYTES).digest()


def hash_blocks(
    root: bytes, hashes: list[bytes], token_ids: list[int], block_size: int, spans: Sequence[Span] = ()
) -> None:
    """Append the hashes of the full blocks of `token_ids` that `hashes` lacks. `spans` are the prompt's, in order."""
    first, last = len(hashes), len(token_ids) // block_size
    if first >= last:
        return
    encoded = _encode(token_ids[first * block_size : last * block_size])
    nbytes = block_size * _TOKEN_NBYTES
    parent = hashes[-1] if hashes else _NO_PARENT
    for at in range(0, len(encoded), nbytes):
        content = encoded[at : at + nbytes]
        if spans:
            content += _encode_spans(spans, len(hashes) * block_size, block_size)
        parent = blake2b(parent + content, key=root, digest_size=HASH_NBYTES).digest()
        hashes.append(parent)


def hash_tail(
    root: bytes, parent: bytes | None, token_ids: Sequence[int], start: int, block_size: int, spans: Sequence[Span] = ()
) -> bytes:
    """Hash the tokens from `start` on, which do not fill a block, after `parent` (None: they are the first).

    No full block is named so, and none of another count: a tail is what one transfer brings, never a cached prefix.
    """
    tail = token_ids[start:]
    content = len(tail).to_bytes(4) + (parent or _NO_PARENT) + _encode(tail) + _encode_spans(spans, start, block_size)
    return blake2b(content, key=root, digest_size=HASH_NBYTES, person=b"baton kv tail").digest()


def _encode_spans(spans: Sequence[Span], start: int, block_size: int) -> bytes:
    """The media of one block, each with its place, so that no two lists of them read alike. Empty where it has none."""
    return b"".join(
        b"%d:%d:%d:" % (span.at, span.length, len(span.content_hash)) + span.content_hash
        for span in spans
        if span.at < start + block_size and span.end > start
    )


def block_name(block_hash: bytes, group: int) -> bytes:
    """Name the block that has these tokens' KV for one group of layers, 16 bytes; for group 0 it is the hash itself."""
    return blake2b(block_hash, digest_size=HASH_NBYTES, salt=group.to_bytes(2)).digest() if group else block_hash


def _encode(token_ids: Iterable[int]) -> bytes:
    """Encode as 4 little-endian bytes a token."""
    encoded = array("I", token_ids)
    if sys.byteorder == "big":
        encoded.byteswap()
    return encoded.tobytes()
