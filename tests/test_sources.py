"""The contract of every `SliceSource` in the code: one test per source and case.

Classes are found by their methods, so a new one fails here until `EXAMPLES` says how to make one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from al_strategies.evidence import Position, SliceId
from al_strategies.learner import IGNORE, SliceSource, Surrounded
from al_strategies.simulation import _part
from ml_backend.rounds.artefacts import DATASET
from ml_backend.rounds.records import TaskRecord
from ml_backend.rounds.service import slice_keys
from ml_backend.rounds.source import ProjectSource
from ml_backend.segment import VolumeSlices
from ml_backend.segmentation.neighbourhood import with_neighbours
from ml_backend.settings import Settings
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.folder import FolderSource
from ml_backend.volumes.opening import open_volume
from ml_backend.volumes.pair import VolumePair
from ml_backend.volumes.phantom import Phantom, PhantomSample
from tests.export_store import CLASSES, SHAPE, ExportStore, a_mask

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"image", "mask", "position"}


def implementations() -> list[str]:
    """``module.Class`` of every class in the packages that has the methods of a `SliceSource`, or
    is derived from one that has."""
    classes: dict[str, tuple[str, set[str], set[str]]] = {}
    for path in (*(ROOT / "al_strategies").rglob("*.py"), *(ROOT / "ml_backend").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                if "Protocol" not in bases:
                    classes[f"{module}.{node.name}"] = node.name, methods, bases
    found: set[str] = set()
    while True:
        names = {classes[one][0] for one in found}
        more = {
            one
            for one, (_, methods, bases) in classes.items()
            if methods >= METHODS or bases & names
        }
        if more == found:
            return sorted(found)
        found = more


@dataclass(frozen=True)
class Example:
    """``stranger``: an id that the source does not have. ``unlabelled``: one that has no mask."""

    source: SliceSource
    stranger: SliceId
    classes: int
    unlabelled: SliceId | None = None


class Folders:
    """What examples are made of, in a test's own folder."""

    def __init__(self, folder: Path, make_settings: Callable[..., Settings]) -> None:
        self.folder = folder
        self.make_settings = make_settings
        self.values = np.random.default_rng(0).integers(0, 4000, SHAPE).astype(np.uint16)

    def scan(self) -> Path:
        path = self.folder / "scans" / "bone.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, self.values)
        return path

    def labels(self) -> Path:
        path = self.folder / "labels.npy"
        np.save(path, np.stack([a_mask(z, SHAPE[1:]) for z in range(SHAPE[0])]))
        return path


def folder(made: Folders) -> Example:
    for kind in ("images", "masks"):
        (made.folder / kind).mkdir()
    for z, values in enumerate(made.values):
        Image.fromarray(values).save(made.folder / "images" / f"z{z}.png")
        if z:
            Image.fromarray(a_mask(z, SHAPE[1:])).save(made.folder / "masks" / f"z{z}.png")
    return Example(FolderSource(made.folder), "z6", len(CLASSES), unlabelled="z0")


def phantom(made: Folders) -> Example:
    source = Phantom([PhantomSample(0, (3, 24, 32))])
    return Example(source, "phantom_z0003", len(source.classes))


def pair(made: Folders) -> Example:
    return Example(VolumePair(made.scan(), made.labels()), "z0006", len(CLASSES))


def volume(made: Folders) -> Example:
    return Example(VolumeSlices(open_volume(made.scan())), SHAPE[0], 0, unlabelled=0)


def project(made: Folders) -> Example:
    made.scan()
    settings = made.make_settings(NEXTSLICE_VOLUMES=f"scans={made.folder / 'scans'}")
    store = ExportStore.of(settings)
    tasks = [
        TaskRecord(
            id=10 + z,
            image=SliceAddress("scans/bone.npy", "z", z).url(
                settings.slices_url, slice_keys(settings)
            ),
            volume="bone",
            z=float(z),
        )
        for z in range(SHAPE[0])
    ]
    store.add_round(1, tasks, {10 + z: a_mask(z, SHAPE[1:]) for z in range(SHAPE[0] - 1)})
    dataset = store.folder.round(1).need(DATASET)
    source = ProjectSource(dataset, store.folder, store.images)
    return Example(source, 16, len(CLASSES), unlabelled=15)


def neighbourhood(made: Folders) -> Example:
    whole = project(made)
    return Example(with_neighbours(whole.source, 1), whole.stranger, whole.classes, 15)


def part(made: Folders) -> Example:
    whole = pair(made)
    return Example(_part(whole.source, tuple(whole.source.ids[:3])), "z0003", whole.classes)


