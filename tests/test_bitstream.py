"""Bits in bulk, against text and `np.flatnonzero`."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ml_backend.studio.bitstream import BitWriter, set_places

codes = st.integers(1, 64).flatmap(
    lambda width: st.tuples(st.integers(0, (1 << width) - 1), st.just(width), st.integers(0, 200))
)
blocks = st.lists(st.lists(codes, min_size=1, max_size=20), max_size=6)


@given(blocks, st.booleans())
def test_codes_are_written_one_after_the_other(entries, spaced):
    writer = BitWriter()
    text = ""
    for block in entries:
        code, width, zeros = (np.array(part, np.uint64) for part in zip(*block, strict=True))
        if spaced:
            writer.write(code, width, zeros)
        else:
            writer.write(code, width)
        text += "".join(f"{c:0{w}b}" + "0" * (z * spaced) for c, w, z in block)
        assert writer.bits == len(text)
    written = "".join(f"{byte:08b}" for byte in writer.getvalue())
    assert written == text + "0" * (-len(text) % 8)


@given(
    st.lists(
        st.integers(0, 300).flatmap(
            lambda width: st.tuples(st.integers(0, (1 << width) - 1), st.just(width))
        )
    )
)
def test_single_numbers_of_any_width(entries):
    writer = BitWriter()
    text = ""
    for number, width in entries:
        writer.write_int(number, width)
        writer.write(np.array([5], np.uint64), np.array([4], np.uint64))
        text += (f"{number:0{width}b}" if width else "") + "0101"
    assert writer.bits == len(text)
    written = "".join(f"{byte:08b}" for byte in writer.getvalue())
    assert written == text + "0" * (-len(text) % 8)


@given(hnp.arrays(np.bool_, st.integers(0, 40).map(lambda n: 8 * n)))
def test_set_places_are_the_nonzero_ones(flags):
    assert np.array_equal(set_places(flags), np.flatnonzero(flags))
