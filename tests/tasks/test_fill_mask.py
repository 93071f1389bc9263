"""FillMask: candidates against the model's own logits, what is masked in an evaluation, and what is refused."""

import json

import keras
import numpy as np
import pytest
from cases import on_all
from helpers import array, randomize

from keras_seqlm.data import Masked, ObjectiveBlocks, objective_blocks, pack, prepared
from keras_seqlm.data.objective_blocks import RowsOfText
from keras_seqlm.models import MaskedLM, RecurrentEncoder, RecurrentLM, TransformerEncoder
from keras_seqlm.tasks import FillMask, load
from keras_seqlm.tokenizers import BytePairTokenizer, ByteTokenizer, WordPieceTokenizer

pytestmark = pytest.mark.neutral

TEXTS = ["It was a d[MASK]rk night", "[MASK]", "no[MASK]y s[MASK]ept", "the end [MASK]"]


def new_task(tokenizer=None, kind="transformer", **options):
    tokenizer = prepared(tokenizer or ByteTokenizer(), "masked")
    shape = {"size": "nano", "num_layers": 1, "hidden_dim": 16}
    if kind == "transformer":
        backbone = TransformerEncoder(tokenizer.vocabulary_size, num_heads=2, max_length=40, **shape)
    else:
        backbone = RecurrentEncoder(tokenizer.vocabulary_size, cell="gru", **shape)
    model = MaskedLM(backbone)
    model.build()
    randomize(model)
    return FillMask(model, tokenizer, **options)


@pytest.mark.parametrize("kind", on_all(["transformer", "gru"], "gru"))
def test_candidates_are_the_models_most_probable_ids_of_each_mask(kind):
    task = new_task(kind=kind)
    results = task.predict(TEXTS, batch_size=3, top_k=4)
    for text, result in zip(TEXTS, results, strict=True):
        pieces = text.split("[MASK]")
        ids = [1, *ByteTokenizer().encode(pieces[0])]
        for piece in pieces[1:]:
            ids += [260, *ByteTokenizer().encode(piece)]
        ids = np.array([[*ids, 2]], "int32")
        logits = array(task.model(ids))[0].astype("float64")  # the row alone, without padding
        assert len(result.candidates) == len(pieces) - 1
        for place, candidates in zip(np.flatnonzero(ids[0] == 260), result.candidates, strict=True):
            shares = np.exp(logits[place]) / np.exp(logits[place]).sum()
            order = [i for i in np.argsort(-shares).tolist() if 4 <= i < 260][:4]
            assert [one.token_id for one in candidates] == order
            np.testing.assert_allclose([one.probability for one in candidates], shares[order], rtol=2e-4)
            assert [one.text for one in candidates] == [ByteTokenizer().decode([i]) for i in order]
            ids[0, place] = order[0]
        assert result.filled == ByteTokenizer().decode(ids[0])
    again = task.predict([{"text": TEXTS[0]}, TEXTS[1].encode()], top_k=4)  # as rows and as bytes
    assert [one.filled for one in again] == [one.filled for one in results[:2]]


def test_a_saved_task_fills_as_before(tmp_path):
    task = new_task(masked={"share": 0.3, "whole_words": True})
    task.save(tmp_path / "run")
    again = load(tmp_path / "run")
    assert type(again) is FillMask and again.objective == Masked(share=0.3, whole_words=True)
    assert again.predict(TEXTS) == task.predict(TEXTS)


def test_a_mask_stands_for_the_space_that_its_word_holds():
    words = ["night", "wind", "dark", "loud"]
    texts = [" ".join(np.random.default_rng(i).choice(words, 8)) for i in range(50)]
    task = new_task(BytePairTokenizer.train(texts=texts, vocabulary_size=290))
    mask = task.mask_id
    whole = task.tokenizer.encode("dark night loud")
    assert len(whole) == 3
    np.testing.assert_array_equal(task.ids_of("dark [MASK] loud"), [1, whole[0], mask, whole[2], 2])
    np.testing.assert_array_equal(task.ids_of("dark n[MASK]"), [1, *task.tokenizer.encode("dark n"), mask, 2])
    of_bytes = new_task()
    np.testing.assert_array_equal(of_bytes.ids_of("a [MASK]"), [1, 101, 36, 260, 2])


