"""The optimizer's step, with the loss scaled while float16 holds the gradients (Micikevicius et al. 2018, arXiv 1710.03740)."""

from typing import Any

import torch
from torch import Tensor, nn

from reptk.core.device import Precision
from reptk.core.errors import DataError, NumericalError

MIN_SCALE = 1e-4
"""Scale at which a run stops. From torch's first scale, 65,536, it is some thirty skipped steps away."""


class ScaledOptimizer:
    """An optimizer that in float16 scales the loss first, so that small gradients are not rounded to 0.

    A step whose scaled gradients overflow is skipped, and the scale is halved; after 2,000 steps without one it is doubled
    (`torch.amp.GradScaler`). With DDP all ranks have the same gradients, so they skip the same steps.

    Args:
        optimizer: of the run.
        precision: of the encoder; the loss is scaled for "fp16" only.
        device: of the run.

    Attributes:
        skipped_steps: how many steps of the run were skipped.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, precision: Precision, device: torch.device) -> None:
        self.optimizer = optimizer
        self.skipped_steps = 0
        self._is_state_unverified = False
        self.is_scaling = precision == "fp16"
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.is_scaling)

    @property
    def scale(self) -> float:
        """The factor on the loss, 1 if it is not scaled."""
        return self._scaler.get_scale()

    def backward(self, loss: Tensor, module: nn.Module, clip_norm: float) -> Tensor | None:
        """Compute the gradients of `loss`, and clip them.

        Args:
            loss: scalar.
            module: whose gradients are clipped.
            clip_norm: largest norm of the gradient, measured without the scale; 0 for no clipping.

        Returns:
            The norm of the module's gradient before clipping; None if the loss is scaled, where it may be infinite in a step
            that is skipped.
        """
        self._scaler.scale(loss).backward()
        if self.is_scaling:
            if clip_norm:
                self._scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            return None
        if clip_norm:
            return nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        return gradient_norm(module)

    def step(self, is_bad: Tensor | None = None) -> None:
        """Step the optimizer and clear the gradients.

        Args:
            is_bad: scalar bool on the device; if it is true, a fused optimizer changes neither weights nor its state.

        Raises:
            NumericalError: gradients overflow however small the scale is.
            DataError: the optimizer cannot use the state that was restored.
        """
        try:
            self._step_optimizer(is_bad)
        except torch.OutOfMemoryError:
            raise
        except Exception as cause:
            if not self._is_state_unverified:
                raise
            # Optimizers look at their state when they use it.
            raise DataError(
                f"the checkpoint is damaged: {type(self.optimizer).__name__} cannot use its state ({cause}). Train again, with "
                "another --out"
            ) from cause
        self._is_state_unverified = False
        self.optimizer.zero_grad()
        if self.is_scaling:
            self._update_scale()

    def _step_optimizer(self, is_bad: Tensor | None) -> None:
        if is_bad is None:
            self._scaler.step(self.optimizer)
            return
        # The attribute by which `torch.amp.GradScaler` tells fused optimizers the same.
        self.optimizer.found_inf = is_bad.float()
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf

    def _update_scale(self) -> None:
        before = self.scale
        self._scaler.update()
        is_skipped = self.scale < before
        if not is_skipped:
            return
        self.skipped_steps += 1
        if self.scale < MIN_SCALE:
            raise NumericalError(
                f"the gradient holds NaN or infinity however much the loss is scaled down (by now to {self.scale:.1g}): set "
                "train.precision=fp32 or bf16, or lower optim.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides the optimizer's own state."""
        return {"skipped_steps": self.skipped_steps, "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the scale of a checkpoint; a run that had another precision until now begins with torch's first scale."""
        self.skipped_steps = state["skipped_steps"]
        self._is_state_unverified = True
        if self.is_scaling and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])


def gradient_norm(module: nn.Module) -> Tensor:
    """Return the norm of the gradient of all parameters of a module, a scalar; it is not finite if an entry is not."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients)
