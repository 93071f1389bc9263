"""Tags with prefixes, and the spans that they name."""

OUTSIDE = "O"
FIRST = ("B", "S", "U")  # prefixes of a token that begins a span, whatever stands before it
LAST = ("E", "S", "L", "U")  # and of one that ends it


def spans_of_tags(tags):
    """The spans that tags with prefixes name, as conlleval and seqeval read them.

    A span goes on with a tag of the same label whose prefix is no B (or S, U), unless it has ended (E, L, S, U). So an I
    that follows no span of its label begins one: what is read are IOB1, IOB2 (BIO), IOBES and BILOU.

    Args:
        tags: a list of "O", "B-label", "I-label" and the like.

    Returns:
        A list of (first, stop, label), in tokens.

    Example:

    >>> spans_of_tags(["B-time", "I-time", "B-time", "O", "I-date", "I-time"])
    [(0, 2, 'time'), (2, 3, 'time'), (4, 5, 'date'), (5, 6, 'time')]
    """
    spans, open_ = [], False
    for place, tag in enumerate(tags):
        prefix, label = prefix_and_label(tag)
        if label is None:
            open_ = False
            continue
        if open_ and prefix not in FIRST and spans[-1][2] == label:
            spans[-1] = (spans[-1][0], place + 1, label)
        else:
            spans.append((place, place + 1, label))
        open_ = prefix not in LAST
    return spans


def prefix_and_label(tag):
    """("B", "time") of "B-time"; (None, None) of "O"."""
    prefix, _, label = str(tag).partition("-")
    return (None, None) if tag == OUTSIDE else (prefix, label)
