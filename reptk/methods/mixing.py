"""mixup and cutmix by timm, with randomness that is a function of the step, and the same for any number of ranks."""

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from reptk.core import rng
from reptk.core.errors import UsageError
from reptk.methods.cross_entropy import NO_LABEL


class Mixing:
    """Mixes each image of a batch with its neighbor: the first with the second, the third with the fourth, ...

    As in timm's script, a batch has one weight, drawn from a beta distribution, or one box; where mixup and cutmix are both
    on, a batch gets either with probability 1/2. timm mixes the first image of a rank with its last; here pairs are neighbors,
    so that they do not depend on how the global batch is divided among the ranks. An image without a label, and its
    neighbor, are not mixed.

    Sources: mixup, Zhang et al. 2018, arXiv 1710.09412; CutMix, Yun et al. 2019, arXiv 1905.04899; code timm.data.Mixup.

    Args:
        num_classes: C.
        mixup: alpha of mixup's beta distribution; 0 for no mixup.
        cutmix: alpha of cutmix's; 0 for no cutmix.
    """

    def __init__(self, num_classes: int, *, mixup: float, cutmix: float) -> None:
        self.num_classes = num_classes
        self._mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, num_classes=num_classes)

    def __call__(
        self, images: Tensor, labels: Tensor, key: int, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed images, in another order, their targets (N, C), and whether each has one, (N,).

        Args:
            images: (N, 3, h, w), view by view, of an even number of images.
            labels: (N,) -1 for none.
            key: of what is drawn.
            label_smoothing: of this step, since it may follow a schedule; see `cross_entropy_outputs`.

        Raises:
            UsageError: the number of images is odd.
        """
        # timm's partner of row i is row N - 1 - i.
        first_of_pair = torch.arange(0, len(images), 2, device=images.device)
        order = torch.cat([first_of_pair, first_of_pair.flip(0) + 1])
        images, labels = images[order], labels[order]
        is_labeled = labels != NO_LABEL
        is_mixed = is_labeled & is_labeled.flip(0)
        # The targets of images without a label are not used, and have to be those of some class.
        labels = labels.clamp_min(0)
        self._mix.label_smoothing = label_smoothing
        with rng.seeded_numpy(key, "mixing"):
            mixed, mixed_targets = self._mix(images.clone(), labels)
        targets = mixup_target(labels, self.num_classes, smoothing=label_smoothing)
        images = torch.where(is_mixed[:, None, None, None], mixed, images)
        targets = torch.where(is_mixed[:, None], mixed_targets, targets)
        return images, targets, is_labeled


def check_pairs(batch_size: int) -> None:
    """Check that the images of a rank's batch can be paired.

    Raises:
        UsageError: their number is odd.
    """
    if batch_size % 2:
        raise UsageError(
            f"mixup and cutmix pair the images of a batch, and this rank has {batch_size}: train.batch_size must be an even "
            "multiple of the number of ranks"
        )
