"""An encoder with the preprocessing of its images, so that queries are treated exactly as the images they are compared to."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from reptk import config
from reptk.config.run_paths import describe_no_run
from reptk.core import rng
from reptk.core.device import AUTOCAST_DTYPES, Precision, autocast, choose_device, choose_precision
from reptk.core.errors import DataError, NumericalError, UsageError
from reptk.core.files import expand_home, real_path
from reptk.data.decoding.decode import Jpeg, decode, decoder, versions_of
from reptk.data.decoding.pixel_options import DEFAULT_OPTIONS, PixelOptions
from reptk.data.decoding.resize import (
    DEFAULT_PREPROCESSING,
    WHOLE_SQUARES,
    Interpolation,
    Preprocessing,
    ResizeMode,
    SquareOptions,
)
from reptk.models.backbone import full_name, is_external, native_size
from reptk.models.encoder import Encoder
from reptk.models.preprocessing import with_preprocessing
from reptk.models.weight_source import absolute_source, find_weights

MIN_SIZE_PX = 4


NOT_FINITE_CAUSE = "the encoder's weights have diverged, or its numbers exceed its precision"
"""Why an embedding holds NaN or infinity."""


@dataclass
class Embedder:
    """Turns images into vectors of unit length, on a device.

    Args:
        encoder: any encoder.
        origin: where it comes from: `{"run": path}`, or `{"backbone": name, "weights": path or None, "pretrained": bool}`.
        weights_sha256: hash of the weights that the features depend on; see `fingerprint`.
        decode_px: side in pixels of the center square that files are decoded to; None for images that come decoded.
        preprocessing: what happens to images before they are encoded.
        jpeg: which library decodes JPEG.
        precision: in which the encoder runs: as evaluation runs it, that of the run's training.
        device: of the encoder.
    """

    encoder: Encoder
    origin: dict[str, Any]
    weights_sha256: str
    decode_px: int | None = None
    preprocessing: Preprocessing = WHOLE_SQUARES
    jpeg: Jpeg = "auto"
    precision: Precision = "fp32"
    device: torch.device | str = "cpu"
    options: PixelOptions = DEFAULT_OPTIONS

    @classmethod
    def open(
        cls,
        encoder: str | Path | Encoder,
        *,
        size: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        device: str = "auto",
    ) -> "Embedder":
        """Open the encoder of a run, or a timm backbone. An `Encoder` stays where it is.

        Args:
            encoder: a run's folder, its model folder, a timm name, or an `Encoder`.
            size: input size in pixels of a timm backbone; by default the size that its weights were trained at.
            pretrained: whether a timm backbone gets timm's weights.
            weights: a checkpoint for a timm backbone, see `Encoder`. Without either, its weights are random, the same at every
                call.
            device: see `choose_device`.

        Raises:
            UsageError, DataError, EnvironmentProblem: there is no such encoder, or its weights are not available.
        """
        if isinstance(encoder, Encoder):
            origin = {"encoder": "built in Python"}
            return cls(encoder, origin, fingerprint(encoder), device=encoder.mean.device)
        if expand_home(encoder).is_dir():
            encoder = expand_home(encoder)
            if size is not None or weights is not None or pretrained:
                raise UsageError("size, weights and pretrained go with a timm name; a run has its own")
            opened = Encoder.from_run(encoder)
            origin = {"run": str(real_path(encoder))}
            precision = recipe_of(encoder).get("train", {}).get("precision", "fp32")
        else:
            opened = _timm_encoder(str(encoder), size, pretrained, weights)
            origin = {"backbone": opened.config["backbone"], "weights": None, "pretrained": pretrained}
            if weights is not None:
                origin["weights"] = absolute_source(weights)
            precision = "fp32"
        torch_device = choose_device(device)
        return cls(
            opened.to(torch_device),
            origin,
            fingerprint(opened),
            precision=choose_precision(precision, torch_device),
            device=torch_device,
        )

    @classmethod
    def reopen(
        cls, about: dict[str, Any], encoder: str | Path | Encoder | None = None, *, device: str = "auto"
    ) -> "Embedder":
        """Open the embedder that computed a set of embeddings again, and check that it is the same one.

        Args:
            about: `Embeddings.about`.
            encoder: the encoder itself, or its present place, a run or a file of weights; by default where it was then.
            device: see `choose_device`.

        Raises:
            DataError: the embeddings do not name their encoder, it has moved, or its weights have changed.
        """
        encoder_record = about.get("encoder")
        preprocessing = about.get("preprocessing")
        is_recorded = isinstance(encoder_record, dict) and isinstance(preprocessing, dict)
        if not is_recorded or "sha256" not in encoder_record:
            raise DataError(
                "these embeddings do not say which encoder made them, so images cannot be searched for; ids can: --id ID"
            )
        if isinstance(encoder, Encoder):
            embedder = cls.open(encoder)
        else:
            embedder = cls._open_recorded(encoder_record, encoder, device)
        # The path may hold another encoder by now; the hash of the weights tells.
        same_weights = embedder.weights_sha256 == encoder_record["sha256"]
        if not same_weights or embedder.encoder.config["size"] != encoder_record.get("size"):
            raise DataError(
                f"{_describe(embedder.origin)} is not the encoder that made these embeddings (other weights or size). If that "
                "one has moved, name its place: --encoder RUN_OR_WEIGHTS; else embed the images again"
            )
        embedder.decode_px = preprocessing.get("decoded_px")
        embedder.preprocessing = _recorded_preprocessing(preprocessing)
        embedder.precision = _recorded_precision(preprocessing)
        embedder.options = recorded_options(preprocessing)
        if str(preprocessing.get("decoded_by")).startswith("simplejpeg"):
            embedder.jpeg = "auto"
            _warn_without_simplejpeg()
        else:
            embedder.jpeg = "pillow"
        return embedder

    @classmethod
    def _open_recorded(cls, encoder_record: dict[str, Any], path: str | Path | None, device: str) -> "Embedder":
        """Open the encoder that the embeddings name, at `path` if it has moved there."""
        if path is not None and expand_home(path).is_dir():
            return cls.open(path, device=device)
        origin = encoder_record.get("origin", {})
        if "backbone" in origin:
            weights = origin.get("weights") if path is None else str(path)
            if weights is not None and not find_weights(weights)[0].is_file():
                raise DataError(_moved(weights))
            pretrained = bool(origin.get("pretrained")) and weights is None
            size = encoder_record.get("size")
            return cls.open(origin["backbone"], size=size, pretrained=pretrained, weights=weights, device=device)
        run = path or origin.get("run")
        if run is None:
            raise DataError(
                "these embeddings were made by an encoder built in Python; pass it again (encoder=...), or name a run of it "
                "(--encoder RUN)"
            )
        if not Path(run).is_dir():
            raise DataError(_moved(run))
        return cls.open(run, device=device)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Return the vectors (b, F) float32 of images (b, 3, H, W) uint8, on the CPU."""
        crop, resize, interpolation, _ = self.preprocessing
        with autocast(self.device, self.precision):
            return self.encoder.embed(images, crop, resize, interpolation).float().cpu()

    def embed_file(self, path: Path) -> Tensor:
        """Return the vector (F,) of an image file.

        Raises:
            DataError: the file is missing or cannot be read as an image.
            NumericalError: its embedding is not finite.
        """
        if not path.is_file():
            raise DataError(f"no image {path}")
        vector = self.embed_images(self.decode_image(path)[None])[0]
        if not vector.isfinite().all():
            raise NumericalError(f"the embedding of {path} is not finite: {NOT_FINITE_CAUSE}")
        return vector

    def decode_image(self, source: Path | bytes) -> Tensor:
        """Return an image file, or the bytes of one, as `embed_images` takes it: (3, H, W) uint8.

        Raises:
            DataError: it cannot be read as an image.
        """
        decode_px = self.decode_px or self.preprocessing.decode_px(self.encoder.config["size"])
        return decode(source, decode_px, self.jpeg, self.options, self.square_options())

    def square_options(self) -> SquareOptions:
        """Return how files become squares for the encoder."""
        return self.preprocessing.square_options(self.encoder.config["size"], self.encoder.border_color)

    @property
    def started_from_weights(self) -> bool:
        """Whether the backbone had trained weights before any training by reptk."""
        run = self.origin.get("run")
        if run is None:
            return "backbone" in self.origin and not self.is_untrained
        recipe = recipe_of(run)
        start = recipe.get("start")
        if isinstance(start, dict):
            # The weights of another run, which says what that had started from.
            return bool(start.get("pretrained"))
        initial = recipe.get("encoder", {})
        return bool(initial.get("pretrained")) or initial.get("weights") is not None

    def native_preprocessing(self) -> Preprocessing:
        """Return the preprocessing of image files with which the encoder was evaluated, or which timm records for it."""
        table = dict.fromkeys(Preprocessing._fields)
        run = self.origin.get("run")
        if run is not None:
            recipe = recipe_of(run)
            if not recipe and self.encoder.preprocessing is not None:
                return self.encoder.preprocessing  # of a model folder alone
            table |= recipe.get("data", {})
        backbone = self.encoder.config["backbone"]
        has_weights = self.started_from_weights
        table = with_preprocessing(table, backbone, has_weights=has_weights, is_trained=run is not None)
        return DEFAULT_PREPROCESSING.updated(table)

    @property
    def is_untrained(self) -> bool:
        """Whether it is a timm backbone with random weights."""
        return has_random_weights(self.origin)

    @property
    def width(self) -> int:
        """F, values per vector."""
        return self.encoder.num_features

    def about(self) -> dict[str, Any]:
        """Return the record of encoder and preprocessing that is stored with the vectors."""
        encoder_record = {
            "origin": self.origin,
            "backbone": self.encoder.config["backbone"],
            "size": self.encoder.config["size"],
            "stem": self.encoder.config["stem"],
            "features": self.width,
            "sha256": self.weights_sha256,
        }
        preprocessing = {
            "decoded_px": self.decode_px,
            "decoded_by": versions_of(decoder(self.jpeg)),
            "range": list(self.options.range),
            "background": self.options.background,
            **self.preprocessing._asdict(),
            "size_px": self.encoder.config["size"],
            "mean": self.encoder.mean.flatten().tolist(),
            "std": self.encoder.std.flatten().tolist(),
            "precision": self.precision,
        }
        return {"encoder": encoder_record, "preprocessing": preprocessing}


