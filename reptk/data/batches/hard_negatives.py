"""Batches of P x K images whose classes are confused with each other: mined neighbors with another label come together."""

import torch
from torch import Tensor

NO_NEIGHBOR = -1


class HardNegatives:
    """The nearest images with another label of every training image, which were mined during training.

    They are the only state of a sampler: a checkpoint holds them, so that the order of a resumed run is the same.

    Args:
        num_images: n, of the training split.
        per_image: M, neighbors of each image at most.
    """

    def __init__(self, num_images: int, per_image: int) -> None:
        self.num_images = num_images
        self.per_image = per_image
        self.neighbors: Tensor | None = None
        """(n, M) int32 numbers of images, the nearest first, then `NO_NEIGHBOR`; None before the first mining."""

    def set(self, neighbors: Tensor) -> None:
        """Set the neighbors (n, M).

        Raises:
            ValueError: another shape or type, or numbers of no images.
        """
        if neighbors.shape != (self.num_images, self.per_image) or neighbors.dtype != torch.int32:
            raise ValueError(
                f"hard negatives of {self.num_images} images are ({self.num_images}, {self.per_image}) int32, not "
                f"{tuple(neighbors.shape)} {neighbors.dtype}"
            )
        if int(neighbors.min()) < NO_NEIGHBOR or int(neighbors.max()) >= self.num_images:
            raise ValueError(f"hard negatives name images that are not among the {self.num_images}")
        self.neighbors = neighbors

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: nothing before the first mining."""
        if self.neighbors is None:
            return {}
        return {"neighbors": self.neighbors}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a `state_dict`.

        Raises:
            ValueError: it does not fit.
        """
        self.neighbors = None
        if "neighbors" in state:
            self.set(state["neighbors"])


class ClassMembers:
    """The images of each class that a sampler draws from, as positions: those of a class are a range.

    Args:
        members: (m,) numbers of images, sorted by class.
        starts, sizes: (C,) of each class.
        num_images: n.
    """

    def __init__(self, members: Tensor, starts: Tensor, sizes: Tensor, num_images: int) -> None:
        self.members = members
        self.starts = starts.tolist()
        self.sizes = sizes.tolist()
        # Of an image that is not drawn from, e.g. one without a label: no position, and no class.
        self.position_of_image = torch.full((num_images,), -1)
        self.position_of_image[members] = torch.arange(len(members))
        self.class_of_position = torch.repeat_interleave(torch.arange(len(sizes)), sizes)

    def draw_with(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` different positions of one class (count,), of which the first is `position`."""
        number = int(self.class_of_position[position])
        start = self.starts[number]
        order = start + torch.randperm(self.sizes[number], generator=generator)
        return torch.cat([torch.tensor([position]), order[order != position][: count - 1]])


def confuse_classes(positions: Tensor, members: ClassMembers, neighbors: Tensor, generator: torch.Generator) -> Tensor:
    """Return batches in which every second class is that of a hard negative of the class before.

    Of the K images of a class, in their random order, the first is taken that has a mined neighbor of a class that is not in
    the batch yet; the nearest such neighbor and K - 1 random images of its class replace the next class. Where no
    image has one, the class that was drawn remains.

    Args:
        positions: (steps, P, K) of random classes, different ones in a batch.
        members: of the sampler.
        neighbors: (n, M), see `HardNegatives`.
        generator: of the further images.
    """
    positions = positions.clone()
    num_classes, images_per_class = positions.shape[1:]
    has_neighbor = neighbors[:, 0] != NO_NEIGHBOR
    for batch in positions:
        classes = members.class_of_position[batch[:, 0]].tolist()
        for index in range(0, num_classes - 1, 2):
            others = {*classes[: index + 1], *classes[index + 2 :]}
            images = members.members[batch[index]]
            hard = _nearest_of_another_class(neighbors[images[has_neighbor[images]]], members, others)
            if hard is None:
                continue
            batch[index + 1] = members.draw_with(hard, images_per_class, generator)
            classes[index + 1] = int(members.class_of_position[hard])
    return positions


def _nearest_of_another_class(neighbors: Tensor, members: ClassMembers, excluded: set[int]) -> int | None:
    """Return the position of the first neighbor (rows in their order) whose class is not excluded; None if there is none."""
    for image in neighbors.flatten().tolist():
        if image == NO_NEIGHBOR:
            continue
        position = int(members.position_of_image[image])
        if position >= 0 and int(members.class_of_position[position]) not in excluded:
            return position
    return None
