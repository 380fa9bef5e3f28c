"""A frozen teacher: the features that a student is trained to have, computed by another encoder."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor
from torch.nn import functional

from reptk.config.run_paths import describe_no_run
from reptk.core import distributed, rng
from reptk.core.counts import format_bytes
from reptk.core.errors import DataError, UsageError
from reptk.core.files import expand_home
from reptk.core.images import scale_to_unit
from reptk.data.decoding.resize import Interpolation
from reptk.models.backbone import is_external, native_size
from reptk.models.encoder import Encoder
from reptk.models.encoder_keys import EncoderKeys, prefixed_errors
from reptk.models.model_folder import check_model, find_model, read_config
from reptk.models.preprocessing import preprocessing_of
from reptk.models.weight_source import HUB, LOCAL_FOLDER, TIMM_ORGANIZATION

CHUNK_SIZES = {"cpu": 16}
DEFAULT_CHUNK_SIZE = 64
"""Images that a teacher encodes at once, by the type of the device."""

AUTO_WEIGHTS = "auto"
"""In place of a file of weights: those that timm has for the model, or those of the run."""

TEACHER_KEYS = EncoderKeys(
    backbone="method.teacher",
    size="method.teacher_size",
    architecture="method.teacher and method.teacher_weights (auto: those of timm)",
    weights_file="method.teacher_weights=FILE",
    small_stem="name the folder of its run as method.teacher",
)


class Teacher:
    """An encoder that is not trained: evaluation mode, no gradient, the normalization and image size of its training.

    It is not an `nn.Module`: a method that has one as an attribute neither trains it nor saves it, and DDP does not see it. It
    moves to the device of the images that it gets first.

    Images are encoded in chunks of one size, the last one filled up with black images. So the features of an image do not
    depend on the images next to it, on a CPU in any bit, because every matrix product has the same shape.

    Args:
        encoder: in any mode. It is changed: frozen, in evaluation mode.
        name: for messages.
        interpolation: of the resize to its image size.

    Attributes:
        name: see above.
        size: side in pixels of the images that it encodes.
        num_features: F.
        num_weights: of the backbone.
        sha256: (32,) uint8, the hash of all weights with their names.
    """

    def __init__(self, encoder: Encoder, name: str, interpolation: Interpolation = "bicubic") -> None:
        encoder.freeze("all")
        self.name = name
        self.size: int = encoder.config["size"]
        self.num_features = encoder.num_features
        self.num_weights = sum(parameter.numel() for parameter in encoder.parameters())
        self.sha256 = _sha256_of(encoder)
        self._interpolation = interpolation
        # Convolutions are faster in this layout, and other layers do not mind.
        self._encoder = encoder.eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features (N, F) in float32 of square images (N, 3, h, w), uint8 or floats in 0..1, of any size."""
        if self._encoder.mean.device != images.device:
            self._encoder.to(images.device)
        chunk_size = CHUNK_SIZES.get(images.device.type, DEFAULT_CHUNK_SIZE)
        features = [images.new_empty(0, self.num_features, dtype=torch.float32)]
        for chunk in images.split(chunk_size):
            resized = self._resized(chunk)
            missing = chunk_size - len(chunk)
            if missing:
                resized = torch.cat([resized, resized.new_zeros(missing, *resized.shape[1:])])
            features.append(self._encoder.features(resized)[: len(chunk)].float())
        return torch.cat(features)

    def describe(self) -> str:
        """Return its size in words: weights, features and pixels."""
        memory = format_bytes(4 * self.num_weights)
        return f"{self.num_weights / 1e6:.1f} M weights ({memory}), {self.num_features} features, {self.size} px"

    def check_same_weights(self, sha256: Tensor) -> None:
        """Check that the hash (32,) of a teacher is that of this one.

        Raises:
            DataError: it is another.
        """
        if torch.equal(sha256.cpu(), self.sha256):
            return
        raise DataError(
            f"the teacher {self.name} has other weights than when the run was started (SHA-256 of the weights "
            f"{_first_digits(sha256)}... then, {_first_digits(self.sha256)}... now). Restore them (method.teacher, "
            "method.teacher_weights), or train again, with another --out"
        )

    def _resized(self, images: Tensor) -> Tensor:
        images = scale_to_unit(images)
        if images.shape[-1] == self.size:
            return images
        size = (self.size, self.size)
        resized = functional.interpolate(images, size, mode=self._interpolation, antialias=True, align_corners=False)
        # Bicubic interpolation leaves the range at edges.
        return resized.clamp(0, 1)


