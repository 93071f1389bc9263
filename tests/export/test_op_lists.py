"""The lists of `seqlm_runtime.op_gate` are what exports of every architecture, tokenizer and option hold, and no more."""

import pathlib

import pytest
import row_toys

from keras_seqlm.export.litert import QUANTIZATIONS, write_litert
from keras_seqlm.export.saved_model import write_saved_model
from keras_seqlm.models import RecurrentLM, TransformerEncoder, TransformerLM
from keras_seqlm.tasks import QuestionAnswering, TextClassification, TextEmbedding, TextGeneration, TokenTagging
from keras_seqlm.tokenizers import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    WordPieceTokenizer,
)
from seqlm_runtime.graph_file import read_graph
from seqlm_runtime.lite_file import BUILTINS, parse_lite_file
from seqlm_runtime.op_gate import ATTRIBUTES, LITE_OPS, OPS, RESTORE_OPS

TEXTS = ["the cat sat on the mat. " * 5, "a dog ran over the hill. " * 5, "Zoë paid 12 € for two cafés"]
RECURRENT = {"size": "nano", "num_layers": 2, "hidden_dim": 16}
TRANSFORMER = {"size": "nano", "num_layers": 2, "hidden_dim": 16, "num_heads": 4, "max_length": 32}
TOKENIZERS = {
    "byte": ByteTokenizer,
    "character": lambda texts: CharacterTokenizer.train(texts=texts),
    "byte pair": lambda texts: BytePairTokenizer.train(texts=texts, vocabulary_size=300),
    "word piece": lambda texts: WordPieceTokenizer.train(texts=texts, vocabulary_size=80),
    "cased word piece": lambda texts: WordPieceTokenizer.train(texts=texts, vocabulary_size=80, lowercase=False),
    "unigram": lambda texts: SentencePieceTokenizer.train(texts=texts, vocabulary_size=330),
    "bpe": lambda texts: SentencePieceTokenizer.train(texts=texts, vocabulary_size=330, algorithm="bpe"),
}
# Together every option that changes the graph, each with a tokenizer.
MODELS = [
    ("byte", RecurrentLM, {**RECURRENT, "cell": "rnn"}),
    ("character", RecurrentLM, {**RECURRENT, "cell": "gru", "tie_embedding": False}),
    ("byte pair", RecurrentLM, {**RECURRENT, "cell": "lstm", "embedding_dim": 12, "dropout": 0.1}),
    ("word piece", TransformerLM, {**TRANSFORMER, "dropout": 0.1, "attention_dropout": 0.1}),
    (
        "unigram",
        TransformerLM,
        {
            **TRANSFORMER,
            "positions": "rotary",
            "num_kv_heads": 2,
            "norm": "rms",
            "activation": "swiglu",
            "use_bias": False,
            "window": 8,
        },
    ),
    ("cased word piece", TransformerLM, {**TRANSFORMER, "positions": "sinusoidal", "activation": "gelu"}),
    ("bpe", TransformerLM, {**TRANSFORMER, "activation": "relu", "norm_first": False, "positions": "rotary"}),
    ("byte", TransformerLM, {**TRANSFORMER, "activation": "geglu", "tie_embedding": False, "num_kv_heads": 1}),
]
# Of tokenizers that are read from Hugging Face's files: a prefix space, Llama-3's words, Qwen's normal form C.
OF_HUGGINGFACE = {"Add", "UnsortedSegmentMax", "DenseBincount", "NormalizeUTF8"}
ATTRIBUTES_OF_HUGGINGFACE = {"normalization_form", "unit"}
OF_LONG_TOKENS = {"If"}  # of over eight bytes: a text is tokenized once more where its end gave too few ids


def written_tasks():
    """A `TextGeneration` of each of `MODELS`."""
    for number, (name, kind, options) in enumerate(MODELS):
        tokenizer = TOKENIZERS[name]() if name == "byte" else TOKENIZERS[name](TEXTS)
        if number == 0:
            tokenizer = tokenizer.with_added_tokens(["<|user|>"], special=True).with_added_tokens(["zz"])
        model = kind(tokenizer.vocabulary_size, **options)
        model.build()
        yield TextGeneration(model, tokenizer)


def row_tasks():
    """The toys, every kind of classification and of pooling, and places by every tokenizer."""
    yield from (toy() for toy in row_toys.TOYS.values())
    rows = row_toys.ROWS
    several = [{"text": row["text"], "labels": [row["label"]]} for row in rows["classify"]]
    numbers = [{"text": row["text"], "value": 1.0} for row in rows["classify"]]
    kinds = [
        (TextClassification, several, {"pooling": "mean"}),
        (TextClassification, numbers, {"pooling": "max", "hidden_dim": 8}),
        (TextEmbedding, rows["embed"], {"embedding_dim": 8}),
        (TokenTagging, [{"tokens": ["a", "b"], "tags": ["X", "Y"]}], {}),
        (TokenTagging, [{**row, "asked": "when"} for row in rows["tag"]], {"before": "asked"}),
        (QuestionAnswering, [*rows["answer"], {"question": "a", "context": "b", "answers": []}], {}),
    ]
    for (kind, data, options), name in zip(kinds, TOKENIZERS, strict=False):
        tokenizer = TOKENIZERS[name]() if name == "byte" else TOKENIZERS[name](TEXTS)
        backbone = TransformerEncoder(tokenizer.vocabulary_size, **TRANSFORMER, num_token_types=2)
        yield kind.begin_with(data, backbone, tokenizer, **options)


@pytest.mark.soak
def test_the_lists_are_as_short_as_can_be(tmp_path):
    served, saver, lite, attributes = set(), set(), set(), set()
    for number, task in enumerate([*written_tasks(), *row_tasks()]):
        folder = tmp_path / str(number)
        task.save(folder / "run")
        # What the gate refuses raises here already, with its name.
        write_saved_model(folder / "run", str(folder / "1"), 20)
        graph = read_graph(folder / "1")
        own = graph.called([graph.nodes[graph.saver[2]]])
        served |= {node.op for node in graph.nodes.values()}
        attributes |= {name for node in graph.nodes.values() for name in node.attributes}
        for place, function in graph.functions.items():
            ops = {node.op for node in function.nodes}
            attributes |= function.attributes | {name for node in function.nodes for name in node.attributes}
            if place in own:
                saver |= ops
            else:
                served |= ops
        for quantize in QUANTIZATIONS:
            file = folder / f"{quantize}.tflite"
            write_litert(folder / "run", str(file), str(folder / "books.tokenizer"), quantize, True)
            lite |= {BUILTINS[code] for code, _ in parse_lite_file(pathlib.Path(file).read_bytes()).operations}
    known = served | OF_HUGGINGFACE | OF_LONG_TOKENS
    assert known == OPS, f"more than the exports hold: {sorted(OPS - known)}"
    assert lite == LITE_OPS, f"more than the exports hold: {sorted(LITE_OPS - lite)}"
    assert saver - OPS == RESTORE_OPS
    known = attributes | ATTRIBUTES_OF_HUGGINGFACE
    assert known == ATTRIBUTES, f"more than the exports hold: {sorted(ATTRIBUTES - known)}"
