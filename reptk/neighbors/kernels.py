"""What exact search does besides searching, as machine code."""

import numpy as np

from reptk.core.numba_jit import njit, njit_exact


@njit
def lengths(rows, made, first, last):
    """Lengths (L2) in float64 of float32 rows (n, F), `first` to `last`, into `made` (n,)."""
    for row in range(first, last):
        total = 0.0
        for x in range(rows.shape[1]):
            value = np.float64(rows[row, x])
            total += value * value
        made[row] = np.sqrt(total)


@njit
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


@njit_exact
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


@njit_exact
def _products(values, lower, upper, lower_asked, upper_asked):
    for x in range(len(values)):
        lower_product = np.float64(lower[x]) * np.float64(lower_asked[x])
        values[x] = lower_product + np.float64(upper[x]) * np.float64(upper_asked[x])


@njit_exact
def _add(values, others):
    for x in range(len(values)):
        values[x] += others[x]


# Sifting scores in bfloat16, of which those from 0 up are ordered as their bits are


@njit
def shorten(rows, mean, made, squares, lost, first, last):
    """Rows (n, F) float32 less the mean, as bits of bfloat16 (n, F) int16, rounded to nearest, ties to even.

    Args:
        squares, lost: (n,) for the squared length of what was rounded, and of what rounding took.
    """
    width = rows.shape[1]
    values, rounded = np.empty(width, np.float32), np.empty(width, np.uint32)
    bits, back = values.view(np.uint32), rounded.view(np.float32)
    for row in range(first, last):
        for x in range(width):
            values[x] = rows[row, x] - mean[x]
        for x in range(width):
            even = (bits[x] >> np.uint32(16)) & np.uint32(1)
            rounded[x] = (bits[x] + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
            made[row, x] = np.int16(rounded[x] >> np.uint32(16))
        square, gone = np.float32(0), np.float32(0)
        for x in range(width):
            square += values[x] * values[x]
            gone += (values[x] - back[x]) * (values[x] - back[x])
        squares[row], lost[row] = square, gone


@njit
def sift(scores, first_row, keys, filled, floors, count, first, last):
    """Add what is above its query's floor to the keys that are held; when these are full, keep the best and raise the floor.

    Args:
        scores: (b, c) bits of bfloat16; columns are rows from `first_row` on.
        keys: (b, 2 * count) score in the upper half, row in the lower; `filled` (b,) of them.
        floors: (b,) bits.
    """
    columns = scores.shape[1]
    flags = np.zeros((columns + 31) // 32 * 32, np.uint8)
    words = flags.view(np.uint64)
    for query in range(first, last):
        line, held, floor = scores[query], filled[query], floors[query]
        _flag(line, floor, flags)
        for word in range(0, len(words), 4):
            if words[word] | words[word + 1] | words[word + 2] | words[word + 3]:
                for x in range(8 * word, min(8 * word + 32, columns)):
                    if line[x] > floor:
                        keys[query, held] = (np.int64(line[x]) << 32) | (first_row + x)
                        held += 1
                        if held == keys.shape[1]:
                            _part(keys[query], held, count)
                            held = count
                            floor = np.int16(keys[query, :count].min() >> 32)
        filled[query], floors[query] = held, floor


@njit
def _flag(line, floor, flags):
    for x in range(len(line)):
        flags[x] = line[x] > floor


@njit
def _part(keys, held, count):
    """Reorder the first `held` keys so that the greatest `count` of them come first, in any order."""
    low, high = 0, held - 1
    while low < high:
        middle = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] > middle:
                left += 1
            while keys[right] < middle:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if count - 1 <= right:
            high = right
        elif count - 1 >= left:
            low = left
        else:
            return


@njit
def ranks(keys, filled, k, best, kth, first, last):
    """Scores of the greatest and of the k-th key of each query that holds as many."""
    for query in range(first, last):
        if filled[query] >= k:
            _part(keys[query], filled[query], k)
            best[query] = np.int16(keys[query, :k].max() >> 32)
            kth[query] = np.int16(keys[query, :k].min() >> 32)


@njit
def cut(keys, filled, limits, first, last):
    """Keep the keys whose scores are from the limit up."""
    for query in range(first, last):
        held = 0
        for place in range(filled[query]):
            if np.int16(keys[query, place] >> 32) >= limits[query]:
                keys[query, held] = keys[query, place]
                held += 1
        filled[query] = held
