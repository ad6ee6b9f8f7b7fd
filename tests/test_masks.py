"""Masks: byte for byte what Label Studio writes, and every stream its editor may write."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from PIL import Image

from ml_backend.studio.masks import (
    PAINTED,
    MaskError,
    decode_bitmask,
    decode_brush,
    encode_bitmask,
    encode_brush,
)

STREAMS = json.loads((Path(__file__).parent / "data" / "brush_streams.json").read_text())["cases"]

masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


# Reference: the format bit by bit, with nothing of the code under test.


def reference_encode(mask: np.ndarray) -> list[int]:
    """Runs only, as the SDK writes them."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4).tolist()
    bits = f"{len(values):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    for value, group in groupby(values):
        left = sum(1 for _ in group)
        wide = left > 256
        while left:
            length = min(left, 65536)
            index, size = (
                (3, 16) if wide else (0, 3) if length <= 8 else (1, 4) if length <= 16 else (2, 8)
            )
            bits += f"1{index:02b}{length - 1:0{size}b}{value:08b}"
            left -= length
    return to_bytes(bits)


def to_bytes(bits: str) -> list[int]:
    bits += "0" * (8 - len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def write_stream(
    groups: list[tuple[str, list[int]]],
    word: int = 8,
    sizes: tuple[int, ...] = (3, 4, 8, 16),
    count: int | None = None,
) -> list[int]:
    """A stream of the given groups: ("run", [value] * length) or ("literal", values)."""
    total = sum(len(values) for _, values in groups) if count is None else count
    bits = [f"{total:032b}{word - 1:05b}", *(f"{size - 1:04b}" for size in sizes)]
    for kind, values in groups:
        index = next(i for i, size in enumerate(sizes) if len(values) <= 1 << size)
        bits.append(f"{int(kind == 'run')}{index:02b}{len(values) - 1:0{sizes[index]}b}")
        bits += [f"{value:0{word}b}" for value in (values[:1] if kind == "run" else values)]
    return to_bytes("".join(bits))


def read_stream(stream: list[int]) -> list[int]:
    """Every value, one bit after the other: the loop of @thi.ng/rle-pack's decode."""
    bits = iter("".join(f"{byte:08b}" for byte in stream))

    def read(n: int) -> int:
        return int("".join(next(bits) for _ in range(n)), 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        run = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    return values


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Any stream the format allows for some image, with its height and width."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    word = draw(st.integers(1, 32))
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=4, max_size=4)))
    left = 4 * height * width
    groups: list[tuple[str, list[int]]] = []
    while left:
        length = draw(st.integers(1, min(left, 1 << max(sizes), 70)))
        kind = draw(st.sampled_from(["run", "literal"]))
        if kind == "run":
            values = [draw(st.integers(0, (1 << word) - 1))] * length
        else:
            values = draw(
                st.lists(st.integers(0, (1 << word) - 1), min_size=length, max_size=length)
            )
        groups.append((kind, values))
        left -= length
    return write_stream(groups, word, sizes), height, width


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    discs = [
        (y - rng.uniform(0, height)) ** 2 + (x - rng.uniform(0, width)) ** 2 < r**2
        for r in rng.uniform(3, 25, 12)
    ]
    return np.logical_or.reduce(discs)


# Brush


@given(masks)
def test_brush_is_what_the_sdk_writes(mask):
    assert encode_brush(mask) == mask2rle(mask.astype(np.uint8) * 255)
    assert encode_brush(mask) == reference_encode(mask)


@given(masks)
def test_brush_round_trip(mask):
    alpha = decode_brush(encode_brush(mask), *mask.shape)
    assert alpha.dtype == np.uint8
    assert np.array_equal(alpha, mask * np.uint8(255))


