"""Answers by SQuAD's rules, against a second writing of them, and Chinese by character."""

import collections
import re
import string

import numpy as np
import pytest

from keras_seqlm.metrics.answers import answer_f1, exact_match, normalized


def by_the_book(truth, found):
    """Rajpurkar et al. 2016, section 6.1: words without articles and punctuation, precision and recall of the bag."""

    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    a, b = words(truth), words(found)
    common = collections.Counter(a) & collections.Counter(b)
    same = sum(common.values())
    if not a or not b:
        return float(a == b), float(a == b)
    precision, recall = same / len(b), same / len(a)
    return float(a == b), 0.0 if same == 0 else 2 * precision * recall / (precision + recall)


def test_english_is_as_by_the_book():
    draws = np.random.default_rng(0)
    pieces = ["The", "a", "an", "river", "Seine,", "seine", "9.5%", "--", "U.S.", "$", "“so”", "é", "then", "the"]
    for _ in range(500):
        truths = [" ".join(draws.choice(pieces, draws.integers(1, 6))) for _ in range(draws.integers(1, 4))]
        truths = [one for one in truths if normalized(one)] or ["Seine"]
        found = " ".join(draws.choice(pieces, draws.integers(0, 6)))
        expected = np.max([by_the_book(truth, found) for truth in truths], axis=0)
        assert exact_match(truths, found) == expected[0]
        assert answer_f1(truths, found) == pytest.approx(expected[1])


@pytest.mark.parametrize(
    "answers, found, exact, f1",
    [
        (["北京大学"], "北京 大学。", 1, 1),
        (["1918年"], "1918年11月", 0, 2 * 2 / (2 + 4)),  # 1918 年 | 1918 年 11 月
        (["范廷颂"], "保禄·若瑟范廷颂", 0, 2 * 3 / (3 + 7)),
        (["《NBA 2K》", "NBA"], "nba", 1, 1),
        (["“你好”"], "你好", 1, 1),
        (["你好"], "再见", 0, 0),
        ([], "", 1, 1),
        ([], "Seine", 0, 0),
        (["the", "Seine"], "", 0, 0),  # an answer without words is none beside others
        (["the"], "", 1, 1),
    ],
)
def test_answers(answers, found, exact, f1):
    assert exact_match(answers, found) == exact
    assert answer_f1(answers, found) == pytest.approx(f1)
