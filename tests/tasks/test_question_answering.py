"""Answers in contexts: from rows to places and back, the best over windows, learned at toy size."""

import itertools
import json
import pathlib

import keras
import numpy as np
import pytest

from keras_seqlm.data import Rows
from keras_seqlm.models import RecurrentEncoder, SpanFinder, TransformerEncoder
from keras_seqlm.tasks import QuestionAnswering, load
from keras_seqlm.tokenizers import BytePairTokenizer, ByteTokenizer
from seqlm_runtime.windows import placed_tokens

pytestmark = pytest.mark.neutral

SHARED = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
PEOPLE, PLACES = ["Ann", "Zoë", "李明", "Bob 😀"], ["Rome", "北京", "Oslo", "Bonn"]


def rows(count, seed=0, padding=0, unanswerable=0.0):
    """Who was where: the answer follows the sign of what is asked for, "#" or "@"."""
    draws = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        who, where = PEOPLE[draws.integers(4)], PLACES[draws.integers(4)]
        asked, answer = (("#", who), ("@", where))[draws.integers(2)]
        before = "·" * int(draws.integers(padding + 1))
        missing = draws.random() < unanswerable
        context = f"{before}so " + f"#{who} @{where}".replace(asked, "" if missing else asked) + " then."
        answers = [] if missing else [{"text": answer, "start": context.index(asked + answer) + 1}]
        made.append({"question": asked, "context": context, "answers": answers})
    return made


def tiny_task(data, tokenizer=None, encoder=None, **options):
    tokenizer = tokenizer or ByteTokenizer()
    keras.utils.set_random_seed(0)
    encoder = encoder or RecurrentEncoder(
        tokenizer.vocabulary_size, cell="gru", size="nano", num_layers=1, hidden_dim=32
    )
    return QuestionAnswering.begin_with(data, encoder, tokenizer, **options)


def by_the_truth(task, monkeypatch, data):
    """Lets the task answer with the targets of its own examples: what is left are the reader and the decoder."""
    targets = {one["token_ids"].tobytes(): target for row in data for one, target in task.examples_of(row)}

    def outputs(inputs, batch_size):
        return [np.eye(len(one["token_ids"]))[targets[one["token_ids"].tobytes()]] * 9 for one in inputs]

    monkeypatch.setattr(task, "outputs", outputs)


@pytest.mark.backends
def test_it_learns_and_is_loaded_again(tmp_path):
    data = rows(192, unanswerable=0.2)
    task = tiny_task(data)
    assert task.unanswerable and task.longest == 5
    model = task.model
    model.compile(keras.optimizers.Adam(1e-2), loss=model.default_loss())
    model.fit(task.examples(data, 32), epochs=25, verbose=0)
    figures = task.evaluate(rows(64, seed=1, unanswerable=0.2))
    assert figures["exact_match"] > 0.8 and figures["f1"] >= figures["exact_match"] and figures["count"] == 64
    assert figures["no_answer_accuracy"] > 0.85
    asked = [("@", "so #Zoë @北京 then."), ("#", "so #Zoë @北京 then.")]
    found = task.predict(asked)
    assert [one.text for one in found] == ["北京", "Zoë"]
    assert all(
        context[one.start : one.end] == one.text and 0 < one.score <= 1
        for one, (_, context) in zip(found, asked, strict=True)
    )
    task.save(tmp_path / "run")
    assert load(tmp_path / "run").predict(asked) == found and load(tmp_path / "run").settings() == task.settings()


