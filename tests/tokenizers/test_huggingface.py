"""Hugging Face's `tokenizer.json`, in and out, against their library."""

import functools
import json
import random

import huggingface_models
import numpy as np
import pytest
import tensorflow as tf
from cases import some_of
from conftest import FRAGMENTS, TEXT
from tokenizers import AddedToken, Tokenizer

from keras_seqlm.export.served_part import save_served_part
from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
    from_huggingface,
)
from seqlm_runtime.graph_file import read_graph
from seqlm_runtime.op_gate import refused_in
from seqlm_runtime.tokenizers.model_proto import parse_model

MODELS = {
    "gpt2": huggingface_models.gpt2,
    "roberta": huggingface_models.roberta,
    "roberta_prefix": lambda text: huggingface_models.roberta(text, add_prefix_space=True),
    "llama3": huggingface_models.llama3,
    "qwen2": huggingface_models.qwen2,
    "qwen2_nfc": lambda text: huggingface_models.qwen2(text, nfc=True),
    "bert": huggingface_models.bert,
    "bert_cased": lambda text: huggingface_models.bert(text, lowercase=False, cleanup=False),
    "bert_added": huggingface_models.bert_added,
    "bert_cased_added": lambda text: huggingface_models.bert_added(text, lowercase=False),
    "gpt_neox": huggingface_models.gpt_neox,
}
MODELS.update(
    llama2=huggingface_models.llama2,
    llama2_new=lambda text: huggingface_models.llama2(text, legacy=False),
    gemma=huggingface_models.gemma,
    unigram=huggingface_models.unigram,
    unigram_first=lambda text: huggingface_models.unigram(text, scheme="first"),
    unigram_bytes=lambda text: huggingface_models.unigram(text, byte_fallback=True, white_space=True),
)
KINDS = list(MODELS)
# Each splits or normalises in a way of its own; the others differ from one of them in an option.
IN_GRAPHS = some_of(KINDS, "gpt2", "roberta_prefix", "llama3", "qwen2_nfc", "bert_added", "llama2", "unigram_bytes")
EXPORTED = ["byte_pair", "word_piece", "word_piece_cased", "unigram", "bpe"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Theirs and ours by name, ours read from their file."""
    folder = tmp_path_factory.mktemp("huggingface")
    made = {}
    for name, make in MODELS.items():
        theirs = make(TEXT)
        theirs.save(str(folder / f"{name}.json"))
        made[name] = theirs, from_huggingface(folder / f"{name}.json")
    return made


@pytest.fixture(scope="module")
def served(pairs):
    """`served(name)` is that of ours in a graph of TensorFlow."""
    return functools.cache(lambda name: pairs[name][1].in_graph())


@pytest.fixture(scope="module")
def texts(adversarial_strings, hypothesis_strings):
    """Valid texts, some of them with the names of added tokens."""
    choose = random.Random(3)
    names = ["<|endoftext|>", "<mask>", " <mask>", "<s>", "</s>", "<|im_start|>", "<think>", "<|eot_id|>", "lowest", "of",
             "of times", "of  \n", "[CLS]", "[MASK]", "<extra_id_0>", "<start_of_turn>", "▁", "\n\n", "LOWEST", "low\u00e9st", "ca", "C\u0327a va",
             "<x\x00>", "[user]", "[USER]", " TIMES", "DON'T"]  # fmt: skip
    mixed = ["".join(choose.choices(FRAGMENTS + 4 * names, k=choose.randint(1, 9))) for _ in range(600)]
    adversarial = [string.decode("utf-8", "replace") for string in adversarial_strings if len(string) < 2000]
    return [TEXT, *TEXT.split("\n")[:8], *mixed, *adversarial[:400], *hypothesis_strings[:500]]


def assert_equal(theirs, ours, texts, offsets_too=True):
    """Asserts ids, offsets and decoded texts that are theirs."""
    for text, encoded in zip(texts, theirs.encode_batch(texts, add_special_tokens=False), strict=True):
        ids, offsets = ours.encode_with_offsets(text)
        assert ours.encode(text).tolist() == encoded.ids, text
        assert ids.tolist() == encoded.ids, text
        if offsets_too:
            assert [tuple(pair) for pair in offsets.tolist()] == encoded.offsets, (text, encoded.tokens)
        assert ours.decode(ids) == theirs.decode(encoded.ids), text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_offsets_and_texts_are_those_of_the_library(pairs, texts, kind):
    assert_equal(*pairs[kind], texts)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_strings_are_those_of_the_library(
    pairs, served, hypothesis_strings, adversarial_strings, graph_equals_python, kind
):
    adversarial = [string.decode("utf-8", "replace") for string in adversarial_strings]
    assert_equal(*pairs[kind], hypothesis_strings + adversarial)
    graph_equals_python(pairs[kind][1], served(kind), hypothesis_strings + adversarial_strings)


@pytest.mark.parametrize("kind", IN_GRAPHS)
def test_the_graph_gives_the_same_ids(pairs, served, texts, adversarial_strings, graph_equals_python, kind):
    graph_equals_python(pairs[kind][1], served(kind), texts + adversarial_strings[-500:])


def test_the_gate_lets_their_graphs_pass(served, tmp_path):
    """Of Qwen's and GPT-NeoX's normal form it did not know an attribute: their exports were refused."""
    module = tf.Module()
    module.graphs = [served(kind) for kind in ("roberta_prefix", "llama3", "qwen2_nfc", "bert_added", "llama2")]
    save_served_part(module, str(tmp_path), signatures=None)
    assert refused_in(read_graph(tmp_path)) == {}


@pytest.mark.parametrize("kind", IN_GRAPHS)
def test_the_graph_decodes_the_same_text(pairs, served, kind):
    theirs, ours = pairs[kind]
    choose = np.random.default_rng(5)
    ids = choose.integers(0, ours.vocabulary_size, (300, 12)).astype(np.int32)
    lengths = choose.integers(0, 13, 300).astype(np.int32)
    for row, length, text in zip(ids, lengths, served(kind).detokenize(ids, lengths).numpy(), strict=True):
        assert text.decode() == ours.decode(row[:length])
        if b"\xef\xbf\xbd" in text:
            continue  # of bytes in a row that are no text theirs makes a U+FFFD each
        # Theirs leaves the mark of an inner piece where it comes first.
        assert ours.decode(row[:length]) == theirs.decode(row[:length].tolist()).removeprefix("##")


@pytest.mark.parametrize("kind", KINDS)
def test_goes_out_as_it_came_in(pairs, texts, tmp_path, kind):
    theirs, ours = pairs[kind]
    ours.to_huggingface(tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for special in (False, True):
        expected = theirs.encode_batch(texts[:700], add_special_tokens=special)
        for encoded, one in zip(again.encode_batch(texts[:700], add_special_tokens=special), expected, strict=True):
            assert (encoded.ids, encoded.offsets) == (one.ids, one.offsets)
    assert from_huggingface(tmp_path).hash == ours.hash
    ours.save(tmp_path / "ours")
    assert not (tmp_path / "ours" / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", EXPORTED)
def test_our_own_tokenizers_go_out(tokenizers, texts, tmp_path, kind):
    ours = tokenizers[kind]
    ours.to_huggingface(tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    names = [token.content for token in theirs.get_added_tokens_decoder().values()]  # in theirs a text may write them
    plain = [text for text in texts if not any(name in text for name in names)]
    assert len(plain) > 1000
    # Theirs gives all bytes in a row the place of the row, where unigram has them.
    assert_equal(theirs, ours, plain, offsets_too=kind != "unigram")
    first = theirs.encode("low").ids[0]
    assert first == ours.bos_id
    back = from_huggingface(tmp_path)
    assert back.special_ids == ours.special_ids
    for text in plain[:300]:
        assert back.encode(text).tolist() == ours.encode(text).tolist()


def test_added_tokens_of_ours_go_out(tokenizers, tmp_path):
    ours = tokenizers["byte_pair"].with_added_tokens(["<|user|>"], special=True).with_added_tokens(["lowest low"])
    ours.to_huggingface(tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert_equal(theirs, ours, ["<|user|>the lowest low road<|user|>", "lowest lo", "<|user|"])
    assert from_huggingface(tmp_path).encode("a<|user|>").tolist()[-1] == tokenizers["byte_pair"].vocabulary_size


def test_transformers_reads_what_goes_out(tokenizers, tmp_path):
    from transformers import AutoTokenizer

    ours = tokenizers["byte_pair"]
    ours.to_huggingface(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    assert theirs("It was the best", add_special_tokens=False)["input_ids"] == ours.encode("It was the best").tolist()


def test_the_config_beside_the_file_names_the_roles(tmp_path):
    huggingface_models.qwen2(TEXT).save(str(tmp_path / "tokenizer.json"))
    assert list(from_huggingface(tmp_path).special_ids) == ["eos"]  # of the name "<|endoftext|>"
    roles = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**roles, "chat_template": "{{ messages }}"}))
    tokenizer = from_huggingface(tmp_path)
    pad = tokenizer.pad_id  # the first of the three
    assert tokenizer.special_ids == {"eos": pad + 2, "pad": pad} and tokenizer.suppressed_ids == (pad, pad + 1)
    assert from_huggingface(tmp_path, {"bos": "<|im_start|>"}).special_ids == {"bos": pad + 1}
    with pytest.raises(ValueError, match="no role of a token"):
        from_huggingface(tmp_path, {"bos": "<nowhere>"})
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' is given as 'bos' and as 'eos'. A token has one role"):
        from_huggingface(tmp_path, {"bos": "<|im_end|>", "eos": "<|im_end|>"})
    assert from_huggingface(tmp_path, {"bos": "<|im_end|>", "cls": "<|im_end|>"}).special_ids == {"bos": pad + 2}


def changed(path, **changes):
    """The JSON of a file with fields replaced: `model__dropout=0.1` for one inside a part."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, last = name.split("__")
        part = content
        for one in outer:
            part = part[one]
        part[last] = value
    path.write_text(json.dumps(content))
    return path


ADDED = {"id": 500, "content": "<|endoftext|>", "special": True}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__dropout": 0.1}, "dropout = 0.1"),
        ({"model__fancy": 1}, "fancy is not known"),
        ({"model__byte_fallback": True}, "byte_fallback = True"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"model__type": "WordLevel"}, "WordLevel"),
        ({"model__merges": [["a", "b", "c"]]}, "two tokens a merge"),
        ({"model__vocab": {"a": 0, "b": 2}}, "ids from 0 on"),
        ({"model__vocab": {"a": 0}, "added_tokens": []}, "256 bytes"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
        ({"pre_tokenizer__use_regex": False}, "use_regex"),
        ({"pre_tokenizer__other": 1}, "other is not known"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": False},
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                }
            },
            r"Split by '\\\\w\+'",
        ),
        ({"post_processor": {"type": "Mystery"}}, "post_processor 'Mystery'"),
        ({"decoder": {"type": "WordPiece"}}, "decoder WordPiece"),
        ({"truncation": {"max_length": 5}}, "truncation"),
        ({"padding": {"strategy": "BatchLongest"}}, "padding"),
        ({"extra": 1}, "extra"),
        ({"added_tokens": [{**ADDED, "single_word": True}]}, "single_word"),
        ({"added_tokens": [{**ADDED, "id": 700}]}, "ids from 0 on"),
        ({"added_tokens": [{**ADDED, "id": 3}]}, "has the id of"),
        ({"added_tokens": [{**ADDED, "new": 3}]}, "added_tokens"),
    ],
)
def test_what_cannot_be_taken_is_named(tmp_path, changes, message):
    huggingface_models.gpt2(TEXT).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=message):
        from_huggingface(changed(tmp_path / "tokenizer.json", **changes))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        from_huggingface(tmp_path)
    for content in ("{", "[]", "{}", "[" * 100_000):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json"):
            from_huggingface(tmp_path)
    with pytest.raises(ValueError, match="no form"):
        ByteTokenizer().to_huggingface(tmp_path / "byte")


