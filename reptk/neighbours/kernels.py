"""What exact search does besides searching, as machine code."""

import numpy as np

from reptk.machine_code import compiled, to_the_bit


@compiled
def lengths(rows, made, first, last):
    """Lengths (L2) in float64 of float32 rows (n, F), `first` to `last`, into `made` (n,)."""
    for row in range(first, last):
        total = 0.0
        for x in range(rows.shape[1]):
            value = np.float64(rows[row, x])
            total += value * value
        made[row] = np.sqrt(total)


@to_the_bit
def products(bank, queries, rows, numbers, places, made, first, last):
    """Inner products of pairs of float32 rows, into `made` (P,) float32; added up as `pairs` does.

    Args:
        rows: (P,) the pairs' rows of the bank, in the order in which they are to be read.
        numbers: (P,) int32, which queries they go with.
        places: (P,) where in `made`.
    """
    width = bank.shape[1]
    half = (width + 1) // 2
    values = np.empty(half)
    for pair in range(first, last):
        row, asked = bank[rows[pair]], queries[numbers[pair]]
        upper_row, upper_asked = row[half:], asked[half:]
        for x in range(width - half):
            values[x] = np.float64(row[x]) * np.float64(asked[x]) + np.float64(upper_row[x]) * np.float64(
                upper_asked[x]
            )
        if 2 * half > width:
            values[half - 1] = np.float64(row[half - 1]) * np.float64(asked[half - 1])
        left = half
        while left > 1:
            middle = (left + 1) // 2
            upper = values[middle:left]
            for x in range(left - middle):
                values[x] += upper[x]
            left = middle
        made[places[pair]] = np.float32(values[0]) + np.float32(0)  # -0 becomes 0
