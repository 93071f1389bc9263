"""Classification of texts: what it learns, what it says, and its figures against Keras's and by hand."""

import keras
import numpy as np
import pytest
from cases import on_all

from keras_seqlm import tasks
from keras_seqlm.data import Rows
from keras_seqlm.metrics import accuracy, bootstrap, macro_f1
from keras_seqlm.models import Classifier, RecurrentEncoder, RecurrentLM, Seq2SeqLM, TransformerEncoder
from keras_seqlm.tokenizers import ByteTokenizer
from keras_seqlm.training import Recipe

pytestmark = pytest.mark.neutral

ROWS = [{"text": f"{word} {number}", "label": word[0]} for number in range(40) for word in ("apple", "berry", "cherry")]
KINDS = {
    "transformer": lambda: TransformerEncoder(260, size="nano", num_layers=1, hidden_dim=32, num_heads=4, max_length=24, num_token_types=2),
    "lstm": lambda: RecurrentEncoder(260, cell="lstm", size="nano", hidden_dim=24),
    "causal": lambda: RecurrentLM(260, cell="gru", size="nano", hidden_dim=24),
}  # fmt: skip


def learned(rows, backbone="lstm", steps=60, **options):
    recipe = Recipe(steps=steps, batch_size=16, learning_rate=1e-2, validate_every=steps, warmup_steps=5)
    with recipe.scope():
        task = tasks.TextClassification.begin_with(rows, KINDS[backbone](), ByteTokenizer(), **options)
    recipe.fit(task.model, task.examples(rows, 16, seed=1), task.examples(rows, 16, complete=True), progress=False)
    return task


@pytest.mark.parametrize("backbone", on_all(KINDS, "lstm"))
def test_every_kind_of_model_learns_it_and_comes_back(tmp_path, backbone):
    task = learned(ROWS, backbone)
    figures = task.evaluate(ROWS)
    assert figures["accuracy"] > 0.95 and figures["count"] == len(ROWS)
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]
    task.save(tmp_path)
    again = tasks.load(tmp_path)
    texts = ["apple 3", "cherry pie and more of it than is read", "berry"]
    for one, other in zip(task.predict(texts), again.predict(texts), strict=True):
        assert one.label == other.label and one.label in one.labels
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_the_loss_of_validation_is_the_mean_over_rows():
    task = learned(ROWS, steps=5)
    rows = ROWS[:37]
    task.model.compile(loss=task.model.default_loss())
    reported = task.model.evaluate(task.examples(rows, 16, complete=True), verbose=0)
    probabilities = [one.probabilities for one in task.predict([row["text"] for row in rows])]
    by_hand = -np.mean([np.log(shares[row["label"]]) for shares, row in zip(probabilities, rows, strict=True)])
    assert reported == pytest.approx(by_hand, rel=1e-4)


def test_several_labels_and_a_number():
    several = [{"text": row["text"], "labels": [row["label"], "fruit"]} for row in ROWS]
    several[0]["labels"] = f"{ROWS[0]['label']}, fruit"
    task = learned(several, steps=80)
    assert task.kind == "labels" and task.labels == ["a", "b", "c", "fruit"]
    assert sorted(task.predict(["berry 5"])[0].labels) == ["b", "fruit"]
    figures = task.evaluate(several)
    assert figures["micro_f1"] > 0.95 and figures["accuracy"] > 0.9
    numbers = [{"text": row["text"], "value": {"a": 0.0, "b": 1.0, "c": 2.0}[row["label"]]} for row in ROWS]
    task = learned(numbers, steps=120)
    assert task.kind == "number" and task.predict(["cherry 7"])[0].value == pytest.approx(2, abs=0.4)
    figures = task.evaluate(numbers)
    assert figures["pearson"] > 0.9 and figures["mse"] < 0.2
    found = [one.value for one in task.predict([row["text"] for row in numbers])]
    assert figures["mse"] == pytest.approx(
        np.mean([(a - row["value"]) ** 2 for a, row in zip(found, numbers, strict=True)])
    )


