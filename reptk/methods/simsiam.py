"""SimSiam: the embedding of one view predicts that of the other, without negatives and without a momentum encoder.

python -m reptk.recipe simsiam_photos
"""

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from reptk.config.registry import METHODS
from reptk.methods.numerics import row_cosines
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.required_views import require_two_views
from reptk.models.encoder import Encoder
from reptk.models.mlp import final_batch_norm, mlp
from reptk.views import Views


@METHODS.register("simsiam")
class SimSiam(Method):
    """Exploring simple siamese representation learning (Chen and He 2021, arXiv 2011.10566, equation 2 and algorithm 1).

    With embeddings z_1, z_2 of two views and p_i = predictor(z_i), the loss is

        L = -1/2 cos(p_1, z_2) - 1/2 cos(p_2, z_1)

    averaged over the images, where z gets no gradient. It is between -1 and 1. The projection head is the encoder's; the
    paper's is `head_layers=3`, `head_width=2048`, `head_out=2048`, `head_norm=true` (for CIFAR-10: two layers). BatchNorm after
    its last layer is the method's (`projector_norm`), and has no weights, as in the published code.

    The standard deviation of unit embeddings that the paper watches for collapse (its figure 2) is `std` in metrics.jsonl,
    times the square root of their width: 1 for embeddings that are spread evenly, 0 for collapse.

    On several ranks each computes the loss of its own images; BatchNorm normalizes over them alone unless the recipe sets
    `train.sync_batchnorm`, as the published code does.

    Args:
        encoder: images to embeddings.
        views: two views of each image.
        predictor_width: hidden width of the predictor; the paper's is a quarter of the embeddings'.
        projector_norm: BatchNorm on the embeddings, before the predictor.
        predictor_norm: BatchNorm in the predictor, as in the paper.
        constant_predictor_lr: train the predictor with `optim.lr` in every step, as `--fix-pred-lr` of the published code
            (facebookresearch/simsiam) and the paper's experiments after its table 1. By default it follows the schedule of all
            others, as in the baseline of that table.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        predictor_width: Annotated[int, Ge(1)] = 512,
        projector_norm: bool = True,
        predictor_norm: bool = True,
        constant_predictor_lr: bool = False,
    ) -> None:
        super().__init__()
        require_two_views(views)
        self.encoder = encoder
        self.views = views
        width = encoder.embedding_dim
        self.projector_norm = nn.Identity()
        if projector_norm:
            self.projector_norm = final_batch_norm(width)
        self.predictor = mlp((width, predictor_width, width), norm=predictor_norm)
        self._constant_predictor_lr = constant_predictor_lr

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        first, second = batch.draw_views(self.views, step.key)
        # One view after the other, as in the published code: BatchNorm normalizes each view alone.
        z_first = self.projector_norm(self.encoder(first))
        z_second = self.projector_norm(self.encoder(second))
        p_first, p_second = self.predictor(z_first), self.predictor(z_second)
        loss = negative_cosine(p_first, z_second) / 2 + negative_cosine(p_second, z_first) / 2
        z = torch.cat([z_first, z_second]).detach()
        return {"loss": loss, "z": z, "ids": batch.index.repeat(2)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        if not self._constant_predictor_lr:
            return super().parameter_groups()
        encoder_parameters = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        predictor = {"params": list(self.predictor.parameters()), "constant_lr": True}
        return [{"params": encoder_parameters}, predictor]


def negative_cosine(prediction: Tensor, z: Tensor) -> Tensor:
    """Return the mean over rows (B, D) of -cos(prediction, z), in float32 or wider; z gets no gradient."""
    return -row_cosines(prediction, z.detach()).mean()
