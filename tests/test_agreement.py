"""How much HRNet counts beside the pixel expert: less than half where the labels say so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml_backend.segmentation.agreement import deserved_share
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.networks import build_network
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.networks.reader import PixelReader
from ml_backend.segmentation.preprocessing import Preprocessing
from tests.segmentation_phantom import CLASSES, Phantom

SOURCE = Phantom(4, size=(64, 64))


class Sure(PixelReader):
    """Says of every pixel, with the certainty of ``logit``, that it is of class 0."""

    def __init__(self, logit: float) -> None:
        super().__init__(len(CLASSES), 32)
        torch.nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([logit, *[0.0] * (len(CLASSES) - 1)]))
        self.eval()


@pytest.fixture(scope="module")
def slices() -> LabelledSlices:
    preprocessing = Preprocessing.fit(SOURCE.image(i) for i in SOURCE.ids)
    return LabelledSlices(SOURCE, SOURCE.ids, preprocessing, len(CLASSES))


def network(reader: float) -> FullResolutionHRNet:
    built = build_network("hrnet_w18_small+filters", len(CLASSES)).eval()
    assert isinstance(built, FullResolutionHRNet)
    built.reader.load_state_dict(Sure(reader).state_dict())
    return built


def background(slices: LabelledSlices) -> float:
    return float(slices.counts[0] / slices.counts.sum())


@pytest.mark.parametrize(
    ("reader", "unseen", "share"),
    [
        (-6.0, 1.0, 0.0),  # the reader errs, the expert does not
        (1.0, -6.0, 0.5),  # the other way round: what was learned from flatters, so not more
        (1.0, 1.0, 0.0),  # as good as each other: a flattered one is not
        (1.0, 0.5, 0.0),  # hardly better, by a tenth of the loss: it has seen these slices
        (1.0, -1.0, 0.4),  # better by more than that explains
    ],
)
def test_who_errs_counts_less(
    slices: LabelledSlices, reader: float, unseen: float, share: float
) -> None:
    assert background(slices) > 0.5
    found = deserved_share(
        network(reader), slices, [Sure(unseen), Sure(unseen)], [0, 1, 0, 1], crop=64
    )
    assert found == share


def test_without_folds_both_count_alike(slices: LabelledSlices) -> None:
    assert deserved_share(network(-6.0), slices, [], [], crop=64) == 0.5


def test_each_slice_is_judged_by_who_has_not_seen_it(slices: LabelledSlices) -> None:
    asked: list[int] = []

    class Asked(Sure):
        def forward(self, values: Tensor) -> Tensor:
            asked.append(self.fold)
            return super().forward(values)

        fold = 0

    readers = [Asked(1.0), Asked(1.0)]
    readers[1].fold = 1
    deserved_share(network(1.0), slices, readers, [0, 0, 0, 1], crop=64)
    assert asked.count(0) == 3 * asked.count(1), "the crops are of all four slices alike"


def test_readers_that_learned_on_another_device_are_asked_where_the_network_is(
    slices: LabelledSlices,
) -> None:
    """Where a GPU's memory was full, the CPU has taught them."""

    class Elsewhere(Sure):
        device = torch.device("cuda")

        def to(self, device: torch.device) -> Elsewhere:  # type: ignore[override]  # all that is asked of it
            self.device = device
            return self

        def forward(self, values: Tensor) -> Tensor:
            assert self.device == values.device
            return super().forward(values)

    readers = [Elsewhere(1.0), Elsewhere(1.0)]
    assert deserved_share(network(-6.0), slices, readers, [0, 1, 0, 1], crop=64) == 0.0


def test_the_share_is_in_what_is_served(slices: LabelledSlices) -> None:
    both = network(-6.0)
    both.agree_with(Sure(1.0))
    image = slices.pair(0)[0][None]
    with torch.no_grad():
        both.weigh(0.25)
        logits = both(image)[0, :, 0, 0]
        both.weigh(0.0)
        alone = both(image)[0, :, 0, 0]
    torch.testing.assert_close(logits[0], torch.tensor(0.25 * -6.0 + 0.75 * 1.0))
    torch.testing.assert_close(alone[0], torch.tensor(1.0))
