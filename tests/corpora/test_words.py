"""Words joined as texts write them."""

import pytest

from keras_seqlm.corpora.words import joined, without_spaces


def test_the_places_are_those_of_the_words():
    words = ["我", "住", "在", "Berlin", "，", "not", "😀", "が", "e\u0301t\u0301"]
    text, places = joined(words)
    assert [text[start:end] for start, end in places] == words
    assert text == "我住在 Berlin ， not 😀 が e\u0301t\u0301"
    assert joined([]) == ("", [])


@pytest.mark.parametrize("words", [["a", ""], ["a", " "], ["a", None]])
def test_a_word_has_something_in_it(words):
    with pytest.raises(ValueError, match="something in them"):
        joined(words)


def test_scripts_without_spaces():
    assert all(map(without_spaces, "字，。「か゚ー𠀀（")) and not any(map(without_spaces, "aé—…가😀—“"))
