"""`seqlm finetune`: from rows of examples to a run folder whose model does a task."""

import argparse
import functools
import math
import pathlib
import sys

from seqlm_cli.another_run import command_of, start_of
from seqlm_cli.options import import_modules, size_table
from seqlm_cli.task_report import write_report
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
    (
        "seqlm finetune --task classify --data b.csv --from runs/books --lora 8 --out c",
        "adapters alone, beside it",
    ),
)
TASKS = {
    "classify": "TextClassification",
    "tag": "TokenTagging",
    "answer": "QuestionAnswering",
    "embed": "TextEmbedding",
}
OWNERS = {"pooling": ("classify", "embed"), "embedding_width": ("embed",), "before": ("tag",), "window": ("answer",)}
TEXTS = ("text", "pair", "question", "context")  # fields that a tokenizer learns from
LEARNING_RATES = {"scratch": 1e-3, "pretrained": 3e-4, "adapters": 1e-3}
NUM_EXAMPLES = 50
EPOCHS = 10
VOCABULARY_SIZE = 2048
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
    add_adapters(p)
    group = p.add_argument_group("what is learned, and by what it is judged")
    group.add_argument(
        "--class-weights",
        metavar="balanced|LABEL=W,...",
        help="classify, tag: how much the examples of a class weigh in the loss",
    )
    group.add_argument(
        "--layer-decay",
        type=float,
        metavar="D",
        help="the learning rate of a layer is D times that of the one above, as 0.9",
    )
    group.add_argument(
        "--metric",
        metavar="NAME",
        help="by which the best checkpoint and --early-stopping go (default the task's own; loss: the validation loss)",
    )
    add_tokenizer(p, _DEFAULTS["tokenizer"], VOCABULARY_SIZE)
    add_parts(p, _DEFAULTS["dropout"])
    add_recipe(p, ", ".join(f"{begins} {rate:g}" for begins, rate in LEARNING_RATES.items()))
    add_devices(p)


def add_adapters(p):
    """Add the flags of LoRA."""
    group = p.add_argument_group("adapters (LoRA), beside the model of --from, which stays as it is")
    group.add_argument("--lora", type=int, metavar="RANK", help="learn low-rank adapters of this rank, and the head")
    group.add_argument("--lora-alpha", type=float, metavar="A", help="they are scaled by A / RANK (default RANK)")
    group.add_argument(
        "--lora-on",
        metavar="NAME,...",
        help="of q, k, v, output, feed_forward, input, recurrent, embedding (default all but embedding)",
    )
    group.add_argument(
        "--merge", action="store_true", help="write one model.keras, and not the adapters beside --from's model"
    )


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
    weights_of(args.class_weights)
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
    for name in ("lora_alpha", "lora_on", "merge"):
        if getattr(args, name) and not args.lora:
            raise ValueError(f"--{name.replace('_', '-')} is of --lora RANK; give it, or leave this out")
    if args.lora is not None and args.lora < 1:
        raise ValueError(f"--lora is a rank of at least 1, got {args.lora}")
    if args.lora and args.start is None:
        raise ValueError("--lora learns adapters beside a model that has learned: give --from RUN, or leave it out")
    if args.lora and args.freeze:
        raise ValueError("--freeze trains the head alone, and --lora adapters, too: give one of them")
    if args.layer_decay is not None and not 0 < args.layer_decay <= 1:
        raise ValueError(f"--layer-decay must be above 0 and at most 1, got {args.layer_decay}")
    if args.class_weights and args.task not in ("classify", "tag"):
        raise ValueError(f"--class-weights is of --task classify and tag, and this is --task {args.task}")
    if args.learning_rate is None:
        begins = "adapters" if args.lora else "scratch" if args.start is None else "pretrained"
        args.learning_rate = LEARNING_RATES[begins]
    before = {} if args.overwrite else command_of(args.out)
    if args.metric is None and before:
        args.metric = before.get("metric", "loss")  # a run of before there were others went by the loss


def weights_of(words):
    """What `--class-weights` says: None, "balanced", or a dict.

    >>> weights_of("cash=2,card=0.5"), weights_of("balanced")
    ({'cash': 2.0, 'card': 0.5}, 'balanced')
    """
    if words is None or words == "balanced":
        return words
    found = {}
    for part in words.split(","):
        name, equals, weight = part.rpartition("=")
        try:
            found[name.strip()] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise ValueError(f"--class-weights takes balanced, or LABEL=WEIGHT with commas between; got {part!r}")
    return found


def _metric_of(args, names):
    """By which figure the run goes; None for the validation loss."""
    args.metric = args.metric or names[0]
    if args.metric not in (*names, "loss"):
        raise ValueError(f"--metric must be one of {', '.join(names)}, loss; got {args.metric!r}")
    return None if args.metric == "loss" else args.metric


