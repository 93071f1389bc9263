"""Spans and answers in the served graph beside those of the task itself, by several tokenizers, through windows."""

import keras
import pytest

from keras_seqlm.export.comparison import TIE
from keras_seqlm.export.row_reference import margin
from keras_seqlm.export.row_signatures import ANSWERS, served
from keras_seqlm.export.row_verify import alike
from keras_seqlm.models import TransformerEncoder
from keras_seqlm.tasks import QuestionAnswering, TokenTagging
from keras_seqlm.tokenizers import BytePairTokenizer, ByteTokenizer, SentencePieceTokenizer, WordPieceTokenizer
from seqlm_runtime.row_tasks import Answer

TEXTS = ["the cat sat on the mat. " * 5, "a dog ran over the hill. " * 5, "Zoë paid 12 € for two cafés: 秦川雄帝宅"]
LONG = "the dog sat over 秦川 hills 😀 and " * 6
HARD = ["", " ", "a", "Zoë  paid 12 €.", "e\u0301 ß 秦川 \ufffd", LONG, " " + LONG]
SPANS = [{"text": "the cat", "spans": [{"label": "a", "start": 4, "end": 7}, {"label": "b", "start": 0, "end": 3}]}]
WORDS = [{"tokens": ["the", "cat"], "tags": ["X", "Y"]}]
ANSWERED = {"question": "who", "context": "the cat", "answers": [{"text": "cat", "start": 4}]}
UNANSWERED = [ANSWERED, {"question": "who", "context": "a dog", "answers": []}]


def encoder(tokenizer):
    return TransformerEncoder(
        tokenizer.vocabulary_size, size="nano", num_layers=1, hidden_dim=16, num_heads=2, max_length=24
    )


CASES = {
    "spans by byte pairs": (TokenTagging, SPANS, lambda: BytePairTokenizer.train(texts=TEXTS, vocabulary_size=300), {}),
    "tags after a question by word pieces": (
        *(TokenTagging, WORDS, lambda: WordPieceTokenizer.train(texts=TEXTS, vocabulary_size=80), {"before": "asked"}),
    ),
    "answers by sentence pieces": (
        *(QuestionAnswering, UNANSWERED, lambda: SentencePieceTokenizer.train(texts=TEXTS, vocabulary_size=330), {}),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_graph_says_what_the_task_says(name):
    import tensorflow as tf

    kind, data, tokenizer, options = CASES[name]
    tokenizer = tokenizer()
    keras.utils.set_random_seed(3)
    task = kind.begin_with(data, encoder(tokenizer), tokenizer, **options)
    head = task.model.classes if kind is TokenTagging else task.model.ends
    head.kernel.assign(head.kernel * 20)  # so that little hangs on a tie
    meant = served(task, 4 * task.room)
    answer = tf.function(ANSWERS[meant.verb](meant, task.model, tokenizer.in_graph()), autograph=False)
    if kind is QuestionAnswering:
        rows = [{"question": question, "context": text} for text in HARD for question in ("who", "")]
    else:
        rows = [{"text": text, **({"asked": text[:9]} if options else {})} for text in HARD]
    given = meant.texts(rows)
    found = {key: value.numpy() for key, value in answer(*(tf.constant(texts) for texts in given.values())).items()}
    places = 0
    for number, row in enumerate(rows):
        read = meant.read(row)
        numbers = task.outputs(read.inputs)
        wanted = meant.answer(read, numbers)
        said = meant.from_outputs(found, number, row)
        assert bool(found["truncated"][number]) == read.truncated
        sure = margin(meant, read, numbers)
        assert alike(wanted, said, sure), (row, wanted, said)
        places += sure > TIE and bool(wanted.get("spans") or wanted.get("tags") or wanted.get("text"))
    assert places >= len(rows) // 3
    assert any(len(meant.read(row).inputs) > 2 for row in rows)


@pytest.mark.parametrize(("context", "text"), [("y" * 9 + "x" + "a" * 60, "x"), ("y" * 9 + "x" + "y" * 60, "")])
def test_there_is_no_answer_if_no_window_has_one(context, text):
    """Of a model that points at x, or at place 0 where it sees a y."""
    import tensorflow as tf

    tokenizer = ByteTokenizer()
    _, x, y, _ = tokenizer.encode("axya").tolist()

    def model(inputs, training):
        ids = inputs["token_ids"]
        nothing = tf.where(tf.reduce_any(ids == y, axis=1, keepdims=True), 6.0, -6.0)
        logits = tf.concat([nothing, tf.where(ids == x, 3.0, 0.0)[:, 1:]], axis=1)
        logits = tf.where(tf.sequence_mask(inputs["lengths"], tf.shape(ids)[1]), logits, -1e9)
        return tf.stack([logits, logits], axis=1)

    task = Answer(tokenizer, 24, ("token_ids",), 96, unanswerable=True, longest=4)
    row = {"question": "q", "context": context}
    read = task.read(row)
    alone = [{"token_ids": one["token_ids"][None], "lengths": [len(one["token_ids"])]} for one in read.inputs]
    wanted = task.answer(read, [model(one, False).numpy()[0] for one in alone])
    found = ANSWERS["answer"](task, model, tokenizer.in_graph())(tf.constant(["q"]), tf.constant([context]))
    said = task.from_outputs({name: value.numpy() for name, value in found.items()}, 0, row)
    assert len(alone) > 2 and wanted["text"] == text and said == pytest.approx(wanted, abs=1e-5)