def recorded_options(preprocessing: dict[str, Any]) -> PixelOptions:
    """Return how the pixels of unusual files were decoded; embeddings of earlier versions have the defaults."""
    try:
        return PixelOptions(
            range=tuple(preprocessing.get("range", DEFAULT_OPTIONS.range)),
            background=str(preprocessing.get("background", DEFAULT_OPTIONS.background)),
        )
    except (TypeError, ValueError) as cause:
        raise DataError(
            f"the record of the embeddings' preprocessing is damaged: {cause}; embed the images again"
        ) from cause


def has_random_weights(origin: Mapping[str, Any]) -> bool:
    """Return whether an encoder of this origin, see `Embedder`, is a timm backbone with random weights."""
    return "backbone" in origin and not origin.get("weights") and not origin.get("pretrained")


def _recorded_precision(preprocessing: dict[str, Any]) -> Precision:
    """Return the precision of the encoder; embeddings of earlier versions say whether it was bfloat16."""
    precision = preprocessing.get("precision")
    if precision in AUTOCAST_DTYPES:
        return precision
    if preprocessing.get("bf16"):
        return "bf16"
    return "fp32"


def _recorded_preprocessing(record: dict[str, Any]) -> Preprocessing:
    """Return how images were resized; embeddings of earlier versions say so in a sentence, and were cropped."""
    preprocessing = Preprocessing(
        crop=record.get("crop", 1.0),
        resize=record.get("resize", "crop"),
        interpolation=record.get("interpolation", DEFAULT_PREPROCESSING.interpolation),
        reduce_jpeg=bool(record.get("reduce_jpeg", True)),
    )
    if preprocessing.resize not in get_args(ResizeMode):
        preprocessing = preprocessing._replace(resize="crop")
    is_known = preprocessing.interpolation in get_args(Interpolation)
    if not is_known or not isinstance(preprocessing.crop, int | float) or not 0 < preprocessing.crop <= 1:
        raise DataError("the record of the embeddings' preprocessing is damaged; embed the images again")
    return preprocessing


