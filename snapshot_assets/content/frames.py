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
_SAMPLES: Final = 16
_SAMPLE_BYTES: Final = 4096
_SAMPLED_FROM_BYTES: Final = 256 * 1024
"""What is smaller is compressed at once: sampling would save little."""
_SAMPLE_WORTH_IT: Final = 0.99
"""Small samples compress less well than the whole. So the doubt is the compressor's to settle."""


class FrameError(ValueError):
    """The stored bytes are not a frame of the stated codec and plain size."""


class _Codecs(threading.local):
    """zstd contexts are not safe to share between threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()


_codecs = _Codecs()


def encode_frame(plain: bytes | memoryview) -> tuple[bytes | memoryview, int]:
    """The stored bytes and their codec. What is stored raw is `plain` itself, not a copy."""
    if _looks_compressible(plain):
        packed = _codecs.compressor.compress(plain)
        if len(packed) <= len(plain) * _WORTH_IT:
            return packed, CODEC_ZSTD
    return plain, CODEC_RAW


def _looks_compressible(plain: bytes | memoryview) -> bool:
    """Compress slices from all over a large frame: most of what does not compress is told at little cost.

    Slices lie at another offset in each page of a database. A stretch of zeros of 7 % of the frame never escapes them.
    """
    if len(plain) < _SAMPLED_FROM_BYTES:
        return True
    view = memoryview(plain)
    step = len(view) // (_SAMPLES + 1)
    starts = [number * step for number in range(1, _SAMPLES + 1)]
    packed = sum(len(_codecs.compressor.compress(view[start : start + _SAMPLE_BYTES])) for start in starts)
    return packed <= _SAMPLES * _SAMPLE_BYTES * _SAMPLE_WORTH_IT


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
