"""Frames: what packs are made of. Plain bytes, compressed when that is worth it."""

from __future__ import annotations

import threading
from typing import Final

import zstandard

__all__ = [
    "CODEC_RAW",
    "CODEC_ZSTD",
    "MAX_CHUNK_FRAME_BYTES",
    "MAX_PACK_BYTES",
    "FrameError",
    "decode_frame",
    "encode_frame",
]

CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1
MAX_CHUNK_FRAME_BYTES: Final = 1024 * 1024
"""The most plain bytes of chunks that share one frame."""
MAX_PACK_BYTES: Final = 64 * 1024 * 1024
"""No pack is larger."""

_WORTH_IT: Final = 0.95
_LEVEL: Final = 1
_FAST_LEVEL: Final = -3
"""Takes a third of the time or less where little shrinks, and gains no time where much does."""
_SAMPLES: Final = 32
_SAMPLE_BYTES: Final = 2048
_SAMPLED_FROM_BYTES: Final = 256 * 1024
"""What is smaller is compressed at once: sampling would save little."""
_SAMPLE_WORTH_IT: Final = 0.99
"""A sample compresses less well than the whole. So the doubt is the compressor's to settle."""
_HARDLY: Final = 0.85
"""A sample that shrinks to more than this hardly shrinks."""
_FAST_WORTH_IT: Final = 1.02
"""How much larger than by the usual level such a sample may be for the fast one to be taken."""


class FrameError(ValueError):
    """The stored bytes are not a frame of the stated codec and plain size."""


class _Codecs(threading.local):
    """zstd contexts are not safe to share between threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self.fast_compressor = zstandard.ZstdCompressor(level=_FAST_LEVEL, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def encode_frame(plain: bytes | memoryview) -> tuple[bytes | memoryview, int]:
    """The stored bytes and their codec. What is stored raw is `plain` itself, not a copy."""
    compressor = _worthwhile_compressor(plain)
    if compressor is not None:
        packed = compressor.compress(plain)
        if len(packed) <= len(plain) * _WORTH_IT:
            return packed, CODEC_ZSTD
    return plain, CODEC_RAW


def _worthwhile_compressor(plain: bytes | memoryview) -> zstandard.ZstdCompressor | None:
    """Compress slices from all over a large frame: what does not compress, or hardly, is told at little cost.

    Slices lie at another offset in each page of a database. A stretch of zeros of 4 % of the frame never escapes them.
    """
    usual = _codecs.compressor
    if len(plain) < _SAMPLED_FROM_BYTES:
        return usual
    view = memoryview(plain)
    step = len(view) // (_SAMPLES + 1)
    starts = [number * step for number in range(1, _SAMPLES + 1)]
    sample = b"".join(view[start : start + _SAMPLE_BYTES] for start in starts)
    packed = len(usual.compress(sample))
    if packed > len(sample) * _SAMPLE_WORTH_IT:
        return None
    fast = _codecs.fast_compressor
    hardly = packed > len(sample) * _HARDLY
    return fast if hardly and len(fast.compress(sample)) <= packed * _FAST_WORTH_IT else usual


def decode_frame(stored: bytes | memoryview, raw: int, codec: int) -> bytes | memoryview:
    """The plain bytes of a frame; no more memory is taken than the `raw` bytes that the index speaks of.

    Raises:
        FrameError: they are something else.
    """
    if codec == CODEC_RAW:
        if len(stored) != raw:
            raise FrameError(f"{len(stored)} stored bytes instead of {raw}")
        return stored
    try:
        # The library believes the size in the frame's own header and would take memory for it.
        if zstandard.frame_content_size(stored) not in {raw, -1}:
            raise FrameError("its header states another size than the index")
        plain: bytes = _codecs.decompressor.decompress(stored, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(str(error)) from error
    if len(plain) != raw:
        raise FrameError(f"{len(plain)} plain bytes instead of {raw}")
    return plain
