"""Texts written of texts: the loss that is evaluated is that of the targets alone."""

import numpy as np
import pytest
from helpers import array, randomize

from keras_seqlm import data
from keras_seqlm.models import Seq2SeqLM
from keras_seqlm.tasks import TextToText
from keras_seqlm.tokenizers import ByteTokenizer

pytestmark = pytest.mark.neutral


def test_the_loss_is_that_of_the_tokens_of_targets(tmp_path, monkeypatch):
    """Held to NumPy, over rows whose targets are of different lengths."""
    (tmp_path / "a.txt").write_text("It was a dark and stormy night. " * 9)
    tokenizer = data.prepared(ByteTokenizer(), "span")
    model = Seq2SeqLM(tokenizer.vocabulary_size, "gru", size="nano", num_layers=1, hidden_dim=8)
    model.build()
    randomize(model)
    nats, made = [], data.ObjectiveBlocks.batch

    def batch(self, step):
        x, y, weight = made(self, step)
        logits = array(model(x)).astype("float64")
        log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        rows, places = np.nonzero(y >= 0)
        assert len(rows) < y.size
        nats.extend(-log_p[rows, places, y[rows, places]])
        return x, y, weight

    monkeypatch.setattr(data.ObjectiveBlocks, "batch", batch)
    task = TextToText(model, tokenizer, {"name": "span"}, sequence_length=24)
    found = task.evaluate([tmp_path / "a.txt"], batch_size=4, cache_dir=tmp_path)
    assert found["count"] == len(nats) > 20 and found["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
