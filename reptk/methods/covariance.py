"""Means and products of the dimensions of embeddings over the images of all ranks, with the gradient of one process."""

from typing import NamedTuple

from torch import Tensor

from reptk.core.distributed import all_gather, all_reduce_mean, all_reduce_sum, world_size


class Products(NamedTuple):
    """What losses need of P matrices C = X^T Y (D, D), the sums of products of dimensions over N rows.

    diagonal: (P, D) elements C_ii.
    off_diagonal_squares: (P,) sums of C_ij^2 over i != j.
    """

    diagonal: Tensor
    off_diagonal_squares: Tensor


def centered(z: Tensor) -> Tensor:
    """Return embeddings (V, B, D) minus the mean of each view and dimension over the images of all ranks."""
    # Each rank subtracts it from its rows alone: the gradients of the ranks differ, and are summed.
    return z - all_reduce_mean(z.mean(1, keepdim=True))


def products_of_dimensions(x: Tensor, y: Tensor) -> Products:
    """Return `Products` of x and y over the rows of all ranks.

    If the ranks have fewer rows N than there are dimensions, no D x D matrix is computed: the sum of all squares of X^T Y is
    that of the products of X X^T and Y Y^T, which are N x N. At D = 8192 and N = 256 these have a thousandth of the elements.
    Subtracting the diagonal from that sum loses no digits that matter, because a matrix of rank N < D has a large part of its
    squares off the diagonal. With more rows, the D x D matrices of the ranks are added up.

    Every rank has to compute the same loss from the result.

    Args:
        x, y: (P, B, D) of this rank, centered, in float32 or wider.
    """
    num_rows = x.shape[1] * world_size()
    if num_rows < x.shape[2]:
        return _products_by_rows(x, y)
    return _products_by_dimensions(x, y)


def _products_by_rows(x: Tensor, y: Tensor) -> Products:
    rows_of_x = _gather_rows(x)
    products_of_x = rows_of_x @ rows_of_x.mT
    if x is y:
        rows_of_y, products_of_y = rows_of_x, products_of_x
    else:
        rows_of_y = _gather_rows(y)
        products_of_y = rows_of_y @ rows_of_y.mT
    diagonal = (rows_of_x * rows_of_y).sum(1)
    squares = (products_of_x * products_of_y).sum((1, 2))
    return Products(diagonal, squares - diagonal.square().sum(1))


def _products_by_dimensions(x: Tensor, y: Tensor) -> Products:
    products = all_reduce_sum(x.mT @ y, replicated_loss=True)
    diagonal = products.diagonal(dim1=1, dim2=2).clone()
    # In place: another D x D matrix would be the largest tensor of the loss.
    products.diagonal(dim1=1, dim2=2).zero_()
    return Products(diagonal, products.square().sum((1, 2)))


def _gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, (P, B, D) -> (P, N, D)."""
    return all_gather(x.transpose(0, 1), replicated_loss=True).transpose(0, 1)
