"""The loss of SEED: a student is as similar to other images as its teacher is."""

from torch import Tensor
from torch.nn import functional


def similarity_loss(
    z: Tensor, targets: Tensor, others: Tensor, *, temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the cross-entropy of the student's softmax over similarities to others against the teacher's, mean over z.

    - sum_j p(t_i, j) log p(z_i, j), where p(x, j) is the softmax over j of x . d_j / temperature, and d_j are features of the
    teacher: SEED, arXiv 2101.04731.

    Args:
        z: (V * B, D) embeddings of unit length, view by view.
        targets: (B, D) features by the teacher of the same images, or (V * B, D) of the same views, of unit length.
        others: (K, D) features by the teacher that both are compared with, d.
        temperature: of the student.
        teacher_temperature: of the teacher.
    """
    teacher_shares = (targets @ others.T / teacher_temperature).softmax(1)
    return functional.cross_entropy(z @ others.T / temperature, for_each_view(teacher_shares, len(z)))


def for_each_view(rows: Tensor, count: int) -> Tensor:
    """Return rows (B, ...) of images for each of their views, (count, ...), which are ordered view by view."""
    return rows.repeat(count // len(rows), 1)
