import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seqlm.tokenizers import BytePairTokenizer
from keras_seqlm.tokenizers.byte_pair import unsound_merges
from seqlm_runtime.tokenizers.merges import merge
from seqlm_runtime.tokenizers.words import split_words


def gpt2_files(folder, tokens, merges):
    """Writes a vocabulary of the 256 bytes, `tokens` and an end of text, with `merges`."""
    from seqlm_runtime.tokenizers.byte_pair import BYTE_CHARACTERS

    lines = [*BYTE_CHARACTERS, *tokens, "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(lines)}), encoding="utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder / "encoder.json", folder / "vocab.bpe"


def test_learns_the_frequent_pairs():
    tokenizer = BytePairTokenizer.train(texts=["low low low lower lowest"], vocabulary_size=263)
    assert [tokenizer.tokens[i] for i in (260, 261, 262)] == [b"lo", b"low", b" low"]
    assert tokenizer.encode("low lowly").tolist() == [261, 262, 4 + ord("l"), 4 + ord("y")]
    assert BytePairTokenizer.train(texts=["abc"], vocabulary_size=1000).vocabulary_size == 260  # no pair twice


@pytest.mark.parametrize("size", [259, 0, -1])
def test_refuses_a_vocabulary_without_room_for_bytes(size):
    with pytest.raises(ValueError, match="at least 260"):
        BytePairTokenizer.train(texts=["low"], vocabulary_size=size)


def test_any_bytes_come_back(tokenizers, adversarial_strings, hypothesis_strings):
    tokenizer = tokenizers["byte_pair"]
    for string in adversarial_strings + hypothesis_strings[:2000]:
        data = string if isinstance(string, bytes) else string.encode()
        assert tokenizer.decode_bytes(tokenizer.encode(data)) == data


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=40))
def test_any_random_bytes_come_back(tokenizers, data):
    tokenizer = tokenizers["byte_pair"]
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert tokenizer.decode(tokenizer.encode(data)) == data.decode("utf-8", "replace")


def test_words_are_those_of_the_library(tokenizers, adversarial_strings, hypothesis_strings):
    from tokenizers import pre_tokenizers

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    every = "".join(f"a{chr(i)}1" for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    valid = [string.decode("utf-8", "replace") for string in adversarial_strings]
    for text in [every, *valid, *hypothesis_strings[:3000]]:
        expected = [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)]
        assert split_words(text.encode(), tokenizers["byte_pair"].classes) == expected


def test_ids_are_those_of_the_library(tokenizers, adversarial_strings, hypothesis_strings):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = tokenizers["byte_pair"]
    lines = tokenizer.files["vocabulary.txt"].decode().splitlines()
    merges = [tuple(line.split(" ")) for line in tokenizer.files["merges.txt"].decode().splitlines()]
    reference = Tokenizer(models.BPE(vocab={line: i for i, line in enumerate(lines)}, merges=merges))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for text in [string.decode("utf-8", "replace") for string in adversarial_strings] + hypothesis_strings[:3000]:
        if max(map(len, map(str.encode, split_words(text.encode(), tokenizer.classes))), default=0) <= 40:
            assert tokenizer.encode(text).tolist() == reference.encode(text).ids


def test_long_words_are_cut(tokenizers):
    tokenizer = tokenizers["byte_pair"]
    word = "lowest" * 30
    parts = [word[start : start + 40] for start in range(0, len(word), 40)]
    assert tokenizer.encode(word).tolist() == [i for part in parts for i in tokenizer.encode(part).tolist()]


def test_a_word_of_a_hundred_kilobytes_is_no_attack(tmp_path):
    tokenizer = BytePairTokenizer.from_gpt2_files(*gpt2_files(tmp_path, ["aa", "aaaa"], ["a a", "aa aa"]))
    assert len(tokenizer.encode("a" * 100_000)) == 25_000


def test_merges_lowest_rank_first_and_leftmost():
    pairs = {(1, 1): (0, 2), (2, 1): (1, 3)}
    assert merge([1, 1, 1, 1, 1], dict(pairs)) == [2, 3]
    assert merge([], pairs) == [] and merge([1], pairs) == [1]


def test_gpt2_files_keep_their_ids(tmp_path):
    tokenizer = BytePairTokenizer.from_gpt2_files(*gpt2_files(tmp_path, ["lo", "low"], ["l o", "lo w"]))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (None, None, 258, None)
    assert tokenizer.suppressed_ids == ()
    assert tokenizer.encode("low").tolist() == [257]
    assert tokenizer.encode("<|endoftext|>").tolist() != [258] and tokenizer.decode([257, 258]) == "low"
    graph = tokenizer.in_graph()
    ids, lengths = graph.tokenize(["low <|endoftext|>", ""])
    assert ids.numpy()[0].tolist() == tokenizer.encode("low <|endoftext|>").tolist()
    assert lengths.numpy()[1] == 0 and not ids.numpy()[1].any()


@pytest.mark.parametrize(
    "tokens, merges",
    [
        (["ab", "bc", "abc"], ["a b", "b c", "a bc", "ab c"]),  # two ways to one token
        (["bc", "ab", "abc"], ["b c", "a b", "ab c"]),  # "abc" becomes "a", "bc"
        (["ab", "abc", "abca"], ["abc a", "ab c", "a b"]),  # the later ones first
        (["aa", "aaa", "ba"], ["a aa", "a a", "aa a", "b a"]),
        (["ca", "ab", "ba", "aba", "cab"], ["a ba", "c a", "ca b", "a b", "ab a"]),
    ],
)
def test_any_merges_are_done_in_the_graph(tmp_path, graph_equals_python, tokens, merges):
    """The operation merges by the joined text, whichever pair it is of."""
    tokenizer = BytePairTokenizer.from_gpt2_files(*gpt2_files(tmp_path, tokens, merges))
    words = ["".join(letters) for size in range(1, 7) for letters in itertools.product("abc", repeat=size)]
    graph_equals_python(tokenizer, tokenizer.in_graph(), words)


@pytest.mark.parametrize("merges", [["a b c"], ["l z"], ["l o", "l o"], ["l"], ["l o", "lo \u4e2d"], ["l o", " w"]])
def test_refuses_damaged_merges(tmp_path, merges):
    paths = gpt2_files(tmp_path, ["lo", "low"], merges)
    with pytest.raises(ValueError, match="merges.txt|vocab.bpe"):
        BytePairTokenizer.from_gpt2_files(*paths)


@pytest.mark.parametrize(
    "vocabulary", ['{"a": 0, "b": 0}', '{"a": 4294967295}', '{"a": true}', "[1]", "{", '{"a": -1}']
)
def test_refuses_a_damaged_vocabulary(tmp_path, vocabulary):
    paths = gpt2_files(tmp_path, [], [])
    paths[0].write_text(vocabulary)
    with pytest.raises(ValueError, match="encoder.json"):
        BytePairTokenizer.from_gpt2_files(*paths)


def test_training_leaves_only_merges_that_the_graph_can_do(tokenizers):
    assert unsound_merges(tokenizers["byte_pair"]) == []


@pytest.mark.shared_data
def test_gpt2_gives_the_expected_ids(shared):
    folder = shared / "tokenizers" / "gpt2"
    tokenizer = BytePairTokenizer.from_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")
    assert tokenizer.eos_id == 50256
    for case in json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]:
        assert tokenizer.encode(case["text"]).tolist() == case["gpt2"]
        assert tokenizer.decode(case["gpt2"]) == case["text"]
