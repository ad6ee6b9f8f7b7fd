"""2.5-D: a slice's neighbours reach the network, in training, scoring and serving alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from al_strategies.evidence import Position, SliceId
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.neighbourhood import with_neighbours
from ml_backend.segmentation.preprocessing import InvalidImage, Preprocessing
from ml_backend.segmentation.training import TrainingConfig

SIDE = 64
CLASSES = ("background", "bone")


class Stack:
    """What is labelled in slice z is bright in slice z + 1 only: nothing in the slice tells it."""

    ids = tuple(f"z{z}" for z in range(8))

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.masks = np.zeros((9, SIDE, SIDE), np.uint8)
        for z, mask in enumerate(self.masks):
            left = int(rng.integers(0, 48))
            mask[:, left : left + 16] = z > 0
        self.images = rng.normal(100, 5, self.masks.shape)
        self.images[1:] += 100.0 * self.masks[:-1]

    def _z(self, slice_id: SliceId) -> int:
        return int(str(slice_id)[1:])

    def image(self, slice_id: SliceId) -> npt.NDArray[Any]:
        return self.images[self._z(slice_id)]

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        return self.masks[self._z(slice_id)]

    def position(self, slice_id: SliceId) -> Position:
        return Position("stack", float(self._z(slice_id)))

    def around(self, slice_id: SliceId, neighbours: int) -> npt.NDArray[Any]:
        z = self._z(slice_id)
        places = np.clip(np.arange(z - neighbours, z + neighbours + 1), 0, len(self.images) - 1)
        return np.moveaxis(self.images[places], 0, 2)


def learner(neighbours: int) -> NetworkLearner:
    config = LearnerConfig(
        architecture="hrnet_w18_small",
        neighbours=neighbours,
        training=TrainingConfig(steps=30, batch=4, crop=64),
    )
    return NetworkLearner(CLASSES, config)


def test_each_neighbour_is_a_channel_through_the_same_window() -> None:
    stack = np.stack([np.full((2, 3), v) for v in (0.0, 50.0, 100.0)], axis=2)

    out = Preprocessing(0, 100, neighbours=1)(stack)

    assert out.shape == (3, 2, 3)
    assert out[:, 0, 0].tolist() == [-1.0, 0.0, 1.0]


def test_a_slice_alone_stands_in_for_its_neighbours() -> None:
    image = np.arange(6.0).reshape(2, 3)

    out = Preprocessing(0, 5, neighbours=2)(image)

    assert out.shape == (5, 2, 3)
    assert all((plane == out[0]).all() for plane in out)


def test_another_number_of_slices_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"\(H, W, 5\), found shape \(4, 4, 3\)"):
        Preprocessing(0, 1, neighbours=2)(np.zeros((4, 4, 3)))


def test_neighbours_of_colour_images_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbours must be 0 or more, and 0 for colour"):
        Preprocessing(0, 1, channels=3, neighbours=1)


def test_a_window_of_before_there_were_neighbours_is_read() -> None:
    old = '{"window_low": 1.0, "window_high": 2.0, "channels": 1}'

    assert Preprocessing.from_json(old) == Preprocessing(1.0, 2.0)


def test_the_network_learns_from_the_next_slice_what_the_slice_cannot_tell() -> None:
    source = Stack()
    flat, deep = learner(0), learner(1)

    for each in (flat, deep):
        each.fit(source, source.ids[1:6], seed=0)

    held_out = source.ids[6:8]
    assert deep.evaluate(source, held_out).miou > flat.evaluate(source, held_out).miou + 0.2
    # Serving gets the same stack by hand, scoring by the source; the checkpoint knows how many.
    served = NetworkLearner.from_bytes(deep.to_bytes())
    assert served.neighbours == 1
    alone = served.predict_image(source.around("z6", 1)).mask
    assert (alone == dict(deep.predict(source, ["z6"]))["z6"].mask).all()
    assert deep.evidence(source, held_out, frozenset({"entropy"})).ids == held_out


def test_a_warm_start_is_not_taken_from_another_number_of_neighbours() -> None:
    source = Stack()
    one = learner(1)
    one.fit(source, source.ids[1:3], seed=0)
    three = NetworkLearner(
        CLASSES, LearnerConfig(neighbours=3, training=TrainingConfig(steps=2, batch=2, crop=32))
    )
    three.start_from(one)

    report = three.fit(source, source.ids[1:3], seed=0)

    assert report.settings["warm_started"] is False
    assert three.neighbours == 3


def test_without_neighbours_or_surroundings_the_source_is_taken_as_it_is() -> None:
    source = Stack()

    assert with_neighbours(source, 0) is source