# Lengths on both sides of every limit: 8, 16, 256 and 65,536 values are 2, 4, 64 and 16,384 pixels.
@pytest.mark.parametrize(
    "pixels", [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 32769, 49153]
)
@pytest.mark.parametrize("around", [0, 1, 3])
def test_brush_run_lengths_at_the_limits(pixels, around):
    mask = np.zeros((1, pixels + 2 * around), bool)
    mask[:, around : around + pixels] = True
    encoded = encode_brush(mask)
    assert encoded == mask2rle(mask.astype(np.uint8) * 255)
    assert np.array_equal(decode_brush(encoded, *mask.shape), mask * 255)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (513, 3), (96, 131)])
@pytest.mark.parametrize("seed", range(3))
def test_brush_of_blobs_and_noise_is_what_the_sdk_writes(shape, seed):
    noise = np.random.default_rng(seed).random(shape) > 0.5
    for mask in (blobs(*shape, seed), noise):
        encoded = encode_brush(mask)
        assert encoded == mask2rle(mask.astype(np.uint8) * 255)
        assert np.array_equal(decode_brush(encoded, *shape) >= PAINTED, mask)


def test_brush_of_more_runs_and_pixels_than_are_worked_on_at_a_time():
    dense = np.random.default_rng(3).random((250, 300)) > 0.5  # about 37,000 runs
    sparse = np.random.default_rng(3).random((700, 900)) > 0.999
    for mask in (dense, ~dense, sparse, ~sparse):
        assert encode_brush(mask) == mask2rle(mask.astype(np.uint8) * 255)


def test_brush_adds_a_whole_zero_byte_to_an_aligned_stream():
    # Header 53 bits, a run of up to 8 values 14, up to 16: 15, up to 256: 19.
    # 53 + 5 · 14 + 15 + 2 · 19 = 176 = 8 · 22
    row = [0] * 2 + [1] * 2 + [0] * 2 + [1] * 2 + [0] * 2 + [1] * 4 + [0] * 9 + [1] * 9
    encoded = encode_brush(np.array([row], bool))
    assert len(encoded) == 23
    assert encoded[-1] == 0
    assert encoded == mask2rle(np.array([row], np.uint8) * 255)


def test_brush_takes_views_and_uint8():
    mask = blobs(40, 60)
    for same in (
        np.asfortranarray(mask),
        np.repeat(mask, 2, axis=1)[:, ::2],
        mask.astype(np.uint8),
        mask.astype(np.uint8) * 255,
    ):
        assert encode_brush(same) == encode_brush(mask)
        assert encode_bitmask(same) == encode_bitmask(mask)


@settings(max_examples=60)
@given(streams())
def test_any_stream_decodes_to_its_every_fourth_value_clamped(case):
    stream, height, width = case
    alpha = np.minimum(read_stream(stream)[3::4], 255).reshape(height, width)
    assert np.array_equal(decode_brush(stream, height, width), alpha)
    assert np.array_equal(decode_brush(bytes(stream), height, width), alpha)


@pytest.mark.parametrize("case", STREAMS, ids=[case["name"] for case in STREAMS])
def test_streams_of_the_editors_own_encoder(case):
    stream = list(base64.b64decode(case["stream"]))
    shape = case["height"], case["width"]
    alpha = np.frombuffer(zlib.decompress(base64.b64decode(case["alpha"])), np.uint8)
    assert np.array_equal(decode_brush(stream, *shape), alpha.reshape(shape))