def surrounded_part(made: Folders) -> Example:
    whole = project(made)
    ids = (10, 11, 12, 13, 15)
    return Example(_part(whole.source, ids), 14, whole.classes, unlabelled=15)


EXAMPLES: dict[str, Callable[[Folders], Example]] = {
    "al_strategies.simulation._Part": part,
    "al_strategies.simulation._SurroundedPart": surrounded_part,
    "ml_backend.rounds.source.ProjectSource": project,
    "ml_backend.segment.VolumeSlices": volume,
    "ml_backend.segmentation.neighbourhood._Neighbourhood": neighbourhood,
    "ml_backend.volumes.folder.FolderSource": folder,
    "ml_backend.volumes.pair.VolumePair": pair,
    "ml_backend.volumes.phantom.Phantom": phantom,
}
"""How to make one of each, with at least three slices."""


@pytest.fixture
def example(name: str, tmp_path: Path, make_settings: Callable[..., Settings]) -> Example:
    if name not in EXAMPLES:
        pytest.fail(
            f"{name} has the methods of a SliceSource and no example: add a function that makes "
            "one to EXAMPLES in tests/test_sources.py, and the contract runs over it"
        )
    return EXAMPLES[name](Folders(tmp_path, make_settings))


def labelled(example: Example) -> list[SliceId]:
    """The slices that have a mask, all but `Example.unlabelled`."""
    if not example.classes:
        return []
    return [i for i in example.source.ids if i != example.unlabelled]


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("name", implementations())
class TestContract:
    def test_the_example_is_of_the_class(self, example: Example, name: str) -> None:
        module, _, cls = name.rpartition(".")
        assert type(example.source) is getattr(import_module(module), cls)
        assert isinstance(example.source, SliceSource)

    def test_ids_are_unique_of_one_kind_and_in_order(self, example: Example, name: str) -> None:
        ids = list(example.source.ids)
        assert len(ids) >= 3
        assert len(set(ids)) == len(ids)
        assert {type(i) for i in ids} in ({int}, {str})
        assert list(example.source.ids) == ids
        places = [(p.volume, p.z) for p in map(example.source.position, ids)]
        assert places == sorted(places)

    def test_images_are_real_numbers_and_stay_the_same(self, example: Example, name: str) -> None:
        for slice_id in example.source.ids:
            image = example.source.image(slice_id)
            assert image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
            assert image.dtype.kind in "biuf"
            assert image.dtype.isnative
            assert same(example.source.image(slice_id), image)

    def test_masks_are_classes_of_the_pixels(self, example: Example, name: str) -> None:
        for slice_id in labelled(example):
            mask = example.source.mask(slice_id)
            assert mask.dtype == np.uint8
            assert mask.shape == example.source.image(slice_id).shape[:2]
            assert ((mask < example.classes) | (mask == IGNORE)).all()
            assert same(example.source.mask(slice_id), mask)

    def test_an_unlabelled_slice_has_no_mask(self, example: Example, name: str) -> None:
        if example.unlabelled is not None:
            assert example.source.image(example.unlabelled).size
            with pytest.raises(KeyError):
                example.source.mask(example.unlabelled)

    def test_positions_are_places_of_their_own(self, example: Example, name: str) -> None:
        places = [example.source.position(slice_id) for slice_id in example.source.ids]
        assert all(isinstance(place, Position) and np.isfinite(place.z) for place in places)
        assert len(set(places)) == len(places)

    @pytest.mark.parametrize("asked", sorted(METHODS))
    def test_a_slice_that_is_not_there_is_a_key_error(
        self, example: Example, name: str, asked: str
    ) -> None:
        with pytest.raises(KeyError):
            getattr(example.source, asked)(example.stranger)

    @pytest.mark.parametrize("neighbours", [0, 1, 2])
    def test_what_is_around_a_slice(self, example: Example, name: str, neighbours: int) -> None:
        source = example.source
        if not isinstance(source, Surrounded):
            return
        first = source.ids[0]
        for slice_id in source.ids:
            stack = source.around(slice_id, neighbours)
            image = source.image(slice_id)
            if neighbours:
                assert stack.shape == (*image.shape, 2 * neighbours + 1)
                assert same(stack[:, :, neighbours], image)
            else:
                assert same(stack.reshape(image.shape), image)
        with pytest.raises(KeyError):
            source.around(example.stranger, neighbours)
        if neighbours:
            beyond = source.around(first, neighbours)[:, :, neighbours - 1]
            assert same(beyond, source.image(first))


def test_every_example_is_of_a_class_that_there_is() -> None:
    assert set(EXAMPLES) <= set(implementations())
