import pytest

from keras_seqlm.tokenizers import CharacterTokenizer


def test_keeps_every_character_in_order():
    tokenizer = CharacterTokenizer.train(texts=["b\n", "aéa中"])
    assert tokenizer.characters == "\nabé中"
    assert tokenizer.encode("a中?\r").tolist() == [5, 8, 3, 3]
    assert tokenizer.decode([1, 5, 8, 3, 0, 2]) == "a中\ufffd"
    assert tokenizer.decode_bytes([3]) == b"\xef\xbf\xbd"


def test_keeps_the_most_frequent_characters():
    tokenizer = CharacterTokenizer.train(texts=["cccbbaad"], vocabulary_size=7)
    assert tokenizer.characters == "abc"
    assert CharacterTokenizer.train(texts=["ba"], vocabulary_size=5).characters == "a"  # as frequent: the lower one
    with pytest.raises(ValueError, match="over 4"):
        CharacterTokenizer.train(texts=["ab"], vocabulary_size=4)


def test_no_normalisation_and_no_invalid_bytes():
    tokenizer = CharacterTokenizer.train(texts=[b"e\xcc\x81\xc3\xa9\xff"])
    assert tokenizer.characters == "e\u00e9\u0301\ufffd"
    assert tokenizer.decode(tokenizer.encode(b"\xc3\xa9\xe2\x82e")) == "\u00e9\ufffde"


@pytest.mark.shared_data
def test_tinyshakespeare_has_65_characters_or_a_few_less(shared):
    path = shared / "tinyshakespeare" / "train.txt"
    tokenizer = CharacterTokenizer.train(path)
    text = path.read_text(encoding="utf-8")
    assert tokenizer.vocabulary_size == 4 + len(set(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
