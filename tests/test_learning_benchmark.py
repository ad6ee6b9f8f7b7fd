"""`benchmarks.learning`: boundary F, label sets, and the smallest comparison whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from al_strategies.evidence import SliceId
from al_strategies.learner import IGNORE, SliceSource
from benchmarks import learning
from benchmarks.comparison.data_sets import DATA_SETS, DataSet, labelled_slices, load
from benchmarks.comparison.records import Case, Record, Records
from benchmarks.comparison.report import page
from benchmarks.comparison.scores import boundary, score
from benchmarks.peers import PEERS, Entry
from benchmarks.peers.ours import Ours
from benchmarks.peers.pixel_forest import PixelForest, features
from benchmarks.peers.protocol import Mask, Pool, Task, Unavailable
from benchmarks.peers.unet import UNet, _loss
from tests.segmentation_phantom import Phantom
from tests.tiny_experiment import write_slices

CLASSES = ("background", "square")


def square(left: int) -> np.ndarray:
    """A square of 10 × 10 in 40 × 40, its left edge at ``left``."""
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, left : left + 10] = 1
    return mask


def test_a_boundary_is_what_lies_beside_another_class_within_the_labelled_pixels() -> None:
    mask = square(10)
    assert boundary(mask, 1, mask != IGNORE).sum() == 36
    corner = np.zeros((6, 6), np.uint8)
    corner[:3, :3] = 1
    # Three below, three to the right, the corner once: the edges of the slice do not count.
    assert boundary(corner, 1, corner != IGNORE).sum() == 5
    gap = np.ones((5, 5), np.uint8)
    gap[2] = IGNORE
    assert not boundary(gap, 1, gap != IGNORE).any()


def test_boundaries_within_two_pixels_match_and_others_do_not() -> None:
    assert score([(square(10), square(12))], CLASSES).mean_boundary_f == 1
    further = score([(square(10), square(13))], CLASSES)
    # Of the 36 pixels of either, the outer column of 10 is 3 away from the other square; of the
    # inner one all but the three at each end are.
    assert further.boundary_f["square"] == pytest.approx(22 / 36)
    assert score([(square(10), square(29))], CLASSES).boundary_f["square"] == 0
    assert score([(square(10), np.zeros((40, 40), np.uint8))], CLASSES).mean_boundary_f == 0


def test_precision_is_of_what_is_predicted_and_recall_of_what_is_true() -> None:
    part = square(10)
    part[:, 13:] = 0
    # All of its boundary lies within 2 pixels of the true one's left column. Of the true 36 it
    # finds that column, and four more each of the top and the bottom row.
    f = score([(square(10), part)], CLASSES).boundary_f["square"]
    assert f == pytest.approx(2 * (18 / 36) / (1 + 18 / 36))


def test_boundaries_are_pooled_over_slices_and_absent_classes_have_no_score() -> None:
    empty = np.zeros((40, 40), np.uint8)
    both = score([(square(10), square(10)), (empty, square(10))], (*CLASSES, "absent"))
    # Precision ½, recall 1.
    assert both.boundary_f["square"] == pytest.approx(2 / 3)
    assert both.iou["square"] == pytest.approx(1 / 2)
    assert np.isnan(both.iou["absent"])
    assert np.isnan(both.boundary_f["absent"])


def test_what_nobody_labelled_is_not_scored() -> None:
    truth = square(10)
    truth[:, 25:] = IGNORE
    wrong = square(10)
    wrong[:, 28:] = 1
    assert score([(truth, wrong)], CLASSES).miou == 1


def test_label_sets_take_one_slice_of_each_bin() -> None:
    pool = [f"z{i}" for i in range(12)]
    with pytest.raises(ValueError, match="13 labels of a pool of 12 slices"):
        labelled_slices(pool, 13, 0)
    assert labelled_slices(pool, 2, 0) == ("z3", "z9")
    assert labelled_slices(pool, 2, 1) == ("z1", "z7")
    assert labelled_slices(pool, 2, 2) == ("z5", "z11")
    assert all(labelled_slices(pool, 12, i) == tuple(pool) for i in range(3))


def test_the_pool_hides_masks_that_nobody_drew() -> None:
    phantom = Phantom(4)
    pool = Pool(phantom, phantom.ids[:3], phantom.ids[:1])
    assert pool.ids == tuple(phantom.ids[:3])
    assert (pool.mask("z000") == phantom.mask("z000")).all()
    with pytest.raises(KeyError):
        pool.mask("z001")


def test_the_forest_sees_seven_filters_at_six_scales() -> None:
    y, x = np.mgrid[:64, :64]
    planes = features(2.0 * x + y).reshape(64, 64, 6, 7)
    middle = planes[32, 32]
    # Of a ramp: its value, no curvature, its slope, and a structure tensor of rank one.
    np.testing.assert_allclose(middle[:4, 0], 96, rtol=1e-3)
    np.testing.assert_allclose(middle[:4, 1], 0, atol=1e-3)
    np.testing.assert_allclose(middle[:4, 2], np.sqrt(5), rtol=1e-2)
    np.testing.assert_allclose(middle[:4, 5], 5, rtol=1e-2)
    np.testing.assert_allclose(middle[:4, 6], 0, atol=1e-2)


class HalfLabelled(Phantom):
    """Nobody labelled the upper half of its slices."""

    def mask(self, slice_id: str) -> Mask:
        mask = super().mask(slice_id)
        mask[: len(mask) // 2] = IGNORE
        return mask


def test_the_forest_learns_nothing_of_pixels_that_nobody_labelled() -> None:
    source, forest = HalfLabelled(1), PixelForest(2, 500)
    forest.fit(Task(Pool(source, source.ids, source.ids), tuple(source.ids), CLASSES))
    assert forest._forest is not None
    assert IGNORE not in forest._forest.classes_


def test_the_u_net_learns_nothing_of_pixels_that_nobody_labelled() -> None:
    masks = torch.tensor([[[0, 1], [IGNORE, IGNORE]]])
    scores = torch.randn(1, 2, 2, 2)
    other = scores.clone()
    other[0, 1, 1] += 5  # of class 1, in the row that nobody labelled
    assert _loss(scores, masks) == _loss(other, masks)


class Recording:
    """A peer that keeps its tasks, and takes 5 CPU seconds for whatever it does, 2 of them idle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.idle_s = self.now = 0.0
        self.steps: int | None = 70
        self.tasks: list[Task] = []
        monkeypatch.setattr(learning, "cpu_seconds", lambda: self.now)

    def fit(self, task: Task) -> None:
        self.tasks.append(task)
        self._work()

    def predict(self, source: SliceSource, ids: Sequence[SliceId]) -> Iterator[Mask]:
        self._work()
        return (np.zeros_like(source.image(i), np.uint8) for i in ids)

    def _work(self) -> None:
        self.now, self.idle_s = self.now + 5, self.idle_s + 2


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """In the place of the forest, of nnU-Net and of nnU-Net for ten times as long."""
    peer = Recording(monkeypatch)
    for name in ("forest", "nnunet", "nnunet-10x"):
        entry = Entry(name, lambda home, device: peer, times=PEERS[name].times)
        monkeypatch.setitem(PEERS, name, entry)
    return peer


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    """24 tiny slices."""
    (tmp_path / "slices").mkdir()
    write_slices(tmp_path / "slices")
    return tmp_path / "slices"


