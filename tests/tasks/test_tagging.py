"""Spans of texts: from rows to tags of tokens and back, learned at toy size, and long texts in windows."""

import json
import pathlib

import keras
import numpy as np
import pytest

from keras_seqlm.data import Rows
from keras_seqlm.metrics.spans import spans_of_tags
from keras_seqlm.models import RecurrentEncoder, RecurrentLM, Tagger, TransformerEncoder
from keras_seqlm.tasks import TokenTagging, load
from keras_seqlm.tokenizers import BytePairTokenizer, ByteTokenizer

pytestmark = pytest.mark.neutral

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
NAMES, TIMES = ["Ann", "Zoë", "李明", "Bob"], ["8pm", "9:30", "half past seven 😀"]


def rows(count, seed=0):
    draws = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        name, time = NAMES[draws.integers(len(NAMES))], TIMES[draws.integers(len(TIMES))]
        text = f"table for {name} at {time} please" if draws.random() < 0.5 else f"at {time}, for {name}"
        places = [(label, text.index(part), len(part)) for label, part in (("name", name), ("time", time))]
        made.append({"text": text, "spans": [{"label": a, "start": b, "end": b + c} for a, b, c in places]})
    return made


def tiny_task(data, tokenizer=None, encoder=None, **options):
    tokenizer = tokenizer or ByteTokenizer()
    keras.utils.set_random_seed(0)
    encoder = encoder or RecurrentEncoder(
        tokenizer.vocabulary_size, cell="gru", size="nano", num_layers=1, hidden_dim=32
    )
    return TokenTagging.begin_with(data, encoder, tokenizer, **options)


def by_the_truth(task, monkeypatch, data):
    """Lets the task answer with the targets of its own examples: what is left are the reader and the decoder."""
    targets = {}
    for row in data:
        for inputs, target in task.examples_of(row):
            targets[inputs["token_ids"].tobytes()] = target

    def outputs(inputs, batch_size):
        classes = np.arange(len(task.tags))
        return [np.where(targets[one["token_ids"].tobytes()][:, None] == classes, 9.0, 0.0) for one in inputs]

    monkeypatch.setattr(task, "outputs", outputs)


@pytest.mark.backends
def test_it_learns_and_is_loaded_again(tmp_path):
    task = tiny_task(rows(128))
    assert task.tags == ["O", "B-name", "I-name", "B-time", "I-time"]
    model = task.model
    model.compile(keras.optimizers.Adam(1e-2), loss=model.default_loss())
    model.fit(task.examples(rows(128), 32), epochs=8, verbose=0)
    figures = task.evaluate(rows(48, seed=1))
    assert figures["span_f1"] > 0.9 and figures["accuracy"] > 0.95 and figures["count"] == 48
    assert figures["span_f1_low"] <= figures["span_f1"] <= figures["span_f1_high"]
    text = "table for Zoë at half past seven 😀 please"
    [found] = task.predict([text])
    assert [(span.label, span.text) for span in found.spans] == [("name", "Zoë"), ("time", "half past seven 😀")]
    assert all(text[span.start : span.end] == span.text and 0.5 < span.score <= 1 for span in found.spans)
    task.save(tmp_path / "run")
    again = load(tmp_path / "run")
    assert again.predict([text])[0].spans == found.spans and again.settings() == task.settings()