def _train(args, folder, going_on, recipe, task_class, train, validation):
    from keras_seqlm import tasks, tokenizers, training
    from keras_seqlm.models import merge_lora

    tokenizer = tokenizers.load(folder.path / "tokenizer") if going_on else _tokenizer(args, train)
    if going_on:
        known = tasks.settings_in(folder.path)
    else:
        known = task_class.settings_from([*train, *_own(args, validation)])
        known |= {name: getattr(args, name) for name in task_class.chosen}
    names = task_class.figures_of(known, validation)
    metric = _metric_of(args, names)
    with recipe.scope():
        backbone = _backbone(args, tokenizer)
        options = {} if args.task == "embed" else {"dropout": args.head_dropout}
        options |= {name: value for name, value in _of_the_head(args).items() if value is not None}
        if args.task == "answer":
            options["matches"] = getattr(backbone, "num_token_types", 0) >= 4
        model = task_class.head(backbone, known, **options)
        model.build()
    if not args.lora:
        backbone.trainable = not args.freeze
    task = task_class(model, tokenizer, **known)
    weights = weights_of(args.class_weights)
    train_data = task.examples(train, args.batch, seed=args.seed, class_weights=weights)
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
            "metric": args.metric,
        },
        allow_changes=args.allow_changes,
        **_monitored(metric, task_class),
    )
    try:
        refuse_fewer_steps(args, folder, resume)
        if going_on:
            training.chief_decides(begin)
        print(
            f"{type(backbone).__name__} under {type(model).__name__}: {model.count_params():,} parameters"
            + (f", of which {_trained(model):,} are trained; " if args.lora or args.freeze else "; ")
            + f"{train_data.num_rows:,} rows to train on, {validation_data.num_rows:,} to validate on"
            + (f"; {len(train.bad) + len(validation.bad)} broken ones left out" if train.bad or validation.bad else "")
            + (f"; going on from step {resume.step_before}" if resume.step_before else "")
            + "".join(f"; {count:,} {what}" for what, count in notes.items() if count),
            file=sys.stderr,
        )
        figures = functools.partial(_figures, task, validation, names) if metric else None
        callbacks = _callbacks(args, folder.path, figures, names, _monitored(metric, task_class))
        recipe.fit(model, train_data, validation_data, callbacks=callbacks, resume=resume)
    finally:
        resume.close()
    task, step = kept_of(args, folder, resume, task)
    if training.is_chief():
        if args.lora and not args.merge:
            task.save_adapters(folder.path, base=args.start)
        else:
            task.model = merge_lora(task.model)
            task.save(folder.path)
        figures = task.evaluate(validation)
        tasks.write_figures(folder.path, figures)
        of = "a token" if train_data.of_tokens else "a row"
        print(f"{folder.path}: {last_words(folder.path, step, of)}")
        print(figures_line(figures))
        report = write_report(folder.path, task, validation, figures, args.metric)
        if report is not None:
            print(f"report: {report}")


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
    return new_tokenizer(args.tokenizer, args.vocabulary_size or VOCABULARY_SIZE, lambda: _texts(train))


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
        backbone = models.backbone_of(start_of(args)[0])
        if args.lora and backbone.lora is None:  # else it is the run's own, which goes on
            on = args.lora_on and [name.strip() for name in args.lora_on.split(",")]
            backbone = models.add_lora(backbone, args.lora, args.lora_alpha, on)
        return backbone
    parts = {"size": args.size, "num_layers": args.layers, "hidden_dim": args.hidden_dim, "dropout": args.dropout}
    parts |= {"tokenizer_hash": tokenizer.hash}
    if args.task == "answer":
        parts["num_token_types"] = 4  # of which two are matches with the question
    if args.model != "transformer":
        return models.RecurrentEncoder(
            tokenizer.vocabulary_size, cell=args.model, embedding_dim=args.embedding_dim, **parts
        )
    parts |= {"max_length": args.context, "num_heads": args.heads, "num_kv_heads": args.kv_heads}
    parts = {"num_token_types": 2, **parts, "intermediate_dim": args.intermediate_dim}
    parts |= {name: getattr(args, name) for name in ("activation", "norm", "positions") if getattr(args, name)}
    return models.TransformerEncoder(tokenizer.vocabulary_size, **parts)


def _of_the_head(args):
    return {"pooling": args.pooling, "embedding_dim": args.embedding_width}


def _figures(task, validation, names):
    """The task's figures of the validation rows, without their intervals."""
    found = task.evaluate(validation)
    return {name: found[name] for name in names}


def _monitored(metric, task_class):
    """By which number of the logs a validation is the best, and which way is better."""
    if metric is None:
        return {"monitor": "val_loss", "mode": "min"}
    return {"monitor": f"val_{metric}", "mode": "min" if metric in task_class.lower_is_better else "max"}


def _trained(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def _callbacks(args, folder, figures, names, monitored):
    import keras

    from keras_seqlm import training

    callbacks = [] if figures is None else [training.Figures(figures)]
    callbacks += [
        training.Progress(),
        training.HistoryCSV(folder / "history.csv", figures=() if figures is None else names),
        training.LossPlot(folder / "history.csv", folder / "loss.png"),
    ]
    if args.early_stopping:
        callbacks.append(keras.callbacks.EarlyStopping(patience=args.early_stopping, verbose=1, **monitored))
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
