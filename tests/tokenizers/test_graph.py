"""The graph of each tokenizer against its Python encoder."""

import numpy as np
import pytest
import tensorflow as tf
from cases import some_of

from keras_seqlm.tokenizers import BytePairTokenizer, SentencePieceTokenizer, WordPieceTokenizer

KINDS = ["byte", "character", "byte_pair", "word_piece", "word_piece_cased", "unigram", "bpe"]
# Core operations of TensorFlow, and three of tensorflow-text that the stock TF Serving binary has too.
TEXT_OPERATIONS = {"SentencepieceOp", "SentencepieceTokenizeOp", "TFText>FastWordpieceTokenizeWithOffsets"}
FORBIDDEN = ("Variable", "VarHandle", "HashTable", "Mutable", "Lookup", "PyFunc", "Xla", "XLA", "ReadFile", "WriteFile")


def code_points(first, last):
    return [chr(point) for point in range(first, last) if not 0xD800 <= point < 0xE000]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_on_hypothesis_strings(tokenizers, graphs, hypothesis_strings, graph_equals_python, kind):
    graph_equals_python(tokenizers[kind], graphs[kind], hypothesis_strings)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_on_adversarial_strings(tokenizers, graphs, adversarial_strings, graph_equals_python, kind):
    graph_equals_python(tokenizers[kind], graphs[kind], adversarial_strings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", some_of(["character", "byte_pair", "word_piece", "unigram"], "character", "word_piece")
)
def test_equal_on_every_code_point(tokenizers, graphs, graph_equals_python, kind):
    """Planes 0 and 1 alone and in context; the others, which are all alike or not assigned, in context."""
    graph_equals_python(tokenizers[kind], graphs[kind], code_points(0, 0x20000))
    context = [f"a{one}b {one}1" for one in code_points(0, 0x20000)]
    rows = [" ".join(context[start : start + 64]) for start in range(0, len(context), 64)]
    rest = code_points(0x20000, 0x110000)
    rows += ["".join(rest[start : start + 64]) for start in range(0, len(rest), 64)]
    graph_equals_python(tokenizers[kind], graphs[kind], rows)


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_python(tokenizers, graphs, kind):
    tokenizer = tokenizers[kind]
    choose = np.random.default_rng(3)
    lengths = choose.integers(0, 40, 300)
    ids = choose.integers(0, tokenizer.vocabulary_size, (300, 40)).astype(np.int32)
    texts = graphs[kind].detokenize(ids, lengths.astype(np.int32)).numpy()
    for row, length, text in zip(ids, lengths, texts, strict=True):
        assert text.decode("utf-8") == tokenizer.decode(row[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_with_a_text_keeps_the_space_of_its_first_word(tokenizers, graphs, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("the lowest road, the low bridge").tolist()
    rows = [ids[cut:] for cut in range(len(ids) + 1)]
    for cut, rest in enumerate(rows):
        assert tokenizer.decode(ids[:cut]) + tokenizer.decode(rest, after_text=cut > 0) == tokenizer.decode(ids)
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.array([row + [0] * (len(ids) - len(row)) for row in rows], np.int32)
    after_text = np.arange(len(rows)) % 2 == 1
    texts = graphs[kind].detokenize_after(padded, lengths, after_text).numpy()
    for row, after, text in zip(rows, after_text, texts, strict=True):
        assert text.decode() == tokenizer.decode(row, bool(after))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_out_of_range_produce_nothing_in_the_graph(tokenizers, graphs, kind):
    size = tokenizers[kind].vocabulary_size
    known = tokenizers[kind].encode("low").tolist()
    ids = [[size, -1, *known, 2**31 - 1, -(2**31)]]
    text = graphs[kind].detokenize(ids, [len(ids[0])]).numpy()[0]
    assert text.decode() == tokenizers[kind].decode(known)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches_and_texts(graphs, kind):
    ids, lengths = graphs[kind].tokenize(tf.constant([], tf.string))
    assert ids.shape == (0, 0) and lengths.shape == (0,)
    ids, lengths = graphs[kind].tokenize(tf.constant(["", ""]))
    assert ids.shape == (2, 0) and lengths.numpy().tolist() == [0, 0]
    assert ids.dtype == lengths.dtype == tf.int32
    assert graphs[kind].detokenize(ids, lengths).numpy().tolist() == [b"", b""]
    assert graphs[kind].detokenize(ids[:0], lengths[:0]).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_row_in_a_batch(graphs, kind):
    texts = ["", "It was the best of times", " ", "秦川雄帝宅\n", "don't 're", "'s"]
    ids, lengths = graphs[kind].tokenize(tf.constant(texts))
    for text, row, length in zip(texts, ids.numpy(), lengths.numpy(), strict=True):
        alone, _ = graphs[kind].tokenize(tf.constant([text]))
        assert alone.numpy()[0].tolist() == row[:length].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_survives_a_new_random_seed(tokenizers, graphs, kind):
    """Seeding clears TensorFlow's caches, and with them whatever an eager operation owns."""
    for seed in (1, 2):
        tf.random.set_seed(seed)
        assert graphs[kind].tokenize(["low"])[0].numpy()[0].tolist() == tokenizers[kind].encode("low").tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_keeps_it_without_anything_mutable(tokenizers, graphs, tmp_path, kind):
    tf.saved_model.save(graphs[kind], tmp_path / "saved")
    saved = tf.saved_model.load(tmp_path / "saved")
    texts = ["It was the best of times", "秦川雄 don't\x00", b"\xff"]
    ids, lengths = saved.tokenize(tf.constant(texts))
    for text, row, length in zip(texts, ids.numpy(), lengths.numpy(), strict=True):
        assert row[:length].tolist() == tokenizers[kind].encode(text).tolist()
        assert saved.detokenize([row], [length]).numpy()[0].decode() == tokenizers[kind].decode(row[:length])
    used = operations(tmp_path / "saved")
    assert not [name for name in used if any(part in name for part in FORBIDDEN)], sorted(used)
    foreign = {name for name in used if ">" in name or "entencepiece" in name}
    assert foreign <= TEXT_OPERATIONS, foreign


def operations(folder):
    """The names of all operations in the tokenizing functions of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    # TensorFlow's own functions for saving and restoring checkpoints are in every SavedModel.
    functions = [
        f for f in graph.library.function if "save" not in f.signature.name and "restore" not in f.signature.name
    ]
    return {node.op for function in functions for node in function.node_def}


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "test_oss"])
def test_equal_with_the_vocabularies_of_others(
    shared, graph_equals_python, hypothesis_strings, adversarial_strings, kind
):
    folder = shared / "tokenizers"
    if kind == "gpt2":
        tokenizer = BytePairTokenizer.from_gpt2_files(folder / "gpt2/encoder.json", folder / "gpt2/vocab.bpe")
    elif kind == "bert":
        tokenizer = WordPieceTokenizer.from_vocab_file(folder / "bert_base_uncased/vocab.txt")
    else:
        name = {"t5": "t5_sentencepiece", "test_oss": "test_oss_model"}[kind]
        tokenizer = SentencePieceTokenizer.from_model_file(folder / f"sentencepiece/{name}.model")
    graph = tokenizer.in_graph()
    graph_equals_python(tokenizer, graph, hypothesis_strings)
    graph_equals_python(tokenizer, graph, adversarial_strings)
    graph_equals_python(tokenizer, graph, corpus_pieces(shared))
    graph_equals_python(tokenizer, graph, code_points(0, 0x10000))


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", KINDS)
def test_equal_on_corpora(shared, tokenizers, graphs, graph_equals_python, kind):
    graph_equals_python(tokenizers[kind], graphs[kind], corpus_pieces(shared))


def corpus_pieces(shared):
    """Real texts in English and Chinese, cut anywhere, inside characters too."""
    pieces = []
    for path, size in [
        ("tinyshakespeare/train.txt", 997),
        ("classic_books_en/Lewis_Carroll_Alice_s_Adventures_in_Wonderland.md", 1999),
        ("chinese_poetry/shijing.json", 997),
        ("chinese_poetry/poet.tang.0.json", 4999),
    ]:
        data = (shared / path).read_bytes()[:300_000]
        pieces += [data[start : start + size] for start in range(0, len(data), size)] + [data[:100_000]]
    return pieces
