"""A device whose memory is full: less at once, the same results, and an error that says it all.

Networks here are real, and so is the exception; what is too much is counted in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from al_strategies.evidence import EMBEDDING
from ml_backend.api.serving import Serving
from ml_backend.rounds import reconcile
from ml_backend.rounds.artefacts import METRICS
from ml_backend.rounds.attempt import attempt
from ml_backend.rounds.pauses import MAX_FAILURES
from ml_backend.rounds.round import run_round
from ml_backend.rounds.schedule import GPU
from ml_backend.rounds.status import project_status
from ml_backend.segmentation import inference
from ml_backend.segmentation import learner as learner_module
from ml_backend.segmentation.dataset import LabelledSlices
from ml_backend.segmentation.inference import (
    EVIDENCE_NAMES,
    InferenceConfig,
    evaluate,
    gather_evidence,
    segment,
    segment_image,
    segment_maps,
)
from ml_backend.segmentation.learner import LearnerConfig, NetworkLearner
from ml_backend.segmentation.model import Model
from ml_backend.segmentation.networks import SegmentationNetwork, build_network
from ml_backend.segmentation.networks.full_resolution import FullResolutionHRNet
from ml_backend.segmentation.networks.hrnet import HRNetV2
from ml_backend.segmentation.preprocessing import Preprocessing
from ml_backend.segmentation.room import OutOfMemory, Room, or_on_cpu
from ml_backend.segmentation.training import TrainingConfig, train
from ml_backend.settings import Settings
from ml_backend.studio.annotations import regions
from ml_backend.studio.label_config import parse_label_config
from tests.http_studio import CONFIG, PHANTOM, phantom_project, phantom_server
from tests.segmentation_phantom import CLASSES, Phantom

TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it."
SMALL = 64 * 96
"""Pixels of a slice of the phantom, as it is padded."""
BIG = (192, 256)
EVERYTHING = frozenset(EVIDENCE_NAMES)


def limited(pixels: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Before a forward: more than ``pixels`` are too much."""

    def check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        batch, _, height, width = inputs[0].shape
        if batch * height * width > pixels:
            raise torch.OutOfMemoryError(TOLD)

    return check


@contextmanager
def memory_of(pixels: int) -> Iterator[list[int]]:
    """All HRNets' memory holds ``pixels``; how many each forward that was begun had."""
    encode = HRNetV2._encode
    begun: list[int] = []

    def checked(self: HRNetV2, images: Tensor) -> Any:
        begun.append(images.shape[0] * images.shape[2] * images.shape[3])
        limited(pixels)(self, (images,))
        return encode(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HRNetV2, "_encode", checked)
        yield begun


def model() -> Model:
    torch.manual_seed(0)
    network = build_network("hrnet_w18_small", 3).eval()
    nn.init.normal_(network.classifier.weight, std=1.0)
    return Model(network, Preprocessing(0, 1000), CLASSES)


def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network("hrnet_w18_small", 3)


def slices(size: tuple[int, int] = (64, 80)) -> LabelledSlices:
    source = Phantom(3, size=size)
    return LabelledSlices(source, source.ids, Preprocessing(0, 1000), 3)


# -- what does not fit at once comes out the same


def test_a_smaller_batch_gives_the_same_evidence_and_masks() -> None:
    source, asked = Phantom(8), InferenceConfig(batch_pixels=8 * SMALL, passes=4)
    whole = gather_evidence(model(), source, source.ids, EVERYTHING, asked)
    masks = dict(segment(model(), source, source.ids, asked))
    maps = dict(segment_maps(model(), source, source.ids, asked, probability=True))
    metrics = evaluate(model(), source, source.ids, asked)

    with memory_of(2 * SMALL) as begun:
        found = gather_evidence(model(), source, source.ids, EVERYTHING, asked)
        assert begun == [n * SMALL for n in (8, 4, 2, 2, 2, 2)]
        again = dict(segment(model(), source, source.ids, asked))
        mapped = dict(segment_maps(model(), source, source.ids, asked, probability=True))
        judged = evaluate(model(), source, source.ids, asked)

    assert found.ids == whole.ids
    for name, values in {**whole.scores, **whole.features}.items():
        got = {**found.scores, **found.features}[name]
        np.testing.assert_allclose(got, values, atol=1e-4, err_msg=name)
    assert list(again) == list(masks)
    for slice_id, prediction in masks.items():
        np.testing.assert_array_equal(again[slice_id].mask, prediction.mask)
        np.testing.assert_array_equal(mapped[slice_id].mask, maps[slice_id].mask)
    assert judged == metrics


