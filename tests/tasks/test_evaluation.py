"""`evaluate` against the loss worked out by hand, token by token."""

import math

import numpy as np
import pytest
from helpers import array
from sentences import CONTEXT, SENTENCES

from keras_seqlm.generation import score
from keras_seqlm.tasks import evaluate
from keras_seqlm.tasks.evaluation import CARRIED_TOKENS

pytestmark = pytest.mark.neutral

BOS, EOS = 1, 2


def stream(documents):
    """The ids of documents as a corpus has them: bos, text, eos, one after another."""
    return np.array([i for text in documents for i in (BOS, *(byte + 4 for byte in text), EOS)], "int32")


def nats(logits, targets):
    logits = logits.astype("float64")
    best = logits.max(-1)
    return np.log(np.exp(logits - best[:, None]).sum(-1)) + best - logits[np.arange(len(targets)), targets]


@pytest.fixture
def written(tmp_path):
    """Writes documents as a folder of text files; returns it with the stream of their ids."""

    def write(*documents):
        for i, text in enumerate(documents):
            (tmp_path / f"{i:03d}.txt").write_bytes(text)
        return tmp_path, stream(documents)

    return write


def by_windows(model, ids, stride):
    """Nats of each target that is no bos, each from the first window that predicts it."""
    windows = [ids[start : start + CONTEXT + 1] for start in range(0, len(ids), stride)]
    padded = np.stack([np.pad(window[:-1], (0, CONTEXT + 1 - len(window))) for window in windows])
    known = {}
    for number, (window, logits) in enumerate(zip(windows, array(model(padded)), strict=True)):
        for i, loss in enumerate(nats(logits[: len(window) - 1], window[1:])):
            known.setdefault(number * stride + 1 + i, loss)
    return [known[t] for t in range(1, len(ids)) if ids[t] != BOS]


@pytest.mark.parametrize("stride", [None, CONTEXT, 24, 1])
def test_windows_of_a_transformer(trained, written, stride):
    model = trained("transformer").model
    folder, ids = written(*(text.encode() for text in SENTENCES))
    result = evaluate(trained("transformer"), folder, stride=stride, batch_size=4)
    wanted = by_windows(model, ids, stride or CONTEXT)
    assert result["num_tokens"] == len(wanted) == len(ids) - len(SENTENCES)
    assert result["loss"] == pytest.approx(np.mean(wanted), rel=1e-5)


@pytest.mark.parametrize("length", [1, CONTEXT - 3, CONTEXT - 2, CONTEXT - 1, CONTEXT, 2 * CONTEXT - 1])
@pytest.mark.parametrize("stride", [None, 10])
def test_texts_about_as_long_as_a_window(trained, written, length, stride):
    folder, ids = written(b"x" * length)
    result = evaluate(trained("transformer"), folder, stride=stride, batch_size=2)
    assert result["num_tokens"] == length + 1
    wanted = by_windows(trained("transformer").model, ids, stride or CONTEXT)
    assert result["loss"] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_more_context_helps(trained, corpus):
    every, half = (evaluate(trained("transformer"), corpus, stride=stride)["loss"] for stride in (None, CONTEXT // 2))
    assert half < every


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_a_carried_state_is_one_pass_over_the_whole(trained, written, name):
    documents = [text.encode() for text in SENTENCES] * 6
    folder, ids = written(*documents)
    assert 1.2 * CARRIED_TOKENS < len(ids) < 2 * CARRIED_TOKENS
    (log_probabilities,) = score(trained(name).model, [ids])
    losses = -log_probabilities.astype("float64")[ids[1:] != BOS]
    result = evaluate(trained(name), folder)
    assert result["num_tokens"] == len(losses)
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.* no UTF-8")  # told by the first that reads the text, and not from the cache
@pytest.mark.parametrize("name", ["gru", "transformer"])
def test_figures_follow_from_the_loss(trained, written, name):
    documents = [b"the cat sat on the mat\xff\xfe\x00 \xc3", "Zoë paid 12 €".encode()]
    folder, _ = written(*documents)
    result = evaluate(trained(name), folder)
    assert set(result) == {"loss", "bits_per_byte", "perplexity", "num_tokens", "num_bytes"}
    assert result["num_bytes"] == sum(map(len, documents))
    assert result["num_tokens"] == sum(map(len, documents)) + len(documents)  # the end of each text is predicted, too
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    total = result["loss"] * result["num_tokens"]
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / result["num_bytes"])


def test_a_stride_or_batch_out_of_range_is_refused(trained, corpus):
    for stride in (0, -1, CONTEXT + 1):
        with pytest.raises(ValueError, match=f"stride is for 1 to {CONTEXT}, the context; got {stride}"):
            evaluate(trained("transformer"), corpus, stride=stride)
    with pytest.raises(ValueError, match="this model carries its state; got 8"):
        evaluate(trained("rnn"), corpus, stride=8)
    for batch_size in (0, -2):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
            evaluate(trained("transformer"), corpus, batch_size=batch_size)
