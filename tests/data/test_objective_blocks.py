"""Batches of objectives: pure in (seed, step) and by row, every token once, exact validation, and losses that fall."""

import json
import pickle

import keras
import numpy as np
import pytest
from cases import on_all

from keras_seqlm.data import Denoising, Masked, ObjectiveBlocks, PrefixLM, objective_blocks, prepared
from keras_seqlm.data.objective_blocks import RowsOfText
from keras_seqlm.data.prepared import OBJECTIVES
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.models import MaskedLM, RecurrentEncoder, RecurrentLM, TransformerEncoder, TransformerLM
from keras_seqlm.tokenizers import ByteTokenizer

pytestmark = pytest.mark.neutral

LAYOUTS = [(name, layout) for name, kind in OBJECTIVES.items() for layout in kind.layouts]
LENGTH = 40


@pytest.fixture
def make(tmp_path):
    """Training and validation batches of an objective, of 300 short documents."""
    random = np.random.default_rng(0)
    words = ["night", "dark", "wind", "loud", "to", "see", "a"]
    lines = [" ".join(random.choice(words, random.integers(1, 12))) + "." for _ in range(300)]
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.jsonl").write_text(text.upper().replace("TEXT", "text"))
    (tmp_path / "letters.txt").write_text("abcdefghijkl" * 400)

    def make(objective, layout=None, files="a.jsonl", batch_size=6, length=LENGTH, **how):
        if isinstance(files, dict):
            files = {str(tmp_path / name): weight for name, weight in files.items()}
        else:
            files = tmp_path / files
        tokenizer = prepared(ByteTokenizer(), objective)
        where = {"cache_dir": tmp_path / "cache", "layout": layout}
        return objective_blocks(files, tokenizer, objective, length, batch_size, **where, **how)

    return make


def assert_equal(one, other):
    keras.tree.assert_same_structure(one, other)
    for left, right in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_a_batch_is_a_pure_function_of_seed_and_step(make, name, layout):
    (train, validation), (again, _), (other, _) = (make(name, layout, seed=seed) for seed in (3, 3, 4))
    steps = [0, 5, len(train) - 1, len(train), 7 * len(train) + 3]
    first = {step: train.batch(step) for step in steps}
    for step in reversed(steps):
        assert_equal(first[step], again.batch(step))
        assert not np.array_equal(first[step][1], other.batch(step)[1])
    x, y = first[0]
    assert x["token_ids"].shape == y.shape == (6, train.lengths.tokens) and y.dtype == np.int32
    assert set(x) == {"token_ids", *(("source_ids", "source_lengths") if layout == "encoder-decoder" else ())}
    assert_equal(next(train.batches(steps[-1])), first[steps[-1]])
    assert_equal(pickle.loads(pickle.dumps(train)).batch(5), first[5])
    assert_equal(make(name, layout, seed=99)[1].batch(1), validation.batch(1))  # whatever is trained


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_processes_read_the_very_rows_of_one(make, name, layout):
    for data in (*make(name, layout), make(name, layout, files={"a.jsonl": 2, "b.jsonl": 1})[0]):
        for step in (0, len(data) - 1, len(data) + 2):
            whole = data.batch(step)
            for index in range(3):
                part = data.shard(index, 3).batch(step)
                assert_equal(part, keras.tree.map_structure(lambda array, row=index: array[row::3], whole))


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_validation_reads_every_token_once_with_the_same_noise(make, name, layout):
    _, validation = make(name, layout, batch_size=7, validation_fraction=0.3)
    starts = [start for step in range(len(validation)) for *_, start in validation._examples(step, range(7))]
    assert starts == list(range(0, len(validation.tokens), validation.lengths.text))
    first, again = list(validation), [validation.batch(len(validation) + i) for i in range(len(validation))]
    assert_equal(first, again)
    counted = sum(int((y != -1).sum()) for _, y, _ in first)
    assert counted == validation.num_targets > 0
    if name in ("masked", "denoising"):  # the text again: what was shown, and what was hidden
        rows = [row for x, y, _ in first for row in zip(*x.values(), y, strict=True)]
        if name == "masked":
            text = [np.where(y >= 0, y, ids)[:size] for ids, size, y in rows]
        else:
            text = [y[y >= 0][:-1] for *_, y in rows]
        np.testing.assert_array_equal(np.concatenate(text), validation.tokens[:])