def test_literal_groups_of_every_length_up_to_65536():
    rng = np.random.default_rng(0)
    lengths = [1, 2, 8, 9, 16, 17, 256, 257, 5000, 65536]
    groups = [("literal", rng.integers(0, 256, n).tolist()) for n in lengths]
    rest = -sum(lengths) % 4
    groups.append(("literal", [9] * (rest or 4)))
    values = [value for _, group in groups for value in group]
    alpha = decode_brush(write_stream(groups), 1, len(values) // 4)
    assert alpha.tolist() == [values[3::4]]


def test_the_sdk_reads_the_same_from_a_literal_stream():
    rng = np.random.default_rng(1)
    groups = [("literal", rng.integers(0, 256, 30).tolist()), ("run", [200] * 50)]
    stream = write_stream(groups)
    assert np.array_equal(decode_brush(stream, 4, 5).ravel(), decode_rle(stream)[3::4])


def test_a_stream_longer_than_one_block_of_the_walk():
    # 300 × 700 pixels of noise make about 200 kB: several blocks, with groups across their borders.
    rng = np.random.default_rng(2)
    mask = rng.random((300, 700)) > 0.5
    assert np.array_equal(decode_brush(encode_brush(mask), 300, 700), mask * 255)
    groups = [("literal", rng.integers(0, 256, n).tolist()) for n in (40001, 7, 40000)]
    groups.append(("run", [3] * 4))
    values = [value for _, group in groups for value in group]
    assert np.array_equal(decode_brush(write_stream(groups), 1, 20003)[0], values[3::4])


def test_what_follows_the_last_value_is_padding():
    stream = encode_brush(np.eye(3, dtype=bool))
    assert np.array_equal(decode_brush([*stream, 0, 255, 7], 3, 3), np.eye(3) * 255)


def test_every_truncation_is_an_error():
    mask = np.random.default_rng(0).random((6, 7)) > 0.5
    stream = encode_brush(mask)
    bits = 53 + sum(
        14 if 4 * n <= 8 else 15 if 4 * n <= 16 else 19
        for n in (len(list(group)) for _, group in groupby(mask.ravel().tolist()))
    )
    for length in range(-(-bits // 8)):
        with pytest.raises(MaskError, match=r"truncated|shorter than its header"):
            decode_brush(stream[:length], 6, 7)


@settings(max_examples=50)
@given(streams(), st.data())
def test_a_truncated_literal_stream_is_an_error_and_never_a_wrong_mask(case, data):
    stream, height, width = case
    cut = stream[: data.draw(st.integers(0, len(stream) - 1))]
    try:
        alpha = decode_brush(cut, height, width)
    except MaskError:
        return
    assert np.array_equal(alpha, decode_brush(stream, height, width))  # only padding was cut


@given(st.binary(max_size=60), st.integers(1, 5), st.integers(1, 5))
def test_garbage_is_a_mask_or_a_mask_error(noise, height, width):
    head = (4 * height * width).to_bytes(4, "big")
    try:
        alpha = decode_brush(head + noise, height, width)
    except MaskError:
        return
    assert np.array_equal(
        alpha.ravel(), np.minimum(read_stream([*head, *noise, *bytes(4)])[3::4], 255)
    )


def test_a_stream_of_another_size_names_both():
    with pytest.raises(MaskError, match=r"holds 36 values, an image of 4 × 3 has 48"):
        decode_brush(encode_brush(np.eye(3, dtype=bool)), 3, 4)


def test_groups_that_run_past_the_end():
    with pytest.raises(MaskError, match=r"runs past the end: 9 values in groups, 4 in the header"):
        decode_brush(write_stream([("run", [1] * 9)], count=4), 1, 1)


@pytest.mark.parametrize("rle", [[0, 0, 256], [-1], ["a"], [1.5], None, 7, "AAAA", {"a": 1}])
def test_streams_that_are_not_bytes(rle):
    with pytest.raises(MaskError, match="brush stream"):
        decode_brush(rle, 1, 1)


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_an_image_without_pixels(size):
    with pytest.raises(MaskError, match="at least one pixel"):
        decode_brush(encode_brush(np.ones((1, 1), bool)), *size)


# Bitmask


@given(masks)
def test_bitmask_round_trip(mask):
    alpha = decode_bitmask(encode_bitmask(mask))
    assert alpha.dtype == np.uint8
    assert np.array_equal(alpha, mask * np.uint8(255))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (130, 67), (300, 1000)])
def test_bitmask_is_a_black_rgba_png_with_the_mask_in_alpha(shape):
    for mask in (blobs(*shape), np.zeros(shape, bool), np.ones(shape, bool)):
        head, body = encode_bitmask(mask).split(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(body))) as image:
            image.verify()  # the checksum of every chunk
        with Image.open(io.BytesIO(base64.b64decode(body))) as image:
            assert (image.format, image.mode) == ("PNG", "RGBA")
            assert image.size == (shape[1], shape[0])
            pixels = np.asarray(image)
        assert not pixels[..., :3].any()
        assert np.array_equal(pixels[..., 3], mask * 255)