def test_a_tokenizer_that_has_a_mask_keeps_it(tmp_path):
    """BERT's vocabulary, whose [MASK] no text names."""
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    tokenizer = WordPieceTokenizer.from_vocab_file(tmp_path / "vocab.txt")
    assert prepared(tokenizer, "masked") is tokenizer
    task = new_task(tokenizer)
    assert task.ids_of("The [MASK] sat.").tolist() == [2, 5, 4, 7, 9, 3]
    assert task.ids_of("[MASK][MASK]").tolist() == [2, 4, 4, 3]
    assert {one.token_id for one in task.predict(["the [MASK]"])[0].candidates[0]} <= {5, 6, 7, 8, 9}


@pytest.mark.parametrize("kind", on_all(["transformer", "gru"], "transformer"))
def test_an_evaluation_is_that_of_each_masked_token(kind, corpus, tmp_path):
    task = new_task(kind=kind, masked={"share": 0.2})
    found = task.evaluate(corpus, batch_size=7, cache_dir=tmp_path)
    assert found == task.evaluate(corpus, batch_size=7, cache_dir=tmp_path)  # the same masks
    store, context = pack(corpus, task.tokenizer, cache_dir=tmp_path), task.model.max_length or 128
    rows = RowsOfText(store, context, 7, complete=True)
    blocks = ObjectiveBlocks(rows, Masked(share=0.2), task.tokenizer, context, seed="evaluation")
    nats, right, count = 0.0, 0, 0
    for x, y, _ in blocks:
        logits = array(task.model(x)).astype("float64")[y >= 0]
        targets = y[y >= 0]
        nats += float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]).sum())
        right, count = right + int((logits.argmax(axis=1) == targets).sum()), count + len(targets)
    assert found["count"] == count and found["num_tokens"] == len(store)
    assert found["accuracy"] == pytest.approx(right / count, abs=2 / count)
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    task.model.compile(loss=task.model.default_loss())
    assert task.model.evaluate(blocks, verbose=0) == pytest.approx(found["loss"], rel=1e-5)


def test_what_was_learned_is_found_again(tmp_path):
    """A text in which each letter follows from those beside it."""
    text = tmp_path / "letters.txt"
    text.write_text("abcdefghijkl" * 300)
    tokenizer = prepared(ByteTokenizer(), "masked")
    keras.utils.set_random_seed(1)
    encoder = RecurrentEncoder(tokenizer.vocabulary_size, cell="gru", size="nano", num_layers=1, hidden_dim=32)
    model = MaskedLM(encoder)
    model.build()
    model.compile(keras.optimizers.Adam(0.01), model.default_loss())
    train, _ = objective_blocks(text, tokenizer, "masked", 32, 16, cache_dir=tmp_path)
    model.fit(train.as_tf_dataset(), steps_per_epoch=120, shuffle=False, verbose=0)
    task = FillMask(model, tokenizer)
    assert task.evaluate(text, cache_dir=tmp_path)["accuracy"] > 0.9
    [result] = task.predict(["abcdefghijklabc[MASK]efghijklabcdef"])
    assert result.filled == "abcdefghijklabcdefghijklabcdef" and result.candidates[0][0].probability > 0.5


def test_what_cannot_be_filled_is_refused(tmp_path):
    task = new_task()
    for texts, reason in (
        ("one [MASK]", "expected a list of texts"),
        (["no mask"], r"has no \[MASK\]"),
        ([7], "expected a text, got int"),
        ([{"pair": "x"}], "expected a text, got NoneType"),
        (["x" * 40 + "[MASK]"], "has 43 tokens, and this model reads 40"),
    ):
        with pytest.raises(ValueError, match=reason):
            task.predict(texts)
    with pytest.raises(ValueError, match="top_k must be from 1 to 256"):
        task.predict(TEXTS, top_k=0)
    with pytest.raises(ValueError, match="expected a MaskedLM, got RecurrentLM"):
        FillMask(RecurrentLM(260, size="nano"), ByteTokenizer())
    model = MaskedLM(RecurrentEncoder(260, size="nano"))
    with pytest.raises(ValueError, match="no special token '.MASK.'"):
        FillMask(model, ByteTokenizer())
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "a"}))
    assert task.evaluate(tmp_path / "one.jsonl", cache_dir=tmp_path)["count"] == 1
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        task.evaluate(tmp_path / "one.jsonl", batch_size=0)
