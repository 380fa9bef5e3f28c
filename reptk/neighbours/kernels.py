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


@compiled
def by_row(rows, count):
    """An order (P,) of pairs in which their rows, of `count`, rise; where pairs are few, but for rows that are close."""
    shift = 0
    while count >> shift > len(rows):
        shift += 1
    made, ends = np.empty(len(rows), np.int64), np.zeros((count >> shift) + 2, np.int64)
    for pair in range(len(rows)):
        ends[(rows[pair] >> shift) + 1] += 1
    for bucket in range(len(ends) - 1):
        ends[bucket + 1] += ends[bucket]
    for pair in range(len(rows)):
        bucket = rows[pair] >> shift
        made[ends[bucket]] = pair
        ends[bucket] += 1
    return made


@to_the_bit
def products(bank, queries, rows, numbers, order, made, first, last):
    """Inner products of pairs of float32 rows, into `made` (P,) float32; added up as `pairs` does.

    Args:
        rows, numbers: (P,) which rows of the bank and which queries make a pair.
        order: in which to look at pairs, from the `first` to before the `last` of it.
    """
    width = bank.shape[1]
    half = (width + 1) // 2
    values = np.empty(half)
    for place in range(first, last):
        pair = order[place]
        row, asked = bank[rows[pair]], queries[numbers[pair]]
        values[half - 1] = np.float64(row[half - 1]) * np.float64(asked[half - 1])  # an odd one in the middle
        _products(values[: width - half], row, row[half:], asked, asked[half:])
        left = half
        while left > 1:
            half_left = (left + 1) // 2
            _add(values[: left - half_left], values[half_left:])
            left = half_left
        made[pair] = np.float32(values[0]) + np.float32(0)  # -0 becomes 0


@to_the_bit
def _products(values, lower, upper, lower_asked, upper_asked):
    for x in range(len(values)):
        lower_product = np.float64(lower[x]) * np.float64(lower_asked[x])
        values[x] = lower_product + np.float64(upper[x]) * np.float64(upper_asked[x])


@to_the_bit
def _add(values, others):
    for x in range(len(values)):
        values[x] += others[x]
