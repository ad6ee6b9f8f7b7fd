"""One window for all slices, whatever their dtype, shape or accidents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ml_backend.segmentation.preprocessing import InvalidImage, Preprocessing

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_window_ends_become_minus_one_and_one() -> None:
    image = np.array([[100.0, 200.0, 300.0]])

    out = Preprocessing(100, 300)(image)

    assert out.shape == (1, 1, 3)
    assert out.dtype == np.float32
    assert out.tolist() == [[[-1.0, 0.0, 1.0]]]


def test_a_bright_implant_beyond_the_window_is_not_flattened() -> None:
    out = Preprocessing(0, 100)(np.array([[100.0, 150.0, 180.0, 1e9]]))

    assert out.tolist() == [[[1.0, 2.0, pytest.approx(2.6), 3.0]]]


def test_fit_takes_percentiles_of_the_whole_sample() -> None:
    rng = np.random.default_rng(0)
    dark, bright = rng.normal(100, 5, (64, 64)), rng.normal(500, 5, (64, 64))

    fitted = Preprocessing.fit([dark, bright])

    low, high = np.percentile(np.concatenate([dark.ravel(), bright.ravel()]), (0.5, 99.5))
    assert (fitted.window_low, fitted.window_high) == pytest.approx((low, high))
    # A darker slice stays darker.
    assert fitted(dark).mean() < -0.8
    assert fitted(bright).mean() > 0.8


def test_fit_is_not_moved_by_a_few_hot_pixels_nor_by_nan() -> None:
    image = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (100, 1))
    spoiled = image.copy()
    spoiled[0, :5] = [np.nan, np.inf, -np.inf, 1e30, -1e30]

    assert Preprocessing.fit([spoiled]).window_high < 1.1


def test_non_finite_pixels_follow_the_rule() -> None:
    image = np.array([[np.nan, np.inf, -np.inf, 5.0]], dtype=np.float32)

    assert Preprocessing(0, 10)(image).tolist() == [[[-1.0, 3.0, -3.0, 0.0]]]


@pytest.mark.parametrize("value", [0, 7, 1e-9, -1e20])
def test_constant_slices_do_not_divide_by_zero(value: float) -> None:
    image = np.full((8, 8), value)

    out = Preprocessing.fit([image])(image)

    assert np.isfinite(out).all()


def test_mostly_empty_sample_falls_back_on_its_extremes() -> None:
    image = np.zeros((100, 100))
    image[0, :3] = 50.0

    assert Preprocessing.fit([image]).window_high == 50.0


@pytest.mark.parametrize(
    "dtype", ["u1", "u2", "i2", "i4", "u4", "i8", "f2", "f4", "f8", ">u2", ">f4"]
)
def test_every_real_dtype_gives_the_same_numbers(dtype: str) -> None:
    expected = RAMP.astype(np.float64) / 255 * 2 - 1

    out = Preprocessing(0, 255)(RAMP.astype(dtype))

    assert out.dtype == np.float32
    assert np.allclose(out[0], expected, atol=1e-3 if dtype == "f2" else 1e-6)


def test_large_integers_keep_their_contrast() -> None:
    image = np.array([[2**31, 2**31 + 10]], dtype=np.int64)

    assert Preprocessing(2**31, 2**31 + 10)(image).tolist() == [[[-1.0, 1.0]]]


def test_rgb_becomes_luminance_and_alpha_is_dropped() -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, 0, 0] = rgba[0, 1, 1] = rgba[0, 2, 2] = 255
    rgba[..., 3] = 7

    out = Preprocessing(0, 255)(rgba)

    assert (out[0, 0] + 1) / 2 == pytest.approx([0.299, 0.587, 0.114], abs=1e-5)
    assert np.array_equal(out, Preprocessing(0, 255)(rgba[..., :3]))


def test_grey_as_rgb_is_the_grey_slice() -> None:
    out = Preprocessing(0, 255)(np.repeat(RAMP[..., None], 3, axis=2))

    assert np.allclose(out, Preprocessing(0, 255)(RAMP), atol=1e-5)


def test_three_channels_keep_colour_and_repeat_grey() -> None:
    colour = Preprocessing(0, 255, channels=3)
    rgb = np.stack([RAMP, RAMP // 2, RAMP // 4], axis=2)

    assert np.array_equal(colour(rgb)[1], Preprocessing(0, 255)(RAMP // 2)[0])
    assert np.array_equal(colour(RAMP), np.repeat(Preprocessing(0, 255)(RAMP), 3, axis=0))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), complex),
        np.zeros((4, 4, 2)),
        np.zeros(4),
        np.zeros((0, 4)),
        np.array([["a"]]),
    ],
)
def test_what_is_not_a_slice_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InvalidImage, match="found"):
        Preprocessing(0, 1)(image)


def test_fit_without_slices_or_finite_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slice"):
        Preprocessing.fit([])
    with pytest.raises(InvalidImage, match="finite"):
        Preprocessing.fit([np.full((2, 2), np.nan)])


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window_low < window_high"):
        Preprocessing(3, 3)


@given(st.floats(-1e30, 1e30), st.floats(1e-3, 1e30), st.sampled_from([1, 3]))
def test_json_gives_an_equal_preprocessing_back(low: float, width: float, channels: int) -> None:
    if low + width <= low:
        return
    preprocessing = Preprocessing(low, low + width, channels)

    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"window_low": 0}', "null"])
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="JSON of a Preprocessing"):
        Preprocessing.from_json(text)


@given(
    arrays.arrays(
        st.sampled_from(["u1", "i2", "f4", "f8"]).map(np.dtype),
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=8),
    )
)
def test_output_is_always_finite_and_within_three(image: np.ndarray) -> None:
    out = Preprocessing(-5, 80)(image)

    assert out.shape == (1, *image.shape)
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= 3
