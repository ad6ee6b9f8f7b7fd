"""Simulated corrections: how much of a wrong mask a drag repairs, beside a stroke of a brush.

    python -m benchmarks.corrections --sets phantom_small --labels 4 [--slices 4] [--steps N]
    python -m benchmarks.corrections --data sandstone_xrm=DIR --sets sandstone_xrm --labels 4

Trains the learner of the product on some slices of a data set, predicts test slices, and lets five
people correct them, 20 times a slice each. All go for the largest wrong place (8 neighbours).

- drag: a box around its thickest part, so large that it holds more of what is wrong than of what is
  right, and one pixel more on each side. Where the mask is no better after it, the same box again,
  three drags at most (each counts), then that place is left. What was not better in one place is
  less likely to be guessed in the next, as in the product.
- drag, nothing learned: the same, as if each were the first on its slice.
- drag, label picked: the same, with the label picked that most of the place should have.
- box: the same boxes, all of the box painted as the likeliest other class (`fill`), for comparison.
- stroke: the right class by a brush of the best of seven radii, along the best straight line of 8
  directions and 4 lengths through the place's thickest part; strokes that spoil more than they
  repair are not made. No person is so exact.

Printed: the share of the wrong pixels that is left after so many corrections, the mean of the
slices. Labels that a pool has not are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from al_strategies.learner import IGNORE, Beliefs
from benchmarks.comparison.data_sets import labelled_slices, load
from benchmarks.learning import ROOT, _folder
from benchmarks.peers.protocol import Pool
from ml_backend.experiment.data import Data
from ml_backend.rounds.learners import LearnerConfig, new_learner
from ml_backend.segmentation.repair import Box, Change, alternatives, repair

__all__ = ["CORRECTIONS", "PEOPLE", "box_around", "corrected", "fill", "stroke", "wrong_place"]

CORRECTIONS = 20
SHOWN = (1, 2, 3, 5, 10, 20)
_TRIES = 3
_RADII = (1, 2, 3, 5, 8, 12, 20)
_LENGTHS = (0, 2, 5, 12)
"""Of a stroke, in radii."""

ClassMap = npt.NDArray[np.uint8]
Painted = npt.NDArray[np.bool_]
Person = Callable[[Beliefs, ClassMap, ClassMap, Painted, set[Change]], Iterator[ClassMap]]
"""What a person tries one after the other: (beliefs, mask, truth, wrong place, what was rejected on
the slice) → new masks."""


def wrong(mask: ClassMap, truth: ClassMap) -> Painted:
    """Where ``mask`` is not what the truth says, as far as it says anything."""
    return (mask != truth) & (truth != IGNORE)


def wrong_place(there: Painted) -> Painted | None:
    """The largest connected part of what is wrong; None where nothing is."""
    labels, number = ndimage.label(there, np.ones((3, 3)))
    if not number:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found: Painted = labels == sizes.argmax()
    return found


def _thickest(place: Painted) -> tuple[int, int]:
    depth = ndimage.distance_transform_cdt(np.pad(place, 1), "chessboard")[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(y), int(x)


def box_around(place: Painted) -> Box:
    """The box through the thickest part of ``place`` that holds the most of it and the least of
    what is not."""
    y, x = _thickest(place)
    sums = np.pad(np.where(place, 1, -1).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    down, across = ndimage.find_objects(place.astype(np.uint8))[0]
    tops, lefts = (
        np.linspace(s.start, c, 8).round().astype(int) for s, c in ((down, y), (across, x))
    )
    ends = ((down, y), (across, x))
    bottoms, rights = (np.linspace(c + 1, s.stop, 8).round().astype(int) for s, c in ends)
    t, l, b, r = np.meshgrid(tops, lefts, bottoms, rights, indexing="ij")  # noqa: E741
    gain = sums[b, r] - sums[t, r] - sums[b, l] + sums[t, l]
    best = np.unravel_index(gain.argmax(), gain.shape)
    found = Box(int(t[best]), int(l[best]), int(b[best]), int(r[best]))
    return found.grown(1, 1, (place.shape[0], place.shape[1]))


def drag(
    beliefs: Beliefs, mask: ClassMap, truth: ClassMap, place: Painted, rejected: set[Change]
) -> Iterator[ClassMap]:
    """Adds to ``rejected`` what it is asked to try another after."""
    box, before = box_around(place), frozenset(rejected)
    changes = alternatives(beliefs.log_probabilities, mask, box, before)
    for turn in range(_TRIES):
        yield repair(beliefs.log_probabilities, mask, box, turn, rejected=before)
        rejected.update(changes[turn : turn + 1])


def forgetful(
    beliefs: Beliefs, mask: ClassMap, truth: ClassMap, place: Painted, rejected: set[Change]
) -> Iterator[ClassMap]:
    """Drags, each as the first on its slice."""
    return drag(beliefs, mask, truth, place, set())


def picked(
    beliefs: Beliefs, mask: ClassMap, truth: ClassMap, place: Painted, rejected: set[Change]
) -> Iterator[ClassMap]:
    """A drag with the label picked that most of the place should have."""
    box, label = box_around(place), int(np.bincount(truth[place]).argmax())
    for turn in range(_TRIES):
        yield repair(beliefs.log_probabilities, mask, box, turn, label)


def fill(
    beliefs: Beliefs, mask: ClassMap, truth: ClassMap, place: Painted, rejected: set[Change]
) -> Iterator[ClassMap]:
    window = box_around(place).window
    believed = beliefs.log_probabilities[(slice(None), *window)].astype(np.float32).mean((1, 2))
    standing = np.bincount(mask[window].ravel(), minlength=len(believed)).argmax()
    for index in [i for i in np.argsort(-believed) if i != standing][:_TRIES]:
        painted = mask.copy()
        painted[window] = index
        yield painted


def stroke(
    beliefs: Beliefs, mask: ClassMap, truth: ClassMap, place: Painted, rejected: set[Change]
) -> Iterator[ClassMap]:
    """The best stroke, once."""
    y, x = _thickest(place)
    index = truth[y, x]
    gain = np.where(wrong(mask, truth) & (truth == index), 1, 0)
    gain -= (mask == truth) & (truth != index)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    best, painted = 0, None
    for radius in _RADII:
        for length in _LENGTHS:
            for angle in np.arange(8) * np.pi / 8 if length else (0.0,):
                dy, dx = np.sin(angle), np.cos(angle)
                reach = length * radius / 2
                along = ((rows - y) * dy + (columns - x) * dx).clip(-reach, reach)
                there = np.hypot(rows - y - along * dy, columns - x - along * dx) < radius
                if (found := int(gain[there].sum())) > best:
                    best, painted = found, there
    if painted is not None:
        made = mask.copy()
        made[painted] = index
        yield made


PEOPLE: dict[str, Person] = {
    "drag": drag,
    "drag, nothing learned": forgetful,
    "drag, label picked": picked,
    "box": fill,
    "stroke": stroke,
}


def corrected(person: Person, beliefs: Beliefs, truth: ClassMap) -> npt.NDArray[np.float64]:
    """(`CORRECTIONS` + 1,): the share of the wrong pixels that is left after each."""
    mask, left_alone = beliefs.mask.copy(), np.zeros(truth.shape, np.bool_)
    left, rejected = [int(wrong(mask, truth).sum())], set[Change]()
    while len(left) <= CORRECTIONS:
        place = wrong_place(wrong(mask, truth) & ~left_alone)
        if place is None:
            break
        for tried in person(beliefs, mask, truth, place, rejected):
            now = int(wrong(tried, truth).sum())
            if now < left[-1]:
                mask = tried
                left.append(now)
                break
            left.append(left[-1])
        else:
            left_alone |= place
    padded = [*left, *[left[-1]] * CORRECTIONS][: CORRECTIONS + 1]
    return np.array(padded) / max(1, padded[0])


def _beliefs(options: argparse.Namespace, data: Data, labels: int) -> tuple[list[Any], float]:
    """Some test slices, and what a learner of so many labels believes of them."""
    labelled = labelled_slices(data.pool, labels, 0)
    training = {} if options.steps is None else {"steps": options.steps}
    learner = new_learner(data.classes, LearnerConfig(training=training), options.device)
    began = time.process_time()
    learner.fit(Pool(data.source, data.pool, labelled), labelled, seed=0)
    took = time.process_time() - began
    places = np.linspace(0, len(data.test) - 1, min(options.slices, len(data.test)))
    ids = [data.test[i] for i in places.round().astype(int)]
    return [(i, learner.believe_image(data.source.image(i))) for i in ids], took


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=_folder, action="append", default=[], metavar="NAME=FOLDER")
    add("--sets", nargs="+", default=["phantom_small"])
    add("--labels", nargs="+", type=int, default=[4])
    add("--slices", type=int, default=4)
    add("--steps", type=int, help="of the training; default: the product's")
    add("--device", default="cpu")
    add("--home", type=Path, default=ROOT / ".nextslice" / "learning")
    add("--out", type=Path, help="append a line of JSON for each person")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| data set | labels | wrong, % | who |", *(f" {n} |" for n in SHOWN), sep="")
    print("| --- | ---: | ---: | --- |", " ---: |" * len(SHOWN), sep="")
    for name in options.sets:
        data = load(name, options.home, dict(options.data))
        for labels in [n for n in options.labels if n <= len(data.pool)]:
            slices, took = _beliefs(options, data, labels)
            truths = [data.source.mask(i) for i, _ in slices]
            errors = [wrong(b.mask, t).mean() for (_, b), t in zip(slices, truths, strict=True)]
            for who, person in PEOPLE.items():
                curves = [corrected(person, b, t) for (_, b), t in zip(slices, truths, strict=True)]
                mean = np.mean(curves, 0)
                cells = "".join(f" {mean[n]:.2f} |" for n in SHOWN)
                print(
                    f"| {name} | {labels} | {100 * np.mean(errors):.1f} | {who} |{cells}",
                    flush=True,
                )
                if options.out:
                    line = {
                        "data_set": name,
                        "labels": labels,
                        "steps": options.steps,
                        "who": who,
                        "slices": [str(i) for i, _ in slices],
                        "wrong": float(np.mean(errors)),
                        "left": np.round(mean, 4).tolist(),
                        "train_cpu_s": round(took, 1),
                    }
                    with options.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