def data_url(image: Image.Image, **options: object) -> str:
    png = io.BytesIO()
    image.save(png, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def png_forms() -> Iterator[tuple[str, str, np.ndarray]]:
    alpha = np.arange(256, dtype=np.uint8).reshape(8, 32)
    rgba = np.zeros((8, 32, 4), np.uint8)
    rgba[..., 3] = alpha
    yield "RGBA", data_url(Image.fromarray(rgba)), alpha
    yield "LA", data_url(Image.fromarray(rgba).convert("LA")), alpha
    palette = Image.fromarray(np.array([[0, 1, 1], [1, 0, 0]], np.uint8), mode="P")
    palette.putpalette([0, 0, 0] * 2)
    yield "P", data_url(palette, transparency=b"\0\xff"), np.array([[0, 1, 1], [1, 0, 0]]) * 255
    yield "RGB", data_url(Image.new("RGB", (3, 2))), np.full((2, 3), 255)
    yield "L", data_url(Image.new("L", (3, 2))), np.full((2, 3), 255)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_bitmasks_of_every_png_form_read_as_the_browser_draws_them():
    for mode, url, alpha in png_forms():
        assert np.array_equal(decode_bitmask(url), alpha), mode


def test_a_decoded_mask_can_be_written_to():
    decode_bitmask(encode_bitmask(np.eye(3, dtype=bool)))[0, 0] = 7
    decode_brush(encode_brush(np.eye(3, dtype=bool)), 3, 3)[0, 0] = 7


JPEG = io.BytesIO()
Image.new("L", (2, 2)).save(JPEG, "JPEG")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "expected a bitmask that begins with"),
        ("https://example.org/mask.png", "found 'https://example.org/mask.png'"),
        ("data:image/webp;base64,AAAA", "found 'data:image/webp;base64'"),
        ("data:image/png,AAAA", "expected a bitmask"),
        ("data:image/png;base64,A?", "base64 text cannot be read"),
        ("data:image/png;base64,", "PNG cannot be read"),
        (encode_bitmask(np.ones((9, 9), bool))[:-40], "cannot be read"),
        (
            "data:image/png;base64," + base64.b64encode(JPEG.getvalue()).decode(),
            "PNG cannot be read",
        ),
    ],
)
def test_bitmasks_that_cannot_be_read(url, message):
    with pytest.raises(MaskError, match=message):
        decode_bitmask(url)


# What is refused before it is written wrong


@pytest.mark.parametrize("encode", [encode_brush, encode_bitmask])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((0, 5), bool), r"at least one pixel, found \(0, 5\)"),
        (np.zeros((2, 2, 1), bool), r"found \(2, 2, 1\)"),
        ([[True]], "found list"),
        (np.zeros((2, 2), np.int64), "expected a bool or uint8 mask, found int64"),
        (np.zeros((2, 2)), "found float64"),
        (np.array([[0, 1, 2]], np.uint8), "has other values"),
        (np.array([[0, 1, 255]], np.uint8), "has other values"),
        (np.array([[0, 128]], np.uint8), "has other values"),
    ],
)
def test_masks_that_are_refused(encode, mask, message):
    with pytest.raises(MaskError, match=message):
        encode(mask)


def test_a_brush_mask_too_large_for_its_32_bit_count():
    huge = np.broadcast_to(np.zeros((1, 1), bool), (1 << 15, 1 << 15))  # takes no memory
    with pytest.raises(MaskError, match="at most 2³⁰ - 1 pixels"):
        encode_brush(huge)
