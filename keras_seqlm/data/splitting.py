"""A stream of documents in two: one to train on and one to validate on."""

import numpy as np

BLOCK = 1 << 20  # Documents that are looked at in one go.


def split(store, fraction):
    """Split a whole `TokenStore` between documents, so that every file gives its share to validation.

    Of each file the last documents are taken, as many as come nearest to `fraction` of its tokens; what that is over or
    under is made up for by the files that follow, so that of many files of one document each, whole ones are taken at
    even distances. A document that is longer than the whole validation part would be has no border at a fit place: such
    a document gives its own last `fraction`. So of a single text file the tail is taken.

    Args:
        store: a `TokenStore` of a whole folder.
        fraction: of the tokens, above 0 and below 1.

    Returns:
        `(train, validation)`, two `TokenStore`s that together hold each token once. Tokens of a part come in the order of
        the stream.
    """
    starts = np.asarray(store.document_starts)  # still on disk, and without what a memory map costs at each look
    total = int(starts[-1])
    long = _long_documents(starts, fraction * total)
    borders = np.concatenate([[0], np.cumsum([file["num_documents"] for file in store.files])])
    taken, over = [], 0.0
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        inside = long[np.searchsorted(long, first) : np.searchsorted(long, last)].tolist()
        for document in inside:
            start, stop = int(starts[document]), int(starts[document + 1])
            taken.append((start + int((1 - fraction) * (stop - start)), stop))
        # What lies between long documents is cut as a file is.
        for begin, end in zip([first, *(document + 1 for document in inside)], [*inside, last], strict=True):
            stop = int(starts[end])
            wanted = fraction * (stop - int(starts[begin])) + over
            border = _nearest(starts, begin, end, stop - wanted)
            taken.append((border, stop))
            over = wanted - (stop - border)
    taken = sorted((start, stop) for start, stop in taken if start < stop)
    edges = [0, *(place for pair in taken for place in pair), total]
    kept = list(zip(edges[::2], edges[1::2], strict=True))
    return store.parts(kept), store.parts(taken)


def _long_documents(starts, length):
    """Numbers of the documents with more tokens than `length`, looked for in blocks: there may be many documents."""
    found = [np.empty(0, np.int64)]
    for first in range(0, len(starts) - 1, BLOCK):
        found.append(first + np.flatnonzero(np.diff(starts[first : first + BLOCK + 1]) > length))
    return np.concatenate(found)


def _nearest(starts, begin, end, place):
    """The start of a document from `begin` to `end`, both counted, that lies nearest to `place`; of two, the later."""
    after = int(np.clip(begin + np.searchsorted(starts[begin : end + 1], place), begin, end))
    before = max(begin, after - 1)
    return int(starts[before] if place - starts[before] < starts[after] - place else starts[after])
