"""How well questions are answered, by SQuAD's rules; Chinese and Japanese by character."""

import collections
import string
import unicodedata

from keras_seqlm.corpora.words import without_spaces

_ARTICLES = ("a", "an", "the")


def normalized(answer):
    """The words that an answer is compared by: small letters, no punctuation, no English articles.

    In an answer with Chinese or Japanese each such character is a word, and the punctuation of all scripts is left out
    (SQuAD's script leaves out that of ASCII alone, and so does this one elsewhere).

    >>> normalized("The  Eiffel Tower,"), normalized("《红楼梦》 (1791)")
    (['eiffel', 'tower'], ['红', '楼', '梦', '1791'])
    """
    text = str(answer).lower()
    spaced = not any(map(without_spaces, text))
    kept = [
        f" {character} " if without_spaces(character) else character
        for character in text
        if character not in string.punctuation and (spaced or not unicodedata.category(character).startswith("P"))
    ]
    return [word for word in "".join(kept).split() if word not in _ARTICLES]


def exact_match(answers, found):
    """1.0 if what was found is, normalized, one of the answers; no answers are one that is empty, and so is "" found.

    >>> exact_match(["the Seine", "Seine river"], "Seine!"), exact_match([], ""), exact_match([], "Seine")
    (1.0, 1.0, 0.0)
    """
    return float(normalized(found) in _words_of(answers))


def answer_f1(answers, found):
    """F1 = 2 * common / (words of one + words of the other), words counted as often as they stand; the best of the answers.

    Where either has no words it is 1.0 if both have none, and else 0.0.

    >>> round(answer_f1(["the river Seine", "Paris"], "Seine"), 3), answer_f1([], "")
    (0.667, 1.0)
    """
    given = normalized(found)
    return max(_f1(words, given) for words in _words_of(answers))


def _words_of(answers):
    """Those of each answer; one that has none does not count beside others, as in SQuAD 2."""
    words = [words for words in map(normalized, answers) if words]
    return words or [[]]


def _f1(truth, found):
    if not truth or not found:
        return float(truth == found)
    common = sum((collections.Counter(truth) & collections.Counter(found)).values())
    return 2 * common / (len(truth) + len(found))