def fingerprint(encoder: Encoder) -> str:
    """Return the SHA-256 of the backbone's weights, whatever file they come from: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in encoder.backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def recipe_of(path: str | Path) -> config.Table:
    """Return the recipe of the run that a run folder or its model folder belongs to; empty if there is none."""
    file = recipe_file(path)
    if file is None:
        return {}
    return _read_recipe(file)


def recipe_file(path: str | Path) -> Path | None:
    """Return the recipe.toml of the run that a run folder or its model folder belongs to; None if there is none."""
    # The model folder is inside the run's folder; resolved, because the parent of "." is ".".
    path = expand_home(path)
    for folder in (path, real_path(path).parent):
        if (folder / "recipe.toml").is_file():
            return folder / "recipe.toml"
    return None


def _read_recipe(file: Path) -> config.Table:
    recipe = config.read(file)
    for key in ("data", "views", "encoder", "train"):
        if not isinstance(recipe.get(key, {}), dict):
            raise UsageError(f"{file}: {key} must be a table, got {recipe[key]!r}")
    return recipe


def _timm_encoder(name: str, size: int | None, pretrained: bool, weights: str | None) -> Encoder:
    name = full_name(name)
    # Not a timm name but a path with a mistake in it.
    if not is_external(name) and ("/" in name or Path(name).exists()):
        hint = describe_no_run(name).hint()
        raise DataError(f"no run or model in {name}; a run's folder holds model/model.safetensors{hint}")
    if size is None:
        size = native_size(name)
    if not isinstance(size, int) or size < MIN_SIZE_PX:
        raise UsageError(f"size must be an integer of at least {MIN_SIZE_PX}, got {size!r}")
    # Seeded, so that queries are encoded by the same random weights as the images were.
    with rng.seeded(0, "initial weights"):
        return Encoder(name, size=size, pretrained=pretrained, weights=weights, head_layers=0).eval()


def _warn_without_simplejpeg() -> None:
    if decoder("auto") == "pillow":
        warnings.warn(
            "these embeddings were made with simplejpeg, which is not installed; Pillow decodes the queries, whose pixels "
            "differ by a level or two: pip install 'reptk[jpeg]'",
            stacklevel=4,
        )


def _moved(path: str) -> str:
    return f"the encoder of these embeddings is no longer at {path}. Name its place: --encoder RUN_OR_WEIGHTS"


def _describe(origin: dict[str, Any]) -> str:
    return origin.get("run") or origin.get("weights") or origin.get("backbone") or "this"
