"""Cross-batch memory: the embeddings of a batch are also compared with those of earlier batches.

python -m reptk.recipe xbm_photos
"""

from typing import Annotated

from annotated_types import Ge, Lt
from torch import Tensor, nn

from reptk.config.registry import METHODS, with_defaults
from reptk.losses import Loss, normalize
from reptk.methods.contrastive import Positives, contrastive_outputs, positive_ids
from reptk.methods.loss_keys import check_takes_keys
from reptk.methods.protocol import Batch, Method, Step
from reptk.methods.queue import Queue
from reptk.methods.view_embeddings import encode_views
from reptk.models.encoder import Encoder
from reptk.views import Views


@METHODS.register("xbm")
class XBM(Method):
    """A contrastive loss with a cross-batch memory (Wang et al. 2020, arXiv 1912.06798).

    The memory holds the last embeddings of the encoder itself, without a gradient: they drift slowly, once the first steps
    are over. The loss is loss(z, ids, keys, key_ids) with the batch as anchors, which are compared with each other and with
    the memory. The authors' code adds a second loss of the batch alone and puts the batch into the memory first; here each
    other row counts once. An embedding of the same image from an earlier epoch is a row like the others.

    Args:
        encoder: images to embeddings.
        views: (images, key) -> (V, B, 3, h, w), or a list of such tensors of several sizes.
        loss: one that takes keys: `supcon`, `tcl`, `simclr`, `siglip`, `smooth_ap`.
        memory_size: rows in the memory, of the views of all ranks. The paper's best is about the size of the data set.
        start: share of the run after which the memory is used; until then it is filled alone. The authors' sample
            configuration fills and uses the memory after 1,000 steps, the default of their code after 2,000.
        positives: "class": all views of one class are positives, and an image without a label (-1) has only its own;
            "instance": the views of one image are.
    """

    crops_full_images = True

    def __init__(
        self,
        encoder: Encoder,
        views: Views,
        loss: nn.Module,
        memory_size: Annotated[int, Ge(1)] = 8192,
        start: Annotated[float, Ge(0), Lt(1)] = 0.0,
        positives: Positives = "class",
    ) -> None:
        super().__init__()
        check_takes_keys(loss)
        self.encoder = encoder
        self.views = views
        self.loss = with_defaults(loss, Loss)
        # Not under the argument's name, which would let it have a schedule.
        self._start = start
        self.positives = positives
        self.memory = Queue(memory_size, encoder.embedding_dim)

    def forward(self, batch: Batch, step: Step) -> dict[str, Tensor]:
        z = encode_views(self.encoder, batch, self.views, step.key)
        keys, key_ids = None, None
        if step.progress >= self._start:
            keys, key_ids = self.memory.used()
        outputs = contrastive_outputs(self.loss, z, positive_ids(batch, self.positives), keys=keys, key_ids=key_ids)
        # Stored for `after_step`, which puts them into the memory.
        self._new_rows, self._new_ids = normalize(outputs["z"]), outputs["ids"]
        return outputs

    def after_step(self, step: Step) -> None:
        self.memory.push(step, self._new_rows, self._new_ids)
