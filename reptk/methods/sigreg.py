"""SIGReg: how far embeddings are from an isotropic normal distribution, by a test of normality on random directions."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reptk.core import rng
from reptk.core.distributed import all_reduce_mean, world_size


def sigreg(z: Tensor, directions: Tensor, *, knots: int = 17, t_max: float = 3.0) -> Tensor:
    """Sketched isotropic Gaussian regularization (Balestriero and LeCun 2025, arXiv 2511.08544, section 4).

    For each view, the projections x_n = z_n . a of N images, of all ranks, on a direction a are compared with a standard
    normal distribution by the statistic of Epps and Pulley, which is 0 for the distribution itself:

        N * integral over t in [-t_max, t_max] of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt
        phi(t) = 1/N sum_n exp(i t x_n)

    computed by the trapezoidal rule with `knots` points in [0, t_max], whose weight is doubled since the integrand is even. The
    result is the mean over directions and views. That is the authors' code (galilai-group/lejepa, MINIMAL.md) and lightly's;
    stable-pretraining takes the images of all views as one sample.

    Args:
        z: (V, B, D) embeddings of this rank, in float32 or wider.
        directions: (D, M) unit columns, the same on all ranks.
        knots: at least 2.
        t_max: above 0.

    Returns:
        Scalar, the same on all ranks. Its gradient is that of one process once DDP has averaged it.
    """
    step = t_max / (knots - 1)
    # Without t = 0, where phi is 1 for any sample.
    t = torch.arange(1, knots, device=z.device, dtype=z.dtype) * step
    gaussian = (-t.square() / 2).exp()
    weights = 2 * step * gaussian
    weights[-1] /= 2
    real, imaginary = all_reduce_mean(_CharacteristicFunction.apply(z @ directions, t), replicated_loss=True)
    squared_distance = (real - gaussian).square() + imaginary.square()
    num_images = z.shape[1] * world_size()
    return num_images * (squared_distance @ weights).mean()


def random_directions(key: int, dimensions: int, count: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return unit vectors of uniform directions as columns (dimensions, count): a function of the key, on any rank."""
    salts = torch.arange(2 * count, device=device)
    rows = torch.arange(dimensions, device=device)
    uniform = rng.uniform(rng.key(key, "directions"), salts, rows).to(dtype)
    # Box and Muller's pairs of uniform numbers; 1 - u is above 0, which has no logarithm.
    radius = (-2 * (1 - uniform[:, :count]).log()).sqrt()
    normal = radius * (2 * math.pi * uniform[:, count:]).cos()
    return torch.nn.functional.normalize(normal, dim=0)


class _CharacteristicFunction(torch.autograd.Function):
    """Means of cos(t x) and sin(t x) over the images of this rank: x (V, B, M), t (T,) -> (2, V, M, T).

    One t at a time, in both passes, so that memory is a few times that of x and not T times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor) -> Tensor:
        ctx.save_for_backward(x, t)
        means = x.new_empty(2, len(x), x.shape[2], len(t))
        for number, value in enumerate(t.unbind()):
            angles = x * value
            means[0, :, :, number] = angles.cos().mean(1)
            means[1, :, :, number] = angles.sin().mean(1)
        return means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, t = ctx.saved_tensors
        # Of each mean with respect to an angle: -sin / B and cos / B.
        grad = (grad * t / x.shape[1]).unsqueeze(2)
        grad_x = torch.zeros_like(x)
        for number, value in enumerate(t.unbind()):
            angles = x * value
            grad_x.addcmul_(angles.cos(), grad[1, ..., number])
            grad_x.addcmul_(angles.sin_(), grad[0, ..., number], value=-1)
        return grad_x, None
