"""Targets that parse in our own process: what Label Studio, annotators and browsers send."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

from ml_backend.pictures import BROKEN_PICTURE, decode_label_map
from ml_backend.studio.annotations import (
    AnnotationError,
    choose_annotation,
    label_hash,
    label_map,
    parse_annotation,
    parse_task,
)
from ml_backend.studio.label_config import (
    LabelConfig,
    LabelConfigError,
    explain_change,
    parse_label_config,
)
from ml_backend.studio.masks import MaskError, decode_bitmask, decode_brush
from ml_backend.volumes.address import (
    AddressRefused,
    SliceAddress,
    SliceKeys,
    is_slice_address,
    slice_of,
)
from ml_backend.volumes.volume_address import VolumeAddress
from tests.fuzz.target import Sample, Target, unchanged

__all__ = ["PARSERS"]

HEIGHT, WIDTH = 24, 32
"""Of the slice that annotations and masks of the corpus are of."""
MASKS = '<View><Image name="image" value="$image"/>{}</View>'
CONTROLS = (
    '<BitmaskLabels name="label" toName="image"><Label value="bone"/><Label value="implant" '
    'alias="i"/></BitmaskLabels><PolygonLabels name="poly" toName="image"><Label value="bone"/>'
    "</PolygonLabels>",
    '<BrushLabels name="label" toName="image"><Label value="background"/><Label value="bone"/>'
    "</BrushLabels>",
)
SECRET = "a secret of the fuzzer"


def text_of(data: bytes) -> str:
    """As it comes out of JSON: any text, half of a pair of surrogates included."""
    return data.decode("utf-8", "surrogateescape")


def label_config(sample: Sample) -> None:
    config = parse_label_config(text_of(sample[""]))
    again = parse_label_config(MASKS.format(CONTROLS[0]))
    for before, after in pairwise((config, again, config)):
        explain_change(before, after)
    assert len(config.fingerprint) == 16
    assert [config.class_index(label) for label in config.labels]
    assert config.result_label(len(config.classes) - 1)


def annotation(configs: tuple[LabelConfig, ...], sample: Sample) -> None:
    """A task as Label Studio's API gives it."""
    try:
        payload = json.loads(sample[""])
    except (ValueError, RecursionError):  # refused by who fetches it
        return
    task = parse_task(payload)
    chosen = choose_annotation(task.annotations)
    for one in (*([chosen] if chosen else []), *task.drafts):
        label_hash(one.result)
        for config in configs:
            found = label_map(one.result, config, HEIGHT, WIDTH)
            assert found.mask.shape == (HEIGHT, WIDTH)
    parse_annotation(payload)


def brush(sample: Sample) -> None:
    alpha = decode_brush(list(sample[""]), HEIGHT, WIDTH)
    assert alpha.shape == (HEIGHT, WIDTH)


def bitmask(sample: Sample) -> None:
    decode_bitmask("data:image/png;base64," + base64.b64encode(sample[""]).decode(), 1 << 22)


def bitmask_text(sample: Sample) -> None:
    decode_bitmask(text_of(sample[""]), 1 << 22)


class Refused(Exception):
    """The StudioError that is documented."""


@contextmanager
def images() -> Iterator[Callable[[Sample], None]]:
    # seconds of imports, which the other targets do not need
    from ml_backend.studio.client import StudioError
    from ml_backend.studio.images import decode_image

    def image(sample: Sample) -> None:
        try:
            assert decode_image(sample[""], "image").ndim in (2, 3)
        except StudioError as error:
            raise Refused from error

    yield image


def label_picture(sample: Sample) -> None:
    assert decode_label_map(sample[""]).ndim == 2


def address(keys: SliceKeys, sample: Sample) -> None:
    """One that somebody wrote, as task data or as a browser sends it."""
    url = text_of(sample[""])
    if is_slice_address(url):
        slice_of(url)
        claimed = SliceAddress.claimed(url)
        if claimed is not None:
            SliceAddress.parse(claimed.url("", keys), keys)  # signed by us, whatever it says
    SliceAddress.parse(url, keys)


def volume_address(keys: SliceKeys, sample: Sample) -> None:
    """One that a viewer sends, and what it says signed by us."""
    token = text_of(sample[""])
    body = token.partition(".")[0]
    if body.isascii():
        key, signature = keys.sign(f"nextslice volume\n{body}")
        VolumeAddress.parse(f"{body}.{key}.{signature}", keys, now=0).url("", keys)
    VolumeAddress.parse(token, keys, now=0)


def _configs() -> tuple[LabelConfig, ...]:
    return tuple(parse_label_config(MASKS.format(control)) for control in CONTROLS)


_CONFIG_WORDS = (
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    *rb"""<View>|</View>|<Label |value="bone"|value=|alias=|toName=|name=|<Image |<BitmaskLabels
<!--|-->|<BrushLabels |<!DOCTYPE a>|<![CDATA[|]]>|&lt;|&#x0;|&#xD800;|&a;|<?xml version='1.0'?>
xmlns:a=|$image|valueList=|background|encoding='utf-16'""".replace(b"\n", b"|").split(b"|"),
)
_ADDRESS_WORDS = tuple(
    rb"/slices/|&expires=|&offset=|&shape=|&dtype=|&low=|&high=|&sig=|&key=|http://[|%00|%2e%2e/|%ff"
    rb"|//|1x2x3|inf|nan|1e999".split(b"|")
)

PARSERS = (
    Target(
        "label-config",
        partial(unchanged, label_config),
        (LabelConfigError,),
        "text",
        words=_CONFIG_WORDS,
    ),
    Target(
        "annotation", lambda: unchanged(partial(annotation, _configs())), (AnnotationError,), "json"
    ),
    Target("brush", partial(unchanged, brush), (MaskError,)),
    Target("bitmask", partial(unchanged, bitmask), (MaskError,), "png"),
    Target("bitmask-text", partial(unchanged, bitmask_text), (MaskError,), "text"),
    Target("image", images, (Refused,), "png"),
    Target("label-picture", partial(unchanged, label_picture), BROKEN_PICTURE, "png"),
    Target(
        "address",
        lambda: unchanged(partial(address, SliceKeys((SECRET,)))),
        (AddressRefused,),
        "text",
        words=_ADDRESS_WORDS,
    ),
    Target(
        "volume-address",
        lambda: unchanged(partial(volume_address, SliceKeys((SECRET,)))),
        (AddressRefused,),
        "text",
    ),
)
