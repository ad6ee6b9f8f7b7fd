"""Inputs made of the corpus: the n-th of a seed is always the same."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.target import Form, Sample, Target

__all__ = ["mutated"]

LARGEST = 1 << 20
"""Bytes of a file: what grows stops here."""
_EDGES = (7, 8, 15, 16, 20, 24, 31, 32, 48, 63, 64)
_NUMBERS = (0, 1, 2, 3, 4, 7, 1000, *((1 << bits) + step for bits in _EDGES for step in (-1, 0)))
_FLOATS = (0.0, -0.0, 1.0, 0.5, 1e-45, 1e-308, 3e38, 1.7e308, float("inf"), float("nan"), -1.0)
_TEXTS = (
    "0",
    "-1",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "1.5",
    "9" * 25,
    "9" * 400,
    "9" * 5000,
    "1e308",
    "1e-320",
    "0x7f",
    "٣",
    "²",
    "true",
    "null",
    '""',
    "[]",
    "{}",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    255,
    256,
    65536,
    2**31,
    2**53,
    2**63,
    10**25,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e6,
    1e9,
    1.7e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "0",
    "\0",
    "\ud800",
    "a" * 300,
    "é",
    "$image",
    "../..",
    "1e999",
    [],
    {},
    [[]],
    [None],
    {"": None},
    (0,) * 300,
)


def mutated(target: Target, corpus: Sequence[Sample], seed: int, number: int) -> Sample:
    """The ``number``-th input of ``seed``: first the corpus as it is, then changes of it."""
    if number < len(corpus):
        return corpus[number]
    rng = random.Random(f"{seed}/{target.name}/{number}")
    sample = dict(rng.choice(corpus))
    others = rng.choice(corpus)
    for _ in range(1 if len(sample) < 2 or rng.random() < 0.8 else 2):
        name = rng.choice(sorted(sample))
        if len(sample) > 1 and rng.random() < 0.02:
            del sample[name]
            continue
        other = others.get(name) or rng.choice(sorted(others.values()))
        changed = _changed(target.form_of(name), sample[name], other, target.words, rng)
        sample[name] = changed[:LARGEST]
    return sample


def _changed(
    form: Form, data: bytes, other: bytes, words: Sequence[bytes], rng: random.Random
) -> bytes:
    if form == "json" and rng.random() < 0.7:
        return _changed_json(data, rng)
    if form == "gzip" and rng.random() < 0.8:
        inner = gzip.decompress(data)
        return gzip.compress(_changed("bytes", inner, inner, words, rng), 1, mtime=0)
    if form == "zip" and rng.random() < 0.8:
        return _changed_zip(data, words, rng)
    steps = _TEXT_STEPS if form in ("json", "text") else _STEPS
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        rng.choice(steps)(found, other, words, rng)
    return _with_sums(found) if form == "png" and rng.random() < 0.7 else bytes(found)


def _place(data: bytearray, rng: random.Random) -> int:
    """Anywhere, half of the time near the start, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 400)
    return rng.randrange(end) if end else 0


def _range(data: bytearray, rng: random.Random, most: int = 64) -> slice:
    start = _place(data, rng)
    return slice(start, start + rng.randint(1, most))


def _bit(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))


