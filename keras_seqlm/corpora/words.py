"""Words as texts write them: with spaces between them, or without, as Chinese does."""

_WITHOUT_SPACES = (
    (0x3000, 0x30FF),  # signs of Chinese and Japanese, kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF00, 0xFFEF),  # full-width signs and letters
    (0x20000, 0x3FFFF),
)


def without_spaces(character):
    """Whether a character is of a script that puts no spaces between words: Chinese, kana, and their signs.

    >>> [without_spaces(character) for character in "字カ。a é"]
    [True, True, True, False, False, False]
    """
    point = ord(character)
    return point >= 0x3000 and any(first <= point <= last for first, last in _WITHOUT_SPACES)


def joined(words):
    """The text of some words, and where in it each of them stands.

    One space stands between two words, and none between two characters of a script that is written without.

    Args:
        words: a list of texts, none of them empty.

    Returns:
        The text, and a list of (start, end), in code points.

    Raises:
        ValueError: a word is empty, or no text.

    Example:

    >>> joined(["我", "住", "在", "Berlin", "now"])
    ('我住在 Berlin now', [(0, 1), (1, 2), (2, 3), (4, 10), (11, 14)])
    """
    text, places = [], []
    size, before = 0, ""
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"words must be texts with something in them, got {word!r:.40} among {len(words)}")
        if before and not (without_spaces(before[-1]) and without_spaces(word[0])):
            text.append(" ")
            size += 1
        places.append((size, size + len(word)))
        text.append(word)
        size, before = size + len(word), word
    return "".join(text), places
