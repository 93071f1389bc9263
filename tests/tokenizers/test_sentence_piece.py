import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import tempfile

import pytest

from keras_seqlm.tokenizers import SentencePieceTokenizer
from seqlm_runtime.tokenizers.model_proto import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    Model,
    parse_model,
    serialize_model,
)
from seqlm_runtime.tokenizers.tokenizer import bytes_of

SPECIAL = [("<pad>", 0.0, CONTROL), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]


def from_model(tmp_path, model):
    (tmp_path / "some.model").write_bytes(serialize_model(model))
    return SentencePieceTokenizer.from_model_file(tmp_path / "some.model")


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_any_text_comes_back(tokenizers, hypothesis_strings, adversarial_strings, algorithm):
    tokenizer = tokenizers[algorithm]
    for string in adversarial_strings + hypothesis_strings[:3000]:
        text = string.decode("utf-8", "replace") if isinstance(string, bytes) else string
        assert tokenizer.decode(tokenizer.encode(string)) == text.replace("\u2581", " ")


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_ids_are_those_of_the_library(tokenizers, hypothesis_strings, adversarial_strings, algorithm):
    import sentencepiece

    tokenizer = tokenizers[algorithm]
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.files["sentencepiece.model"])
    for string in adversarial_strings + hypothesis_strings[:3000]:
        text = string.decode("utf-8", "replace") if isinstance(string, bytes) else string
        assert tokenizer.encode(text).tolist() == library.encode(text)


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
def test_a_text_without_spaces_teaches_the_space(algorithm):
    """Spaces of later texts came back as U+2581, written in bytes for want of a piece."""
    tokenizer = SentencePieceTokenizer.train(
        texts=["秦川雄帝宅函谷壯皇居"] * 20, vocabulary_size=290, algorithm=algorithm
    )
    graph = tokenizer.in_graph()
    for text in ("a b", "秦川 雄帝", " ", "  x"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert graph.detokenize([ids], [len(ids)]).numpy()[0].decode() == text
    assert len(tokenizer.encode(" ")) == 1
    # A model of before that, which knows no space.
    pieces = [piece for piece in tokenizer.model.pieces if piece[0] != "\u2581"]
    config = {**tokenizer.config, "vocabulary_size": len(pieces)}
    model = serialize_model(dataclasses.replace(tokenizer.model, pieces=pieces))
    old = SentencePieceTokenizer({"seqlm_tokenizer.json": bytes_of(config), "sentencepiece.model": model})
    ids = old.encode("a b")
    assert len(ids) == 5 and old.decode(ids) == "a b"
    assert old.in_graph().detokenize([ids], [len(ids)]).numpy()[0] == b"a b"


def test_scores_are_exact_in_single_precision(tokenizers):
    assert all((score * 16).is_integer() for _, score, _ in tokenizers["unigram"].model.pieces)


def test_unknown_characters_in_a_row_are_one_id(tmp_path):
    model = Model([*SPECIAL, ("\u2581", -1.0, NORMAL), ("a", -2.0, NORMAL), ("\u2581a", -2.0, NORMAL)], UNIGRAM)
    tokenizer = from_model(tmp_path, model)
    assert tokenizer.encode("a  xyz a\u2581").tolist() == [6, 4, 3, 6]
    assert tokenizer.special_ids == {"pad": 0, "bos": 1, "eos": 2, "unk": 3}
    assert tokenizer.decode([6, 4, 3, 6]) == "a  a"
    graph = tokenizer.in_graph()
    assert graph.tokenize(["a  xyz a\u2581"])[0].numpy()[0].tolist() == [6, 4, 3, 6]


def test_merges_of_equal_score_go_from_the_left(tmp_path):
    pieces = [("a", -9.0, NORMAL), ("b", -9.0, NORMAL), ("ba", -1.0, NORMAL), ("ab", -1.0, NORMAL)]
    tokenizer = from_model(tmp_path, Model([*SPECIAL, *pieces], BPE, add_dummy_prefix=False))
    graph = tokenizer.in_graph()
    for text in ("abab", "babab", "aabba", "bbaa"):
        assert tokenizer.encode(text).tolist() == graph.tokenize([text])[0].numpy()[0].tolist()
    assert tokenizer.encode("aba").tolist() == [7, 4]


def test_a_model_is_written_as_it_was_read(tokenizers):
    data = tokenizers["unigram"].files["sentencepiece.model"]
    assert serialize_model(parse_model(data)) == data


@pytest.mark.parametrize("algorithm", ["char", None])
def test_refuses_other_algorithms(algorithm):
    with pytest.raises(ValueError, match="unigram"):
        SentencePieceTokenizer.train(texts=["low"], algorithm=algorithm)


def test_refuses_a_vocabulary_that_is_too_small():
    with pytest.raises(ValueError, match="vocabulary_size"):
        SentencePieceTokenizer.train(texts=["low lower"], vocabulary_size=100)


@pytest.mark.parametrize(
    "model",
    [
        Model([*SPECIAL, ("a" * 500_000, -1.0, NORMAL)]),
        Model([*SPECIAL, ("a\0b", -1.0, NORMAL)]),
        Model([*SPECIAL, ("a", -1.0, NORMAL), ("a", -1.0, NORMAL)]),
        Model([*SPECIAL, ("a", float("nan"), NORMAL)]),
        Model([*SPECIAL, ("a", -1.0, 9)]),
        Model([*SPECIAL, ("a", -1.0, 4)]),
        Model([*SPECIAL, ("<0x41>", -1.0, BYTE)], byte_fallback=True),
        Model(SPECIAL[:3]),
        Model([*SPECIAL, ("<unk2>", 0.0, UNKNOWN)]),
        Model([*SPECIAL, ("a", -1.0, NORMAL)], model_type=3),
        Model([*SPECIAL, ("a", -1.0, NORMAL)], charsmap=b"\x04\0\0\0garbage"),
        Model([*SPECIAL, ("a", -1.0, NORMAL)], charsmap=b"\0\4\0\0" + b"\xff" * 1024 + b"\0"),
        Model([]),
    ],
)
def test_refuses_dangerous_and_ambiguous_models(tmp_path, model):
    with pytest.raises(ValueError):
        from_model(tmp_path, model)


@pytest.mark.slow
def test_damaged_models_never_end_the_process(tmp_path):
    """Changed bytes in a model with a character map: ValueError, or a tokenizer that works in the graph."""
    script = """
import pathlib, random, sys
sys.path.insert(0, sys.argv[2])
import tensorflow as tf
from keras_seqlm.tokenizers import SentencePieceTokenizer
path = pathlib.Path(sys.argv[1])
good = path.read_bytes()
choose = random.Random(5)
refused = worked = 0
for _ in range(150):
    data = bytearray(good)
    for _ in range(choose.randint(1, 4)):
        data[choose.randrange(len(data))] = choose.randrange(256)
    path.write_bytes(data[: choose.choice([len(data), len(data), choose.randrange(len(data))])])
    try:
        tokenizer = SentencePieceTokenizer.from_model_file(path)
        texts = ["a \\u00bd ab\\u3000", "\\u2460"]
        ids, lengths = tokenizer.in_graph().tokenize(texts)
        for row, length, text in zip(ids.numpy(), lengths.numpy(), texts):
            assert row[:length].tolist() == tokenizer.encode(text).tolist()
        worked += 1
    except ValueError:
        refused += 1
print(refused, worked)
"""
    pieces = [*SPECIAL, ("a", -1.0, NORMAL), ("ab", -1.5, NORMAL), ("1", -2.0, NORMAL), ("\u2581", -1.0, NORMAL)]
    path = tmp_path / "some.model"
    path.write_bytes(serialize_model(Model(pieces, charsmap=small_charsmap())))
    root = str(pathlib.Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script, str(path), root], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, worked = map(int, done.stdout.split()[-2:])
    assert refused > 20 and worked > 3


def small_charsmap():
    """A character map that the library itself compiled: a few rules of a trained model's file."""
    import sentencepiece

    data = io.BytesIO()
    rules = "BD\t31 2044 32\n2460\t31\n3000\t20\n41\t61\n41 30A\tE5\n"
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.write(rules)
        file.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a ab abc"] * 20),
            model_writer=data,
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=file.name,
            minloglevel=2,
        )
    return parse_model(data.getvalue()).charsmap


