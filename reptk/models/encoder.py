"""The encoder: a timm backbone, features(x) -> (B, F), and a projection head, forward(x) -> (B, D)."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from reptk.core.errors import UsageError
from reptk.core.images import resize_to_square, to_float
from reptk.data.decoding.resize import WHOLE_SQUARES, Interpolation, Preprocessing, ResizeMode
from reptk.models.backbone import (
    count_features,
    create_backbone,
    full_name,
    is_external,
    model_args,
    native_size,
    undecayed_parameters,
)
from reptk.models.encoder_keys import ENCODER_KEYS, EncoderKeys
from reptk.models.eval_mode import eval_mode
from reptk.models.freeze import Freeze, batch_norm_modules, frozen_modules, frozen_parameters
from reptk.models.grad_cache import Norm, batch_norm_problem, batch_norms, forward_in_chunks
from reptk.models.grad_checkpointing import enable_grad_checkpointing
from reptk.models.image_inputs import ImageInput, image_tensors
from reptk.models.layer_groups import layer_scales
from reptk.models.lora import add_lora, layers_not_called, merged_state_dict
from reptk.models.model_folder import read_config
from reptk.models.preprocessing import recorded_preprocessing
from reptk.models.projection import projection_head
from reptk.models.saved_model import load_model, save_model
from reptk.models.stem import use_small_stem
from reptk.models.timm_config import timm_config
from reptk.models.weight_source import LOCAL_FOLDER
from reptk.models.weights import load_weights

__all__ = ["Encoder", "eval_mode", "native_size", "unfrozen_batch_norms"]

STEMS = ("timm", "small")

MAX_LISTED_IMAGES = 128
"""Images of a list that are encoded at once."""


class Encoder(nn.Module):
    """Images to features and embeddings.

    Images are uint8, or floats in 0..1; they are normalized as the backbone expects it. In the state dict, names that
    begin with `backbone.` are timm's.

    Args:
        backbone: name of a timm model, with or without a tag (`"vit_tiny_patch16_224"`, `"resnet50.a1_in1k"`); or
            `hf-hub:REPOSITORY` or `local-dir:FOLDER` of a timm model saved by `timm.models.save_for_hf`.
        size: side of the images in pixels; vision transformers are built for it.
        other_sizes: sides of further images to encode in training, e.g. of small crops. Vision transformers interpolate their
            position embeddings for them. Weights do not depend on it, and so it is not in `config`.
        pretrained: load timm's weights for that name (downloaded on first use).
        weights: the backbone's weights to load instead: a checkpoint of any project, the folder of a model or a run,
            `hf-hub:NAME` or `timm/NAME`, each with `:PART` if it holds several encoders; see `load_weights`.
        stem: "small" replaces the first convolution by one of 3 x 3 with stride 1 and padding 1 and removes the pooling
            after it, as is usual for images of 28 to 64 px. This convolution keeps its initial weights if the file of
            weights has another shape for it.
        head_layers: linear layers of the projection head; 0 for none: the embeddings are the features.
        head_width: width of its hidden layers; None for the width of the features, F.
        head_out: D, the width of its last layer.
        head_norm: BatchNorm after every layer of the head except the last.
        drop_path: stochastic depth of the backbone.
        keys: what these arguments are called in messages.

    Attributes:
        config: all arguments except `pretrained`, `weights`, `other_sizes` and `keys`; `Encoder(**config)` has the same
            architecture.
        backbone, head: the two modules.
        num_features: F.
        preprocessing: of the images in evaluation, of an encoder that was saved with it; None if it is not known.
        weights_license: of the pretrained weights of timm that it started from; None if there are none, or none is known.
        mean, std: (3, 1, 1), which the images are normalized with.
        num_chunks: into how many chunks `forward` divides a batch in training; see `encode_in_chunks`.

    Raises:
        UsageError: an unknown backbone (with the nearest names), or one that does not support this size, stem or option.
        EnvironmentProblem: the pretrained weights cannot be downloaded.
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
        other_sizes: Sequence[int] = (),
        keys: EncoderKeys = ENCODER_KEYS,
    ) -> None:
        super().__init__()
        backbone = full_name(backbone)
        if stem not in STEMS:
            raise UsageError(f"encoder.stem must be 'timm' or 'small', got {stem!r}")
        if pretrained and weights is not None:
            raise UsageError(
                "pretrained weights are timm's, and others are read from a file of weights; set only one of the two"
            )
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
        self.preprocessing: Preprocessing | None = None
        self.weights_license: str | None = None
        self.num_chunks = 1
        self._chunk_norm: Norm = "refuse"
        self._first_pass = nullcontext
        self._frozen_parameters: list[str] = []
        self._frozen_modules: list[str] = []

        # The order of these steps determines the initial weights under a seed.
        self.backbone = create_backbone(
            backbone, size=size, pretrained=pretrained, drop_path=drop_path, other_sizes=other_sizes, keys=keys
        )
        self._model_args = model_args(backbone, size)
        if pretrained:
            self.weights_license = self.backbone.pretrained_cfg.get("license")
        new_weight = None
        if stem == "small":
            new_weight = use_small_stem(self.backbone, backbone)
        if weights is not None:
            load_weights(self.backbone, weights, new_weight, keys)
        self.num_features = count_features(self.backbone, size, backbone, keys)
        self.head = projection_head(
            self.num_features, layers=head_layers, width=head_width, out_features=head_out, norm=head_norm
        )
        # Not in the state dict: they are part of the backbone's configuration.
        for name in ("mean", "std"):
            channels = torch.tensor(self.backbone.pretrained_cfg[name])
            self.register_buffer(name, channels.view(-1, 1, 1), persistent=False)

    @property
    def embedding_dim(self) -> int:
        """D, the width of `forward`'s result."""
        if self.config["head_layers"] == 0:
            return self.num_features
        return self.config["head_out"]

    @property
    def border_color(self) -> tuple[int, int, int]:
        """Color in 0..255 of the border of images that are padded: the mean, which is normalized to 0, as in timm."""
        red, green, blue = (255 * self.mean).round().int().flatten().tolist()
        return red, green, blue

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Return the parameters, besides norms and biases, that get no weight decay: timm's list for the backbone."""
        return undecayed_parameters(self.backbone)

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's features (B, F) of images (B, 3, H, W), which evaluation and search use."""
        if images.dtype == torch.uint8:
            images = to_float(images)
        with self._first_pass():
            # The difference is a new tensor, so it may be divided in place.
            return self.backbone((images - self.mean).div_(self.std))

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W), which losses compare; they are not normalized."""
        if self.num_chunks > 1 and self.training and torch.is_grad_enabled():
            return forward_in_chunks(self._embeddings, images, self.num_chunks, module=self, norm=self._chunk_norm)
        return self._embeddings(images)

    def encode_in_chunks(self, chunks: int, norm: Norm = "refuse") -> None:
        """From now on, store the activations of one chunk of the batch at a time in training.

        The gradient is that of the whole batch; see `grad_cache`.

        Args:
            chunks: how many chunks; 1 to encode the whole batch at once.
            norm: what to do with BatchNorm layers.

        Raises:
            UsageError: there are BatchNorm layers, which would change the gradient, and `norm` is "refuse".
        """
        if chunks > 1 and norm == "refuse" and unfrozen_batch_norms(self):
            num_head = len(batch_norms(self.head))
            num_backbone = len(unfrozen_batch_norms(self)) - num_head
            raise UsageError(batch_norm_problem(self.config["backbone"], num_backbone, num_head))
        self.num_chunks = chunks
        self._chunk_norm = norm

    def freeze(self, layers: Freeze, *, batch_norm: bool = False) -> None:
        """Stop training parts of the backbone. In training mode they compute what they compute in evaluation mode.

        Args:
            layers: "none", "stem", a number n for the stem and the first n stages or blocks (as timm groups them), or "all".
                Their parameters get no gradient, BatchNorm in them uses its running statistics, which stay as they are, and
                there is no dropout or stochastic depth.
            batch_norm: freeze the BatchNorm layers of the whole backbone: running statistics, which stay as they are, and
                fixed weights and biases, as `FrozenBatchNorm2d` of timm, torchvision and detectron2.

        Raises:
            UsageError: the backbone has fewer stages or blocks, or timm does not define them; or it has no BatchNorm.
        """
        self._frozen_parameters = frozen_parameters(self.backbone, layers)
        self._frozen_modules = frozen_modules(self.backbone, self._frozen_parameters)
        if batch_norm:
            self._freeze_batch_norms()
        for name in self._frozen_parameters:
            self.backbone.get_parameter(name).requires_grad_(False)
        self.train(self.training)

    def add_lora(self, layers: Sequence[str], *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        """Train low-rank updates of linear layers instead of the backbone's weights; see `reptk.models.lora`.

        `save` adds the updates to the weights, so that the model is a plain backbone. Call `freeze` before, if at all: layers
        that are frozen get no update. BatchNorm layers of the backbone are frozen.

        Args:
            layers: names of the layers without the path before them, e.g. "qkv".
            rank: of the updates.
            alpha: the updates are multiplied by alpha / rank.
            dropout: of the updates' input in training.

        Raises:
            UsageError: the backbone has no such linear layers, or uses their weights without calling them.
        """
        frozen = self._frozen_parameters
        paths = add_lora(self.backbone, layers, rank=rank, alpha=alpha, dropout=dropout, frozen=frozen)
        size = self.config["size"]
        with eval_mode(self.backbone):
            not_called = layers_not_called(self.backbone, torch.zeros(1, 3, size, size), paths)
        if not_called:
            raise UsageError(
                f"encoder.lora_layers: {self.config['backbone']} uses the weights of {not_called[0]} without calling it, so "
                "LoRA would have no effect there; leave it out of encoder.lora_layers, or use another encoder.backbone"
            )
        if batch_norms(self.backbone):
            self._freeze_batch_norms()
        self.train(self.training)

    def checkpoint_activations(self) -> None:
        """From now on, compute activations inside of the backbone's blocks again in the backward pass (timm's checkpointing).

        It costs a second forward pass and changes no gradient. Call it last: it applies to the layers as they are now.

        Raises:
            UsageError: timm does not support it for this backbone.
        """
        self._first_pass = enable_grad_checkpointing(self.backbone)

    def layer_scales(self, decay: float) -> list[tuple[nn.Parameter, float]]:
        """Return the backbone's parameters with their factors on the learning rate; see `reptk.models.layer_groups`.

        Args:
            decay: of the learning rate from each layer to the one below.

        Raises:
            UsageError: timm does not define the layers of this backbone.
        """
        scales = layer_scales(self.backbone, decay, "optim.layer_decay")
        return [(parameter, scales[name]) for name, parameter in self.backbone.named_parameters()]

    @property
    def is_backbone_frozen(self) -> bool:
        """Whether no parameter of the backbone is trained, so that `features` stays the same."""
        names = {name for name, _ in self.backbone.named_parameters()}
        return names <= set(self._frozen_parameters)

    def frozen_modules(self) -> list[nn.Module]:
        """Return the modules that stay in evaluation mode, with all that is in them."""
        modules: list[nn.Module] = []
        for path in self._frozen_modules:
            modules += self.backbone.get_submodule(path).modules()
        return modules

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode of all modules, except for those that are frozen, which stay in evaluation mode."""
        super().train(mode)
        for path in self._frozen_modules:
            self.backbone.get_submodule(path).eval()
        return self

    @torch.no_grad()
    def embed(
        self,
        images: ImageInput | Sequence[ImageInput],
        crop: float = 1.0,
        resize: ResizeMode = "crop",
        interpolation: Interpolation = "bilinear",
    ) -> Tensor:
        """Return the normalized features (B, F) of images of any size; rows of NaN where the features are not finite.

        The images are resized, cropped and encoded in evaluation mode. Afterwards all modules are in their former modes.

        Args:
            images: a batch (B, 3, H, W), uint8 or floats in 0..1; or paths, PIL images, arrays, see `image_tensors`.
            crop: share of the side that is retained; `reptk.models.preprocessing.preprocessing_of(backbone)` is what timm uses.
            resize: what becomes of an image that is not square: its center square, the whole with a border, or squashed.
            interpolation: of the resize.

        Raises:
            DataError: a file that cannot be read as an image.
            ValueError, TypeError: something that is no image, or values outside of the range.
        """
        if not 0 < crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, got {crop}")
        size = self.config["size"]
        encoded = []
        with eval_mode(self):
            # Unreduced, so that a file gives what the same image gives once it is opened.
            preprocessing = Preprocessing(crop, resize, interpolation, reduce_jpeg=False)
            square = preprocessing.square_options(size, self.border_color)
            # A long list of files may not fit into memory at once.
            prepared: list[Tensor] = []
            for batch in image_tensors(images, preprocessing.decode_px(size), square):
                batch = batch.to(self.mean.device)
                prepared.append(resize_to_square(batch, size, crop, resize, interpolation, self.border_color))
                if len(prepared) == MAX_LISTED_IMAGES:
                    encoded.append(self.features(torch.cat(prepared)))
                    prepared = []
            if prepared:
                encoded.append(self.features(torch.cat(prepared)))
        # Under autocast, features may be in half precision; the result is float32 in any case.
        h = torch.cat(encoded).float()
        # Features whose length overflows would become zeros, as if they were valid.
        has_length = h.norm(dim=1, keepdim=True).isfinite()
        return torch.where(has_length, nn.functional.normalize(h, dim=1), torch.nan)

    def __repr__(self) -> str:
        num_weights = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"Encoder({self.config['backbone']}, {self.config['size']} px, {self.num_features} features, "
            f"{num_weights / 1e6:.1f} M weights)"
        )

    def remove_head(self) -> None:
        """Remove the projection head, for a method that trains on the features alone: embeddings are then the features.

        The weights of the backbone stay as they are.
        """
        self.head = nn.Sequential()
        self.config["head_layers"] = 0

    def save(
        self, folder: str | Path, classifier: bytes | None = None, preprocessing: Preprocessing | None = None
    ) -> None:
        """Write a folder with the weights, `config.json` and their hashes, in place of an earlier model's.

        `timm.create_model("local-dir:FOLDER", pretrained=True)` opens the backbone, unless `stem` is "small", of which timm
        gives the reason. Updates by LoRA are added to the weights.
        At every moment there is either the earlier model or the new one, complete, even if the process is killed.

        Args:
            folder: the folder. Those above it are created.
            classifier: `classifier_bytes` of a classifier of the features, which is saved with the encoder; None for none.
            preprocessing: of the images in evaluation, for other programs; None for that which the encoder was saved with,
                or whole squares, as `embed` takes them.

        Raises:
            UsageError: the folder exists and holds other files, which would be lost.
            EnvironmentProblem: it cannot be written.
            NumericalError: weights or running statistics hold NaN or infinity; nothing is written.
        """
        if preprocessing is None:
            preprocessing = self.preprocessing or WHOLE_SQUARES
        config = timm_config(
            self.backbone,
            model_args=self._model_args,
            size=self.config["size"],
            num_features=self.num_features,
            preprocessing=preprocessing,
            license=self.weights_license,
            table={**self.config, "preprocessing": preprocessing._asdict(), "license": self.weights_license},
        )
        save_model(folder, merged_state_dict(self), config, classifier)

    @classmethod
    def from_run(cls, run: str | Path) -> "Encoder":
        """Load the encoder of a finished run, in evaluation mode.

        Args:
            run: the run's folder, or the `model` folder in it.

        Raises:
            DataError: there is no model, or it is damaged.
        """
        return load_model(run, cls._from_folder).eval()

    @classmethod
    def _from_folder(cls, folder: Path) -> "Encoder":
        """Return an encoder of the architecture that `config.json` of a model describes."""
        config = read_config(folder)
        backbone = config["backbone"]
        if is_external(backbone) and "preprocessing" in config and config["stem"] == "timm":
            # The folder describes the model itself, and the original may be gone.
            backbone = f"{LOCAL_FOLDER}{folder}"
        encoder = cls(
            backbone,
            size=config["size"],
            stem=config["stem"],
            head_layers=config["head_layers"],
            head_width=config["head_width"],
            head_out=config["head_out"],
            head_norm=config["head_norm"],
            drop_path=config["drop_path"],
        )
        encoder.config["backbone"] = config["backbone"]
        if "preprocessing" in config:
            encoder.preprocessing = recorded_preprocessing(config["preprocessing"])
            encoder.weights_license = config["license"]
        return encoder

    def _embeddings(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def _freeze_batch_norms(self) -> None:
        paths = batch_norm_modules(self.backbone)
        if not paths:
            raise UsageError(
                f"encoder.freeze_batchnorm: {self.config['backbone']} has no BatchNorm layers; leave the key out"
            )
        for path in paths:
            layer = self.backbone.get_submodule(path)
            names = [f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False)]
            self._frozen_parameters += names
            self._frozen_modules.append(path)
            for name in names:
                self.backbone.get_parameter(name).requires_grad_(False)


def unfrozen_batch_norms(module: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm layers of a module that normalize by the statistics of a batch in training."""
    frozen: set[nn.Module] = set()
    for encoder in module.modules():
        if isinstance(encoder, Encoder):
            frozen.update(encoder.frozen_modules())
    return [layer for layer in batch_norms(module) if layer not in frozen]