class _Source(NamedTuple):
    """What a teacher is built from; `weights` None for timm's."""

    backbone: str
    size: int
    stem: str
    weights: str | None


def build_teacher(name: str, *, weights: str = AUTO_WEIGHTS, size: int | None = None) -> Teacher:
    """Build a teacher with its weights.

    Args:
        name: of a timm model, `hf-hub:NAME` or `local-dir:FOLDER`; or the folder of a finished run of reptk, or of its model.
        weights: as `encoder.weights` takes them (`reptk.models.weight_source.find_weights`); "auto" for those that timm has
            under the name, which are downloaded on first use, or for those of the run.
        size: side in pixels of the images that it encodes; None for that of its training.

    Raises:
        UsageError: unknown name, a size that it does not take, or other weights for a run.
        DataError: no such folder; weights that are missing, damaged or of another model.
        EnvironmentProblem: the weights cannot be downloaded, or the package that has them is not installed.
    """
    keys = TEACHER_KEYS._replace(prefix=f"method.teacher={name}: ")
    source = _source_of(name, weights, size, keys)

    def build() -> Encoder:
        # The student's initial weights are not to depend on what the teacher draws before its weights are loaded.
        with rng.seeded("teacher"):
            return Encoder(
                source.backbone,
                size=source.size,
                pretrained=source.weights is None,
                weights=source.weights,
                stem=source.stem,
                head_layers=0,
                keys=keys,
            )

    # Weights may be downloaded.
    encoder = distributed.run_in_turns(build)
    return Teacher(encoder, name, preprocessing_of(source.backbone).interpolation)


def _source_of(name: str, weights: str, size: int | None, keys: EncoderKeys) -> _Source:
    folder = expand_home(name)
    if is_external(name) or timm.is_model(name) or not folder.is_dir():
        _check_not_path(name, folder)
        file = weights
        if weights == AUTO_WEIGHTS:
            file = None
        return _Source(name, size or native_size(name, keys), "timm", file)
    if weights != AUTO_WEIGHTS:
        raise UsageError(
            f"method.teacher_weights is {weights!r}, but the teacher is the folder {name}, which has weights; set "
            f"method.teacher_weights={AUTO_WEIGHTS}"
        )
    with prefixed_errors(keys.prefix):
        model = find_model(name, folder)
        check_model(model)
        config = read_config(model)
    return _Source(config["backbone"], size or config["size"], config["stem"], str(model))


def _check_not_path(name: str, path: Path) -> None:
    """Refuse the name of a file, and that of a folder that does not exist."""
    if path.is_file():
        raise UsageError(
            f"method.teacher={name} is a file, which does not say of which model its weights are: method.teacher=MODEL "
            f"method.teacher_weights={name}"
        )
    is_repository = name.startswith((HUB, LOCAL_FOLDER, TIMM_ORGANIZATION))
    if "/" in name and not is_repository:
        no_run = describe_no_run(name)
        raise DataError(f"method.teacher={name}: {no_run.what}{no_run.hint()}")


def _sha256_of(encoder: Encoder) -> Tensor:
    """Return the hash (32,) uint8 of an encoder's weights and buffers, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _first_digits(sha256: Tensor) -> str:
    return bytes(sha256.flatten()[:6].to(torch.uint8).tolist()).hex()
