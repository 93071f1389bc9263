"""`seqlm finetune`: from rows of examples to a run folder whose model does a task."""

import argparse
import functools
import math
import pathlib
import sys

from seqlm_cli.another_run import start_of
from seqlm_cli.options import import_modules, size_table
from seqlm_cli.train import (
    add_devices,
    add_parts,
    add_recipe,
    add_starts,
    add_tokenizer,
    fill_in_parts,
    kept_of,
    last_words,
    new_tokenizer,
    open_run,
    recipe_of,
    refuse_fewer_steps,
    refuse_parts_of_others,
    write_settings,
)

HELP = "train a model on rows of examples: classify, tag, answer or embed"
EXAMPLES = (
    ("seqlm finetune --task classify --data train.csv --out runs/intents", "a small Transformer from scratch"),
    (
        "seqlm finetune --task classify --data a.csv --columns label=kind --out runs/a",
        "where the file calls a label otherwise",
    ),
    (
        "seqlm finetune --task classify --data b.csv --from runs/books --out runs/b",
        "on the model of another run",
    ),
    ("seqlm finetune --task classify --data a.csv --model lstm --out runs/lstm", "a bidirectional LSTM"),
)
TASKS = {
    "classify": "TextClassification",
    "tag": "TokenTagging",
    "answer": "QuestionAnswering",
    "embed": "TextEmbedding",
}
OWNERS = {"pooling": ("classify", "embed"), "embedding_width": ("embed",), "before": ("tag",), "window": ("answer",)}
TEXTS = ("text", "pair", "question", "context")  # fields that a tokenizer learns from
LEARNING_RATES = {"scratch": 1e-3, "pretrained": 3e-4}
NUM_EXAMPLES = 50
EPOCHS = 10
_DEFAULTS = {"model": "transformer", "size": "micro", "tokenizer": "bpe", "dropout": 0.1}


def arguments(p):
    """Add what the verb takes to its parser."""
    p.epilog, p.formatter_class = size_table(), argparse.RawDescriptionHelpFormatter
    p.add_argument(
        "--task",
        required=True,
        choices=sorted(TASKS),
        metavar="TASK",
        help="what is learned: " + ", ".join(sorted(TASKS)),
    )
    add_data(p, required=True)
    p.add_argument("--out", required=True, metavar="runs/NAME", help="the run folder to write")
    p.add_argument("--validation", nargs="+", metavar="FILE", help="validate on these rows")
    p.add_argument("--validation-fraction", type=float, default=0.1, help="else on rows drawn by chance (default 0.1)")
    p.add_argument("--from", dest="start", metavar="RUN", help="begin with the model and the tokenizer of another run")
    p.add_argument(
        "--model", choices=["transformer", "lstm", "gru", "rnn"], help="from scratch: an encoder of this kind"
    )
    p.add_argument("--size", help="see the table below (default micro)")
    p.add_argument("--epochs", type=float, help=f"times that the rows are read (default {EPOCHS})")
    p.add_argument("--steps", type=int, default=None, help="batches, in place of --epochs")
    p.add_argument(
        "--config", metavar="FILE.toml", help="flags from a file, as RUN/run.toml; those given here go before"
    )
    add_starts(p)
    group = p.add_argument_group("head")
    group.add_argument("--pooling", choices=["first", "last", "mean", "max"], help="which hidden states are read")
    group.add_argument("--head-dropout", type=float, default=0.1, help="of what the head reads (default 0.1)")
    group.add_argument("--embedding-width", type=int, help="embed: of the vectors (default the model's own)")
    group.add_argument("--before", metavar="FIELD", help="tag: a field that is read before the text, as a question is")
    group.add_argument("--window", type=int, help="answer: tokens of a window (default what the model reads, or 384)")
    group.add_argument("--freeze", action="store_true", help="train the head alone, and leave the model below it")
    add_tokenizer(p)
    add_parts(p)
    add_recipe(p)
    add_devices(p)


def add_data(p, required=False):
    """Add the flags that name rows."""
    p.add_argument(
        "--data",
        nargs="+",
        required=required,
        metavar="FILE",
        help="rows: .csv, .tsv, .jsonl, .json (SQuAD's form too), .conll, .parquet, packed or not",
    )
    p.add_argument(
        "--columns", metavar="OURS=THEIRS,...", help="what the file calls a field, as text=question,label=category"
    )
    p.add_argument("--tolerance", type=float, default=0.01, help="share of the rows that may be broken (default 0.01)")


