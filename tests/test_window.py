"""The window that shows a volume, and slices rendered through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.volumes.volume import Volume, VolumeError
from ml_backend.volumes.window import Window, fit_window, render


def volume(values: npt.NDArray[Any]) -> Volume:
    z, y, x = values.shape
    return Volume(
        Path("scan.npy"), (z, y, x), values.dtype, lambda axis, i: np.take(values, i, axis)
    )


# -- render


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.float64])
def test_the_window_stretches_and_clips(dtype: type) -> None:
    image = np.array([[0, 1000, 1500, 2000, 65535]]).astype(dtype)
    np.testing.assert_array_equal(render(image, Window(1000, 2000)), [[0, 0, 128, 255, 255]])


def test_nan_is_black_and_infinity_is_an_end() -> None:
    image = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    for values in (image, image.astype(np.float16), image.astype(np.float64)):
        np.testing.assert_array_equal(render(values, Window(0, 1)), [[0, 255, 0, 128]])


def test_8_bit_through_0_to_255_is_what_it_was() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(render(image, Window(0, 255)), image)


@settings(deadline=None)
@given(
    values=arrays.arrays(np.dtype("<i8"), (3, 5), elements=st.integers(-32768, 65535)),
    dtype=st.sampled_from(["<u1", "<i1", "<u2", "<i2", ">u2", ">i2"]),
    low=st.floats(-40_000, 70_000, width=32),
    width=st.floats(1, 70_000, width=32),
)
def test_the_table_gives_what_the_formula_gives(
    values: npt.NDArray[Any], dtype: str, low: float, width: float
) -> None:
    image = values.astype(dtype)
    window = Window(low, low + width)
    seen = render(image, window)
    assert seen.dtype == np.uint8
    assert seen.shape == image.shape
    np.testing.assert_array_equal(seen, render(image.astype(np.float32), window))


def test_large_integers_keep_their_contrast() -> None:
    image = np.array([[2**40, 2**40 + 1, 2**40 + 2]], np.int64)
    np.testing.assert_array_equal(render(image, Window(2**40, 2**40 + 2)), [[0, 128, 255]])


@pytest.mark.parametrize("bounds", [(5, 5), (6, 5), (0, np.inf), (np.nan, 1)])
def test_a_window_without_width_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected low < high"):
        Window(*bounds)


# -- fit_window


def test_the_window_is_that_of_the_preprocessing() -> None:
    """Where both see every pixel: what a person sees is what the network sees."""
    rng = np.random.default_rng(0)
    values = rng.normal(30_000, 4000, (20, 40, 50)).astype(np.uint16)
    expected = Preprocessing.fit(values)
    assert fit_window(volume(values)) == Window(expected.window_low, expected.window_high)


def test_only_some_slices_of_a_large_volume_are_read_evenly_along_its_axis() -> None:
    read: list[tuple[int, int]] = []

    def slice_of(axis: int, index: int) -> npt.NDArray[Any]:
        read.append((axis, index))
        return np.full((1000, 30), index, np.float32)

    scan = Volume(Path("scan"), (1000, 2400, 30), np.dtype(np.float32), slice_of, axis=1)
    window = fit_window(scan, (0, 100))
    assert read == [(1, 50 + 100 * i) for i in range(24)]
    assert window == Window(50, 2350)


def test_outliers_and_what_is_not_finite_do_not_count() -> None:
    values = np.random.default_rng(1).uniform(0, 1, (5, 64, 64)).astype(np.float32)
    values[:, 0, :4] = [np.nan, np.inf, -np.inf, 1e9]
    window = fit_window(volume(values))
    assert window.low == pytest.approx(0.005, abs=0.005)
    assert window.high == pytest.approx(0.995, abs=0.005)


def test_without_contrast_it_falls_back_on_the_extremes_and_then_on_a_width_of_1() -> None:
    values = np.full((4, 100, 100), 7, np.uint16)
    assert fit_window(volume(values)) == Window(7, np.nextafter(8.0, np.inf))
    values[2, 3, 3] = 900
    assert fit_window(volume(values)) == Window(7, 900)


def test_a_volume_of_nan_has_no_window() -> None:
    with pytest.raises(VolumeError, match=r"scan\.npy: none of 3 slices has a finite value"):
        fit_window(volume(np.full((3, 4, 5), np.nan, np.float32)))


@pytest.mark.parametrize(
    "values",
    [[1.7e308, 1.7e308], [-1.7e308, 1.7e308], [np.finfo("f8").max] * 2, [np.finfo("f8").min] * 2],
)
def test_values_at_the_end_of_what_there_is_have_a_window(values: list[float]) -> None:
    window = fit_window(volume(np.array(values).reshape(1, 1, 2)))
    assert np.finfo("f8").min <= window.low < window.high <= np.finfo("f8").max
    assert render(np.array([values]), window).shape == (1, 2)