def test_character_maps_replace_the_longest(tmp_path):
    pieces = [*SPECIAL, *((character, -1.0, NORMAL) for character in "a1\u20442\u00e5\u2581")]
    tokenizer = from_model(tmp_path, Model(pieces, charsmap=small_charsmap()))
    assert tokenizer.normalize("A\u030a\u3000½ A") == "\u2581\u00e5\u25811\u20442\u2581a"
    graph = tokenizer.in_graph()
    for text in ("A\u030a\u3000½ A", "  ", "\u2460A\u030b", "A"):
        assert tokenizer.encode(text).tolist() == graph.tokenize([text])[0].numpy()[0].tolist()


@pytest.mark.shared_data
@pytest.mark.parametrize("name, key", [("t5_sentencepiece", "sp_t5"), ("test_oss_model", "sp_test_oss")])
def test_models_of_others_give_the_expected_ids(shared, name, key):
    tokenizer = SentencePieceTokenizer.from_model_file(shared / "tokenizers" / "sentencepiece" / f"{name}.model")
    for case in json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]:
        assert tokenizer.encode(case["text"]).tolist() == case[key]


@pytest.mark.shared_data
@pytest.mark.slow
def test_normalisation_is_that_of_the_library(shared, hypothesis_strings):
    import sentencepiece

    path = shared / "tokenizers" / "sentencepiece" / "t5_sentencepiece.model"
    tokenizer = SentencePieceTokenizer.from_model_file(path)
    library = sentencepiece.SentencePieceNormalizer(model_file=str(path), escape_whitespaces=True)
    every = [f"a{chr(i)}\u0301" for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    texts = ["".join(every[start : start + 4096]) for start in range(0, len(every), 4096)] + hypothesis_strings
    for text, expected in zip(texts, library.normalize(texts), strict=True):
        assert tokenizer.normalize(text) == expected
