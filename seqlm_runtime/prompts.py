"""How much of a text is read: one rule for Python, the served graph and the phone.

No text costs more than the part of it that is read, however long it is:

1. A text of at most `most * tokenizer.max_token_bytes + 3` bytes is tokenized whole. So no text of up to `most` ids is
   ever cut, as far as the tokenizer's ids stand for so few bytes (see `max_token_bytes`).
2. Of a longer one a part is tokenized as if it were the text: its last `8 * most + 3` bytes, or, where these have fewer
   than `most + 8` ids, as many bytes as rule 1 allows. The part begins with a character: up to three bytes that go on with
   one are left out.
3. `bos` is put before the ids, and the last `most` are kept.

A score is of a text's beginning: there the first bytes and the first ids are kept.
"""

import numpy as np

from seqlm_runtime.tokenizers.tokenizer import as_bytes

MAX_PROMPT_TOKENS = 4096  # that an export of a recurrent model reads, unless it was told another number
FIRST_TRY = 8  # bytes an id; nearly every text has more ids than that
SPARE_IDS = 8  # more than are read: those of a word that was cut
SPARE_BYTES = 3  # that may be left out at the border of a character


def byte_limits(tokenizer, most):
    """How many bytes of a text are tokenized for `most` ids.

    Args:
        tokenizer: gives `max_token_bytes`.
        most: ids, 1 or more.

    Returns:
        The bytes that are tried first where a text is longer than the second number, which is never exceeded.
    """
    longest = most * tokenizer.max_token_bytes + SPARE_BYTES
    return min(most * FIRST_TRY + SPARE_BYTES, longest), longest


def read_ids(tokenizer, text, most=None, end=True):
    """The ids that a model reads of a text.

    Args:
        tokenizer: its `bos`, where it has one, stands before the text.
        text: str or bytes.
        most: ids that are read, `bos` among them; None for all.
        end: True keeps the end of the text, as of a prompt; False its beginning.

    Returns:
        The ids, int32 (time,), and whether anything was cut off.
    """
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    cut = False
    if most is not None:
        text = as_bytes(text)
        few, longest = byte_limits(tokenizer, most)
        cut = len(text) > longest
    if cut:
        ids = tokenizer.encode(part_of(text, few, end))
        ids = tokenizer.encode(part_of(text, longest, end)) if len(ids) < most + SPARE_IDS else ids
    else:
        ids = tokenizer.encode(text)
    ids = np.concatenate([np.asarray(bos, np.int32), ids])
    if most is None or len(ids) <= most:
        return ids, cut
    return (ids[-most:] if end else ids[:most]), True


def has_text(tokenizer, ids, cut):
    """Whether a prompt has ids of a text, `ids` and `cut` being what `read_ids` gives: what is written goes on with it."""
    return cut or len(ids) > (tokenizer.bos_id is not None)


def part_of(text, size, end):
    """The last `size` bytes of longer `text`, or the first, without the parts of a character at the border."""
    if end:
        start = len(text) - size
        while start < len(text) - size + SPARE_BYTES and _goes_on(text[start]):
            start += 1
        return text[start:]
    stop = size
    while stop > size - SPARE_BYTES and _goes_on(text[stop]):
        stop -= 1
    return text[:stop]


def _goes_on(byte):
    """Whether a byte of UTF-8 is not the first of its character."""
    return byte & 0xC0 == 0x80
