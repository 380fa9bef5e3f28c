"""Feature distillation: a student is trained to have the features of a frozen teacher, without labels."""

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional

from reptk.config.registry import METHODS
from reptk.core.counts import format_bytes, format_count
from reptk.core.distributed import all_gather
from reptk.methods.feature_cache import FeatureCache
from reptk.methods.numerics import in_float32_or_wider, row_cosines
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.queue import Queue
from reptk.methods.similarity_loss import for_each_view, similarity_loss
from reptk.methods.view_embeddings import encode_by_size, views_by_size
from reptk.models.encoder import Encoder
from reptk.models.teacher import AUTO_WEIGHTS, build_teacher
from reptk.views import Views, center_squares

Size = Annotated[int, Ge(1)]
Temperature = Annotated[float, Gt(0)]

HASH_BUFFER = "teacher_sha256"

VARIANCE_EPSILON = 1e-12
"""Epsilon of the layer norm: added to the variance of an image's features."""


@METHODS.register("distill")
class Distill(Method):
    """Distillation of the features of a frozen teacher into the encoder and a linear projector to the teacher's width.

    `objective` says what the student has to reproduce:

    - "similarities": how similar the image is to those of the batch and of a queue, as a softmax over them
      (`similarity_loss`). SEED, Fang et al. 2021, arXiv 2101.04731; code jacobswan1/SEED. There they are the image itself and
      the queue with its random initial rows, which are left out here, and the student has a perceptron of two layers in place
      of the projector.
    - "cosine": the direction of the teacher's features: 1 - cos.
    - "smooth_l1": the teacher's features, standardized for each image since their scale is that of the teacher: smooth L1.

    The teacher has the normalization and image size of its training, is in evaluation mode and gets no gradient. Neither
    checkpoints nor `model/` hold it. It is read again when a run is resumed, and must have the same weights: a checkpoint
    holds their hash. The encoder's head is removed, as in `Classify`: features are trained, and the projector is not exported.

    Args:
        encoder: the student, images to features.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        teacher: a timm model (`"vit_small_patch14_dinov2.lvd142m"`), `hf-hub:NAME`, `local-dir:FOLDER`, or the folder of a run.
        teacher_weights: as `encoder.weights`; "auto": those of timm under that name, or of the run.
        teacher_size: side in pixels of the images that it encodes; unset: that of its training.
        teacher_sees: "image": the image without augmentation (of one that is not square, the center), once in a run: the
            features are stored in float16. "view": each view that the student sees, in every step.
        objective: see above.
        queue_size: K, for "similarities"; 65,536 in the code of SEED.
        temperature: of the student's similarities; 0.2 in the code of SEED.
        teacher_temperature: of the teacher's similarities; 1e-4 in the code of SEED, where nearly all weight is on the most
            similar row.

    Raises:
        UsageError, DataError, EnvironmentProblem: see `build_teacher`.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        teacher: str,
        teacher_weights: str = AUTO_WEIGHTS,
        teacher_size: Size | None = None,
        teacher_sees: Literal["image", "view"] = "image",
        objective: Literal["similarities", "cosine", "smooth_l1"] = "similarities",
        queue_size: Size = 4096,
        temperature: Temperature = 0.07,
        teacher_temperature: Temperature = 0.07,
    ) -> None:
        super().__init__()
        encoder.remove_head()
        self.encoder = encoder
        self.views = views
        self.objective = objective
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.teacher = build_teacher(teacher, weights=teacher_weights, size=teacher_size)
        self.cache = None
        if teacher_sees == "image":
            self.cache = FeatureCache(self.teacher.num_features)
        self.projector = nn.Linear(encoder.num_features, self.teacher.num_features)
        self.queue = None
        if objective == "similarities":
            self.queue = Queue(queue_size, self.teacher.num_features)
        self.register_buffer(HASH_BUFFER, self.teacher.sha256.clone())
        self.register_load_state_dict_pre_hook(_check_same_teacher)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        views = views_by_size(batch, self.views, step.key)
        targets = self._targets(batch, views)
        z = encode_by_size(self._embeddings, views)
        with torch.autocast(z.device.type, enabled=False):
            z = in_float32_or_wider(z)
            targets = targets.to(z.dtype)
            loss = self._loss(z, targets, batch.index)
            cosine = row_cosines(z.detach(), for_each_view(targets, len(z))).mean()
        # No "ids": the loss compares no two embeddings of the student.
        return {"loss": loss, "z": z.detach(), "teacher_cosine": cosine}

    def after_step(self, step: Step) -> None:
        if self.queue is not None:
            self.queue.push(step, self._new_rows, self._new_ids)

    def describe(self, num_images: int) -> list[tuple[str, str, str]]:
        sees = "every view"
        if self.cache is not None:
            memory = format_bytes(self.cache.num_bytes(num_images))
            sees = f"{format_count(num_images, 'image')} once, whose features take {memory}"
        return [("teacher", self.teacher.name, f"{self.teacher.describe()}, frozen; sees {sees}")]

    def _embeddings(self, views: Tensor) -> Tensor:
        """Return the student's embeddings (N, D) of views, D being the width of the teacher's features."""
        return self.projector(self.encoder(views))

    def _targets(self, batch: Batch, views: list[Tensor]) -> Tensor:
        """Return what the student has to reproduce, in float32: (B, D) of the images, or (V * B, D) of all views."""
        if self.cache is None:
            return encode_by_size(self._prepared, views)

        def compute(positions: Tensor) -> Tensor:
            images = batch.images[positions]
            if batch.aspect_ratios is not None:
                images = center_squares(images, batch.aspect_ratios[positions])
            return self._prepared(images)

        return self.cache.get(batch.index, compute)

    def _prepared(self, images: Tensor) -> Tensor:
        """Return the teacher's features of images, (N, D), of unit length or standardized."""
        features = self.teacher.features(images)
        if self.objective == "smooth_l1":
            # Without a notable epsilon: the features of some teachers are small.
            return functional.layer_norm(features, features.shape[1:], eps=VARIANCE_EPSILON)
        return functional.normalize(features, dim=1)

    def _loss(self, z: Tensor, targets: Tensor, index: Tensor) -> Tensor:
        """Return the mean over the embeddings of this rank.

        Args:
            z: (V * B, D) embeddings.
            targets: see `_targets`.
            index: (B,) numbers of the images.
        """
        if self.queue is None:
            targets = for_each_view(targets, len(z))
            if self.objective == "cosine":
                return (1 - row_cosines(z, targets)).mean()
            return functional.smooth_l1_loss(z, targets)
        # Those of all ranks, so that every image is compared with the same ones as in a single process.
        self._new_rows = all_gather(targets)
        self._new_ids = all_gather(index.repeat(len(targets) // len(index)))
        if self.cache is not None:
            self.cache.put(self._new_ids, self._new_rows)
        queued_rows, _ = self.queue.used()
        return similarity_loss(
            functional.normalize(z, dim=1),
            targets,
            torch.cat([self._new_rows, queued_rows.to(z.dtype)]),
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )


def _check_same_teacher(module: Distill, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse the state of a method with another teacher, before anything of it is loaded."""
    sha256 = state.get(f"{prefix}{HASH_BUFFER}")
    if isinstance(sha256, Tensor):
        module.teacher.check_same_weights(sha256)