def test_a_folder_of_theirs_is_not_taken_for_ours(tmp_path):
    huggingface_models.gpt2(TEXT).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="from_huggingface"):
        BytePairTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__continuing_subword_prefix": "@@"}, "continuing_subword_prefix = '@@'"),
        ({"model__unk_token": "<other>"}, "unk_token '<other>'"),
        ({"normalizer": None}, "normalizer none"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"normalizer__lowercase": 3}, "lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
        ({"decoder": {"type": "ByteLevel"}}, "decoder ByteLevel"),
        ({"model__max_input_chars_per_word": 0}, "max_word_characters"),
    ],
)
def test_what_word_piece_cannot_take_is_named(tmp_path, changes, message):
    huggingface_models.bert(TEXT).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=message):
        from_huggingface(changed(tmp_path / "tokenizer.json", **changes))


def test_an_added_token_is_found_between_the_spaces_that_bert_puts_around_chinese(tmp_path, graph_equals_python):
    theirs = huggingface_models.bert(TEXT)
    theirs.add_tokens([AddedToken("秦", normalized=True), AddedToken("low秦", normalized=True)])
    theirs.add_special_tokens([AddedToken("[User]", normalized=True)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = from_huggingface(tmp_path)
    texts = ["秦川秦秦", "x秦y LOW秦", "low 秦", "秦", "low秦.", "the秦.", "[USER]the[user]"]
    for text in texts:
        ids, offsets = ours.encode_with_offsets(text)
        expected = theirs.encode(text, add_special_tokens=False)
        assert (ids.tolist(), [tuple(pair) for pair in offsets.tolist()]) == (expected.ids, expected.offsets)
    # Theirs keeps the spaces of its normal form, and shows a special token that has another content in it.
    assert [ours.decode(ours.encode(text)) for text in ("the秦.", "[USER]the")] == ["the 秦.", "the"]
    graph_equals_python(ours, ours.in_graph(), texts)


@pytest.mark.parametrize(
    "contents, message",
    [
        (["\u0301"], "is empty"),
        (["Low", "low"], "that of another one"),
        (["low\t"], "begins or ends with a space"),
    ],
)
def test_added_tokens_of_which_nothing_is_left_are_refused(tmp_path, contents, message):
    theirs = huggingface_models.bert(TEXT)
    theirs.add_tokens([AddedToken(content, normalized=True) for content in contents])
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=message):
        from_huggingface(tmp_path)


@pytest.mark.shared_data
def test_bert_gives_the_expected_ids(shared, tmp_path):
    ours = WordPieceTokenizer.from_vocab_file(shared / "tokenizers" / "bert_base_uncased" / "vocab.txt")
    ours.to_huggingface(tmp_path)
    theirs, again = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), from_huggingface(tmp_path)
    assert again.special_ids == ours.special_ids
    for case in json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]:
        assert again.encode(case["text"], added_tokens=False).tolist() == case["bert_uncased"]
        assert_equal(theirs, again, [case["text"]])