def test_a_slice_that_is_too_large_is_cut_into_tiles() -> None:
    source, config = Phantom(2, size=BIG), InferenceConfig()
    tiled = InferenceConfig(tile=128, overlap=64)
    expected = dict(segment(model(), source, source.ids, tiled))
    evidence = gather_evidence(model(), source, source.ids, frozenset({EMBEDDING}), tiled)

    with memory_of(128 * 128):
        found = dict(segment(model(), source, source.ids, config))
        one = segment_image(model(), source.image("z000"), config)
        got = gather_evidence(model(), source, source.ids, frozenset({EMBEDDING}), config)

    for slice_id, prediction in expected.items():
        np.testing.assert_array_equal(found[slice_id].mask, prediction.mask)
    np.testing.assert_array_equal(one.mask, expected["z000"].mask)
    np.testing.assert_allclose(got.features[EMBEDDING], evidence.features[EMBEDDING], atol=1e-4)


def test_small_slices_after_a_large_one_are_not_cut() -> None:
    """Of what was too much only as much is remembered as was too much."""
    room = Room(torch.device("cpu"), "a test", (1, 64), "")

    def work(batch: int, side: int) -> tuple[int, int]:
        if batch * side**2 > 300**2:
            raise torch.OutOfMemoryError(TOLD)
        return batch, side

    assert room.run(8, 96, work) == (8, 96)
    assert room.run(8, 256, work) == (1, 256)
    assert room.run(1, 1024, work) == (1, 256)
    assert room.run(4, 96, work) == (1, 96)
    assert room.tried == ["8 × 256²", "4 × 256²", "2 × 256²", "1 × 1024²", "1 × 512²"]


def test_an_error_of_another_kind_is_not_tried_again() -> None:
    calls = []

    def work(batch: int, side: int) -> None:
        calls.append(batch)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Room(torch.device("cpu"), "a test", (1, 64), "").run(8, 64, work)
    assert calls == [8]


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "std::bad_alloc",
    ],
)
def test_libraries_below_torch_say_it_otherwise(said: str) -> None:
    def work(batch: int, side: int) -> int:
        if batch > 2:
            raise RuntimeError(said)
        return batch

    assert Room(torch.device("cpu"), "a test", (1, 64), "").run(8, 64, work) == 2


def test_numpy_has_an_error_of_its_own() -> None:
    def work(batch: int, side: int) -> int:
        if batch > 2:
            raise MemoryError("Unable to allocate 2.00 TiB for an array")
        return batch

    assert Room(torch.device("cpu"), "a test", (1, 64), "").run(8, 64, work) == 2


def test_what_was_done_in_pieces_already_is_not_done_in_smaller_ones() -> None:
    calls = []

    def work(batch: int, side: int) -> None:
        calls.append(batch)
        raise OutOfMemory("The memory of cuda is too small. It said: CUDA out of memory.")

    with pytest.raises(OutOfMemory):
        Room(torch.device("cpu"), "a test", (1, 64), "").run(8, 64, work)
    assert calls == [8]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(TOLD), RuntimeError("DefaultCPUAllocator: can't"), MemoryError()],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_neither_a_device_nor_the_cpu_has_room(error: Exception, device: str) -> None:
    """``meta`` stands for a GPU. The CPU says it otherwise."""
    asked: list[str] = []
    layer = nn.Linear(2, 2)

    def work() -> None:
        asked.append(device)
        raise error

    with pytest.raises(OutOfMemory) as raised:
        or_on_cpu(layer, torch.device(device), work)

    assert len(asked) == 2
    assert str(raised.value).startswith("The memory of cpu is too small")
    assert "NEXTSLICE_ARCHITECTURE" in str(raised.value)
    assert device in str(raised.value)