def test_every_epoch_has_another_noise_and_validation_has_not(make):
    text = "x" * 700
    rows = RowsOfText(ByteTokenizer().encode(text), 32, 4, shuffle=False)
    train = ObjectiveBlocks(rows, Masked(), prepared(ByteTokenizer(), "masked"), 32)
    patterns = {(train.batch(step)[1][row] >= 0).tobytes() for step in range(10 * len(train)) for row in range(4)}
    assert len(train) == 5 and len(patterns) > 190  # of 200 rows, every one of the same text


@pytest.mark.parametrize("stream", [1, 31, 32, 33, 64, 128, 129])
def test_complete_rows_have_the_last_token_too(stream):
    blocks = RowsOfText(np.arange(4, 4 + stream, dtype=np.int32), 32, 2, complete=True)
    validation = ObjectiveBlocks(blocks, Masked(), prepared(ByteTokenizer(), "masked"), 32)
    assert len(validation) == -(-stream // 64)
    text = np.concatenate(
        [np.where(y >= 0, y, x["token_ids"])[row, : x["lengths"][row]] for x, y, _ in validation for row in range(2)]
    )
    np.testing.assert_array_equal(text, blocks.tokens)
    weights = np.array([weight[0] for *_, weight in validation])
    counts = np.array([(y >= 0).sum() for _, y, _ in validation])
    np.testing.assert_allclose(weights, len(validation) * counts / counts.sum(), rtol=1e-6)


def test_segments_are_the_documents_of_the_rows(make):
    for objective in ("masked", "prefix"):
        train, validation = make(objective, segment_ids=True)
        for data in (train, validation):
            for step in range(len(data)):
                x, y = data.batch(step)[:2]
                ids = np.where(y >= 0, y, x["token_ids"]) if objective == "masked" else x["token_ids"]
                for row, segments in zip(ids, x["segment_ids"], strict=True):
                    real = segments > 0
                    if not real.any():  # behind the end of validation
                        continue
                    np.testing.assert_array_equal(segments[real], 1 + np.cumsum([0, *(row[real][1:] == 1)]))
    for objective, layout in (("span", "causal"), ("fim", "causal"), ("prefix", "encoder-decoder")):
        with pytest.raises(ValueError, match="moves the text"):
            make(objective, layout, segment_ids=True)


def test_what_the_data_say_of_themselves(make):
    train, validation = make("masked", files={"a.jsonl": 3, "b.jsonl": 1})
    assert list(train.weights.values()) == [0.75, 0.25] and len(train.epochs(10)) == 2
    assert train.num_targets is None and train.num_bytes is None and validation.num_bytes is None
    plain, _ = make("causal")
    assert make("masked")[0].content_hash == plain.content_hash and make("masked")[0].num_tokens == plain.num_tokens
    assert make("masked", validation_fraction=0)[1] is None
    with pytest.raises(IndexError):
        train[len(train)]
    with pytest.raises(ValueError, match="counted from 0"):
        train.batch(-1)


def test_what_does_not_fit_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match="`layout` of the objective 'masked' must be one of"):
        make("masked", "causal")
    with pytest.raises(ValueError, match="must be one of .'causal'"):
        make("cloze")
    with pytest.raises(ValueError, match="no special token '.MASK.'"):
        objective_blocks(tmp_path / "none.txt", ByteTokenizer(), "masked", 16, 4)  # before the text is looked for
    rows = RowsOfText(np.arange(100, dtype=np.int32), 16, 4)
    with pytest.raises(ValueError, match="have rows of 16 tokens, and 'prefix' takes 17"):
        ObjectiveBlocks(rows, PrefixLM(), ByteTokenizer(), 16)
    with pytest.raises(ValueError, match="There are .* tokens"):
        make("masked", batch_size=10_000)


