"""How do I sort texts with a model of my own, from a table of examples to answers with their figures?

Rows of examples are dicts with a `text` and a `label`, read from .csv, .tsv, .jsonl, .json or .parquet, packed or not, or given
as any iterable. `TextClassification.begin_with` learns the labels from them and puts a head on a backbone: an encoder that
reads both ways, or a causal language model. `examples` makes batches that are a function of (seed, step), so that a run goes on
exactly; the rest is plain `fit`. Every figure comes with the 95% interval that so many rows allow.

The texts here are what every Python has: the sentences of its language reference, each to be sorted by the page that it
is from. The command line does the same:

    seqlm finetune --task classify --data train.csv --columns label=page --out runs/pages
    seqlm predict runs/pages --text "a lambda expression"
    seqlm evaluate runs/pages --data test.csv --columns label=page

Run it: python guides/classify_and_tag.py
"""

import csv
import pathlib
import re
import tempfile
from pydoc_data.topics import topics

import keras_seqlm as seqlm

PAGES = ("debugger", "string-methods", "formatstrings", "typesseq", "typesmapping", "comparisons", "import", "try")
STEPS = 300


def main(folder, steps=STEPS):
    folder = pathlib.Path(folder)
    write_rows(folder / "rows.csv")
    rows = seqlm.data.Rows(folder / "rows.csv", columns={"label": "page"})
    train, test = rows.split(0.2, seed=1)  # drawn by chance, since the file is sorted by page
    texts = [row["text"] for _, row in train]
    tokenizer = seqlm.tokenizers.BytePairTokenizer.train(texts=texts, vocabulary_size=600)

    figures = {}
    for name, backbone in backbones(tokenizer).items():
        recipe = seqlm.training.Recipe(steps=steps, batch_size=16, learning_rate=2e-3, validate_every=steps)
        task = seqlm.tasks.TextClassification.begin_with(train, backbone, tokenizer, dropout=0.1)
        recipe.fit(task.model, task.examples(train, 16, seed=1), task.examples(test, 16, complete=True), progress=False)
        found = figures[name] = task.evaluate(test)
        print(
            f"{name}: accuracy {found['accuracy']:.3f} ({found['accuracy_low']:.3f} to {found['accuracy_high']:.3f}), "
            f"{found['count']} sentences that it has not seen"
        )
    labels = [row["label"] for _, row in test]
    usual = max(labels.count(label) for label in set(labels)) / len(labels)
    print(f"always the most frequent page: {usual:.3f}")

    task.save(folder / "pages")  # a run folder, as the command line reads it
    again = seqlm.tasks.load(folder / "pages")
    (answer,) = again.predict(["An exception is raised, and its handler runs."])
    print(f"{answer.label}: {answer.probabilities[answer.label]:.2f}")
    return figures, usual, answer


def backbones(tokenizer):
    """Three models of like size: two that read both ways, and a causal one, which is classified with all the same."""
    size = tokenizer.vocabulary_size
    models = seqlm.models
    return {
        "Transformer encoder": models.TransformerEncoder(size, size="nano", max_length=128, dropout=0.1),
        "LSTM, both ways": models.RecurrentEncoder(size, cell="lstm", size="nano", hidden_dim=96, dropout=0.1),
        "causal GRU": models.RecurrentLM(size, cell="gru", size="nano", dropout=0.1),
    }


def write_rows(path):
    """A row for each sentence of some pages of Python's reference."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "page"])
        for page in PAGES:
            for sentence in re.split(r"(?<=[.:])\s+", topics[page]):
                words = " ".join(sentence.split())
                if 30 <= len(words) <= 300:
                    writer.writerow([words, page])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
