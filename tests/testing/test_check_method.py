"""check_method: shipped methods pass, and every requirement is violated by a method written for it."""

from typing import Any

import pytest
import torch
from torch import nn

from reptk.losses import SimCLR, SupCon
from reptk.methods import Batch, Classify, Contrastive, Joint, Method, Step
from reptk.testing import METHOD_REQUIREMENTS, check_method
from violations import assert_each_is_violated, assert_rng_untouched, assert_violates


@pytest.mark.parametrize("positives", ["instance", "class"])
@pytest.mark.parametrize("loss", [SimCLR(), SupCon()], ids=["simclr", "supcon"])
def test_contrastive_meets_the_requirements(loss: nn.Module, positives: str) -> None:
    check_method(Contrastive, loss=loss, positives=positives)


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}, {"freeze_encoder": True}, {"encoder_lr_scale": 0.1}],
)
def test_classify_meets_the_requirements(arguments: dict[str, Any], backbone: str) -> None:
    check_method(Classify, backbone=backbone, **arguments)


@pytest.mark.parametrize("arguments", [{}, {"weight": 0.0}, {"positives": "instance", "label_smoothing": 0.1}])
def test_joint_meets_the_requirements(arguments: dict[str, Any]) -> None:
    check_method(Joint, loss=SupCon(), **arguments)


class Good(Method):
    """SimCLR with as little as possible. Subclasses violate a requirement."""

    def __init__(self, encoder: nn.Module, views: Any, loss: nn.Module) -> None:
        super().__init__()
        self.encoder, self.views, self.loss = encoder, views, loss

    def embed(self, batch: Batch, step: Step) -> torch.Tensor:
        return torch.cat([self.encoder(view) for view in self.views(batch.images, step.key)])

    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        return {"loss": self.loss(self.embed(batch, step), batch.index.repeat(2))}


class ReturnsALoss(Good):
    def forward(self, batch: Batch, step: Step) -> Any:
        return super().forward(batch, step)["loss"]


class Detached(Good):
    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        return {"loss": super().forward(batch, step)["loss"].detach()}


class AttachedEmbeddings(Good):
    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        z = self.embed(batch, step)
        return {"loss": self.loss(z, batch.index.repeat(2)), "z": z}


class LogsAFloat(Good):
    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        return super().forward(batch, step) | {"temperature": 0.1}


class IdsOfOneView(Good):
    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        z = self.embed(batch, step)
        return {"loss": self.loss(z, batch.index.repeat(2)), "z": z.detach(), "ids": batch.index}


class UnusedHead(Good):
    def __init__(self, encoder: nn.Module, views: Any, loss: nn.Module) -> None:
        super().__init__(encoder, views, loss)
        self.unused = nn.Linear(2, 2)


class ForgetsTheHead(Good):
    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.encoder.backbone.parameters())}]


class GroupsTwice(Good):
    def parameter_groups(self) -> list[dict[str, Any]]:
        return [*super().parameter_groups(), {"params": list(self.encoder.head.parameters())}]


class CountsCalls(Good):
    calls = 0

    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        CountsCalls.calls += 1
        return {"loss": super().forward(batch, step)["loss"] * (1 + 1e-3 * CountsCalls.calls)}


class IgnoresTheKey(Good):
    def embed(self, batch: Batch, step: Step) -> torch.Tensor:
        return super().embed(batch, step._replace(key=0))


class WritesToTheBatch(Good):
    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        outputs = super().forward(batch, step)
        batch.labels.fill_(0)
        return outputs


class MeanOfLabels(Good):
    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        loss = super().forward(batch, step)["loss"]
        return {"loss": loss + 0 * batch.labels[batch.labels >= 0].float().mean()}


class UnsavedAverage(Good):
    """Keeps a moving average outside of its buffers."""

    def __init__(self, encoder: nn.Module, views: Any, loss: nn.Module) -> None:
        super().__init__(encoder, views, loss)
        self.average = 0.0

    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        loss = super().forward(batch, step)["loss"]
        self.average = 0.5 * self.average + 0.5 * loss.item()
        return {"loss": loss * (1 + self.average)}


class AveragesInForward(Good):
    """Keeps a moving average that a loss of NaN would poison."""

    def __init__(self, encoder: nn.Module, views: Any, loss: nn.Module) -> None:
        super().__init__(encoder, views, loss)
        self.register_buffer("average", torch.zeros(()))

    def forward(self, batch: Batch, step: Step) -> dict[str, Any]:
        outputs = super().forward(batch, step)
        self.average.lerp_(outputs["loss"].detach(), 0.5)
        return outputs


class DrawsOnFullImages(Good):
    crops_full_images = True

    def embed(self, batch: Batch, step: Step) -> torch.Tensor:
        return torch.cat([self.encoder(view) for view in batch.draw_views(self.views, step.key)])


class ForgetsAspectRatios(Good):
    crops_full_images = True


class ForgetsThemByTheFormerName(Good):
    uses_aspect_ratios = True


class HidesItsEncoder(Good):
    def __init__(self, encoder: nn.Module, views: Any, loss: nn.Module) -> None:
        super().__init__(encoder, views, loss)
        del self._modules["encoder"]
        self.__dict__["encoder"] = encoder


class NotAMethod(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


BROKEN_METHODS = {
    "not a method": (NotAMethod, ["it is a Method", ...]),
    "hides its encoder": (HidesItsEncoder, ["it is a Method", ...]),
    "returns a loss": (ReturnsALoss, ["forward returns", ...]),
    "detached": (Detached, ["forward returns", ...]),
    "attached embeddings": (AttachedEmbeddings, ["forward returns"]),
    "logs a float": (LogsAFloat, ["forward returns"]),
    "ids of one view": (IdsOfOneView, ["z (N, D) and ids"]),
    "unused head": (UnusedHead, ["every parameter"]),
    "forgets the head": (ForgetsTheHead, ["every parameter"]),
    "groups twice": (GroupsTwice, ["every parameter", ...]),
    "counts calls": (CountsCalls, ["the same state", ...]),
    "ignores the key": (IgnoresTheKey, ["the step's key"]),
    "writes to the batch": (WritesToTheBatch, ["the batch is not written"]),
    "mean of labels": (MeanOfLabels, ["images without labels"]),
    "forgets aspect ratios": (ForgetsAspectRatios, ["with crops_full_images"]),
    "the former name of the attribute": (ForgetsThemByTheFormerName, ["with crops_full_images"]),
    "averages in forward": (AveragesInForward, ["forward changes nothing"]),
    "unsaved average": (UnsavedAverage, ["a run resumed"]),
}


def test_the_base_of_broken_methods_meets_the_requirements() -> None:
    check_method(Good)
    check_method(Good, backbone="test_resnet")
    check_method(DrawsOnFullImages)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
@pytest.mark.parametrize(("method", "expected"), BROKEN_METHODS.values(), ids=BROKEN_METHODS)
def test_a_broken_method_is_detected(method: type, expected: list[str]) -> None:
    assert_violates(expected, METHOD_REQUIREMENTS, check_method, method)


def test_every_requirement_is_violated_by_a_broken_method() -> None:
    assert_each_is_violated(METHOD_REQUIREMENTS, BROKEN_METHODS)


def test_a_failing_check_leaves_the_random_state() -> None:
    assert_rng_untouched(check_method, NotAMethod)
