import json

import pytest

from keras_seqlm.tokenizers import WordPieceTokenizer


def test_takes_the_longest_piece_and_gives_up_on_unknown_words(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\nlow\n##est\n##er\n,\nlo\n[CLS]\n[SEP]\n", encoding="utf-8")
    tokenizer = WordPieceTokenizer.from_vocab_file(path)
    assert tokenizer.special_ids == {"pad": 0, "unk": 1, "bos": 7, "eos": 8}
    assert tokenizer.suppressed_ids == (0, 1, 7)
    ids = tokenizer.encode("LÖWEST, low lowx\u00a0[UNK]")
    assert ids.tolist() == [2, 3, 5, 2, 1, 1, 1, 1]
    assert tokenizer.decode([3, 2, 4, 0, 7, 5]) == "est lower ,"
    cased = WordPieceTokenizer.from_vocab_file(path, lowercase=False)
    assert cased.encode("Low low").tolist() == [1, 2]


def test_words_over_a_hundred_characters_are_unknown(tokenizers, graphs):
    tokenizer = tokenizers["word_piece"]
    assert tokenizer.encode("t" * 101).tolist() == [tokenizer.unk_id]
    assert len(tokenizer.encode("t" * 100)) > 1


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_are_those_of_the_library(tokenizers, hypothesis_strings, lowercase):
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = tokenizers["word_piece" if lowercase else "word_piece_cased"]
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    every = "".join(f"a{chr(i)}1" for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    # Hypothesis rarely puts two marks side by side, which is where the library reorders and a table cannot.
    for text in [every, *hypothesis_strings]:
        expected = [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]
        assert tokenizer.normalize(text).split() == expected


def test_vocabulary_is_never_larger_than_asked():
    for size in (8, 20, 40, 400):
        tokenizer = WordPieceTokenizer.train(texts=["abcdefghij ab abc 秦川 ab"], vocabulary_size=size)
        assert tokenizer.vocabulary_size <= size
    assert "abc" in tokenizer.lines and "abcd" not in tokenizer.lines  # "abcd" stands once only
    with pytest.raises(ValueError, match="at least 8"):
        WordPieceTokenizer.train(texts=["a"], vocabulary_size=7)


@pytest.mark.parametrize(
    "lines, message",
    [
        (["[PAD]", "a"], "unk"),
        (["[UNK]", "a", "a"], "twice"),
        (["[UNK]", "a\0b"], "NUL"),
        (["[UNK]", ""], "bytes"),
        (["[UNK]", "a" * 300], "256"),
    ],
)
def test_refuses_vocabularies_that_the_operation_cannot_take(tmp_path, lines, message):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*lines, "end"]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        WordPieceTokenizer.from_vocab_file(path)


def test_the_last_code_point_can_be_a_token(tmp_path, graph_equals_python):
    """It stood for words that are too long in the graph, and a vocabulary with it could not be read."""
    tokenizer = WordPieceTokenizer.train(texts=["a\U0010fffd\U0010ffff low \U000e0002 low"] * 3, vocabulary_size=40)
    (tmp_path / "vocab.txt").write_text("[UNK]\n\U0010ffff\nlow\n##er\n", encoding="utf-8")
    for one in (tokenizer, WordPieceTokenizer.from_vocab_file(tmp_path / "vocab.txt", lowercase=False)):
        texts = ["\U0010ffff low", "low" + "er" * 60, "x" * 101 + " low \U0010ffff"]
        graph_equals_python(one, one.in_graph(), texts)
    assert one.encode("low " + "x" * 101).tolist() == [2, 0]


@pytest.mark.shared_data
def test_bert_gives_the_expected_ids(shared):
    tokenizer = WordPieceTokenizer.from_vocab_file(shared / "tokenizers" / "bert_base_uncased" / "vocab.txt")
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id) == (
        0,
        100,
        101,
        102,
        103,
    )
    for case in json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]:
        assert tokenizer.encode(case["text"]).tolist() == case["bert_uncased"]


@pytest.mark.shared_data
def test_reads_a_smaller_vocabulary(shared):
    path = shared / "tokenizers" / "wordpiece_small" / "test_wp_en_vocab.txt"
    tokenizer = WordPieceTokenizer.from_vocab_file(path)
    assert tokenizer.vocabulary_size == len(path.read_text(encoding="utf-8").splitlines())