def run(slices: Path, *more: str) -> Records:
    places = {"--home": slices.parent, "--out": slices.parent / "out", "--page": slices / "page.md"}
    given = [str(word) for pair in places.items() for word in pair]
    learning.main(["--data", f"tiny={slices}", "--sets", "tiny", "--labels", "2", *given, *more])
    return Records(slices.parent / "out")


@pytest.mark.parametrize("absolute", [True, False])
def test_a_peer_is_given_the_pool_its_labels_and_nothing_of_the_test_slices(
    slices: Path, recording: Recording, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    monkeypatch.setitem(DATA_SETS, "tiny", DataSet("tiny", "made", absolute=absolute))
    run(slices, "--label-sets", "0", "1", "--only", "forest")
    data = load("tiny", slices, {"tiny": slices})
    assert [task.seed for task in recording.tasks] == [0, 1]
    for task in recording.tasks:
        assert task.pool.ids == tuple(data.pool)
        assert task.absolute is absolute
        assert [task.pool.mask(i) is not None for i in task.labelled] == [True, True]
        for hidden in (*data.test, *{*data.pool} - {*task.labelled}):
            with pytest.raises(KeyError):
                task.pool.mask(hidden)


def test_a_start_of_an_interpreter_is_no_time_of_training(
    slices: Path, recording: Recording
) -> None:
    (record,) = run(slices, "--label-sets", "0", "--only", "forest")
    assert record.train_cpu_s == 3
    data = load("tiny", slices, {"tiny": slices})
    pixels = sum(data.source.mask(i).size for i in data.test)
    assert record.predict_cpu_s_per_mpx == pytest.approx(3e6 / pixels, abs=1e-3)
    assert record.steps == 70
    assert record.cpu


def test_peers_have_as_long_as_ours_took_and_again_once_that_is_another_time(
    slices: Path, recording: Recording
) -> None:
    assert (PEERS["unet"].times, PEERS["nnunet"].times, PEERS["nnunet-10x"].times) == (1, 1, 10)
    scored = dict.fromkeys(load("tiny", slices, {"tiny": slices}).classes, 0.5)

    def given(ours: float) -> list[float | None]:
        taken = Record(Case("tiny", 2, 0, "ours"), (), scored, scored, train_cpu_s=ours)
        Records(slices.parent / "out").append(taken)
        recording.tasks.clear()
        run(slices, "--label-sets", "0", "--only", "nnunet", "nnunet-10x")
        return [task.seconds for task in recording.tasks]

    assert given(7) == [7, 70]
    assert given(7.6) == []
    assert given(8) == [8, 80]


@pytest.fixture
def small_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours with a few steps, a small forest, a U-Net for a CPU second, and one that is absent."""

    def absent(home: Path, device: str) -> UNet:
        raise Unavailable("no such package")

    steps = {"steps": 4, "batch": 2, "crop": 64}
    small = {
        "ours": Entry("ours", lambda home, device: Ours(device, steps)),
        "forest": Entry("pixel forest", lambda home, device: PixelForest(10, 5000)),
        "unet": Entry("U-Net, our time", lambda home, device: UNet(device), times=1),
        "nnunet": Entry("nnU-Net, our time", absent, times=1),
    }
    for name, entry in small.items():
        monkeypatch.setitem(PEERS, name, entry)


def compare(tmp_path: Path, *more: str) -> tuple[list[dict], str]:
    """The lines and the page of a run on 24 tiny slices, two of them labelled."""
    places = [
        "--home",
        tmp_path / "home",
        "--out",
        tmp_path / "out",
        "--page",
        tmp_path / "page.md",
    ]
    learning.main(
        [
            *("--data", f"tiny={tmp_path / 'slices'}", "--sets", "tiny", "--labels", "2", "30"),
            *("--label-sets", "0", "--seconds", "1", *map(str, places), *more),
        ]
    )
    lines = (tmp_path / "out" / "tiny.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], (tmp_path / "page.md").read_text()


def test_the_smallest_comparison_runs_resumes_and_is_reported(
    tmp_path: Path, small_peers: None
) -> None:
    (tmp_path / "slices").mkdir()
    write_slices(tmp_path / "slices")

    lines, text = compare(tmp_path, "--only", "ours", "forest", "unet", "nnunet")

    found = {line["case"]["peer"]: line for line in lines}
    assert list(found) == ["ours", "forest", "unet", "nnunet"]
    assert found["forest"]["slices"] == found["ours"]["slices"]
    assert found["forest"]["iou"]["bone"] > 0.7
    assert found["unet"]["train_cpu_s"] == pytest.approx(1, abs=5)  # a step may take long
    assert found["unet"]["given_s"] == 1
    for peer in ("ours", "forest", "unet"):
        assert found[peer]["train_cpu_s"] > 0
        assert found[peer]["predict_cpu_s_per_mpx"] > 0
        assert found[peer]["error"] is None
    assert "nnU-Net, our time |" not in text
    assert "- tiny, 2 labels, set 0, nnunet: no such package" in text
    assert "| pixel forest | 1 |" in text
    assert "### Where we lose" in text

    again, _ = compare(tmp_path, "--only", "ours", "forest", "unet", "nnunet")
    assert again == lines
    again, _ = compare(tmp_path, "--only", "forest", "nnunet", "--again", "forest", "--retry")
    assert [line["case"]["peer"] for line in again[len(lines) :]] == ["forest", "nnunet"]


def test_peers_that_train_as_long_as_ours_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "slices").mkdir()
    write_slices(tmp_path / "slices")
    arguments = ["--data", f"tiny={tmp_path / 'slices'}", "--sets", "tiny", "--labels", "1"]
    places = ["--home", tmp_path, "--out", tmp_path / "out", "--page", tmp_path / "page.md"]
    learning.main([*arguments, "--only", "unet", *map(str, places)])
    assert not (tmp_path / "out").exists()
    assert "Nothing has been measured yet" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (0.8002, []),
        (0.804, ["- pixel forest: phantom_small 8 (.800 against .804)"]),
        (0.806, ["- to pixel forest: phantom_small 8 (.800 against .806)"]),
    ],
)
def test_who_is_ahead_by_little_is_named_as_well(
    tmp_path: Path, theirs: float, said: list[str]
) -> None:
    records = Records(tmp_path)
    for peer, value in {"ours": 0.8, "forest": theirs}.items():
        case = Case("phantom_small", 8, 0, peer)
        records.append(Record(case, iou={"bone": value}, boundary_f={"bone": value}, train_cpu_s=1))

    text = page(Records(tmp_path))

    summary = text.partition("## In short")[2].splitlines()
    assert [line for line in summary if line.startswith("- ")] == said
    assert ("Nowhere by more than 0.005" in text) is (theirs < 0.805)


def test_a_page_gives_means_spreads_and_losses(tmp_path: Path) -> None:
    records = Records(tmp_path)
    given = {"ours": (0.8, 0.7, 0.9), "forest": (0.85, 0.75, 0.95), "unet": (0.5,)}
    for peer, values in given.items():
        for label_set, value in enumerate(values):
            case = Case("phantom_small", 8, label_set, peer)
            scored = {"background": value, "bone": float("nan")}
            given_s = 63.0 if peer == "unet" else None
            made = Record(
                case, iou=scored, boundary_f=scored, train_cpu_s=60, given_s=given_s, cpu="Z80"
            )
            records.append(made)

    text = page(Records(tmp_path))

    assert "| 8 | .800 ± .100 | **.850 ± .100** | .500 (one set) |" in text
    assert "| pixel forest | 1 | .800 | .850 | −0.050 | 0 | 1 |" in text
    # Only label set 0 is there for both.
    assert "| U-Net, our time | 1 | .800 | .500 | +0.300 | 1 | 0 |" in text
    assert "- to pixel forest: phantom_small 8 (.800 against .850)" in text
    assert "| 8 | bone |  |  |  |" in text
    assert "Measured with ours unknown on Z80;" in text


def paged(tmp_path: Path, **of_the_peer: Any) -> str:
    """The page of ours, which took 60 s for .8, beside nnU-Net with .5."""
    records = Records(tmp_path)
    for peer, miou, more in (("ours", 0.8, {}), ("nnunet", 0.5, of_the_peer)):
        scored = {"bone": miou}
        case = Case("phantom_small", 8, 0, peer)
        records.append(Record(case, iou=scored, boundary_f=scored, train_cpu_s=60, **more))
    return page(records)


IN_SHORT = "| nnU-Net, our time | 1 | .800 | .500 | +0.300 | 1 | 0 |"


def test_what_was_given_another_time_than_ours_takes_is_left_out(tmp_path: Path) -> None:
    text = paged(tmp_path, given_s=30.0, steps=80)
    assert "nnU-Net, our time |" not in text
    assert "nnunet: left out. Its mIoU of .500 is that of 30 CPU seconds; now it" in text
    assert "would be given 60." in text


def test_a_peer_of_few_steps_is_shown_and_in_no_mean(tmp_path: Path) -> None:
    text = paged(tmp_path, given_s=60.0, steps=49)
    assert IN_SHORT not in text
    assert "| 8 | **.800 (one set)** | .500 (one set) |" in text
    assert "nnunet: 49 steps only, so not among the means above." in text
    text = paged(tmp_path, given_s=60.0, steps=50)
    assert IN_SHORT in text
    assert "| 8 | 60 / 0.0 | 60 / 0.0, 50 steps |" in text
    assert "single rows" not in text
    text = paged(tmp_path, given_s=60.0)
    assert IN_SHORT in text
    assert "nnunet: how many steps it made was not recorded." in text


def test_label_sets_of_the_same_slices_are_named(tmp_path: Path) -> None:
    records, scored = Records(tmp_path), {"bone": 0.8}
    for label_set, slices in enumerate([("a", "b"), ("b", "c"), ("a", "b")]):
        case = Case("phantom_small", 2, label_set, "ours")
        records.append(Record(case, slices, iou=scored, boundary_f=scored))
    assert "With 2 labels, sets 0 and 2 are the same slices" in page(records)


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    root = Path(__file__).resolve().parents[1] / "docs"
    assert (root / "learning.md").read_text() == page(Records(root / "results" / "learning"))
