"""How do I train on several corpora, each with its share, from files and from Hugging Face `datasets`?

Give `causal_blocks` a dict of corpora to weights. A weight is the share of the training rows, whatever the sizes: a small
corpus with a large weight is read many times, a large one in part, and `epochs(steps)` says how often before you start. Which
corpus a row is from follows from its number, so the shares are exact and a run goes on exactly. Files may be text, .jsonl,
.json or .parquet, packed or not; whatever gives documents one by one, as a (streaming) data set does, is a corpus, too.

The command line does the same, and every run writes its flags to RUN/run.toml, which `--config` reads:

    seqlm train --text 'books/*.txt=0.7' letters.jsonl.gz=0.3 --text-field content --out runs/mixed
    seqlm train --config runs/mixed/run.toml --seed 2 --out runs/mixed-2

Run it: python guides/mix_corpora.py
"""

import gzip
import json
import pathlib
import tempfile

import keras

import keras_seqlm as seqlm
import seqlm_cli

STEPS = 60
BOOKS = "It was a dark night, and the wind was loud. Nobody slept in the old house by the sea. "
LETTERS = "Dear reader, I hope that this letter finds you well. Yours, the lighthouse keeper. "


def main(folder):
    folder = pathlib.Path(folder)
    write_corpora(folder)
    tokenizer = seqlm.tokenizers.BytePairTokenizer.train(
        [folder / "books", folder / "letters.jsonl.gz"], vocabulary_size=300, text_field="content"
    )
    corpora = {folder / "books" / "*.txt": 0.6, folder / "letters.jsonl.gz": 0.2, DataSet(): 0.2}
    train, validation = seqlm.data.causal_blocks(
        corpora, tokenizer, sequence_length=32, batch_size=10, seed=1, text_field="content", cache_dir=folder / "tokens"
    )
    rows = dict(zip(train.weights, train.num_rows(STEPS * 10), strict=True))
    for name, times in train.epochs(STEPS).items():
        print(
            f"{pathlib.Path(name).name}: {train.weights[name]:.0%} of the rows, {rows[name]} of {STEPS * 10}, read {times:.2f} times"
        )

    model = seqlm.models.RecurrentLM(tokenizer.vocabulary_size, cell="gru", size="nano")
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(train, validation_data=validation, steps_per_epoch=STEPS, epochs=1, verbose=0, shuffle=False)
    print(f"validation loss {history.history['val_loss'][-1]:.3f} nats a token, of each corpus its share")

    (folder / "mixed.toml").write_text(
        f"text = [{json.dumps(str(folder / 'books' / '*.txt') + '=0.75')}, {json.dumps(str(folder / 'letters.jsonl.gz') + '=0.25')}]\n"
        'text-field = "content"\nmodel = "gru"\nsize = "nano"\ncontext = 32\nbatch = 8\nsteps = 20\n'
    )
    code = seqlm_cli.main(["train", "--config", str(folder / "mixed.toml"), "--out", str(folder / "runs" / "mixed")])
    print((folder / "runs" / "mixed" / "run.toml").read_text())
    return rows, history.history, code


class DataSet:
    """Stands for `datasets.load_dataset(..., streaming=True)`: dicts, one by one, of a size that nobody knows."""

    def __iter__(self):
        return ({"content": f"{LETTERS}This one is number {i}. {BOOKS}"} for i in range(80))

    def __hash__(self):
        return id(self)

    def __str__(self):
        return "data set"


def write_corpora(folder):
    (folder / "books").mkdir()
    for i in range(3):
        (folder / "books" / f"book-{i}.txt").write_text(BOOKS * 60)
    with gzip.open(folder / "letters.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"content": f"{LETTERS}Number {i}."}) + "\n" for i in range(60))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(name)