@pytest.mark.shared_data
def test_gpt2_gives_the_expected_ids(shared, tmp_path):
    folder = shared / "tokenizers" / "gpt2"
    BytePairTokenizer.from_gpt2_files(folder / "encoder.json", folder / "vocab.bpe").to_huggingface(tmp_path)
    theirs, ours = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), from_huggingface(tmp_path)
    assert ours.special_ids == {"eos": 50256} and ours.encode("a<|endoftext|>").tolist() == [64, 50256]
    for case in json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]:
        assert ours.encode(case["text"], added_tokens=False).tolist() == case["gpt2"]
        if "<|endoftext|>" not in case["text"]:
            assert_equal(theirs, ours, [case["text"]])


@pytest.mark.shared_data
@pytest.mark.parametrize("name, key", [("t5_sentencepiece", "sp_t5"), ("test_oss_model", "sp_test_oss")])
def test_unigram_models_with_a_character_map(shared, tmp_path, graph_equals_python, hypothesis_strings, name, key):
    """Theirs takes a character with its marks as one; of strings at random one in ten thousand differs by it."""
    model = parse_model((shared / "tokenizers" / "sentencepiece" / f"{name}.model").read_bytes())
    theirs = huggingface_models.unigram("", charsmap=model.charsmap, model=model)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = from_huggingface(tmp_path)
    cases = json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]
    texts = [case["text"] for case in cases] + hypothesis_strings[:1000]
    assert_equal(theirs, ours, texts, offsets_too=False)
    assert_equal(theirs, ours, texts[: len(cases)])
    graph_equals_python(ours, ours.in_graph(), texts)
    different = [case for case in cases if ours.encode(case["text"], added_tokens=False).tolist() != case[key]]
    # SentencePiece itself strips U+2581 at the end, which theirs does not.
    assert len(different) <= (1 if key == "sp_test_oss" else 0)


