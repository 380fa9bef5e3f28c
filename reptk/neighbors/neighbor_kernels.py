"""Loops of exact search, compiled with numba. Every kernel works on a range `first` to `last` of rows, pairs or queries."""

import numpy as np

from reptk.core.numba_jit import njit, njit_exact


@njit
def row_norms(rows, norms, first, last):
    """Write L2 norms of float32 rows (n, F) into `norms` (n,), summed in float64."""
    for row in range(first, last):
        total = 0.0
        for x in range(rows.shape[1]):
            value = np.float64(rows[row, x])
            total += value * value
        norms[row] = np.sqrt(total)


@njit_exact
def pair_similarities(bank, queries, bank_rows, query_rows, similarities, first, last):
    """Write inner products of bank[bank_rows] (P, F) with queries[query_rows] (P, F) into `similarities` (P,).

    Products are summed by halves in float64: the second half is added to the first until one value is left.
    """
    width = bank.shape[1]
    half = (width + 1) // 2
    sums = np.empty(half)
    for pair in range(first, last):
        row, query = bank[bank_rows[pair]], queries[query_rows[pair]]
        # In an odd width the value in the middle has no partner. Elsewhere this is overwritten.
        sums[half - 1] = np.float64(row[half - 1]) * np.float64(query[half - 1])
        _add_products(sums[: width - half], row, row[half:], query, query[half:])
        count = half
        while count > 1:
            half_count = (count + 1) // 2
            _add_in_place(sums[: count - half_count], sums[half_count:])
            count = half_count
        similarities[pair] = np.float32(sums[0]) + np.float32(0)  # -0 becomes 0


@njit_exact
def _add_products(sums, row_start, row_end, query_start, query_end):
    for x in range(len(sums)):
        start = np.float64(row_start[x]) * np.float64(query_start[x])
        sums[x] = start + np.float64(row_end[x]) * np.float64(query_end[x])


@njit_exact
def _add_in_place(sums, values):
    for x in range(len(sums)):
        sums[x] += values[x]


@njit
def round_to_bf16(rows, mean, rounded, norms2, errors2, first, last):
    """Write the bits of float32 rows (n, F) less their mean, rounded to bfloat16 (nearest, ties to even), into int16.

    `norms2` (n,) and `errors2` (n,) become the squared lengths of the rows before rounding, and of what rounding changed.
    """
    width = rows.shape[1]
    values, high = np.empty(width, np.float32), np.empty(width, np.uint32)
    bits, high_values = values.view(np.uint32), high.view(np.float32)
    for row in range(first, last):
        for x in range(width):
            values[x] = rows[row, x] - mean[x]
        for x in range(width):
            is_odd = (bits[x] >> np.uint32(16)) & np.uint32(1)
            high[x] = (bits[x] + np.uint32(0x7FFF) + is_odd) & np.uint32(0xFFFF0000)
            rounded[row, x] = np.int16(high[x] >> np.uint32(16))
        norm2, error2 = np.float32(0), np.float32(0)
        for x in range(width):
            norm2 += values[x] * values[x]
            error2 += (values[x] - high_values[x]) * (values[x] - high_values[x])
        norms2[row], errors2[row] = norm2, error2


@njit
def collect_above(scores, first_row, floors, matches, counts, first, last):
    """Append the columns whose score exceeds the query's floor to its matches, and count them.

    Scores are bits of bfloat16 as int16; from 0 up they sort like the numbers they stand for. A list that is full takes no
    more, but its count goes on.

    Args:
        scores: (q, c); column 0 is row `first_row` of the bank.
        floors: (q,) bits, from 0 up.
        matches: (q, capacity) int64: bits of the score in the upper half, row in the lower.
        counts: (q,) int64.
    """
    columns = scores.shape[1]
    # Eight comparisons are looked at as one word: almost all scores are below the floor.
    is_above = np.zeros((columns + 31) // 32 * 32, np.uint8)
    words = is_above.view(np.uint64)
    for query in range(first, last):
        line, floor, count = scores[query], floors[query], counts[query]
        _compare(line, floor, is_above)
        for word in range(0, len(words), 4):
            if words[word] | words[word + 1] | words[word + 2] | words[word + 3]:
                for x in range(8 * word, min(8 * word + 32, columns)):
                    if line[x] > floor:
                        if count < matches.shape[1]:
                            matches[query, count] = (np.int64(line[x]) << 32) | (first_row + x)
                        count += 1
        counts[query] = count


@njit
def _compare(line, floor, is_above):
    for x in range(len(line)):
        is_above[x] = line[x] > floor