def rows_of(args, files):
    """`data.Rows` of the files, by the flags of `add_data`."""
    from keras_seqlm import data

    columns = {}
    for pair in (args.columns or "").split(","):
        ours, equals, theirs = pair.partition("=")
        if pair and not (ours.strip() and equals and theirs.strip()):
            raise ValueError(f"--columns takes OURS=THEIRS, with commas between, as label=category; got {pair!r}")
        if pair:
            columns[ours.strip()] = theirs.strip()
    return data.Rows(files, columns, args.tolerance)


def run(args):
    """`seqlm finetune`: from rows to a run folder; a run that is there goes on."""
    from keras_seqlm import tasks, training

    import_modules(args.imports)
    task_class = getattr(tasks, TASKS[args.task])
    _check_options(args)
    if args.validation:
        train, validation = rows_of(args, args.data).read(), rows_of(args, args.validation).read()
    else:
        train, validation = rows_of(args, args.data).split(args.validation_fraction)
    for rows in (train, validation):
        rows.check()
    if args.steps is None:
        args.steps = max(1, math.ceil((args.epochs or EPOCHS) * max(1, sum(1 for _ in train) // args.batch)))
        args.epochs = None  # the steps are what the run goes on by
    recipe = recipe_of(args)
    training.strategy(recipe.distribution)  # joins the processes of the run, where there are several
    folder = training.RunFolder(args.out)
    try:
        going_on = training.chief_decides(lambda: open_run(folder, args))
        _train(args, folder, going_on, recipe, task_class, train, validation)
    finally:
        folder.close()


def _check_options(args):
    if args.epochs is not None and args.steps is not None:
        raise ValueError(
            "--epochs and --steps both say how long it trains (RUN/run.toml has its steps): give one of them"
        )
    if args.epochs is not None and not args.epochs > 0:
        raise ValueError(f"--epochs must be above 0, got {args.epochs}")
    fill_in_parts(args, _DEFAULTS)
    for name, owners in OWNERS.items():
        if getattr(args, name) is not None and args.task not in owners:
            raise ValueError(
                f"--{name.replace('_', '-')} is of --task {' and '.join(owners)}, and this is --task {args.task}"
            )
    if args.untied and args.start is None:
        raise ValueError("--untied is of the projection to a vocabulary, and a task has none")
    if args.context and (args.start is not None or args.model != "transformer"):
        raise ValueError("--context is of a Transformer from scratch; leave it out")
    refuse_parts_of_others(args)
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATES["scratch" if args.start is None else "pretrained"]


def _train(args, folder, going_on, recipe, task_class, train, validation):
    from keras_seqlm import tasks, tokenizers, training

    tokenizer = tokenizers.load(folder.path / "tokenizer") if going_on else _tokenizer(args, train)
    if going_on:
        known = tasks.settings_in(folder.path)
    else:
        known = task_class.settings_from([*train, *_own(args, validation)])
        known |= {name: getattr(args, name) for name in task_class.chosen}
    with recipe.scope():
        backbone = _backbone(args, tokenizer)
        options = {} if args.task == "embed" else {"dropout": args.head_dropout}
        options |= {name: value for name, value in _of_the_head(args).items() if value is not None}
        model = task_class.head(backbone, known, **options)
        model.build()
    backbone.trainable = not args.freeze
    task = task_class(model, tokenizer, **known)
    train_data = task.examples(train, args.batch, seed=args.seed)
    notes = dict(task.notes)
    validation_data = task.examples(validation, args.batch, complete=True)
    begin = functools.partial(_begin, args, folder, going_on, recipe, task, train, validation)
    if not going_on:
        training.chief_decides(begin)
    resume = training.Resume(
        folder.path / training.CHECKPOINTS,
        every=args.checkpoint_every,
        keep=args.keep,
        settings={
            "rows": train_data.content_hash,
            "validation rows": validation_data.content_hash,
            "tokenizer": tokenizer.hash,
            "task": {"name": args.task, **known},
        },
        allow_changes=args.allow_changes,
    )
    try:
        refuse_fewer_steps(args, folder, resume)
        if going_on:
            training.chief_decides(begin)
        print(
            f"{type(backbone).__name__} under {type(model).__name__}: {model.count_params():,} parameters; "
            f"{train_data.num_rows:,} rows to train on, {validation_data.num_rows:,} to validate on"
            + (f"; {len(train.bad) + len(validation.bad)} broken ones left out" if train.bad or validation.bad else "")
            + (f"; going on from step {resume.step_before}" if resume.step_before else "")
            + "".join(f"; {count:,} {what}" for what, count in notes.items() if count),
            file=sys.stderr,
        )
        callbacks = _callbacks(args, folder.path)
        recipe.fit(model, train_data, validation_data, callbacks=callbacks, resume=resume)
    finally:
        resume.close()
    task, step = kept_of(args, folder, resume, task)
    if training.is_chief():
        task.save(folder.path)
        figures = task.evaluate(validation)
        tasks.write_figures(folder.path, figures)
        of = "a token" if train_data.of_tokens else "a row"
        print(f"{folder.path}: {last_words(folder.path, step, of)}")
        print(figures_line(figures))


def figures_line(figures):
    """Figures with their intervals, in a line.

    >>> figures_line({"count": 200, "accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94})
    'accuracy 0.9000 (0.8500 to 0.9400), 200 rows'
    """
    names = [name for name in figures if f"{name}_low" in figures]
    parts = [
        f"{name} {figures[name]:.4f} ({figures[f'{name}_low']:.4f} to {figures[f'{name}_high']:.4f})" for name in names
    ]
    return ", ".join([*parts, f"{figures['count']:,} rows"])


def _own(args, validation):
    """The validation rows, where they were drawn from the same files: a rare label may lie among them alone."""
    return [] if args.validation else validation


def _tokenizer(args, train):
    from keras_seqlm import tokenizers

    if args.start is not None:
        return tokenizers.load(pathlib.Path(args.start) / "tokenizer")
    return new_tokenizer(args.tokenizer, args.vocabulary_size or 2048, lambda: _texts(train))


def _texts(rows):
    """The texts of rows, for a tokenizer to learn from."""
    texts = [value for _, row in rows for name in TEXTS if isinstance(value := row.get(name), str)]
    texts += [" ".join(map(str, row["tokens"])) for _, row in rows if isinstance(row.get("tokens"), list)]
    if not texts:
        raise ValueError(f"no row has a text to learn a tokenizer from: expected one of {', '.join(TEXTS)}, or tokens")
    return texts


def _backbone(args, tokenizer):
    from keras_seqlm import models

    if args.start is not None:
        return models.backbone_of(start_of(args)[0])
    parts = {"size": args.size, "num_layers": args.layers, "hidden_dim": args.hidden_dim, "dropout": args.dropout}
    parts |= {"tokenizer_hash": tokenizer.hash}
    if args.model != "transformer":
        return models.RecurrentEncoder(
            tokenizer.vocabulary_size, cell=args.model, embedding_dim=args.embedding_dim, **parts
        )
    parts |= {"max_length": args.context, "num_heads": args.heads, "num_kv_heads": args.kv_heads}
    parts |= {"intermediate_dim": args.intermediate_dim, "num_token_types": 2}
    parts |= {name: getattr(args, name) for name in ("activation", "norm", "positions") if getattr(args, name)}
    return models.TransformerEncoder(tokenizer.vocabulary_size, **parts)


def _of_the_head(args):
    return {"pooling": args.pooling, "embedding_dim": args.embedding_width}


def _callbacks(args, folder):
    import keras

    from keras_seqlm import training

    callbacks = [
        training.HistoryCSV(folder / "history.csv"),
        training.LossPlot(folder / "history.csv", folder / "loss.png"),
    ]
    if args.early_stopping:
        callbacks.append(keras.callbacks.EarlyStopping(patience=args.early_stopping, verbose=1))
    return callbacks


def _begin(args, folder, going_on, recipe, task, train, validation):
    """Write what the run is made of; `recipe.json` comes last, and says that all is there."""
    from keras_seqlm.files import write_json, write_text

    if not going_on:
        if args.overwrite:
            folder.replace()
        task.begin(folder.path)
        rows = [row for _, row in validation][:NUM_EXAMPLES]
        write_json(folder.path / "examples.json", {"rows": rows})
    bad = [f"{place}: {reason}" for rows in (train, validation) for place, reason in rows.bad]
    if bad:
        write_text(folder.path / "bad_rows.txt", "\n".join(bad) + "\n")
    write_settings(args, folder, recipe)