def test_pairs_are_cut_where_both_fit():
    rows = [{"text": "apple", "pair": "berry", "label": "x"}, {"text": "cherry", "pair": "y" * 99, "label": "z"}]
    task = tasks.TextClassification.begin_with(rows, KINDS["transformer"](), ByteTokenizer())
    bos, eos = task.tokenizer.bos_id, task.tokenizer.eos_id
    both = task.inputs(rows[0])
    assert both["token_ids"].tolist() == [
        bos,
        *task.tokenizer.encode("apple"),
        eos,
        *task.tokenizer.encode("berry"),
        eos,
    ]
    assert both["token_types"].tolist() == [0] * 7 + [1] * 6
    cut = task.inputs(rows[1])
    assert (
        len(cut["token_ids"]) == 24
        and cut["token_ids"][-1] == eos
        and cut["token_types"].tolist() == [0] * 8 + [1] * 16
    )
    long = task.inputs({"text": "x" * 99, "pair": "y" * 99})
    assert len(long["token_ids"]) == 24 and long["token_types"].sum() == 12
    assert long["token_ids"][11] == long["token_ids"][23] == eos
    one, other = (task.predict([pair])[0].probabilities for pair in (("apple", "berry"), ("apple", "cherry")))
    assert one != other


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_label_is_a_broken_row_and_no_class(empty):
    rows = Rows([*ROWS, {"text": "a cell that nobody filled", "label": empty}])
    task = tasks.TextClassification.begin_with(rows, KINDS["causal"](), ByteTokenizer())
    assert task.labels == ["a", "b", "c"]
    assert task.examples(rows, 16, complete=True).num_rows == len(ROWS)
    assert "label is empty" in str(rows.bad)


@pytest.mark.parametrize("given", ["a text", b"a text", {"text": "a text"}])
def test_one_text_is_no_list_of_texts(given):
    """Its characters would be answered one by one."""
    task = tasks.TextClassification.begin_with(ROWS, KINDS["causal"](), ByteTokenizer())
    with pytest.raises(ValueError, match=r"write predict\(\[...\]\)"):
        task.predict(given)


def test_an_encoder_decoder_is_no_backbone_and_its_encoder_is():
    model = Seq2SeqLM(260, encoder="gru", size="nano", hidden_dim=16)
    with pytest.raises(ValueError, match="give its encoder"):
        Classifier(model, 3)
    assert Classifier(model.encoder, 3)(np.ones((2, 4), "int32")).shape == (2, 3)


def test_rows_that_are_broken_are_named():
    task = tasks.TextClassification.begin_with(ROWS, KINDS["lstm"](), ByteTokenizer())
    wrong = [{"text": "a", "label": "unknown"}, {"label": "a"}, {"text": 3, "label": "a"}, {"text": "a"}]
    with pytest.raises(ValueError, match="4 of 124 rows are broken") as error:
        task.examples([*ROWS, *wrong], 16)
    for said in (
        "row 121: the label 'unknown'",
        "row 122: it has no text",
        "row 123: expected a text",
        "row 124: it has no",
    ):
        assert said in str(error.value)
    with pytest.raises(ValueError, match=r"--columns label=category"):
        tasks.TextClassification.settings_from(tasks.row_task.as_rows([{"text": "x", "category": "y"}]))
    with pytest.raises(ValueError, match="the model has 3 classes, and there are 2 labels"):
        tasks.TextClassification(task.model, task.tokenizer, ["a", "b"])
    with pytest.raises(ValueError, match="expected a Classifier, got RecurrentLM"):
        tasks.TextClassification(KINDS["causal"](), task.tokenizer, ["a", "b"])


def test_figures_are_keras_s_and_intervals_those_of_the_binomial():
    draws = np.random.default_rng(5)
    truth = draws.integers(0, 4, 400)
    found = np.where(draws.random(400) < 0.8, truth, draws.integers(0, 4, 400))
    metric = keras.metrics.F1Score(average="macro")
    metric.update_state(keras.ops.one_hot(truth, 4), keras.ops.one_hot(found, 4))
    assert macro_f1(truth, found) == pytest.approx(float(metric.result()), abs=1e-6)
    share = accuracy(truth, found)
    low, high = bootstrap(accuracy, truth, found)
    wide = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert low == pytest.approx(share - wide, abs=0.012) and high == pytest.approx(share + wide, abs=0.012)
    assert macro_f1([0, 1, 1, 2], [0, 1, 2, 2]) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_the_default_losses():
    backbone = KINDS["lstm"]()
    assert Classifier(backbone, 3).default_loss(0.1).label_smoothing == 0.1
    with pytest.raises(ValueError, match="this model gives number"):
        Classifier(backbone, 1, answers="number").default_loss(0.1)
    assert isinstance(Classifier(backbone, 3, answers="labels").default_loss(), keras.losses.BinaryCrossentropy)


def test_labels_are_those_more_probable_than_not():
    from seqlm_runtime.row_tasks.whole_texts import classification

    found = classification([-0.1, 0.1, 2.0], ["a", "b", "c"], "labels")
    assert (found["label"], found["labels"]) == ("c", ["c", "b"])
    found = classification([-0.1, -0.2, -9.0], ["a", "b", "c"], "labels")
    assert (found["label"], found["labels"]) == (None, [])
