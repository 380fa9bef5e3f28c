"""An encoder together with how images are brought before it, so that a query goes the same way as what it is held against."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reptk import config
from reptk.core import rng
from reptk.core.errors import DataError, UsageError
from reptk.data.decode import Jpeg, decode, decoder, versions_of
from reptk.models.encoder import Encoder, native_size


@dataclass
class Embedder:
    """Images to vectors of unit length, on a device.

    Args:
        encoder: any.
        origin: where it comes from: `{"run": path}`, or `{"backbone": name, "weights": path or None, "pretrained": bool}`.
        sha256: of the weights that its features depend on.
        decoded_px: side of the centre square that files are decoded to; None for images that come decoded.
        crop: share of the shorter side that is kept.
        jpeg: who decodes JPEG.
        bf16: whether it runs in bfloat16, as evaluation does for a run trained so.
    """

    encoder: Encoder
    origin: dict[str, Any]
    sha256: str
    decoded_px: int | None = None
    crop: float = 1.0
    jpeg: Jpeg = "auto"
    bf16: bool = False
    device: torch.device | str = "cpu"

    @classmethod
    def open(
        cls,
        encoder: str | Path | Encoder,
        *,
        size: int | None = None,
        pretrained: bool = False,
        weights: str | None = None,
    ) -> "Embedder":
        """A run's encoder, or any timm backbone, on the GPU if there is one.

        Args:
            encoder: a run's folder, its model folder, a timm name, or an encoder that is built already.
            size: side in pixels of the images that a timm backbone sees; what its weights were trained with by default.
            pretrained: timm's weights.
            weights: a local file of weights instead. Without either they are random, the same at every call.

        Raises:
            UsageError, DataError, EnvironmentProblem: there is no such encoder, or its weights cannot be had.
        """
        if isinstance(encoder, Encoder):
            return cls(
                encoder, {"given": "an encoder built in Python"}, fingerprint(encoder), device=encoder.mean.device
            )
        if Path(encoder).is_dir():
            if size is not None or weights is not None or pretrained:
                raise UsageError("size, weights and pretrained go with a timm name; a run has its own")
            made, origin = Encoder.from_run(encoder), {"run": str(Path(encoder).resolve())}
            bf16 = recipe_of(encoder).get("train", {}).get("precision") == "bf16"
        else:
            made, origin, bf16 = _timm(str(encoder), size, pretrained, weights), {"backbone": str(encoder)}, False
            origin |= {"weights": weights and str(Path(weights).resolve()), "pretrained": pretrained}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(made.to(device), origin, fingerprint(made), bf16=bf16, device=device)

    @classmethod
    def reopen(cls, about: dict[str, Any], place: str | None = None) -> "Embedder":
        """The embedder that made a file of embeddings, from what that file says about it.

        Args:
            about: of the embeddings.
            place: where the encoder lies now: a run, or a file of weights; where it lay then by default.

        Raises:
            DataError: nothing is said of an encoder, it has moved, or its weights are no longer the same.
        """
        said, how = about.get("encoder"), about.get("preprocessing")
        if not isinstance(said, dict) or not isinstance(how, dict) or "sha256" not in said:
            raise DataError(
                "these embeddings do not say which encoder made them, so images cannot be searched for; ids can: --id ID"
            )
        made = cls._found(said, place)
        if made.sha256 != said["sha256"] or made.encoder.config["size"] != said.get("size"):
            raise DataError(
                f"{_named(made.origin)} is not the encoder that made these embeddings (other weights or size). If that one "
                "has moved, name its place: --encoder RUN_OR_WEIGHTS; else embed the images again"
            )
        made.decoded_px, made.crop, made.bf16 = how.get("decoded_px"), how.get("crop", 1.0), bool(how.get("bf16"))
        made.jpeg = "auto" if str(how.get("decoded_by")).startswith("simplejpeg") else "pillow"
        if made.jpeg == "auto" and decoder("auto") == "pillow":
            warnings.warn(
                "these embeddings were made with simplejpeg, which is not installed; Pillow decodes the queries, a level or "
                "two aside: pip install 'reptk[jpeg]'",
                stacklevel=2,
            )
        return made

    @classmethod
    def _found(cls, said: dict[str, Any], place: str | None) -> "Embedder":
        origin = said.get("origin", {})
        if place is not None and Path(place).is_dir():
            return cls.open(place)
        if "backbone" in origin:
            weights = origin.get("weights") if place is None else place
            if weights is not None and not Path(weights).is_file():
                raise DataError(_moved(weights))
            pretrained = bool(origin.get("pretrained")) and weights is None
            return cls.open(origin["backbone"], size=said.get("size"), pretrained=pretrained, weights=weights)
        where = place or origin.get("run")
        if where is None:
            raise DataError("these embeddings were made by an encoder built in Python. Name a run of it: --encoder RUN")
        if not Path(where).is_dir():
            raise DataError(_moved(where))
        return cls.open(where)

    @torch.no_grad()
    def vectors(self, images: Tensor) -> Tensor:
        """(b, 3, H, W) uint8 -> (b, F) float32 of unit length, on the CPU."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            return self.encoder.embed(images, self.crop).float().cpu()

    def file(self, path: Path) -> Tensor:
        """The vector (F,) of an image file.

        Raises:
            DataError: it is missing or no image.
        """
        if not path.is_file():
            raise DataError(f"no image {path}")
        side = self.decoded_px or round(self.encoder.config["size"] / self.crop)
        vector = self.vectors(decode(path, side, self.jpeg)[None])[0]
        if not vector.isfinite().all():
            raise DataError(f"{path} gets an embedding that is not finite")
        return vector

    @property
    def is_untrained(self) -> bool:
        """Whether it is a timm backbone without any weights."""
        return "backbone" in self.origin and not self.origin["weights"] and not self.origin["pretrained"]

    @property
    def width(self) -> int:
        return self.encoder.num_features

    def about(self) -> dict[str, Any]:
        """What to write beside its vectors."""
        settings = {name: self.encoder.config[name] for name in ("backbone", "size", "stem")}
        said = {"origin": self.origin, **settings, "features": self.width, "sha256": self.sha256}
        how = {
            "decoded_px": self.decoded_px,
            "decoded_by": versions_of(decoder(self.jpeg)),
            "crop": self.crop,
            "size_px": self.encoder.config["size"],
            "resize": "shorter side to size / crop, bilinear with antialiasing; centre cut out",
            "mean": self.encoder.mean.flatten().tolist(),
            "std": self.encoder.std.flatten().tolist(),
            "bf16": self.bf16,
        }
        return {"encoder": said, "preprocessing": how}


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 of the weights of the backbone, whatever file they come from: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in encoder.backbone.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def recipe_of(place: str | Path) -> config.Table:
    """The recipe of the run that a run folder or its model folder belongs to, empty if there is none."""
    homes = [Path(place), Path(place).resolve().parent]
    found = [home / "recipe.toml" for home in homes if (home / "recipe.toml").is_file()]
    return config.read(found[0]) if found else {}


def _timm(name: str, size: int | None, pretrained: bool, weights: str | None) -> Encoder:
    if "/" in name or Path(name).exists():
        raise DataError(f"no run or model in {name}; a run's folder holds model/encoder.safetensors")
    side = native_size(name) if size is None else size
    if not isinstance(side, int) or side < 4:
        raise UsageError(f"size must be an integer of at least 4, got {side!r}")
    with rng.seeded(0, "initial weights"):
        return Encoder(name, size=side, pretrained=pretrained, weights=weights, head_layers=0).eval()


def _moved(place: str) -> str:
    return f"the encoder of these embeddings is no longer at {place}. Name its place: --encoder RUN_OR_WEIGHTS"


def _named(origin: dict[str, Any]) -> str:
    return origin.get("run") or origin.get("weights") or origin.get("backbone") or "this"