TOKENIZERS = {
    "byte": ByteTokenizer,
    "byte_pair": lambda: BytePairTokenizer.train(
        texts=["table for Zoë at half past seven 😀 please"] * 9, vocabulary_size=330
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("max_length", [None, 12])
def test_spans_come_back_as_they_were_given(kind, max_length, monkeypatch):
    """Through windows of 12 tokens, too, over whose borders spans go."""
    tokenizer = TOKENIZERS[kind]()
    encoder = max_length and TransformerEncoder(
        tokenizer.vocabulary_size, size="nano", num_layers=1, max_length=max_length
    )
    data = rows(30)
    task = tiny_task(data, tokenizer, encoder)
    by_the_truth(task, monkeypatch, data)
    figures = task.evaluate(data)
    assert (figures["span_f1"], figures["accuracy"], figures["precision"], figures["recall"]) == (1, 1, 1, 1)
    assert task.notes["widened"] == 0


def test_tokens_and_tags_are_read_as_conll_has_them(tmp_path, monkeypatch):
    (tmp_path / "a.conll").write_text(
        "-DOCSTART- O\n\nAnn B-name\nLee I-name\nat O\n8 I-time\n\n我 O\n见 O\n李 B-name\n明 I-name\n"
    )
    data = [row for _, row in Rows(tmp_path / "a.conll")]
    task = tiny_task(Rows(tmp_path / "a.conll"))
    by_the_truth(task, monkeypatch, data)
    found = task.predict(data)
    assert [one.text for one in found] == ["Ann Lee at 8", "我见李明"]
    assert [one.tokens for one in found] == [row["tokens"] for row in data]
    assert [one.tags for one in found] == [["B-name", "I-name", "O", "B-time"], ["O", "O", "B-name", "I-name"]]
    assert [spans_of_tags(one.tags) for one in found] == [spans_of_tags(row["tags"]) for row in data]
    assert [(s.start, s.end, s.text) for s in found[1].spans] == [(2, 4, "李明")]
    assert task.evaluate(data)["span_f1"] == 1


def test_tags_that_name_no_span(monkeypatch):
    data = [{"tokens": ["it", "runs"], "tags": ["PRON", "VERB"]}, {"tokens": ["Ann"], "tags": ["NOUN"]}]
    task = tiny_task(data)
    assert (task.kind, task.tags) == ("tags", ["NOUN", "PRON", "VERB"])
    by_the_truth(task, monkeypatch, data)
    assert [one.tags for one in task.predict(data)] == [["PRON", "VERB"], ["NOUN"]]
    figures = task.evaluate(data)
    assert figures["accuracy"] == 1 and "span_f1" not in figures
    inputs, target = task.examples_of(data[0])[0]
    assert target.tolist() == [-1, 1, 1, -1, 2, 2, 2, 2, -1]  # bos, "it", a space, "runs", eos


def test_what_tokens_cannot_tell_is_widened_and_counted():
    tokenizer = BytePairTokenizer.train(texts=["o'clock " * 50], vocabulary_size=280)
    data = [{"text": "o'clock", "spans": [{"label": "a", "start": 2, "end": 4}, {"label": "b", "start": 5, "end": 7}]}]
    task = tiny_task(data, tokenizer)
    ids, offsets = tokenizer.encode_with_offsets("o'clock")
    assert len(ids) < 7, "the test needs a token that holds the border of a span"
    [(inputs, target)] = task.examples_of(data[0])
    assert task.notes["widened"] > 0
    assert target[1:-1].max() > 0 and task.evaluate(data)["count"] == 1


def test_of_spans_over_one_token_the_earlier_has_it():
    data = [
        {
            "text": "in an hour",
            "spans": [{"label": "time", "start": 0, "end": 10}, {"label": "date", "start": 0, "end": 10}],
        }
    ]
    task = tiny_task(data)
    [(_, target)] = task.examples_of(data[0])
    assert target[1:-1].tolist() == [task.tags.index("B-date")] + [task.tags.index("I-date")] * 9
    assert task.notes["lost"] == 1
    assert task.evaluate(data)["count"] == 1


def test_white_space_is_no_part_of_a_span(monkeypatch):
    data = [{"text": "at 8 pm  ok", "spans": [{"label": "time", "start": 2, "end": 8}]}]
    task = tiny_task(data)
    by_the_truth(task, monkeypatch, data)
    assert [(span.start, span.end) for span in task.predict(data)[0].spans] == [(3, 7)]
    assert task.evaluate(data)["span_f1"] == 1


def test_a_field_may_stand_before_the_text(monkeypatch):
    data = [{**row, "requested": ["time", "people"]} for row in rows(4)] + rows(4)
    tokenizer = ByteTokenizer()
    encoder = TransformerEncoder(260, size="nano", num_layers=1, max_length=64, num_token_types=2)
    task = tiny_task(data, tokenizer, encoder, before="requested")
    inputs, target = task.examples_of(data[0])[0]
    before = [1, *tokenizer.encode("time, people"), 2]
    assert inputs["token_ids"][: len(before)].tolist() == before and (target[: len(before)] == -1).all()
    assert inputs["token_types"].tolist() == [0] * len(before) + [1] * (len(target) - len(before))
    by_the_truth(task, monkeypatch, data)
    assert task.evaluate(data)["span_f1"] == 1
    alone = tiny_task(data, tokenizer, encoder)
    assert not alone.examples_of(data[0])[0][0]["token_types"].any()  # as of a text that stands alone


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"spans": []}, "neither text nor tokens"),
        ({"text": "at 8"}, "has no spans"),
        ({"text": "at 8", "spans": [{"label": "time", "start": 3, "end": 9}]}, "does not lie in the text"),
        ({"text": "at 8", "spans": [{"label": "time", "start": 3}]}, "a span must be"),
        ({"text": "at 8", "spans": [{"label": "size", "start": 3, "end": 4}]}, "'size' is not among the 2"),
        ({"tokens": ["at", "8"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["at", "8"], "tags": ["O", "NUM"]}, "must be O, B-label"),
        ({"tokens": ["at", ""], "tags": ["O", "O"]}, "something in them"),
    ],
)
def test_a_broken_row_is_named(row, reason):
    task = tiny_task(rows(4))
    for read in (lambda data: task.examples(data, 2), task.evaluate):
        with pytest.raises(ValueError, match="row 3") as error:
            read([*rows(2), row])
        assert reason in str(error.value)
    data = Rows([*rows(2), row], tolerance=0.5)
    assert task.examples(data, 2).num_rows == 2
    assert [place for place, _ in data.bad] == ["row 3"]


def test_rows_without_labels_are_refused():
    for data, words in (
        ([{"text": "a"}], "no row has a span"),
        ([*rows(1), {"tokens": ["a"], "tags": ["X"]}], "name none"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_task(data)
    with pytest.raises(ValueError, match="kind must be"):
        TokenTagging(Tagger(RecurrentLM(260, size="nano"), 1), ByteTokenizer(), kind="words")
    with pytest.raises(ValueError, match="2 classes, and there are 3 tags"):
        TokenTagging(Tagger(RecurrentLM(260, size="nano"), 2), ByteTokenizer(), labels=["a"])


def test_texts_without_tokens():
    task = tiny_task(rows(4))
    [found] = task.predict([""])
    assert (found.spans, found.tokens, found.tags) == ([], [], [])


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_restaurant8k_is_read():
    data = Rows(SHARED / "restaurant8k" / "train.json")
    task = tiny_task(data)
    assert task.labels == ["date", "first_name", "last_name", "people", "time"]
    made = task.examples(data, 32)
    assert made.num_rows == 8198 and not data.bad
    assert task.notes["lost"] < 60 and task.notes["widened"] == 0
    json.dumps(task.settings())