@pytest.mark.shared_data
def test_models_of_the_sentencepiece_library_go_out(shared, tmp_path):
    ours = SentencePieceTokenizer.from_model_file(shared / "tokenizers" / "sentencepiece" / "t5_sentencepiece.model")
    ours.to_huggingface(tmp_path)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for case in json.loads((shared / "tokenizers_expected" / "expected.json").read_text())["cases"]:
        assert theirs.encode(case["text"], add_special_tokens=False).ids == case["sp_t5"]


@pytest.mark.parametrize(
    "make, changes, message",
    [
        ("unigram", {"model__unk_id": None}, "unk_id"),
        ("unigram", {"normalizer": {"type": "NFKD"}}, "normalizer 'NFKD'"),
        ("unigram", {"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}}, "Replace of"),
        ("unigram", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "no base64"),
        ("unigram", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "character map"),
        ("unigram", {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "pre_tokenizer Digits"),
        ("unigram", {"pre_tokenizer__replacement": "_"}, "replacement = '_'"),
        ("unigram", {"decoder": {"type": "ByteLevel"}}, "decoder ByteLevel"),
        ("llama2", {"model__fuse_unk": False, "model__byte_fallback": False}, "neither byte_fallback nor fuse_unk"),
        ("llama2", {"model__ignore_merges": True}, "ignore_merges = True"),
        ("llama2", {"model__dropout": 0.5}, "dropout = 0.5"),
        ("llama2", {"model__unk_token": "<other>"}, "unk_token '<other>'"),
        ("llama2", {"model__merges": [["<s>", "a"]]}, "the merge '<s>' 'a'"),
        ("llama2", {"added_tokens": [{"id": 1, "content": "<s>", "normalized": True}]}, "normalized"),
        ("gemma", {"normalizer": None}, "pre_tokenizer Split"),
    ],
)
def test_what_sentence_pieces_cannot_take_is_named(tmp_path, make, changes, message):
    getattr(huggingface_models, make)(TEXT).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=message):
        from_huggingface(changed(tmp_path / "tokenizer.json", **changes))
