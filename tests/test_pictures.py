"""Label maps come back as they were, and only class ids are class ids."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ml_backend.pictures import (
    BROKEN_PICTURE,
    TooManyPixels,
    class_ids,
    decode_label_map,
    encode_png,
    open_picture,
    small_picture,
)


def test_a_label_map_comes_back_as_it_was() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (13, 29), np.uint8)
    assert np.array_equal(decode_label_map(encode_png(mask)), mask)


def test_a_small_picture_is_the_mean_of_areas_and_never_larger() -> None:
    image = np.kron([[0, 100], [200, 40]], np.ones((400, 800))).astype(np.uint8)
    small = small_picture(image)
    assert small.shape == (128, 256)
    assert np.unique(small).tolist() == [0, 40, 100, 200]
    assert small_picture(image[399:401, 799:801]).tolist() == [[0, 100], [200, 40]]


@pytest.mark.parametrize("cut", [0, 4, 40, 60])
def test_what_is_no_whole_picture_is_known_as_such(cut: int) -> None:
    data = encode_png(np.zeros((50, 50), np.uint8))
    assert len(data) > 60
    with pytest.raises(BROKEN_PICTURE):
        decode_label_map(data[:cut])


def test_a_png_of_more_pixels_than_its_bytes_can_hold_is_refused_before_it_is_decoded() -> None:
    data = bytearray(encode_png(np.zeros((32, 32), np.uint8)))
    struct.pack_into(">II", data, 16, 32, 1 << 21)  # 64 million; Pillow takes the rest for black
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    with pytest.raises(TooManyPixels, match=rf"32 × 2097152 pixels, at most {len(data) * 8256} "):
        open_picture(bytes(data))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_picture_of_one_value_has_as_many_pixels_as_it_says(dtype: str) -> None:
    empty = np.zeros((4096, 4096), dtype)
    with open_picture(encode_png(empty)) as image:
        assert np.asarray(image).shape == empty.shape


@pytest.mark.parametrize("dtype", ["?", "u1", "i4", ">u2", "f4", "f8"])
def test_whole_numbers_of_any_type_are_class_ids(dtype: str) -> None:
    found = class_ids(np.array([[0, 1]], dtype))
    assert found is not None
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-1, 0]]),
        np.array([[0, 256]]),
        np.array([[0.5, 1]]),
        np.array([[0, np.nan]]),
        np.array([[0, np.inf]]),
    ],
)
def test_other_numbers_are_none(values: npt.NDArray[np.generic]) -> None:
    assert class_ids(values) is None


def test_of_so_many_classes_others_are_none_but_unlabelled() -> None:
    assert class_ids(np.array([[0, 2, 255]]), classes=3) is not None
    assert class_ids(np.array([[0, 3]]), classes=3) is None
    assert class_ids(np.zeros((0, 3))) is not None


@pytest.mark.parametrize(
    ("compression", "per_byte"), [("raw", 8), ("packbits", 512), ("tiff_adobe_deflate", 8256)]
)
def test_a_tiff_that_claims_more_than_its_bytes_can_hold_is_refused_before_it_is_decoded(
    compression: str, per_byte: int
) -> None:
    image = Image.fromarray(np.linspace(0, 1, 32 * 24, dtype=np.float32).reshape(24, 32))
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression)
    with open_picture(stream.getvalue()) as fine:
        np.testing.assert_array_equal(np.asarray(fine), np.asarray(image))

    data = bytearray(stream.getvalue())
    struct.pack_into("<HHII", data, _entry(data, _HEIGHT), _HEIGHT, 4, 1, 2_097_176)

    with pytest.raises(
        TooManyPixels, match=rf"32 × 2097176 pixels, at most {len(data) * per_byte} "
    ):
        open_picture(bytes(data))


_HEIGHT = 257  # tag of TIFF


def _entry(data: bytearray, tag: int) -> int:
    """Where the entry of ``tag`` begins in the directory of a little-endian TIFF."""
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    places = range(first + 2, first + 2 + 12 * count, 12)
    return next(i for i in places if struct.unpack_from("<H", data, i)[0] == tag)