def _number(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    """As a length or an offset would stand there."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((*_NUMBERS, len(data), len(data) - 1, rng.getrandbits(64)))
    at = _place(data, rng)
    data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, order)  # type: ignore[arg-type]


def _float(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    form, at = rng.choice(("<f", ">f", "<d", ">d")), _place(data, rng)
    value = rng.choice(_FLOATS)
    packed = struct.pack(form, min(value, 3e38) if form[1] == "f" else value)
    data[at : at + len(packed)] = packed


def _step(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    """One more or one less."""
    if data:
        at = _place(data, rng)
        data[at] = data[at] + rng.choice((-1, 1, 8, -8)) & 255


def _cut(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _less(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    del data[_range(data, rng)]


def _more(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.randint(1, 16))


def _again(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    part = data[_range(data, rng, 400)]
    at = _place(data, rng)
    data[at:at] = part


def _often(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    """A part of it very often: what takes time or memory by the square shows."""
    if rng.random() < 0.03:
        part = data[_range(data, rng, 200)]
        at = _place(data, rng)
        times = min(10 ** rng.randint(2, 5), LARGEST // max(1, len(part)))
        data[at:at] = part * times


def _spliced(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    """A part of another input."""
    if other:
        start = rng.randrange(len(other))
        here = _range(data, rng, 200)
        data[here] = other[start : start + rng.randint(1, 200)]


def _word(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    if words:
        at = _place(data, rng)
        stop = at if rng.random() < 0.5 else at + rng.randint(1, 12)
        data[at:stop] = rng.choice(words)


def _text(data: bytearray, other: bytes, words: Sequence[bytes], rng: random.Random) -> None:
    """Another number or quoted word where one is."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?|\"[^\"]{0,60}\"|\b\w+\b", bytes(data[:20_000])))
    if found:
        one = rng.choice(found)
        known = (*(text.encode() for text in _TEXTS), *words, rng.choice(found).group())
        data[one.start() : one.end()] = rng.choice(known)


Step = Callable[[bytearray, bytes, Sequence[bytes], random.Random], None]
_STEPS: tuple[Step, ...] = (
    *(_bit, _bit, _byte, _byte, _number, _number, _number, _float, _step, _step, _cut, _less),
    *(_more, _again, _often, _spliced, _word, _text),
)
_TEXT_STEPS: tuple[Step, ...] = (
    *(_bit, _byte, _cut, _less, _more, _again, _again, _often, _spliced, _spliced),
    *(_word, _word, _text, _text, _text),
)


def _changed_json(data: bytes, rng: random.Random) -> bytes:
    """With some of its values others, gone, doubled, wrapped or moved."""
    try:
        tree = [json.loads(data)]
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change(tree, rng)
        return json.dumps(tree[0]).encode()
    except ValueError:  # no JSON
        return data
    except RecursionError:  # what was nested was nested again
        return b"[" * 2000 + b"]" * 2000


def _change(tree: list[Any], rng: random.Random) -> None:
    inner = [(tree, 0), *_places(tree[0])]
    holder, key = rng.choice(inner)
    other, there = rng.choice(inner)
    how = rng.random()
    if how < 0.5:
        holder[key] = _copy(rng.choice(_VALUES))
    elif how < 0.6 and holder is not tree:
        del holder[key]
    elif how < 0.7 and isinstance(holder, list):
        holder.extend(_copy(holder[key]) for _ in range(rng.choice((1, 1, 3, 300))))
    elif how < 0.8:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
    elif how < 0.83:
        holder[key] = _nested(rng.choice((50, 300, 900)), rng)
    elif how < 0.92:
        holder[key] = _copy(other[there])
    else:
        holder[key] = rng.choice((-1, 0.001, 1e3, 1e5, -1e6)) * rng.random()


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key of it, breadth first; no more than a few hundred."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 400:
        one = waiting.pop(0)
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else range(min(len(one), 40))
            found += [(one, key) for key in keys]
            waiting += [one[key] for key in keys]
    return found


def _nested(depth: int, rng: random.Random) -> Any:
    value: Any = 0
    as_list = rng.random() < 0.5
    for _ in range(depth):
        value = [value] if as_list else {"a": value}
    return value


def _changed_zip(data: bytes, words: Sequence[bytes], rng: random.Random) -> bytes:
    """With one of its files changed, and the sums of what is in them now."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        files = {one.filename: (file.read(one), one.compress_type) for one in file.infolist()}
    name = rng.choice(sorted(files))
    inner, kind = files[name]
    is_json = name.endswith((".json", ".zarray", ".zattrs", ".zgroup"))
    files[name] = (_changed("json" if is_json else "bytes", inner, inner, words, rng), kind)
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w") as changed:
        for one, (content, packing) in files.items():
            changed.writestr(zipfile.ZipInfo(one), content, packing)
    return to.getvalue()


def _with_sums(data: bytearray) -> bytes:
    """A PNG whose chunks have the checksums of what is in them now."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)
