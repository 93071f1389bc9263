"""One row of the tasks a command: trains from scratch, scores rows never trained on, prints one line beside a baseline.

usage: tasks.py intent|slots|answer-zh|embed|pretraining|lora [--data FOLDER] [--test FILES] [--minutes M] [--model transformer|lstm|gru]
                [--size micro] [--from RUN] [--out RUN] [--seed 0]

Without --test a tenth of the training file is held back for it, by a hash of the text (of the context, for questions), so
that no text stands in both parts; another twentieth is what the best weights are chosen by. The learning rate falls with
steps or minutes, whichever end first. --test scores files of the data set's own form; then nothing else is held back.
--from begins with the model and the tokenizer of a run, as one that `seqlm train --objective masked` wrote.
pretraining and lora: see few_examples.py; --minutes are those of pre-training, which --from leaves out and --out keeps.
"""

import argparse
import dataclasses
import hashlib
import math
import pathlib
import time

import keras
import numpy as np
from few_examples import compare
from task_baselines import lexicon_spans, ngram_classes, overlap_answers, tfidf_neighbours

import keras_seqlm as seqlm
from keras_seqlm.metrics.answers import answer_f1, exact_match
from keras_seqlm.metrics.intervals import with_interval
from keras_seqlm.metrics.spans import span_counts, span_f1
from keras_seqlm.models import RecurrentEncoder, TransformerEncoder, backbone_of

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the table is trained on and judged by."""

    task: type
    files: tuple  # below the folder of data
    metric: str
    minutes: float
    key: str  # the field by which rows are held back
    texts: tuple  # the fields that the tokenizer is trained on
    beside: object  # (train, test) -> figures of the baseline, named as those of the task
    tokenizer: object = seqlm.tokenizers.WordPieceTokenizer
    vocabulary_size: int = 2500
    columns: dict = dataclasses.field(default_factory=dict)
    model: str = "lstm"
    options: dict = dataclasses.field(default_factory=dict)  # of `begin_with`
    context: int = 128
    batch_size: int = 32
    epochs: int = 40
    learning_rate: float = 2e-3


def _mean_of(name, score):
    return lambda train, test: with_interval(name, np.mean, score(train, test))


def _spans(train, test):
    truth = [[(span["start"], span["end"], span["label"]) for span in row["spans"]] for row in test]
    return with_interval("span_f1", span_f1, span_counts(truth, lexicon_spans(train, test)))


def _answers(train, test):
    found = overlap_answers(train, test)
    answers = [[one["text"] for one in row["answers"]] for row in test]
    return {
        **with_interval("f1", np.mean, np.array(list(map(answer_f1, answers, found)))),
        **with_interval("exact_match", np.mean, np.array(list(map(exact_match, answers, found)))),
    }


ROWS = {
    "intent": Row(
        seqlm.tasks.TextClassification,
        ("banking77/train.csv",),
        "accuracy",
        30,
        "text",
        ("text",),
        _mean_of("accuracy", ngram_classes),
        columns={"label": "category"},
        options={"dropout": 0.3},
    ),
    "slots": Row(
        seqlm.tasks.TokenTagging,
        ("restaurant8k/train.json",),
        "span_f1",
        45,
        "text",
        ("text",),
        _spans,
        vocabulary_size=1500,
        options={"dropout": 0.3, "before": "requested"},
    ),
    "answer-zh": Row(
        seqlm.tasks.QuestionAnswering,
        ("cmrc2018/cmrc2018_trial.json", "cmrc2018/cmrc2018_dev.70pct.json"),
        "f1",
        60,
        "context",
        ("context", "question"),
        _answers,
        tokenizer=seqlm.tokenizers.CharacterTokenizer,
        vocabulary_size=None,
        options={"dropout": 0.2, "matches": True},
        context=256,
        batch_size=16,
    ),
    "embed": Row(
        seqlm.tasks.TextEmbedding,
        ("banking77/train.csv",),
        "recall_at_1",
        30,
        "text",
        ("text",),
        _mean_of("recall_at_1", tfidf_neighbours),
        columns={"label": "category"},
        batch_size=128,
    ),
}


class ByTheClock(keras.callbacks.Callback):
    """A learning rate that rises over 200 steps and falls as a cosine with steps or seconds, whichever end first; the
    weights that were best on the validation rows, looked at twelve times in the second half."""

    def __init__(self, task, rows, metric, peak, steps, seconds):
        super().__init__()
        self.task, self.rows, self.metric = task, rows, metric
        self.peak, self.steps, self.seconds = peak, steps, seconds
        self.step, self.best, self.weights, self.looks = 0, -math.inf, None, 0

    def on_train_begin(self, logs=None):
        self.start = time.perf_counter()

    def done(self):
        return max(self.step / self.steps, (time.perf_counter() - self.start) / self.seconds)

    def on_train_batch_begin(self, batch, logs=None):
        share = min(1.0, self.done())
        self.model.optimizer.learning_rate = (
            self.peak * min(1.0, (self.step + 1) / 200) * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))
        )

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.rows is not None and self.done() >= 0.5 + 0.5 * self.looks / 11:
            figure = self.task.evaluate(self.rows)[self.metric]
            print(f"  step {self.step}: loss {logs['loss']:.3f}, validation {self.metric} {figure:.4f}", flush=True)
            if figure > self.best:
                self.best, self.weights = figure, self.model.get_weights()
            self.looks = int(22 * (self.done() - 0.5)) + 1
        if self.done() >= 1:
            self.model.stop_training = True


def rows_of(row, files):
    """The rows of files that the task can read, those that are broken left out and counted."""
    rows = seqlm.data.Rows([str(file) for file in files], row.columns, tolerance=0.05)
    return [one for _, one in rows]


def held_back(rows, key, seed, shares):
    """`rows` in parts, one for each share and the rest first, by a hash of what `key` says in small letters."""
    parts = [[] for _ in range(len(shares) + 1)]
    borders = np.cumsum(shares)
    for row in rows:
        digest = hashlib.sha256(f"{seed} {row[key].lower().strip()}".encode()).digest()
        place = int(np.searchsorted(borders, int.from_bytes(digest[:8], "big") / 2**64, side="right"))
        parts[0 if place == len(shares) else place + 1].append(row)
    return parts


def begin(row, args, train):
    """The task before it has learned anything."""
    if args.start:
        before = seqlm.load(args.start)
        backbone, options = backbone_of(before.model), {**row.options}
        if getattr(backbone, "num_token_types", 0) < 4:
            options.pop("matches", None)  # a model that was trained without them cannot be shown any
        return row.task.begin_with(train, backbone, before.tokenizer, **options)
    texts = [one[field] for one in train for field in row.texts]
    size = {} if row.vocabulary_size is None else {"vocabulary_size": row.vocabulary_size}
    tokenizer = row.tokenizer.train(texts=texts, **size)
    kind, types = args.model or row.model, 4 if row.options.get("matches") else 0
    if kind == "transformer":
        parts = {"max_length": row.context, "num_token_types": max(2, types)}
        backbone = TransformerEncoder(tokenizer.vocabulary_size, size=args.size, dropout=0.1, **parts)
    else:
        backbone = RecurrentEncoder(
            tokenizer.vocabulary_size, cell=kind, size=args.size, dropout=0.3, num_token_types=types
        )
    options = {**row.options}
    if row.task is seqlm.tasks.QuestionAnswering:
        options["window"] = row.context
    return row.task.begin_with(train, backbone, tokenizer, **options)


def shown(figures, metric):
    """A figure with its interval."""
    return f"{metric} {figures[metric]:.4f} [{figures[f'{metric}_low']:.4f}, {figures[f'{metric}_high']:.4f}]"


def main(words=None):
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=[*ROWS, "pretraining", "lora"])
    parser.add_argument("--data", type=pathlib.Path, default=DATA, help="the folder of the data sets")
    parser.add_argument("--test", nargs="+", help="files to be scored, of the data set's own form")
    parser.add_argument("--minutes", type=float, help="of training at most")
    parser.add_argument("--epochs", type=float, help="pretraining, lora: of fine-tuning")
    parser.add_argument("--model", choices=["transformer", "lstm", "gru"])
    parser.add_argument("--size", default="micro")
    parser.add_argument("--from", dest="start", metavar="RUN")
    parser.add_argument("--out", metavar="RUN", help="keep the task and its figures there")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)

    row = ROWS["intent" if args.row in ("pretraining", "lora") else args.row]
    everything = rows_of(row, [args.data / file for file in row.files])
    test, train = None, everything
    if args.test:
        test = rows_of(row, args.test)
    else:
        train, test = held_back(everything, row.key, "test", [0.1])  # one test part, whatever --seed
    if args.row not in ROWS:
        print(compare(args, train, test, ByTheClock, args.minutes or row.minutes, args.epochs))
        return
    train, validation = held_back(train, row.key, f"validation {args.seed}", [0.05])
    keras.utils.set_random_seed(args.seed)
    task = begin(row, args, train)
    examples = task.examples(seqlm.data.Rows(train, tolerance=0.05), row.batch_size, seed=args.seed)
    model = task.model
    optimizer = keras.optimizers.AdamW(row.learning_rate, weight_decay=0.01, global_clipnorm=1.0)
    model.compile(optimizer, loss=model.default_loss())
    minutes = args.minutes or row.minutes
    steps = row.epochs * len(examples)
    clock = ByTheClock(task, validation, row.metric, row.learning_rate, steps, 60 * minutes)
    began = time.perf_counter()
    model.fit(examples, epochs=row.epochs + 1, verbose=0, callbacks=[clock])
    seconds = time.perf_counter() - began
    if clock.weights is not None:
        model.set_weights(clock.weights)
    figures = task.evaluate(test)
    beside = row.beside(train + validation, test)
    if args.out:
        task.save(args.out)
        seqlm.tasks.write_figures(args.out, {**figures, "baseline": beside})
    kind = type(backbone_of(model)).__name__ if args.start else f"{args.model or row.model} {args.size}"
    print(
        f"{args.row}: {shown(figures, row.metric)}; baseline {shown(beside, row.metric)}; {figures['count']} rows of "
        f"{'--test' if args.test else 'the part held back'}; {kind}, {model.count_params():,} parameters, {clock.step} steps, "
        f"{seconds / 60:.1f} minutes, seed {args.seed}, {keras.backend.backend()}"
    )


if __name__ == "__main__":
    main()
