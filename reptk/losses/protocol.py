"""What a loss has to provide, and what it may provide in addition."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class Loss(Protocol):
    """A loss on embeddings: `loss(z, ids)` returns a scalar that is differentiable with respect to `z`.

    Only the call is required. The other members have the defaults below, which
    `reptk.config.registry.with_defaults(loss, Loss)` gives to a loss that lacks them.

    A recipe may schedule any number among the arguments of a loss: `temperature = {start = 0.2, end = 0.05}`. The loss is
    built with the first value, and before each step training sets the attribute of the argument's name to that of the step.
    So a loss keeps such an argument as a number (`self.temperature = temperature`) and reads it whenever it is called.

    The factory of a loss with learned vectors of each class (proxies, centers) has the parameters `num_classes`, which is C
    of the data set, and `embedding_dim`, which is D; a recipe does not set them. Such a loss needs a method whose positives
    are classes: ids are then labels below C, and negative for rows without a label, which it leaves out.

    Attributes:
        computes_local_rows: True says that the loss draws nothing at random and takes everything it needs of the batch
            from one `reptk.losses.RowStatistics(z, ids)` of all rows in their order. On several ranks, each rank then
            computes the statistics of its own rows alone and the backward pass needs no communication. A loss without
            it is computed in full on every rank, from the gathered rows.
        temperature: the temperature of a softmax over similarities, if the loss has one: a number, a scalar tensor, or
            a callable without arguments that returns one of these, for a temperature that is learned. Training logs it
            and warns where it is too high to tell rows apart.
    """

    computes_local_rows: bool = False
    temperature: float | Tensor | Callable[[], float | Tensor] | None = None

    def __call__(self, z: Tensor, ids: Tensor, /) -> Tensor:
        """Return the loss of a batch.

        Args:
            z: (N, D) embeddings of any scale and floating type; N counts all views of all images on all ranks.
            ids: (N,) integers; rows that share an id are positives of each other.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters with a learning rate or a weight decay of their own, as groups for `torch.optim`.

        A group may set `lr_scale` (a factor on the scheduled learning rate) and `weight_decay`. Parameters in no group are
        trained as the method says; by default these are all.
        """
        return []
