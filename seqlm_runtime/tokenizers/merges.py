"""Merging neighbours, the cheapest pair first: the inner loop of byte-pair encoding."""

import heapq


def merge(ids, pairs, made=None):
    """Merges the symbols of one word until no pair of neighbours is left in `pairs`.

    The pair of the lowest rank goes first, of equal ones the leftmost. A heap keeps a word of n symbols at
    O(n log n), so that a text without a space is no attack.

    Args:
        ids: list of ids, one per symbol; it is used up.
        pairs: dict of `(left id, right id)` to `(rank, id of both)`.
        made: None, or a list that takes each pair that is merged.

    Returns:
        list of ids.

    Reference: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909
    """
    size = len(ids)
    following = list(range(1, size + 1))
    previous = list(range(-1, size - 1))
    heap = []
    for position in range(size - 1):
        pair = (ids[position], ids[position + 1])
        if pair in pairs:
            heap.append((pairs[pair][0], position, pair))
    heapq.heapify(heap)
    while heap:
        _, left, pair = heapq.heappop(heap)
        right = following[left]
        # Earlier merges may have used up either side since this entry was made.
        if right == size or ids[left] != pair[0] or ids[right] != pair[1]:
            continue
        merged = pairs[pair][1]
        if made is not None:
            made.append(pair)
        ids[left], ids[right] = merged, -1
        after = following[left] = following[right]
        before = previous[left]
        if after < size:
            previous[after] = left
            pair = (merged, ids[after])
            if pair in pairs:
                heapq.heappush(heap, (pairs[pair][0], left, pair))
        if before >= 0:
            pair = (ids[before], merged)
            if pair in pairs:
                heapq.heappush(heap, (pairs[pair][0], before, pair))
    return [i for i in ids if i >= 0]
