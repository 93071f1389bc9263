"""How do I learn from text that nobody has labelled, and then from a few labelled examples: all weights, the head, or LoRA?

A language model first predicts the next token of plain text (`causal_blocks`, `TransformerLM`); or an encoder fills masks in it
(`objective_blocks(..., "masked")`, `MaskedLM`), which takes more text to pay. A head on it then learns a task from rows, in one
of three ways: all weights (`Recipe.layer_decay` may slow the lower layers down); the head alone
(`backbone.trainable = False`); or low-rank adapters beside the kernels and the head (`models.add_lora`), with the base left as it
is, bit for bit. What adapters have learned is a small file beside the base, which `merge_lora` makes one model of.

The text here is what every Python has, its language reference; the task is to say which page a sentence is from, with ten
labelled sentences a page. The table also has the same model from scratch, which the pre-trained ones are to beat. The command
line does the same:

    seqlm train --text reference.txt --tokenizer bpe --out runs/base
    seqlm finetune --task classify --data few.csv --from runs/base --out runs/full
    seqlm finetune --task classify --data few.csv --from runs/base --freeze --out runs/head
    seqlm finetune --task classify --data few.csv --from runs/base --lora 4 --out runs/lora

Run it: python guides/pretrain_and_finetune.py
"""

import math
import pathlib
import re
import tempfile
from pydoc_data.topics import topics

import keras

import keras_seqlm as seqlm

PAGES = ("debugger", "string-methods", "formatstrings", "typesseq", "typesmapping", "comparisons", "import", "try")
PER_PAGE = 10
PRETRAINING_STEPS, STEPS = 600, 100
CONTEXT = 64
WAYS = {"from scratch": 2e-3, "all weights": 2e-3, "the head alone": 5e-3, "LoRA": 5e-3}  # way -> learning rate


def main(folder, pretraining_steps=PRETRAINING_STEPS, steps=STEPS):
    folder = pathlib.Path(folder)
    rows = [{"text": sentence, "label": page} for page in PAGES for sentence in sentences(page)]
    few, test = parted(rows)
    (folder / "reference.txt").write_text("\n\n".join(s for page in topics for s in sentences(page)), encoding="utf-8")
    base = pretrain(folder, pretraining_steps)

    table = {}
    for way, rate in WAYS.items():
        recipe = seqlm.training.Recipe(steps=steps, batch_size=16, learning_rate=rate, warmup_steps=10)
        before = seqlm.tasks.load(base)
        with recipe.scope():
            backbone = new_model(before.tokenizer) if way == "from scratch" else before.model
            if way == "LoRA":
                backbone = seqlm.models.add_lora(backbone, rank=4)
            task = seqlm.tasks.TextClassification.begin_with(
                few, backbone, before.tokenizer, pooling="mean", dropout=0.1
            )
            backbone.trainable = way != "the head alone"
        recipe.fit(task.model, task.examples(few, 16, seed=1), progress=False)
        figures = task.evaluate(test)
        trained = sum(math.prod(weight.shape) for weight in task.model.trainable_weights)
        table[way] = {"accuracy": figures["accuracy"], "trained": trained}
        print(
            f"{way:15} accuracy {figures['accuracy']:.3f} ({figures['accuracy_low']:.3f} to {figures['accuracy_high']:.3f}), "
            f"{trained:7,} weights trained"
        )
    return table, keep(task, folder, base)


def pretrain(folder, steps):
    """A model that has read the reference, as a run folder."""
    text = folder / "reference.txt"
    tokenizer = seqlm.tokenizers.BytePairTokenizer.train(texts=[text.read_text(encoding="utf-8")], vocabulary_size=800)
    train, _ = seqlm.data.causal_blocks(
        text, tokenizer, CONTEXT, batch_size=16, validation_fraction=0.0, cache_dir=folder
    )
    recipe = seqlm.training.Recipe(steps=steps, batch_size=16, learning_rate=3e-3, validate_every=steps)
    with recipe.scope():
        model = new_model(tokenizer)
    history = recipe.fit(model, train, progress=False)
    print(f"{steps} steps of reading: loss {history.history['loss'][-1]:.2f} nats a token")
    seqlm.tasks.TextGeneration(model, tokenizer).save(folder / "base")
    return folder / "base"


def new_model(tokenizer):
    """One that has learned nothing."""
    return seqlm.models.TransformerLM(tokenizer.vocabulary_size, size="nano", max_length=CONTEXT, dropout=0.1)


def keep(task, folder, base):
    """The adapters as a file beside the base; read back, and merged into one model that says the same."""
    task.save_adapters(folder / "lora", base)
    sizes = [(folder / name).stat().st_size for name in ("lora/adapters.safetensors", "base/model.keras")]
    print(f"adapters and head: {sizes[0]:,} bytes; base: {sizes[1]:,} bytes")
    again = seqlm.tasks.load(folder / "lora")  # which finds the base, and refuses one of other content
    ids = keras.ops.ones((1, 8), "int32")
    merged = seqlm.models.merge_lora(again.model)
    apart = float(keras.ops.max(keras.ops.abs(merged(ids) - task.model(ids))))
    print(f"merged, its logits differ by {apart:.1e}")
    return {"bytes": sizes, "difference": apart}


def parted(rows):
    """Ten rows of each page to learn from, spread over it, and all others to be judged by."""
    few = []
    for page in PAGES:
        own = [row for row in rows if row["label"] == page]
        few += own[:: max(1, len(own) // PER_PAGE)][:PER_PAGE]
    return few, [row for row in rows if row not in few]


def sentences(page):
    for sentence in re.split(r"(?<=[.:])\s+", topics[page]):
        words = " ".join(sentence.split())
        if 30 <= len(words) <= 300:
            yield words


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
