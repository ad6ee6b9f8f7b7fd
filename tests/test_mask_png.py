"""Mask PNGs: any reader reads them, and the compressed rows are those of the PNG filter "sub"."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ml_backend.studio.mask_png import write_png


def rows_after_sub(mask: np.ndarray) -> bytes:
    """Each row: the filter's number, then every byte less the one four before it."""
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[..., 3] = mask * 255
    lines = rgba.reshape(mask.shape[0], -1)
    before = np.pad(lines, ((0, 0), (4, 0)))[:, :-4]
    return b"".join(b"\1" + line.tobytes() for line in lines - before)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (
            zlib.crc32(kind + data),
        )
        found.append((kind, data))
        at += 12 + length
    return found


def check(mask: np.ndarray) -> None:
    head, data, end = chunks(write_png(mask))
    assert head == (b"IHDR", struct.pack(">IIBBBBB", *mask.shape[::-1], 8, 6, 0, 0, 0))
    assert data[0] == b"IDAT"
    reader = zlib.decompressobj()  # checks the Adler-32 too
    assert reader.decompress(data[1]) == rows_after_sub(mask)
    assert reader.eof
    assert reader.unused_data == b""
    assert end == (b"IEND", b"")


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)))
def test_any_mask(mask):
    check(mask)


@pytest.mark.parametrize("width", range(1, 140))
def test_every_number_of_zeros_between_two_changes(width):
    # One row of `width` pixels leaves 4·width zeros after its filter byte; a stroke in it splits
    # them in two. Rests of 0 to 257 copies and one or two full ones all occur.
    mask = np.zeros((4, width), bool)
    mask[1, width // 2 :] = True
    mask[2, -1] = True
    mask[3] = True
    check(mask)


@pytest.mark.parametrize("shape", [(1, 70000), (70000, 1), (700, 900)])
def test_long_stretches(shape):
    mask = np.zeros(shape, bool)
    check(mask)
    mask[-1, -1] = True
    check(mask)
    check(~mask)
    check(np.random.default_rng(0).random(shape) > 0.999)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_pillow_reads_it(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) > 0.5
    with Image.open(io.BytesIO(write_png(mask))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (width, height))
        pixels = np.asarray(image)
    assert not pixels[..., :3].any()
    assert np.array_equal(pixels[..., 3], mask * 255)
