"""Any timm backbone, a stem for small images, a projection head: features(x) -> (B, F), forward(x) -> (B, D)."""

import difflib
import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants as hub
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.images import resize_center_crop, to_float
from reptk.models.grad_cache import Norm, batch_norms, forward_in_chunks


class Encoder(nn.Module):
    """Images to features and embeddings. Both take uint8 or floats in 0..1; normalisation is the backbone's own.

    Args:
        backbone: a timm name, tag included if wanted (`"vit_tiny_patch16_224"`, `"resnet50.a1_in1k"`).
        size: side of the images in pixels; vision transformers are built for it.
        pretrained: timm's weights for that name (downloaded when first used).
        weights: local file with the backbone's weights instead: safetensors, or a plain state dict.
        stem: "small" makes the first convolution 3 x 3 with stride 1 and padding 1 and drops the pooling behind it, as
            is usual for images of 28 to 64 px. That convolution starts afresh where the weights were made for the other.
        head_layers: linear layers of the projection head; 0 for none: z are the features.
        head_width: width of its hidden layers; None for the features' width F.
        head_out: D, its last layer's width.
        head_norm: BatchNorm after every layer but the last.
        drop_path: stochastic depth of the backbone.

    Raises:
        UsageError: an unknown backbone (with the nearest names), or one that cannot take this size, stem or option.
        EnvironmentProblem: pretrained weights that cannot be fetched.
        DataError: a weights file that is missing, damaged, or of another backbone.
    """

    def __init__(
        self,
        backbone: str,
        *,
        size: int = 224,
        pretrained: bool = False,
        weights: str | None = None,
        stem: str = "timm",
        head_layers: int = 2,
        head_width: int | None = None,
        head_out: int = 128,
        head_norm: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self._parts, self._norm = 1, "refuse"
        if stem not in ("timm", "small"):
            raise UsageError(f"encoder.stem must be 'timm' or 'small', got {stem!r}")
        self.config = {
            "backbone": backbone,
            "size": size,
            "stem": stem,
            "head_layers": head_layers,
            "head_width": head_width,
            "head_out": head_out,
            "head_norm": head_norm,
            "drop_path": drop_path,
        }
        if pretrained and weights is not None:
            raise UsageError(
                "pretrained weights are timm's, and others are read from a file of weights; ask for one of them"
            )
        self.backbone = _backbone(backbone, size, pretrained, drop_path)
        fresh = _small_stem(self.backbone, backbone) if stem == "small" else None
        if weights is not None:
            _load_backbone(self.backbone, Path(weights), fresh)
        self.num_features = _width(self.backbone, size, backbone)
        self.head = _head(self.num_features, head_layers, head_width, head_out, head_norm)
        mean, std = (torch.tensor(self.backbone.pretrained_cfg[name]).view(-1, 1, 1) for name in ("mean", "std"))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, F): what evaluation and search use."""
        if images.dtype == torch.uint8:
            images = to_float(images)
        return self.backbone((images - self.mean).div_(self.std))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): what losses see, not normalised. See `encode_in_parts`."""
        if self._parts > 1 and self.training and torch.is_grad_enabled():
            return forward_in_chunks(self._embed, images, self._parts, module=self, norm=self._norm)
        return self._embed(images)

    def encode_in_parts(self, parts: int, norm: Norm = "refuse") -> None:
        """From now on keep the activations of one part of the batch at a time in training; the gradient stays the same.

        Raises:
            UsageError: BatchNorm would make it another gradient, and nothing is said of what to do about that.
        """
        if parts > 1 and norm == "refuse" and batch_norms(self):
            counts = {self.config["backbone"]: len(batch_norms(self.backbone)), "the head": len(batch_norms(self.head))}
            where = " and ".join(f"{name} has {count}" for name, count in counts.items() if count)
            other = ["a backbone without (resnet50_gn, convnext_tiny, any vit)"] * bool(batch_norms(self.backbone))
            other += ["encoder.head_norm=false"] * bool(batch_norms(self.head))
            raise UsageError(
                f"train.micro_batch_size: {where} BatchNorm layers, which would normalise each part by its own statistics, so "
                "the gradient would not be that of the batch. Use their running statistics (train.micro_batch_norm=freeze, "
                "exact, for backbones that are trained already), accept the approximation "
                f"(train.micro_batch_norm=approximate), or take {' and '.join(other)}"
            )
        self._parts, self._norm = parts, norm

    def _embed(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    @torch.no_grad()
    def embed(self, images: Tensor, crop: float = 1.0) -> Tensor:
        """(B, 3, H, W) of any size -> (B, F) of unit length: resized, centre-cropped, encoded in evaluation mode."""
        with eval_mode(self):
            h = self.features(resize_center_crop(images.to(self.mean.device), self.config["size"], crop)).float()
        return nn.functional.normalize(h, dim=1)

    def save(self, folder: str | Path) -> None:
        """Write `encoder.safetensors` and `config.json` into `folder`. The backbone's names are timm's own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = save({name: value.contiguous().cpu() for name, value in self.state_dict().items()})
        (folder / "encoder.safetensors").write_bytes(weights)
        shown = {
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "num_features": self.num_features,
        }
        (folder / "config.json").write_text(json.dumps(self.config | shown, indent=2) + "\n")

    @classmethod
    def from_run(cls, run: str | Path) -> "Encoder":
        """The encoder of a finished run, from the run folder or its `model` folder, in evaluation mode.

        Raises:
            DataError: there is no readable model.
        """
        folder = Path(run) / "model" if (Path(run) / "model").is_dir() else Path(run)
        if not (folder / "encoder.safetensors").is_file():
            raise DataError(f"no model in {run}: it needs model/encoder.safetensors, which a finished run has")
        try:
            config = json.loads((folder / "config.json").read_text())
            encoder = cls(**{name: config[name] for name in _CONFIGURED})
            encoder.load_state_dict(load_file(folder / "encoder.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as cause:
            raise DataError(f"the model in {folder} is damaged: {cause}") from cause
        return encoder.eval()


_CONFIGURED = ("backbone", "size", "stem", "head_layers", "head_width", "head_out", "head_norm", "drop_path")


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every submodule is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def native_size(backbone: str) -> int:
    """The side in pixels that timm's weights of a backbone were trained with.

    Raises:
        UsageError: unknown backbone.
    """
    if not timm.is_model(backbone):
        raise UsageError(_unknown_backbone(backbone))
    return timm.get_pretrained_cfg(backbone).input_size[-1]


def _backbone(name: str, size: int, pretrained: bool, drop_path: float) -> nn.Module:
    if not timm.is_model(name):
        raise UsageError(_unknown_backbone(name))
    architecture, _, tag = name.partition(".")
    if tag and tag not in (tags := _tags(architecture)):
        raise UsageError(
            f"encoder.backbone: {architecture} has no weights called {tag!r}; it has {', '.join(tags) or 'none'}"
        )
    if pretrained:
        _check_reachable(name)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = size
    try:
        made = timm.create_model(name, **options)
    except (OSError, RuntimeError) as cause:
        if pretrained:
            raise EnvironmentProblem(_unfetched(name, _first_line(cause))) from cause
        raise UsageError(f"encoder.backbone: timm cannot build {name} for {size} px: {_first_line(cause)}") from cause
    except (AssertionError, TypeError, ValueError) as cause:
        raise UsageError(f"encoder.backbone: timm cannot build {name} for {size} px: {_first_line(cause)}") from cause
    _refuse_cut_patches(made, name, size)
    return made


def _check_reachable(name: str) -> None:
    """Fail within seconds where the hub would be retried for most of a minute.

    Raises:
        EnvironmentProblem: the weights are not in the cache, and their host does not answer.
    """
    place = timm.get_pretrained_cfg(name).hf_hub_id
    kept = [try_to_load_from_cache(place, file) for file in ("model.safetensors", "pytorch_model.bin")] if place else []
    if not place or hub.HF_HUB_OFFLINE or any(isinstance(path, str) for path in kept):
        return
    try:
        urllib.request.urlopen(hub.ENDPOINT, timeout=4).close()
    except urllib.error.HTTPError:
        return  # it answers, if only to refuse this page
    except (OSError, ValueError) as cause:
        raise EnvironmentProblem(_unfetched(name, f"{hub.ENDPOINT} does not answer: {_first_line(cause)}")) from cause


def _unfetched(name: str, why: str) -> str:
    place = timm.get_pretrained_cfg(name).hf_hub_id
    source = f" ({place}/model.safetensors)" if place else ""
    return (
        f"the pretrained weights of {name} cannot be fetched: {why}. Download them elsewhere{source} and name the file, in a "
        f"recipe by encoder.pretrained=false encoder.weights=FILE, to commands by --weights FILE; or bring the cache: "
        f"{hub.HF_HUB_CACHE}"
    )


def _refuse_cut_patches(backbone: nn.Module, name: str, size: int) -> None:
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if side and size % side:
        low = size // side * side
        nearest = " or ".join(str(fit) for fit in (low, low + side) if fit)
        raise UsageError(f"views.size: {name} has patches of {side} px, and {size} is no multiple; use {nearest}")


def _unknown_backbone(name: str) -> str:
    known = {model.casefold(): model for model in timm.list_models()}
    close = difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(known[match] for match in close)}." if close else ""
    listed = "python -c 'import timm; print(timm.list_models())'"
    return f"encoder.backbone: timm has no model {name!r}.{hint} All {len(known)}: {listed}"


def _tags(architecture: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]


def _width(backbone: nn.Module, size: int, name: str) -> int:
    """Features per image, found by trying: it also shows whether the backbone can take this size at all."""
    training = backbone.training
    try:
        with torch.no_grad():
            made = backbone.eval()(torch.zeros(1, 3, size, size))
    except Exception as cause:
        raise UsageError(
            f"encoder.backbone: {name} cannot take images of {size} px (views.size): {_first_line(cause)}"
        ) from cause
    backbone.train(training)
    if made.ndim != 2:
        raise UsageError(
            f"encoder.backbone: {name} gives features of shape {tuple(made.shape[1:])}, not one vector an image"
        )
    return made.shape[1]


def _small_stem(backbone: nn.Module, name: str) -> str:
    """Replace the first convolution and the pooling behind it; returns the name of the new weight."""
    place = backbone.pretrained_cfg.get("first_conv")
    first = backbone.get_submodule(place) if isinstance(place, str) else None
    if not isinstance(first, nn.Conv2d) or first.stride != (2, 2):
        raise UsageError(
            f"encoder.stem: 'small' is for backbones that start with a convolution of stride 2; {name} does not. "
            "Use encoder.stem=timm, with a small patch size in the name if there is one"
        )
    bias = first.bias is not None
    small = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=bias)
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    if small.weight.shape == first.weight.shape:
        small.load_state_dict(first.state_dict())
    parent, _, child = place.rpartition(".")
    setattr(backbone.get_submodule(parent), child, small)
    for pool in ("maxpool", "features.pool0", "stem.pool", "layer0.pool"):
        holder, _, child = pool.rpartition(".")
        if _has(backbone, pool):
            setattr(backbone.get_submodule(holder), child, nn.Identity())
    return f"{place}.weight"


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _head(width: int, layers: int, hidden: int | None, out: int, norm: bool) -> nn.Module:
    widths = [width, *[hidden or width] * (layers - 1), out] if layers else []
    made: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths)):
        last = number == layers - 1
        made.append(nn.Linear(before, after, bias=last or not norm))
        if not last:
            made += [nn.BatchNorm1d(after), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*made)


def _load_backbone(backbone: nn.Module, path: Path, fresh: str | None) -> None:
    """Load plain weights; the tensor called `fresh` may be of another shape and is then left as it is."""
    if not path.is_file():
        raise DataError(f"there is no file of weights {path}")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as cause:
        # torch's own message advises to allow code to run, which is the one thing not to do with a stranger's file.
        raise DataError(
            f"{path} holds no plain weights ({type(cause).__name__}); what can be read is safetensors, or "
            "a state dict of tensors saved by torch"
        ) from cause
    own = backbone.state_dict()
    state = _matching(state, own)
    if fresh in state and state[fresh].shape != own[fresh].shape:
        warnings.warn(f"the weights were made for another stem; {fresh} starts afresh", stacklevel=3)
        state = state | {fresh: own[fresh]}
    problems = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if problems:
        raise DataError(
            f"the weights in {path} do not fit this backbone: {len(problems)} of {len(own)} tensors are missing or of "
            f"another shape ({', '.join(problems[:3])} ...)"
        )
    backbone.load_state_dict({name: state[name] for name in own})


def _matching(state: Any, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the backbone's names: unwrapped, prefixes removed, or matched in order where shapes agree."""
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        return {}
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("", "module.", "backbone.", "encoder.backbone.", "module.backbone."):
        cut = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if own.keys() <= cut.keys():
            return cut
    # Other projects name the same layers otherwise; tensors that agree in order, kind and shape are taken for the same.
    by_order = list(state.items())[: len(own)]
    if [_kind(*item) for item in by_order] == [_kind(*item) for item in own.items()]:
        warnings.warn(f"{len(own)} tensors under other names were matched by their order and shapes", stacklevel=4)
        return dict(zip(own, (value for _, value in by_order), strict=True))
    return state


def _kind(name: str, value: Tensor) -> tuple[str, torch.Size]:
    return name.rpartition(".")[2], value.shape


def _first_line(cause: BaseException) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
