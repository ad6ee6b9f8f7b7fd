"""`NetworkLearner`: a network behind the loop's `al_strategies.learner.Learner` protocol.

The live loop and the simulation get it from `ml_backend.rounds.learners`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from al_strategies.evidence import Evidence, SliceId
from al_strategies.learner import (
    IGNORE,
    Beliefs,
    FitReport,
    Learner,
    Maps,
    Metrics,
    NotTrained,
    Prediction,
    Progress,
    SliceSource,
    Unreadable,
    Unusable,
    Votes,
)
from ml_backend.segmentation import checkpoints, inference, pixels
from ml_backend.segmentation.agreement import deserved_share
from ml_backend.segmentation.dataset import LabelledSlices, read_pair
from ml_backend.segmentation.halves import CutInTwo, halves
from ml_backend.segmentation.inference import InferenceConfig
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.neighbourhood import with_neighbours
from ml_backend.segmentation.networks import Pretrained, build_network, default_architecture
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.pixels import Learned, PixelConfig
from ml_backend.segmentation.preprocessing import Preprocessing, luminance
from ml_backend.segmentation.room import or_on_cpu, within
from ml_backend.segmentation.training import TrainingConfig, TrainingRun, needed_crop, train

__all__ = ["LearnerConfig", "NetworkLearner", "evenly_spread"]

_T = TypeVar("_T")


logger = logging.getLogger(__name__)

_TAUGHT = 96
"""Slices of the pool, evenly spread, that the pixel expert learns from; of large ones fewer."""
_BRIEFLY_TAUGHT = 32
"""The same where somebody waits for a first mask."""
_BRIEF_STEPS = 30
_BRIEF_BATCH = 16
"""Steps of such a training, at most, and crops of each: so few steps learn nothing by heart."""
_TAUGHT_PIXELS = 1 << 26
"""Of those slices together: their filters take some ten seconds of one core."""


@dataclass(frozen=True)
class LearnerConfig:
    """What is trained and how; None means the default for the device and the data.

    ``architecture``: see `ml_backend.segmentation.networks.architecture_names`. ``pretrained``:
    start from ImageNet weights (True, False or ``"auto"``). ``warm_start``: start from the weights
    of the round before when they have the same architecture and input, otherwise afresh: from 2
    to 4 slices of sandstone 0.79 mIoU instead of 0.76 for the same steps (one seed, CPU).
    ``neighbours``: slices on each side that are further input channels (2.5-D), where the source
    knows them. ``sampled_slices``: how many slices, evenly spread over the source, the
    preprocessing is fitted on. ``cache_bytes``: labelled slices kept in memory. ``brief``: somebody
    waits for a first mask of few labels, so learn it in seconds. ``training``:
    fields of `TrainingConfig` that differ from `TrainingConfig.for_device`.
    """

    architecture: str | None = None
    pretrained: Pretrained = False
    channels: int = 1
    neighbours: int = 0
    warm_start: bool = True
    sampled_slices: int = 24
    cache_bytes: int = 4 << 30
    brief: bool = False
    training: TrainingConfig | Mapping[str, Any] = field(default_factory=dict)
    inference: InferenceConfig | None = None


class NetworkLearner:
    """Trains a network of `ml_backend.segmentation.networks` again and again; a `Learner`.

    ``classes``: names in the order of their indices; by convention of the caller 0 is the
    background. ``device``: "cpu", "cuda", "cuda:1". Not thread-safe.
    """

    def __init__(
        self, classes: tuple[str, ...], config: LearnerConfig | None = None, device: str = "cpu"
    ) -> None:
        self.classes = tuple(classes)
        self.config = config or LearnerConfig()
        self.device = torch.device(device)
        self._model: Model | None = None
        self._fast: Model | None = None

    @property
    def model(self) -> Model:
        """The trained model. Raises NotTrained."""
        if self._model is None:
            raise NotTrained("This learner has no weights yet: call fit() or from_bytes() first.")
        return self._model

    @model.setter
    def model(self, model: Model) -> None:
        if model.classes != self.classes:
            raise ValueError(
                f"The model's classes are {', '.join(model.classes)}; this learner's are "
                f"{', '.join(self.classes)}."
            )
        self._model = model.to(self.device)
        self._fast = None

    def fit(
        self,
        source: SliceSource,
        labelled: Sequence[SliceId],
        *,
        pseudo: dict[SliceId, npt.NDArray[np.uint8]] | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        unusable: Unusable | None = None,
    ) -> FitReport:
        """Train on ``labelled`` and ``pseudo``; the learner holds the new weights afterwards.
        Networks with filters learn from the images of other slices of ``source`` as well.

        ``progress`` steps: ``"load"``, ``"train"``. ``unusable``: is given each slice that cannot
        be read or whose mask does not fit, which is left out; without it that is raised. Raises
        NothingLabelled, InvalidMask, InvalidImage, TrainingDiverged, OutOfMemory; the weights of
        before are kept then.
        """
        began = time.monotonic()
        model, warm = self._start(source, seed)
        seen = with_neighbours(source, model.preprocessing.neighbours)
        slices = LabelledSlices(
            seen,
            labelled,
            model.preprocessing,
            len(self.classes),
            pseudo=pseudo,
            cache_bytes=self.config.cache_bytes,
            seed=seed,
            progress=progress,
            unusable=unusable,
        )
        training = self._training(slices, len(labelled))
        network = model.network
        judged, folds = slices, list[int]()
        if not self.config.brief:
            judged, folds = self._in_halves(seen, slices, model.preprocessing, seed)
        expert: Learned | None = None

        def know_filters() -> None:
            nonlocal expert
            network.fit_filters(slices.images())
            if isinstance(network, FullResolutionHRNet):
                known = {*labelled, *(pseudo or ())}
                height, width = slices.largest
                most = _BRIEFLY_TAUGHT if self.config.brief else _TAUGHT
                number = min(most, max(1, _TAUGHT_PIXELS // (height * width)))
                pool = evenly_spread([i for i in source.ids if i not in known], number)
                expert = pixels.learn(
                    network,
                    judged,
                    self._images(source, pool, model.preprocessing),
                    _pixel_config(training, len(labelled), len(pool)),
                    folds=folds,
                    seed=seed,
                    progress=progress,
                )
                network.agree_with(expert.expert)

        or_on_cpu(network, self.device, know_filters)  # they are of whole slices
        run = train(network, slices, training, seed=seed, progress=progress, began=began)
        agreement = {}
        if isinstance(network, FullResolutionHRNet) and expert is not None:
            weighed = partial(_weigh, network, expert, judged, folds, run.config.crop, seed)
            share = or_on_cpu(network, self.device, weighed)
            agreement = {"pixel_noise": expert.noise, "share_of_context": share}
        self.model = model
        return FitReport(
            steps=run.steps,
            slices=len(slices),
            seconds=run.seconds,
            losses=run.losses,
            settings=self._settings(model, run, warm, seed) | agreement,
        )

    def evidence(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        names: frozenset[str],
        *,
        seed: int = 0,
        progress: Progress | None = None,
        unreadable: Unreadable | None = None,
    ) -> Evidence:
        """One pass over ``ids``; see `ml_backend.segmentation.inference.gather_evidence`."""
        return inference.gather_evidence(
            self._optimised(), self._read(source), ids, names, self._inference(), seed=seed,
            progress=progress, unreadable=unreadable,
        )  # fmt: skip

    def predict(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        *,
        progress: Progress | None = None,
        unreadable: Unreadable | None = None,
        uncertainty: bool = False,
    ) -> Iterator[tuple[SliceId, Prediction]]:
        """The segmentation of each slice, in the order of ``ids``, one at a time; see
        `ml_backend.segmentation.inference.segment`."""
        return inference.segment(
            self._optimised(), self._read(source), ids, self._inference(), progress=progress,
            unreadable=unreadable, uncertainty=uncertainty,
        )  # fmt: skip

    def predict_image(
        self, image: npt.NDArray[Any], *, progress: Progress | None = None
    ) -> Prediction:
        """The segmentation of one image as read: (H, W), (H, W, 3 or 4), or (H, W, 2 n + 1) with
        its `neighbours`. ``progress("predict", tiles, of)`` after each tile of a large one."""
        return inference.segment_image(
            self._optimised(), image, self._inference(), progress=progress
        )

    def believe_image(
        self, image: npt.NDArray[Any], *, progress: Progress | None = None
    ) -> Beliefs:
        """`predict_image` with the log probabilities of all classes behind it."""
        return inference.believe_image(
            self._optimised(), image, self._inference(), progress=progress
        )

    def maps(
        self,
        source: SliceSource,
        ids: Sequence[SliceId],
        *,
        probability: bool = False,
        uncertainty: bool = False,
        votes: Votes | None = None,
    ) -> Generator[tuple[SliceId, Maps], None, None]:
        """What whole volumes want; see `ml_backend.segmentation.inference.segment_maps`."""
        return inference.segment_maps(
            self._optimised(), self._read(source), ids, self._inference(), probability=probability,
            uncertainty=uncertainty, votes=votes,
        )  # fmt: skip

    def usable(
        self, source: SliceSource, ids: Sequence[SliceId], unusable: Unusable
    ) -> list[SliceId]:
        """Those of ``ids`` that can be evaluated on: readable, with a mask that fits and has a
        labelled pixel. ``unusable`` as in `fit`. Each is read once."""
        source, preprocessing = self._read(source), self.model.preprocessing
        found = []
        for slice_id in ids:
            try:
                pair = read_pair(source, slice_id, preprocessing, len(self.classes))
            except Exception as error:
                unusable(slice_id, error)
            else:
                if (pair.mask != IGNORE).any():
                    found.append(slice_id)
        return found

    def evaluate(
        self, source: SliceSource, ids: Sequence[SliceId], *, progress: Progress | None = None
    ) -> Metrics:
        """IoU of each class over all labelled pixels of ``ids`` together."""
        return inference.evaluate(
            self._optimised(), self._read(source), ids, self._inference(), progress=progress
        )

    def start_from(self, other: Learner) -> None:
        """Take the weights of ``other``. They fit the next training where architecture, channels
        and neighbours are those of this learner's config; a learner of another kind has none.

        Raises ValueError when it is of other classes.
        """
        if isinstance(other, NetworkLearner):
            self.model = other.model

    def to_bytes(self) -> bytes:
        """The weights as safetensors. Raises NotTrained."""
        return checkpoints.to_bytes(self.model)

    def load_bytes(self, data: bytes) -> None:
        """Take the weights that `to_bytes` wrote.

        Raises CheckpointError, and ValueError when they are of other classes.
        """
        self.model = checkpoints.from_bytes(data, self.device)

    @classmethod
    def from_bytes(
        cls, data: bytes, config: LearnerConfig | None = None, device: str = "cpu"
    ) -> NetworkLearner:
        """A learner with the weights and the classes of a checkpoint. Raises CheckpointError."""
        model = checkpoints.from_bytes(data, device)
        learner = cls(model.classes, config, device)
        learner.model = model
        return learner

    @property
    def neighbours(self) -> int:
        """Slices on each side that the trained network takes as well. Raises NotTrained."""
        return self.model.preprocessing.neighbours

    @property
    def grey_window(self) -> tuple[float, float]:
        """What the preprocessing takes for black and white, in native values. Raises NotTrained."""
        preprocessing = self.model.preprocessing
        return preprocessing.window_low, preprocessing.window_high

    @property
    def inference_settings(self) -> dict[str, Any]:
        """Tiles and precision."""
        config = self._inference()
        return {"tile": [config.tile, config.overlap], "precision": str(config.precision)}

    def slices_per_batch(self, shape: Sequence[int]) -> int:
        """How many slices of (H, W) ``shape`` one forward takes."""
        return inference.slices_per_batch(self._inference(), shape)

    def _read(self, source: SliceSource) -> SliceSource:
        return with_neighbours(source, self.neighbours)

    def _start(self, source: SliceSource, seed: int) -> tuple[Model, bool]:
        """The model that a training starts from, and whether it is that of the round before."""
        architecture = self.config.architecture or default_architecture(self.device)
        before = self._model
        preprocessing = Preprocessing.fit(
            _readable(source, evenly_spread(source.ids, self.config.sampled_slices), luminance),
            channels=self.config.channels,
            neighbours=self.config.neighbours,
        )
        if (
            self.config.warm_start
            and before is not None
            and before.architecture == architecture
            and before.preprocessing.serves_for(preprocessing)
        ):
            # A copy through the checkpoint: a training that fails leaves the old weights alone.
            copied = checkpoints.from_bytes(checkpoints.to_bytes(before), self.device)
            return Model(copied.network, copied.preprocessing, self.classes, seed), True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_network(
                architecture,
                len(self.classes),
                channels=preprocessing.planes,
                pretrained=self.config.pretrained,
            )
        with within(self.device, "a network"):
            network.to(self.device)
        return Model(network, preprocessing, self.classes, seed), False

    def _images(
        self, source: SliceSource, ids: Sequence[SliceId], preprocessing: Preprocessing
    ) -> Iterator[torch.Tensor]:
        around = with_neighbours(source, preprocessing.neighbours)
        return map(torch.from_numpy, _readable(around, ids, preprocessing))

    def _training(self, slices: LabelledSlices, labelled: int) -> TrainingConfig:
        training = self.config.training
        if isinstance(training, TrainingConfig):
            return training
        architecture = self.config.architecture or default_architecture(self.device)
        largest, classes = slices.largest, len(slices.present())
        usual = TrainingConfig.usual(architecture, self.device, largest, labelled, classes)
        chosen = replace(usual, **training)
        if self.config.brief:
            batch = training.get("batch", max(chosen.batch, _BRIEF_BATCH))
            chosen = replace(chosen, steps=min(chosen.steps, _BRIEF_STEPS), batch=batch)
        # What a crop shows beyond a slice, nobody shows the network later.
        return replace(chosen, crop=min(chosen.crop, needed_crop(largest)))

    def _in_halves(
        self,
        source: SliceSource,
        slices: LabelledSlices,
        preprocessing: Preprocessing,
        seed: int,
    ) -> tuple[LabelledSlices, list[int]]:
        """``slices``, and of each in which half it is; a single one is cut in two."""
        if len(slices) > 1:
            return slices, halves(source, slices.ids)
        both = CutInTwo(source, slices.ids[0], slices.pair(0)[1].numpy())
        cut = LabelledSlices(
            both, both.ids, preprocessing, len(self.classes),
            cache_bytes=self.config.cache_bytes, seed=seed,
        )  # fmt: skip
        return cut, list(range(len(cut)))

    def _optimised(self) -> Model:
        if self._fast is None:
            with within(self.device, "a second network, for inference"):
                self._fast = inference.optimised(self.model)
        return self._fast

    def _inference(self) -> InferenceConfig:
        return self.config.inference or InferenceConfig.for_device(self.device)

    def _settings(self, model: Model, run: TrainingRun, warm: bool, seed: int) -> dict[str, Any]:
        return {
            "architecture": model.architecture,
            "pretrained": self.config.pretrained,
            "warm_started": warm,
            "preprocessing": asdict(model.preprocessing),
            "training": run.config.settings(),
            "too_much_for_memory": list(run.too_much),
            "seed": seed,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }


def _weigh(
    network: FullResolutionHRNet,
    learned: Learned,
    judged: LabelledSlices,
    folds: Sequence[int],
    crop: int,
    seed: int,
) -> float:
    """Let both readers of the trained ``network`` count as the labels say; the share of that with
    context."""
    share = deserved_share(network, judged, learned.unseen, folds, crop=crop, seed=seed)
    if not share:
        network.agree_with(learned.alone())
    network.weigh(share)
    return share


def _pixel_config(training: TrainingConfig, labelled: int, pool: int) -> PixelConfig:
    """For so many ``labelled`` slices and a ``pool`` of so many. A short training has a short
    lesson, of few trees."""
    usual = PixelConfig()
    steps = min(usual.steps, 4 * training.steps)
    return replace(
        usual,
        steps=steps,
        trees=math.ceil(usual.trees * steps / usual.steps),
        unpruned=math.ceil(usual.unpruned * steps / usual.steps),
        noise=min(0.5, max(0.1, usual.noise * (8 / max(1, labelled)) ** 0.5)),
        per_unlabelled=usual.unlabelled // max(1, pool),
    )


def _readable(
    source: SliceSource,
    ids: Sequence[SliceId],
    seen: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
) -> Iterator[npt.NDArray[Any]]:
    """What is ``seen`` of the images of ``ids``; one that cannot be read, or is no slice, must not
    stop a training that does not need it. The scoring that follows leaves it out by name."""
    for slice_id in ids:
        try:
            image = seen(source.image(slice_id))
        except Exception as error:  # of a server, a file, a format
            logger.warning("the training goes on without slice %s: %s", slice_id, error)
        else:
            yield image


def evenly_spread(ids: Sequence[_T], number: int) -> list[_T]:
    """At most ``number`` of ``ids``, evenly spread."""
    if len(ids) <= number:
        return list(ids)
    return [ids[i] for i in np.linspace(0, len(ids) - 1, number).round().astype(int)]
