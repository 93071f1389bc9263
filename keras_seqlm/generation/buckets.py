"""The table of lengths that prompts are padded to, so that a compiled function serves many of them."""

SMALLEST = 16


def bucket(length, smallest=SMALLEST):
    """The power of two, `smallest` at least, that holds `length`.

    >>> [bucket(n) for n in (0, 16, 17, 100)]
    [16, 16, 32, 128]
    """
    return max(smallest, 1 << max(length - 1, 0).bit_length())


def buckets(longest):
    """All buckets up to the one that holds `longest`, the last cut to `longest` itself.

    >>> buckets(100)
    [16, 32, 64, 100]
    """
    table, size = [], SMALLEST
    while size < longest:
        table.append(size)
        size *= 2
    return [*table, longest]
