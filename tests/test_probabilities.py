"""One preprocessing, one set of probabilities: a slice and weights give the same ones everywhere.

Training, scoring of the pool, /predict and `segment` each take their own way from the same volume
file and checkpoint, and are held against the plain network, written out here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook

from al_strategies.evidence import CLASS_FRACTIONS, CONFIDENCE, ENTROPY, MARGIN, SliceId
from ml_backend.app import create_app
from ml_backend.embedded.stack import settings_from
from ml_backend.rounds.artefacts import WEIGHTS
from ml_backend.rounds.learners import load_learner
from ml_backend.rounds.project import ConnectedProject
from ml_backend.rounds.records import DatasetRecord, Published, TaskRecord
from ml_backend.rounds.service import Service, slice_keys
from ml_backend.rounds.source import ProjectSource
from ml_backend.segment import VolumeSlices, segment_volume
from ml_backend.segmentation import checkpoints
from ml_backend.segmentation.augmentation import Augmentation
from ml_backend.segmentation.dataset import Crops, LabelledSlices
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import Lesson, build_network
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.settings import Settings
from ml_backend.studio.annotations import label_map
from ml_backend.studio.label_config import bitmask_config, parse_label_config
from ml_backend.volumes.address import SliceAddress
from ml_backend.volumes.opening import open_volume
from tests.segmentation_phantom import CLASSES, Phantom

KEY = "7.1763865028"
CONFIG = bitmask_config(CLASSES[1:])
ARCHITECTURES = ("hrnet_w18_small+filters", "hrnet_w18_small")
TILE = 128
SIZES = {
    "smaller than a crop": (50, 41),
    "sides of any length": (100, 120),
    "larger than a tile": (150, 139),
}
ROUNDING = 1e-4
"""Folded batch norms, bands and batches add up in another order."""


def make_model(architecture: str) -> Model:
    """Weights that somebody could have trained: filters fitted, batch norms that have seen slices,
    and a last layer that finds every class somewhere."""
    torch.manual_seed(0)
    source = Phantom(6, seed=5, size=(96, 128))
    preprocessing = Preprocessing.fit(source.image(i) for i in source.ids)
    images = torch.stack([torch.from_numpy(preprocessing(source.image(i))) for i in source.ids])
    network = build_network(architecture, len(CLASSES))
    network.fit_filters(images)
    network.train()
    with torch.no_grad():
        for _ in range(8):
            masks = torch.zeros(6, 96, 128, dtype=torch.int64)
            network.sample(Lesson(images, masks, images), noise=0.1)
        lasts = [network.classifier]
        if isinstance(network, FullResolutionHRNet):
            lasts = [network.reader.last, network.expert.last]
        for last in lasts:
            nn.init.normal_(last.weight, std=1.0)
    network.eval().trained()
    return Model(network, preprocessing, CLASSES)


# -- the reference


def padded(image: npt.NDArray[np.float32]) -> Tensor:
    """(1, channels, H, W): mirrored to multiples of 32."""
    missing = [(0, -length % 32) for length in image.shape[1:]]
    return torch.from_numpy(np.pad(image, [(0, 0), *missing], mode="symmetric"))[None]


def starts(length: int) -> list[int]:
    return [0] if length <= TILE else [0, length - TILE]


def ramp(length: int) -> Tensor:
    places = torch.arange(length) + 0.5
    return (torch.minimum(places, length - places) / (length / 4)).clamp(max=1.0)


@torch.inference_mode()
def blended(model: Model, image: Tensor) -> Tensor:
    """Logits (C, h, w) at the network's stride: the mean over tiles, which count less at their
    rims."""
    height, width = image.shape[2:]
    total, weights = torch.zeros(()), torch.zeros(())
    for top in starts(height):
        for left in starts(width):
            tile = image[:, :, top : top + TILE, left : left + TILE]
            logits = model.network.classify(model.network.features(tile))[0]
            stride = tile.shape[-1] // logits.shape[-1]
            weight = ramp(logits.shape[1])[:, None] * ramp(logits.shape[2])
            right, bottom = width - left - tile.shape[3], height - top - tile.shape[2]
            around = [n // stride for n in (left, right, top, bottom)]
            total = total + F.pad(logits * weight, around)
            weights = weights + F.pad(weight, around)
    return total / weights


# -- the volume, its weights, and who uses them


@dataclass(frozen=True)
class Case:
    """A volume of two slices, the model, and a project that serves it."""

    model: Model
    folder: Path
    settings: Settings
    values: npt.NDArray[np.uint16]

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.values.shape[1:]
        return height, width

    @property
    def fits(self) -> bool:
        return max(self.size) <= TILE

    def images(self) -> list[Tensor]:
        return [padded(self.model.preprocessing(slice_)) for slice_ in self.values]

    def logits(self) -> list[Tensor]:
        return [blended(self.model, image) for image in self.images()]

    def probabilities(self) -> npt.NDArray[np.float32]:
        """(C, Z, H, W)."""
        found = [self._enlarged(logits).softmax(0) for logits in self.logits()]
        return torch.stack(found, 1).numpy()

    @torch.inference_mode()
    def whole(self) -> npt.NDArray[np.float32]:
        """(C, Z, H, W) without tiles."""
        height, width = self.size
        found = [self.model.network(image)[0].softmax(0) for image in self.images()]
        return torch.stack(found, 1)[..., :height, :width].numpy()

    def _enlarged(self, logits: Tensor) -> Tensor:
        height, width = self.size
        size = [-(-length // 32) * 32 for length in self.size]
        whole = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        return whole[:, :height, :width]


def written(folder: Path, size: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """The values of the volume ``scan.npy`` in it."""
    source = Phantom(2, size=size)
    values = np.stack([source.image(i) for i in source.ids])
    np.save(folder / "scan.npy", values)
    return values


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param)


@pytest.fixture(scope="module", params=SIZES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Model
) -> Case:
    folder = tmp_path_factory.mktemp("case")
    values = written(folder, SIZES[request.param])
    settings = settings_from(
        {
            "NEXTSLICE_STORE": str(folder / "store"),
            "NEXTSLICE_CACHE_DIR": str(folder / "cache"),
            "NEXTSLICE_VOLUMES": f"scans={folder}",
            "NEXTSLICE_SLICE_SECRET": "a secret of the laboratory",
            "NEXTSLICE_MAX_TILE": str(TILE),
            "LABEL_STUDIO_API_KEY": "token",
            "PREDICT_DEVICE": "cpu",
        }
    )
    return Case(model, folder, settings, values)


@pytest.fixture(scope="module")
def weights(case: Case) -> bytes:
    return checkpoints.to_bytes(case.model)


def addresses(case: Case) -> list[str]:
    """What the tasks of the volume hold."""
    keys = slice_keys(case.settings)
    return [
        SliceAddress("scans/scan.npy", "z", z).url(case.settings.slices_url, keys)
        for z in range(len(case.values))
    ]


def assert_likeliest(found: npt.NDArray[np.uint8], probabilities: npt.NDArray[np.float32]) -> None:
    """Every pixel (Z, H, W) has its likeliest class; of two that are equally likely, either."""
    chosen = np.take_along_axis(probabilities, found[None].astype(np.int64), axis=0)[0]
    assert found.shape == probabilities.shape[1:]
    assert (probabilities.max(0) - chosen).max() < ROUNDING


def project(case: Case) -> ConnectedProject:
    return ConnectedProject(Service(case.settings), KEY)


def test_there_is_something_to_see(case: Case) -> None:
    found = np.bincount(case.probabilities().argmax(0).ravel(), minlength=len(CLASSES))
    assert np.count_nonzero(found > 20) >= 2


def test_scores_of_the_pool_are_those_of_the_probabilities(case: Case, weights: bytes) -> None:
    tasks = [TaskRecord(id=z, image=url) for z, url in enumerate(addresses(case))]
    dataset = DatasetRecord(
        round=1, classes=list(CLASSES), label_config=CONFIG, fingerprint="f", synced_at="",
        tasks=tasks,
    )  # fmt: skip
    asked = project(case)
    source = ProjectSource(dataset, asked.folder, asked.images)
    learner = load_learner(case.settings, weights, "cpu")

    names = frozenset({CONFIDENCE, ENTROPY, MARGIN, CLASS_FRACTIONS})
    evidence = learner.evidence(source, source.ids, names)

    height, width = ((length + 2) // 4 for length in case.size)
    for z, logits in enumerate(case.logits()):
        pooled = F.adaptive_avg_pool2d(logits, [-(-length // 32) * 8 for length in case.size])
        p = pooled.softmax(0)[:, :height, :width].flatten(1)
        first, second, _ = p.topk(3, dim=0).values
        fractions = np.bincount(p.argmax(0), minlength=len(CLASSES)) / p.shape[1]
        expected = {
            CONFIDENCE: first.mean(),
            MARGIN: (first - second).mean(),
            ENTROPY: torch.special.entr(p).sum(0).mean(),
        }
        for name, value in expected.items():
            assert evidence.scores[name][z] == pytest.approx(float(value), abs=ROUNDING), name
        # A pixel of which two classes are equally likely may go to either.
        assert evidence.features[CLASS_FRACTIONS][z] == pytest.approx(fractions, abs=2e-3)


def test_predict_answers_the_likeliest_classes(case: Case, weights: bytes) -> None:
    app = create_app(case.settings)
    folder = app.extensions["nextslice"].project(KEY).folder
    folder.round(1).write(WEIGHTS, weights)
    config = parse_label_config(CONFIG)
    folder.published = Published(
        round=1, model_version="nextslice-r001-abc", classes=list(CLASSES),
        fingerprint=config.fingerprint, weights="round-0001/weights.safetensors",
    )  # fmt: skip
    tasks = [{"id": z, "data": {"image": url}} for z, url in enumerate(addresses(case))]

    answer = app.test_client().post(
        "/predict", json={"project": KEY, "tasks": tasks, "label_config": CONFIG}
    )

    results = answer.get_json()["results"]
    masks = [label_map(result["result"], config, *case.size).mask for result in results]
    assert_likeliest(np.stack(masks), case.probabilities())


def test_segment_writes_the_probabilities(case: Case, weights: bytes, tmp_path: Path) -> None:
    learner = load_learner(case.settings, weights, "cpu")
    with open_volume(case.folder / "scan.npy") as volume:
        segment_volume(learner, volume, tmp_path / "out.npy", extra="probability")

    expected = case.probabilities()
    for name, p in zip(CLASSES, expected, strict=True):
        written = np.load(tmp_path / f"out-probability-{name}.npy")
        assert np.abs(written / 255 - p).max() < 0.5 / 255 + ROUNDING
    assert_likeliest(np.load(tmp_path / "out.npy"), expected)


# -- training


@dataclass(frozen=True)
class Trained:
    """What training makes of pixels of a slice: probabilities (C, n) at ``y``, ``x``."""

    p: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]


def trained(case: Case, crop: int, z: int) -> Trained:
    """By a crop that is neither turned nor re-lit, in evaluation mode, without noise on filters."""
    with open_volume(case.folder / "scan.npy") as volume:
        source = Labelled(volume)
        slices = LabelledSlices(source, [z], case.model.preprocessing, len(CLASSES))
        crops = Crops(slices, crop=crop, batch=1, augmentation=Augmentation.none())
        lesson = next(iter(crops))
    # Targets that say of which pixel each logit is.
    places = torch.arange(crop * crop).view(1, crop, crop)
    with torch.no_grad():
        logits, found = case.model.network.sample(lesson._replace(masks=places), noise=0.0)
    p, (y, x) = logits.softmax(1)[0].flatten(1).numpy(), divmod(found.flatten().numpy(), crop)
    inside = (y < case.size[0]) & (x < case.size[1])
    return Trained(p[:, inside], y[inside], x[inside])


class Labelled(VolumeSlices):
    """Slices of which every pixel is labelled as background: a crop may lie anywhere."""

    def mask(self, slice_id: SliceId) -> npt.NDArray[np.uint8]:
        return np.zeros(self.image(slice_id).shape, np.uint8)


@pytest.fixture
def taught_part(case: Case) -> Case:
    """The model of ``case`` without the expert, which no crop teaches."""
    return replace(case, model=without_expert(case.model))


def without_expert(model: Model) -> Model:
    network = copy.deepcopy(model.network)
    if isinstance(network, FullResolutionHRNet):
        # What says nothing has half of a say: the last layer twice is what is trained.
        nn.init.zeros_(network.expert.last.weight)
        nn.init.zeros_(network.expert.last.bias)
        network.trained()
        with torch.no_grad():
            network.classifier.weight.mul_(2)
            assert network.classifier.bias is not None
            network.classifier.bias.mul_(2)
    return replace(model, network=network)


def test_training_gives_the_probabilities_where_a_crop_holds_the_slice(taught_part: Case) -> None:
    crop = -(-max(taught_part.size) // 32) * 32
    whole = taught_part.whole()
    for z in range(len(taught_part.values)):
        found = trained(taught_part, crop, z)
        assert found.p.shape[1] > 400
        np.testing.assert_allclose(found.p, whole[:, z, found.y, found.x], atol=ROUNDING)


def test_a_training_is_shown_slices_as_they_are_served(model: Model) -> None:
    """In the corner, mirrored; HRNet beside filters at half the resolution."""
    source = Phantom(4, size=(50, 41))
    plain = {"steps": 2, "batch": 4, "crop": 64, "augmentation": Augmentation.none()}
    config = LearnerConfig(architecture=model.architecture, training=plain)
    learner = NetworkLearner(CLASSES, config)
    with first_inputs() as shown:
        learner.fit(source, source.ids[:2])

    shrunk = 2 if model.architecture.endswith("+filters") else 1
    served = [
        F.avg_pool2d(padded(learner.model.preprocessing(source.image(i)))[0], shrunk)
        for i in source.ids
    ]
    seen = set()
    for image in torch.cat(shown):
        distances = [float((image - other).abs().max()) for other in served]
        assert min(distances) < 1e-3  # through a resampling
        seen.add(source.ids[int(np.argmin(distances))])
    assert seen == set(source.ids[:2])


@contextmanager
def first_inputs() -> Iterator[list[Tensor]]:
    """What networks get as their input, (B, 1, H, W)."""
    shown: list[Tensor] = []

    def look(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.in_channels == 1:
            shown.append(inputs[0].detach().clone())

    hook = register_module_forward_pre_hook(look)
    try:
        yield shown
    finally:
        hook.remove()


# -- where it differs, and by how much


@pytest.fixture(scope="module")
def learned() -> Model:
    """The default network, trained for a moment: how much a place depends on what is far away is
    for the weights."""
    source = Phantom(8, seed=5, size=(96, 96))
    config = LearnerConfig(training={"steps": 120, "batch": 8, "crop": 64})
    learner = NetworkLearner(CLASSES, config)
    learner.fit(source, source.ids)
    return learner.model


@pytest.fixture
def volume_of(learned: Model, tmp_path: Path) -> Callable[[tuple[int, int]], Case]:
    """A volume of slices of a size, for the trained model."""
    return lambda size: Case(learned, tmp_path, settings_from({}), written(tmp_path, size))


def assert_close(
    found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], within: float
) -> None:
    """Probabilities (C, …) as close as the documentation says."""
    assert np.abs(found - expected).mean() < within
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.98


def test_tiles_differ_little_from_the_whole_slice(volume_of: Callable[..., Case]) -> None:
    case = volume_of(SIZES["larger than a tile"])
    assert_close(case.probabilities(), case.whole(), within=0.01)


def test_a_crop_beyond_the_padded_slice_differs_little(volume_of: Callable[..., Case]) -> None:
    case = volume_of((100, 70))
    case = replace(case, model=without_expert(case.model))
    found = trained(case, 128, 0)
    assert_close(found.p, case.whole()[:, 0, found.y, found.x], within=0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_crop_is_larger_than_the_slices_need(architecture: str) -> None:
    """As the settings may ask for: the network would depend on what nobody shows it later."""
    source = Phantom(2, size=(50, 41))
    config = LearnerConfig(architecture=architecture, training={"steps": 1, "crop": 128})
    report = NetworkLearner(CLASSES, config).fit(source, source.ids)
    assert report.settings["training"]["crop"] == 64