def test_a_network_for_which_there_is_no_room_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = NetworkLearner(CLASSES, LearnerConfig("hrnet_w18_small"))
    learner.model = model()
    data = learner.to_bytes()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(TOLD)

    with monkeypatch.context() as patch:
        patch.setattr(HRNetV2, "to", full_on_devices(HRNetV2.to))
        with pytest.raises(OutOfMemory, match="too small for a network"):
            NetworkLearner.from_bytes(data)
    monkeypatch.setattr(inference, "optimised", full)
    with pytest.raises(OutOfMemory, match="too small for a second network, for inference"):
        learner.predict_image(np.zeros((64, 64)))


def full_on_devices(to: Callable[..., Any]) -> Callable[..., Any]:
    """Memory that holds no network that is moved to a device."""

    def moved(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        if arguments:
            raise torch.OutOfMemoryError(TOLD)
        return to(self, *arguments, **options)

    return moved


def test_what_cannot_be_predicted_says_what_was_tried() -> None:
    source = Phantom(4, size=BIG)
    asked = InferenceConfig(batch_pixels=4 * 192 * 256)

    with memory_of(1000), pytest.raises(OutOfMemory) as raised:
        list(segment(model(), source, source.ids, asked))

    said = str(raised.value)
    assert "Tried: 4 × 256², 2 × 256², 1 × 256², 1 × 128² pixels at once." in said
    for setting in ("NEXTSLICE_MAX_TILE", "NEXTSLICE_ARCHITECTURE", "PREDICT_DEVICE=cpu"):
        assert setting in said
    assert said.endswith("It said: CUDA out of memory. Tried to allocate 2.00 GiB.")


# -- training


def test_a_training_begins_again_with_half_the_batch() -> None:
    asked = TrainingConfig(steps=3, batch=8, crop=64)
    half = network()
    expected = train(half, slices(), TrainingConfig(steps=3, batch=4, crop=64), seed=5)
    trained = network()
    trained.register_forward_pre_hook(limited(4 * 64 * 64))

    run = train(trained, slices(), asked, seed=5)

    assert (run.config.batch, run.config.crop) == (4, 64)
    assert run.too_much == ("8 × 64²",)
    assert run.losses == expected.losses
    for name, value in half.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name


def test_one_that_fails_midway_has_taught_nothing() -> None:
    trained, twin = network(), network()
    seen = []

    def check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(len(inputs[0]))
        if seen == [4, 4]:
            raise torch.OutOfMemoryError(TOLD)

    trained.register_forward_pre_hook(check)

    run = train(trained, slices(), TrainingConfig(steps=3, batch=4, crop=32), seed=5)

    assert seen == [4, 4, 2, 2, 2]
    train(twin, slices(), TrainingConfig(steps=3, batch=2, crop=32), seed=5)
    assert run.config.batch == 2
    for name, value in twin.state_dict().items():
        assert torch.equal(trained.state_dict()[name], value), name


def test_crops_become_smaller_when_two_are_too_much() -> None:
    trained = network()
    trained.register_forward_pre_hook(limited(2 * 64 * 64))

    run = train(trained, slices(BIG), TrainingConfig(steps=1, batch=4, crop=192))

    assert (run.config.batch, run.config.crop) == (2, 64)
    assert run.too_much == ("4 × 192²", "2 × 192²", "2 × 96²")


def test_a_training_that_does_not_fit_says_what_was_tried() -> None:
    trained = network()
    trained.register_forward_pre_hook(limited(0))

    with pytest.raises(OutOfMemory, match=r"4 × 64², 2 × 64² pixels.*NEXTSLICE_CROP.*DEVICE=cpu"):
        train(trained, slices(), TrainingConfig(steps=1, batch=4, crop=64))


def test_a_training_is_not_lost_where_what_follows_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share, calls = learner_module.deserved_share, []

    def once_full(*arguments: Any, **options: Any) -> float:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError(TOLD)
        return share(*arguments, **options)

    monkeypatch.setattr(learner_module, "deserved_share", once_full)
    source = Phantom(4)
    config = LearnerConfig("hrnet_w18_small+filters", training={"steps": 2, "crop": 64})

    report = NetworkLearner(CLASSES, config).fit(source, source.ids[:2])

    assert "share_of_context" in report.settings
    assert len(calls) == 2


def test_filters_that_do_not_fit_are_learned_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Phantom(4)
    config = LearnerConfig("hrnet_w18_small+filters", training={"steps": 2, "crop": 64})
    whole = NetworkLearner(CLASSES, config)
    whole.fit(source, source.ids[:2])
    at, calls = FullResolutionHRNet.filters_at, []

    def once_full(self: FullResolutionHRNet, *arguments: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError(TOLD)
        return at(self, *arguments)

    monkeypatch.setattr(FullResolutionHRNet, "filters_at", once_full)
    learner = NetworkLearner(CLASSES, config)

    learner.fit(source, source.ids[:2])

    assert learner.to_bytes() == whole.to_bytes()


# -- the loop


def test_a_round_and_predict_go_on_and_say_so(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    with phantom_server() as server, memory_of(2 * SMALL) as begun:
        project = phantom_project(
            server, make_settings, REDIS_URL=redis_url, NEXTSLICE_IMAGE_HOSTS="127.0.0.1",
            NEXTSLICE_CROP=96,
        )  # fmt: skip

        record = run_round(project, "test")

        assert record is not None
        assert record.unseen == []
        training = project.folder.round(1).need(METRICS).training
        used: Any = training["training"]
        assert (used["batch"], used["crop"]) == (2, 64)
        assert training["too_much_for_memory"] == [f"{n} × 96²" for n in (14, 7, 3, 2)]
        assert max(begun) > 2 * SMALL, "or nothing was too much"
        task = {"id": 5, "data": {"image": "/5.png"}}
        (answer,) = Serving(project.service).predict(project.key, [task], CONFIG)
        assert answer


def test_a_round_for_which_there_is_no_room_ends_and_says_what_it_waits_for(
    make_settings: Callable[..., Settings], redis_url: str
) -> None:
    """Trained it is, scored it cannot be: other labels change nothing of that."""
    with phantom_server() as server, pytest.MonkeyPatch.context() as patch:
        project = phantom_project(
            server, make_settings, REDIS_URL=redis_url, NEXTSLICE_IMAGE_HOSTS="127.0.0.1"
        )
        evidence = NetworkLearner.evidence

        def without_room(*arguments: Any, **options: Any) -> Any:
            with memory_of(1000):
                return evidence(*arguments, **options)

        patch.setattr(NetworkLearner, "evidence", without_room)
        for attempts in range(1, MAX_FAILURES + 1):
            with pytest.raises(OutOfMemory):
                attempt(project, "test")
            (said,) = [c.says for c in project_status(project).conditions if c.state == "failed"]
            assert f"({attempts}×): OutOfMemory: The memory of cpu is too small for infer" in said
            assert ("It is tried again from" in said) is (attempts < MAX_FAILURES)
        assert said.endswith("It is tried again only after Start Training.")
        config = parse_label_config(CONFIG)
        for task in range(3, 6):
            server.memory.submit(task, regions(PHANTOM.mask(PHANTOM.ids[task]), config))
        project.update(lambda record: setattr(record, "failed_at", 0.0))

        reconcile.count(project)

        assert project.service.schedule.length(GPU) == (0, 0)


def test_what_predict_cannot_compute_is_said_in_a_line(
    make_settings: Callable[..., Settings], redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with phantom_server() as server:
        project = phantom_project(
            server, make_settings, REDIS_URL=redis_url, NEXTSLICE_IMAGE_HOSTS="127.0.0.1"
        )
        assert run_round(project, "test") is not None
        serving = Serving(project.service)

        with memory_of(1000):
            answers = serving.predict(project.key, [{"id": 5, "data": {"image": "/5.png"}}], CONFIG)

    assert answers == [[]]
    (said,) = [record for record in caplog.records if "is not predicted" in record.message]
    assert "too small for inference. Tried: 1 × 96² pixels at once." in said.message
    assert said.exc_info is None
