"""DINO: a student predicts the prototypes to which a teacher, its moving average, assigns other views of the image."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from timm.layers import DropPath
from torch import Tensor, nn

from reptk.config.registry import METHODS
from reptk.core.distributed import all_reduce_mean
from reptk.methods.ema import cosine_momentum, momentum_copy, update_momentum_copy
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.prototypes import Prototypes, assignment_entropies, swapped_cross_entropy
from reptk.methods.required_views import require_several_views
from reptk.methods.sinkhorn import sinkhorn
from reptk.methods.view_embeddings import encode_by_size, views_by_size
from reptk.models.encoder import Encoder
from reptk.views import Views

CENTER_MOMENTUM = 0.9
"""As in the code facebookresearch/dino."""


@METHODS.register("dino")
class DINO(Method):
    """Self-distillation with no labels (Caron et al. 2021, arXiv 2104.14294; code facebookresearch/dino).

    With s and t the cosines of the embeddings of student and teacher to their prototypes and c a center, the loss is the
    cross-entropy between softmax((t - c) / teacher_temperature) of one large view and softmax(s / student_temperature) of
    another view of the image, averaged over all such pairs. The teacher sees the large views alone: those of the first size
    that the views have, so that `views.name=multi_crop` gives the paper's multi-crop. Its weights are moving averages of the
    student's, with a momentum that rises to 1 along a cosine, and c is the moving average of t over all images. The teacher
    is evaluated and exported, as in the paper.

    The encoder's projection head is the perceptron before the prototypes. The paper's is `head_layers=3`, `head_width=2048`,
    `head_out=256`, with GELU where ours has ReLU, and with other initial weights. The other settings of the paper are in the
    recipe `dino_folder`: `teacher_temperature={start=0.04, end=0.07, schedule="linear", epochs=30}`, and a weight decay that
    rises from 0.04 to 0.4. Frozen prototypes keep their weights, as there, but get a gradient: it counts in `train.clip_norm`,
    and the optimizer has averages of it when they are trained.

    On several ranks BatchNorm normalizes over the images of a rank alone unless the recipe sets `train.sync_batchnorm`.

    Args:
        encoder: of the student.
        views: at least two views of each image, the large ones first.
        num_prototypes: K, the width of the output. The paper: 65,536 for ImageNet.
        momentum: of the teacher at the start. The paper: 0.996 for batches of 1,024; smaller batches need a higher one.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teacher's softmax, lower than the student's. A warm-up is a schedule of this value.
        centering: "mean": as above; "sinkhorn": assignments by Sinkhorn-Knopp over the large views of all ranks, without a
            center, as in SwAV and DINOv2 (arXiv 2304.07193, section 4).
        frozen_epochs: how long the student's prototypes stay as they are.
    """

    crops_full_images = True
    prototypes_advice = (
        "where all prototypes are used equally, lower method.teacher_temperature, and where a few are, raise "
        "method.frozen_epochs or set method.centering=sinkhorn"
    )

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        num_prototypes: Annotated[int, Ge(2)] = 65536,
        momentum: Annotated[float, Ge(0), Le(1)] = 0.996,
        student_temperature: Annotated[float, Gt(0)] = 0.1,
        teacher_temperature: Annotated[float, Gt(0)] = 0.04,
        centering: Literal["mean", "sinkhorn"] = "mean",
        frozen_epochs: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__()
        require_several_views(views)
        self.student = encoder
        self.prototypes = Prototypes(num_prototypes, encoder.embedding_dim)
        self.encoder = momentum_copy(encoder)
        _remove_stochastic_depth(self.encoder)
        self.teacher_prototypes = momentum_copy(self.prototypes)
        self.views = views
        # Not under the argument's name, which would let it have a schedule on top of the cosine.
        self._momentum = momentum
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.centering = centering
        self._frozen_epochs = frozen_epochs
        self.register_buffer("center", torch.zeros(num_prototypes))

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        views = views_by_size(batch, self.views, step.key)
        self.prototypes.save_if_frozen(step, self._frozen_epochs)
        z = encode_by_size(self.student, views)
        log_probabilities = (self.prototypes(z) / self.student_temperature).log_softmax(dim=1)
        with torch.no_grad():
            teacher_scores = self.teacher_prototypes(self.encoder(views[0]))
            # Stored for `after_step`, which moves the center.
            self._mean_scores = all_reduce_mean(teacher_scores.mean(0))
            assignments = self._assign(teacher_scores)
        num_images = len(batch.index)
        loss = swapped_cross_entropy(
            assignments.unflatten(0, (-1, num_images)), log_probabilities.unflatten(0, (-1, num_images))
        )
        # No "ids": embeddings are compared with prototypes, not with each other.
        return {
            "loss": loss,
            "z": z.detach(),
            "momentum": torch.tensor(cosine_momentum(step, self._momentum)),
            **assignment_entropies(assignments).as_outputs(),
        }

    def after_step(self, step: Step) -> None:
        self.prototypes.restore()
        momentum = cosine_momentum(step, self._momentum)
        update_momentum_copy(self.encoder, self.student, momentum)
        update_momentum_copy(self.teacher_prototypes, self.prototypes, momentum)
        self.center.lerp_(self._mean_scores, 1 - CENTER_MOMENTUM)

    def _assign(self, teacher_scores: Tensor) -> Tensor:
        """Return the assignments (N, K) of large views with these scores, each of which sums to 1."""
        if self.centering == "sinkhorn":
            return sinkhorn(teacher_scores, temperature=self.teacher_temperature)
        return ((teacher_scores - self.center) / self.teacher_temperature).softmax(dim=1)


def _remove_stochastic_depth(encoder: nn.Module) -> None:
    """Let the teacher compute all of its layers in training, too."""
    for module in encoder.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
