"""Networks of segmentation-models-pytorch under our own classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import segmentation_models_pytorch as smp
from torch import Tensor

from ml_backend.segmentation.networks.base import (
    Builder,
    SegmentationNetwork,
    UnknownArchitecture,
)

__all__ = ["BUILDERS", "SMPNetwork"]

_DEFAULT_ENCODER = "resnet18"


class SMPNetwork(SegmentationNetwork):
    """Encoder and decoder of segmentation-models-pytorch under our own 1×1 classifier.

    Its 3×3 segmentation head is replaced, so that MC dropout folds here as it does in HRNetV2.
    The embedding is the mean of the encoder's deepest features.
    """

    def __init__(self, architecture: str, classes: int, channels: int, pretrained: bool) -> None:
        decoder, _, encoder = architecture.partition(":")
        # Encoders of timm ("tu-…") carry their weights' tag in the name and take True for it.
        weights = (True if encoder.startswith("tu-") else "imagenet") if pretrained else None
        try:
            model = smp.create_model(
                decoder,
                encoder_name=encoder or _DEFAULT_ENCODER,
                encoder_weights=weights,
                in_channels=channels,
                classes=classes,
            )
        except KeyError as error:
            raise UnknownArchitecture(
                f"segmentation-models-pytorch has no encoder {encoder!r} for {decoder!r}. Use for "
                f"example '{decoder}:resnet34' or '{decoder}:tu-<timm model>'."
            ) from error
        super().__init__(
            architecture,
            classes=classes,
            channels=channels,
            width=model.segmentation_head[0].in_channels,
            embedding_size=model.encoder.out_channels[-1],
        )
        self.encoder = model.encoder
        self.decoder = model.decoder

    def _encode(self, images: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        maps = self.encoder(images)
        return self.decoder(maps), maps[-1:]


# Left out: DPT needs a vision transformer of fixed input size, PAN inputs of at least 128 pixels.
BUILDERS: Mapping[str, Builder] = {
    name: Builder(SMPNetwork, takes_encoder=True)
    for name in (
        "unet",
        "unetplusplus",
        "manet",
        "linknet",
        "fpn",
        "pspnet",
        "deeplabv3",
        "deeplabv3plus",
        "upernet",
        "segformer",
    )
}