@pytest.mark.backends
def test_batches_of_several_widths_are_trained_on_by_steps():
    data = rows(24, padding=60)
    task = tiny_task(data)
    model = task.model
    model.compile(keras.optimizers.Adam(1e-3), loss=model.default_loss())
    made = task.examples(data, 4)
    batches = made.as_tf_dataset(num_steps=6) if keras.backend.backend() == "tensorflow" else made
    by_fit = model.evaluate(batches, steps=6, verbose=0)
    by_hand = []
    for step in range(6):
        (x, y) = made.batch(step)
        logits = keras.ops.convert_to_numpy(model(x)).astype("float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        by_hand.append(-np.mean(np.take_along_axis(log_p, y[..., None], axis=-1)))
    assert by_fit == pytest.approx(np.mean(by_hand), rel=1e-4)


TOKENIZERS = {
    "byte": ByteTokenizer,
    "byte_pair": lambda: BytePairTokenizer.train(texts=["so #Bob 😀 @北京 then."] * 9, vocabulary_size=300),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("max_length", [None, 40])
def test_answers_come_back_as_they_were_given(kind, max_length, monkeypatch):
    """Through windows of 40 tokens, too, in some of which there is none."""
    tokenizer = TOKENIZERS[kind]()
    encoder = max_length and TransformerEncoder(
        tokenizer.vocabulary_size, size="nano", num_layers=1, max_length=max_length
    )
    data = rows(40, padding=70, unanswerable=0.2)
    task = tiny_task(data, tokenizer, encoder)
    made = task.examples(data, 4)
    assert (made.num_rows > 60) == bool(max_length)
    by_the_truth(task, monkeypatch, data)
    figures = task.evaluate(data)
    assert figures["exact_match"] == figures["f1"] == figures["no_answer_accuracy"] == 1
    for row, found in zip(data, task.predict(data), strict=True):
        assert (found.text, found.start) == tuple((row["answers"] or [{"text": "", "start": 0}])[0].values())


def test_the_best_span_is_the_one_of_brute_force():
    """Over two windows of random numbers, with and without the choice of no answer."""
    draws = np.random.default_rng(0)
    context = "It 是 a low 😀 road."
    tokens = placed_tokens(ByteTokenizer(), context)
    model = SpanFinder(RecurrentEncoder(260, cell="gru", size="nano", num_layers=1, hidden_dim=8))
    for unanswerable, longest in itertools.product((False, True), (None, 1, 4)):
        task = QuestionAnswering(model, ByteTokenizer(), unanswerable, longest, window=20)
        windows = task._windows({"question": "wh?"}, tokens)
        assert len(windows) > 1
        answered = 0
        for _ in range(20):
            logits = [draws.standard_normal((2, len(window.inputs["token_ids"]))) * 3 for window in windows]
            found = task.answer(tokens, windows, logits)
            spans, nothing = [], []
            for window, odds in zip(windows, logits, strict=True):
                p = np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)
                nothing.append(p[0, 0] * p[1, 0])
                for i in range(*window.part):
                    for j in range(i, window.part[1]):
                        start, end = tokens.offsets[i, 0], tokens.offsets[j, 1]
                        if longest is None or end - start <= longest + 1 or i == j:
                            spans.append((p[0, window.place_of(i)] * p[1, window.place_of(j)], i, j))
            score, i, j = max(spans)
            if unanswerable and min(nothing) >= score:
                assert (found.text, found.start, found.end) == ("", 0, 0) and found.score == pytest.approx(min(nothing))
            else:
                answered += 1
                assert (found.start, found.end) == tokens.characters(i, j + 1) and found.score == pytest.approx(score)
                assert found.text == context[found.start : found.end]
        assert answered > 10


@pytest.mark.parametrize(
    "answers, outcome",
    [
        ([{"text": "low", "start": 4}], (4, 0)),
        ([{"text": "low", "start": 3}], (4, 1)),  # it stands there once
        ([{"text": "low", "start": None}], (4, 1)),
        ([{"text": "gone", "start": 0}, {"text": "low", "start": 4}], (4, 0)),  # the first that is there
        ("low", (4, 1)),
        (["low"], (4, 1)),
        ({"text": ["low"], "answer_start": [4]}, (4, 0)),
        ([{"text": "road", "start": 2}], "more than once"),
        ([{"text": "gone", "start": 2}], "not at all"),
        ([{"text": "", "start": 2}], "with a text"),
        ([7], "with a text"),
        (None, "no answers"),
    ],
)
def test_where_an_answer_stands(answers, outcome):
    row = {"question": "which?", "context": "The low road, the other road", "answers": answers}
    task = tiny_task(rows(4))
    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=outcome) as error:
            task.examples([*rows(2), row], 2)
        assert "row 3" in str(error.value)
        return
    [(inputs, target)] = task.examples_of(row)
    start, repaired = outcome
    first = len("which?") + 2 + start  # bos and eos
    assert target == [first, first + 2] and task.notes["repaired"] == repaired
    assert inputs["token_types"].tolist() == [0] * 8 + [1] * (len(row["context"]) + 1)
    assert ByteTokenizer().decode(inputs["token_ids"][first : first + 3]) == "low"


def test_broken_rows_and_arguments():
    with pytest.raises(ValueError, match="row 2: it has no context"):
        tiny_task(rows(4)).evaluate([*rows(1), {"question": "a", "answers": []}])
    with pytest.raises(ValueError, match="no row has an answer"):
        tiny_task([{"question": "a", "context": "b"}])
    encoder = TransformerEncoder(260, size="nano", num_layers=1, max_length=16)
    with pytest.raises(ValueError, match="16 tokens at most, and window is 32"):
        tiny_task(rows(4), encoder=encoder, window=32)
    task = tiny_task(rows(4))
    assert task.predict([("", "")])[0].text == ""
    assert task.room == 384 and tiny_task(rows(4), window=64).room == 64
    json.dumps(task.settings())


def test_a_long_question_leaves_room_for_its_context():
    task = tiny_task(rows(4), window=30)
    windows = task._windows({"question": "?" * 500}, placed_tokens(ByteTokenizer(), "a" * 40))
    assert all(len(window.inputs["token_ids"]) == 30 and window.before == 12 for window in windows)


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data beside the checkout")
def test_cmrc_is_read():
    data = Rows([SHARED / "cmrc2018" / "cmrc2018_trial.json"])
    task = tiny_task(data)
    made = task.examples(data, 32)
    assert data.count == 1002 and not data.bad and task.notes["repaired"] == 5
    assert made.num_rows > 2000 and not task.unanswerable