@pytest.mark.parametrize("name, layout", LAYOUTS)
def test_a_data_set_of_tensorflow(make, name, layout):
    for data in make(name, layout):
        dataset = data.as_tf_dataset(first_step=2, num_steps=3)
        for spec, array in zip(
            keras.tree.flatten(dataset.element_spec), keras.tree.flatten(data.batch(0)), strict=True
        ):
            assert spec.shape == array.shape
        for step, batch in enumerate(dataset.as_numpy_iterator(), 2):
            assert_equal(batch, data.batch(step))


# Models --------------------------------------------------------------------------------------------------------------


SMALL = {"size": "nano", "num_layers": 1, "hidden_dim": 32}


def model_for(name, kind, vocabulary_size):
    """A Transformer or a GRU, under the head that the objective asks for."""
    keras.utils.set_random_seed(5)
    if kind == "transformer":
        parts = {**SMALL, "num_heads": 2, "max_length": LENGTH, "positions": "rotary"}
        backbone = (TransformerEncoder if name == "masked" else TransformerLM)(vocabulary_size, **parts)
    else:
        backbone = (RecurrentEncoder if name == "masked" else RecurrentLM)(vocabulary_size, cell="gru", **SMALL)
    model = MaskedLM(backbone) if name == "masked" else backbone
    model.build()
    return model


@pytest.mark.parametrize("name, kind", on_all([("masked", "transformer"), ("masked", "gru"), ("prefix", "gru")], 1))
def test_evaluate_is_the_mean_over_all_targets(make, name, kind):
    """The loss that Keras reports, against that of each target by itself, in float64."""
    _, validation = make(name, batch_size=5, validation_fraction=0.25)
    model = model_for(name, kind, validation.vocabulary_size)
    model.compile(loss=model.default_loss())
    nats, count = 0.0, 0
    for x, y, _ in validation:
        logits = keras.ops.convert_to_numpy(model(x)).astype("float64")
        nats_of = (
            np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(logits, np.maximum(y, 0)[..., None], -1)[..., 0]
        )
        nats, count = nats + nats_of[y >= 0].sum(), count + (y >= 0).sum()
    assert count == validation.num_targets
    assert model.evaluate(validation, verbose=0) == pytest.approx(nats / count, rel=1e-5)


def unigram_entropy(data, batches=30):
    """Nats a target of a model that knows how often each id is a target, and nothing of the row."""
    targets = np.concatenate([data.batch(step)[1].ravel() for step in range(batches)])
    shares = np.bincount(targets[targets >= 0]) / (targets >= 0).sum()
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


@pytest.mark.parametrize(
    "name, layout, kind",
    [
        ("masked", "encoder", "transformer"),
        ("masked", "encoder", "gru"),
        ("span", "causal", "gru"),
        ("denoising", "causal", "transformer"),
        ("prefix", "causal", "gru"),
        ("fim", "causal", "gru"),
    ],
)
def test_the_loss_falls_below_that_of_guessing_by_frequency(make, name, layout, kind):
    train, validation = make(name, layout, files="letters.txt", batch_size=16)
    model = model_for(name, kind, train.vocabulary_size)
    model.compile(keras.optimizers.AdamW(0.01), model.default_loss())
    before = model.evaluate(validation, verbose=0)
    model.fit(train.as_tf_dataset(), steps_per_epoch=80, shuffle=False, verbose=0)
    after, guess = model.evaluate(validation, verbose=0), unigram_entropy(train)
    assert after < 0.8 * guess < before, (before, after, guess)


@pytest.mark.backends
def test_the_loss_counts_the_targets_alone(make):
    """What a model says at other places moves nothing."""
    train, _ = make("masked")
    x, y = train.batch(0)
    logits = np.random.default_rng(0).standard_normal((*y.shape, 261)).astype("float32")
    other = np.where((y >= 0)[..., None], logits, -logits)
    loss = CrossEntropy()
    assert float(loss(y, logits)) == pytest.approx(float(loss(y, other)), abs=1e-7)
    assert Denoising().lengths(LENGTH, "causal").text == 19
