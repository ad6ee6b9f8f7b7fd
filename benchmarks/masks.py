"""Brush and bitmask codecs beside the Label Studio SDK, Pillow and zlib.

    python benchmarks/masks.py [--repeat 7] [--noise-2048]

All candidates of a row run in turn, repeat after repeat, in one process; the figures are medians.
Only the ratios of one run mean anything. Results are checked against each other before timing.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter.brush import decode_rle, mask2rle
from PIL import Image
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ml_backend.studio.masks import decode_bitmask, decode_brush, encode_bitmask, encode_brush

Mask = npt.NDArray[np.bool_]


def blobs(size: int, sigma: float) -> Mask:
    noise = np.random.default_rng(0).standard_normal((size, size))
    return np.asarray(gaussian_filter(noise, sigma) > 0)


def speckled(size: int) -> Mask:
    """Blobs with one pixel in a hundred flipped, as an early model predicts."""
    return blobs(size, size / 50) ^ (np.random.default_rng(1).random((size, size)) < 0.01)


def noise(size: int) -> Mask:
    return np.random.default_rng(2).random((size, size)) < 0.5


def medians(repeat: int, **candidates: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of processor time of each candidate (all have one thread), run in turn."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeat):
        for name, run in candidates.items():
            start = time.thread_time()
            run()
            times[name].append(time.thread_time() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def rgba(mask: Mask) -> npt.NDArray[np.uint8]:
    pixels = mask.astype("<u4") * np.uint32(0xFF000000)
    return pixels.view(np.uint8).reshape(*mask.shape, 4)


def pillow(mask: Mask, level: int) -> str:
    png = io.BytesIO()
    Image.fromarray(rgba(mask)).save(png, "PNG", compress_level=level)
    return data_url(png.getvalue())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(mask: Mask, form: tuple[int, int], rows: npt.NDArray[np.uint8], extra: bytes) -> str:
    height, width = mask.shape
    deflate = zlib.compressobj(level=1, strategy=zlib.Z_RLE if form[0] == 8 else 0)
    head = struct.pack(">IIBBBBB", width, height, *form, 0, 0, 0)
    data = deflate.compress(rows.data) + deflate.flush()
    return data_url(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def zlib_rgba(mask: Mask) -> str:
    """The fastest way through zlib: filter "up", level 1, run-length strategy."""
    lines = rgba(mask).reshape(mask.shape[0], -1)
    rows = np.empty((lines.shape[0], lines.shape[1] + 1), np.uint8)
    rows[:, 0] = 2
    rows[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=rows[1:, 1:])
    return png_file(mask, (8, 6), rows, b"")


def zlib_palette(mask: Mask) -> str:
    """One bit a pixel with a transparent palette entry: small, but not RGBA for those who look."""
    bits = np.packbits(mask, axis=1)
    rows = np.zeros((bits.shape[0], bits.shape[1] + 1), np.uint8)
    rows[:, 1:] = bits
    return png_file(mask, (1, 3), rows, chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", bytes([0, 255])))


def brush_row(name: str, mask: Mask, repeat: int) -> None:
    grey = mask.astype(np.uint8) * 255
    stream = mask2rle(grey)
    assert encode_brush(mask) == stream, "not byte-identical to the SDK"
    alpha = decode_rle(stream).reshape(*mask.shape, 4)[..., 3]
    assert np.array_equal(decode_brush(stream, *mask.shape), alpha)
    ms = medians(
        repeat,
        sdk_encode=lambda: mask2rle(grey),
        encode=lambda: encode_brush(mask),
        sdk_decode=lambda: decode_rle(stream),
        decode=lambda: decode_brush(stream, *mask.shape),
    )
    print(
        f"{name:16}{len(stream):>11,}{ms['sdk_encode']:>10.1f}{ms['encode']:>9.2f}"
        f"{ms['sdk_encode'] / ms['encode']:>7.1f}{ms['sdk_decode']:>10.1f}{ms['decode']:>9.2f}"
        f"{ms['sdk_decode'] / ms['decode']:>7.1f}"
    )


def bitmask_row(name: str, mask: Mask, repeat: int) -> None:
    forms: dict[str, Callable[[], str]] = {
        "ours": lambda: encode_bitmask(mask),
        "zlib": lambda: zlib_rgba(mask),
        "pillow 1": lambda: pillow(mask, 1),
        "pillow 6": lambda: pillow(mask, 6),
        "palette": lambda: zlib_palette(mask),
    }
    urls = {form: run() for form, run in forms.items()}
    for url in urls.values():
        assert np.array_equal(decode_bitmask(url), mask * np.uint8(255))
    decoders = {f"read {form}": (lambda u=urls[form]: decode_bitmask(u)) for form in ("ours",)}
    ms = medians(repeat, **forms, **decoders)
    cells = "".join(f"{ms[form]:>9.2f}/{len(urls[form]) / 1000:<7.0f}" for form in forms)
    print(f"{name:16}{cells}{ms['zlib'] / ms['ours']:>6.1f}{ms['read ours']:>9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--noise-2048", action="store_true", help="the SDK takes a minute a run")
    arguments = parser.parse_args()
    cases = {
        "blobs 512²": blobs(512, 10),
        "blobs 1024²": blobs(1024, 20),
        "blobs 2048²": blobs(2048, 40),
        "speckled 512²": speckled(512),
        "speckled 2048²": speckled(2048),
        "noise 512²": noise(512),
    }
    print("brush, ms (medians, interleaved)")
    print(
        f"{'':16}{'bytes':>11}{'SDK enc':>10}{'ours':>9}{'×':>7}{'SDK dec':>10}{'ours':>9}{'×':>7}"
    )
    for name, mask in cases.items():
        brush_row(name, mask, arguments.repeat)
    if arguments.noise_2048:
        brush_row("noise 2048²", noise(2048), 1)
    print("\nbitmask, ms / kB of data URL (× = zlib / ours; the palette's PNG is not RGBA)")
    forms = ("ours", "zlib", "pillow 1", "pillow 6", "palette")
    print(f"{'':16}{''.join(f'{form:>12}     ' for form in forms)}{'×':>6}{'read':>9}")
    for name, mask in (cases | {"noise 2048²": noise(2048)}).items():
        bitmask_row(name, mask, arguments.repeat)


if __name__ == "__main__":
    main()
