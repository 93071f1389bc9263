"""Tasks that answer rows, at toy size: one for each task and shape of backbone, for exports and what is asked of them."""

import json

import keras

from keras_seqlm import data, tasks
from keras_seqlm.models import MaskedLM, RecurrentEncoder, RecurrentLM, TransformerEncoder, TransformerLM
from keras_seqlm.tokenizers import ByteTokenizer

LABELS = ("apple", "berry", "mango")  # of one length, so that a test can swap two of them in the bytes of a graph
MOST_IDS = {"tag": 280, "classify-gru": 64}  # that exports read; the phone reads "tag" in windows of 256
TOY = {"size": "nano", "num_layers": 1, "hidden_dim": 16}
ROWS = {
    "classify": [{"text": f"{word} {number}", "label": word} for number in range(17) for word in LABELS][:50],
    "pairs": [{"text": "a", "pair": f"{word} {number}", "label": word} for number in range(2) for word in LABELS],
    "tag": [
        {"text": f"Zoë at {n} for {n + 1}", "spans": [{"label": "time", "start": 7, "end": 7 + len(str(n))}]} for n in range(9)
    ],
    "answer": [
        {"question": "When?", "context": f"It was {n} May.", "answers": [{"text": f"{n} May", "start": 7}]} for n in range(9)
    ],
    "embed": [{"text": f"{word} {number}", "label": word} for number in range(3) for word in LABELS],
    "fill-mask": [{"text": f"a[MASK]{n}", "token_id": 102} for n in range(9)],
}  # fmt: skip


def _encoder(size=260, **options):
    return TransformerEncoder(size, num_heads=2, max_length=40, **TOY, **options)


def _fill_mask():
    tokenizer = data.prepared(ByteTokenizer(), "masked")
    model = MaskedLM(_encoder(tokenizer.vocabulary_size))
    model.build()
    return tasks.FillMask(model, tokenizer)


def _begun(task, rows, backbone, **options):
    return task.begin_with(ROWS[rows], backbone, ByteTokenizer(), **options)


TOYS = {
    "classify": lambda: _begun(tasks.TextClassification, "classify", _encoder(num_token_types=2)),
    "classify-gru": lambda: _begun(tasks.TextClassification, "pairs", RecurrentLM(260, cell="gru", tie_embedding=False, **TOY)),
    "tag": lambda: _begun(tasks.TokenTagging, "tag", RecurrentEncoder(260, cell="lstm", **TOY)),
    "answer": lambda: _begun(tasks.QuestionAnswering, "answer", _encoder(num_token_types=4), matches=True),
    "embed": lambda: _begun(tasks.TextEmbedding, "embed", TransformerLM(260, num_heads=2, max_length=40, **TOY)),
    "fill-mask": _fill_mask,
}  # fmt: skip


def rows_of(name):
    """What the toy is asked, with what is right."""
    return ROWS["pairs" if name == "classify-gru" else name.removesuffix("-foreign")]


def save_toy(folder, name):
    """Write the run folder of a toy: "classify" has learned its rows, "classify-foreign" has other weights, others none."""
    keras.utils.set_random_seed(7 if name.endswith("-foreign") else 1)
    task = TOYS[name.removesuffix("-foreign")]()
    if name == "classify":
        task.model.compile(keras.optimizers.Adam(1e-2), loss=task.model.default_loss())
        task.model.fit(task.examples(ROWS[name], 16), epochs=6, verbose=0)
    task.save(folder)
    (folder / "examples.json").write_text(json.dumps({"rows": rows_of(name)}), encoding="utf-8")
