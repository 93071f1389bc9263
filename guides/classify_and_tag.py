"""How do I sort texts, and find the names in them, with a model of my own: from a table of examples to figures?

Rows of examples are dicts with a `text` and a `label`, read from .csv, .tsv, .jsonl, .json or .parquet, packed or not, or given
as any iterable. `TextClassification.begin_with` learns the labels from them and puts a head on a backbone: an encoder that
reads both ways, or a causal language model. `examples` makes batches that are a function of (seed, step), so that a run goes on
exactly; the rest is plain `fit`. Every figure comes with the 95% interval that so many rows allow.

The texts here are what every Python has: the sentences of its language reference, each to be sorted by the page that it
is from. `TokenTagging` finds spans: here the code in a sentence, which the reference puts between quotation marks. Rows have
`text` and `spans`, or `tokens` and `tags` as CoNLL files do. The command line does the same:

    seqlm finetune --task classify --data train.csv --columns label=page --out runs/pages
    seqlm predict runs/pages --text "a lambda expression"
    seqlm evaluate runs/pages --data test.csv --columns label=page
    seqlm finetune --task tag --data spans.jsonl --out runs/code
    seqlm export runs/pages --to saved-model
    seqlm export runs/code --to litert --quantize int8
    seqlm predict saved_models/code-int8.tflite --text "iter() raises TypeError"

Run it: python guides/classify_and_tag.py
"""

import csv
import pathlib
import re
import tempfile
from pydoc_data.topics import topics

import keras_seqlm as seqlm

PAGES = ("debugger", "string-methods", "formatstrings", "typesseq", "typesmapping", "comparisons", "import", "try")
SENTENCE = "If the method __iter__() is missing, iter() raises TypeError."
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
    return figures, usual, answer, find_code(tokenizer, steps)


def find_code(tokenizer, steps):
    """A tagger for the code in a sentence, whose marks are taken away."""
    train, test = seqlm.data.Rows(list(rows_with_code())).split(0.2, seed=1)
    encoder = seqlm.models.RecurrentEncoder(
        tokenizer.vocabulary_size, cell="gru", size="nano", hidden_dim=96, dropout=0.1
    )
    task = seqlm.tasks.TokenTagging.begin_with(train, encoder, tokenizer, dropout=0.1)
    recipe = seqlm.training.Recipe(steps=steps, batch_size=16, learning_rate=2e-3, validate_every=steps)
    recipe.fit(task.model, task.examples(train, 16, seed=1), progress=False)
    found = task.evaluate(test)
    print(f"code found: F1 {found['span_f1']:.3f} ({found['span_f1_low']:.3f} to {found['span_f1_high']:.3f})")
    (answer,) = task.predict([SENTENCE])
    print([(span.label, span.text, span.start, span.end) for span in answer.spans])
    return answer.spans


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
        writer.writerows((sentence, page) for page in PAGES for sentence in sentences(page))


def sentences(page):
    for sentence in re.split(r"(?<=[.:])\s+", topics[page]):
        words = " ".join(sentence.split())
        if 30 <= len(words) <= 300:
            yield words


def rows_with_code():
    """Sentences without the marks of their code, and where it stands."""
    for page in PAGES:
        for sentence in sentences(page):
            parts = sentence.split('"')
            text, spans = "", []
            for number, part in enumerate(parts):
                if number % 2 and part.strip() and number < len(parts) - 1:
                    spans.append({"label": "code", "start": len(text), "end": len(text) + len(part)})
                text += part
            yield {"text": text, "spans": spans}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
