"""`seqlm train`: from text files to a run folder."""

import argparse
import functools
import math
import pathlib
import re
import sys

from seqlm_cli.another_run import OF_THE_MODEL, model_of, parts_of
from seqlm_cli.config import as_toml, flag_of
from seqlm_cli.in_effect import in_effect
from seqlm_cli.objectives import (
    add_objective,
    blocks_of,
    check_objective,
    check_start,
    filled,
    prepared_for,
    prompts_for,
    task_of,
)
from seqlm_cli.options import add_backend, add_imports, import_modules, size_table

HELP = "train a language model on text files"
EXAMPLES = (
    ("seqlm train --text 'books/*.txt' --out runs/books", "a small Transformer of bytes"),
    (
        "seqlm train --text books.jsonl --model lstm --tokenizer bpe --out runs/lstm",
        "an LSTM, and a tokenizer of its own",
    ),
    ("seqlm train --config runs/books/run.toml --steps 4000", "the run goes on: its flags again, and more steps"),
    ("seqlm train --text letters.txt --from runs/books --out runs/letters", "begin with another run's weights"),
)
TRAINED_TOKENIZERS = {
    "byte": "ByteTokenizer",
    "character": "CharacterTokenizer",
    "bpe": "BytePairTokenizer",
    "wordpiece": "WordPieceTokenizer",
    "sentencepiece": "SentencePieceTokenizer",
}
NUM_PROMPTS, PROMPT_TOKENS = 20, 24
_TRANSFORMER_ONLY = ("heads", "kv_heads", "intermediate_dim", "activation", "norm", "positions")
MAY_CHANGE = (  # between two starts of a run
    "steps",
    "checkpoint_every",
    "keep",
    "resume",
    "allow_changes",
    "backend",
    "distribution",
    "jit_compile",
    "rematerialize",
    "tensorboard",
    "sample_every",
    "stop_after_skipped",
    "roll_back",
    "early_stopping",
    "text",  # these are known by their content: see `_settings`
    "validation",
    "data",
    "epochs",
    "out",
    "imports",
    "merge",
)
# Of one start alone: a file of flags that kept them would accept any change, or replace the run, in every later one.
OF_ONE_START = ("command", "version", "config", "overwrite", "resume", "allow_changes")
_COUNTS = ("layers", "hidden_dim", "heads", "kv_heads", "intermediate_dim", "embedding_dim", "context")
_RECURRENT_ONLY = ("embedding_dim", "carry_state")
_DEFAULTS = {"model": "transformer", "size": "tiny", "tokenizer": "byte", "dropout": 0.0}  # where no --from has others


def arguments(p):
    """Add what the verb takes to its parser."""
    p.epilog, p.formatter_class = size_table(), argparse.RawDescriptionHelpFormatter
    p.add_argument(
        "--text",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders, globs: text, .jsonl, .json, .parquet, packed or not; with weights: 'a/*.txt=0.7' b.jsonl=0.3",
    )
    p.add_argument("--out", required=True, metavar="runs/NAME", help="the run folder to write")
    p.add_argument("--model", choices=["transformer", "lstm", "gru", "rnn"], help="default transformer")
    p.add_argument("--size", help="see the table below (default tiny)")
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument(
        "--from", dest="start", metavar="RUN", help="begin with the weights and the tokenizer of another run"
    )
    p.add_argument(
        "--config", metavar="FILE.toml", help="flags from a file, as RUN/run.toml; those given here go before"
    )
    add_starts(p)
    add_tokenizer(p)
    group = p.add_argument_group("data")
    group.add_argument("--text-field", default="text", metavar="NAME", help="of a record that holds the text")
    group.add_argument("--tolerance", type=float, default=0.001, help="share of a corpus that may be damaged")
    group.add_argument("--validation", nargs="+", metavar="FILE", help="validate on these files")
    group.add_argument(
        "--validation-fraction", type=float, default=0.1, help="else on the last documents of each file (default 0.1)"
    )
    add_objective(group)
    group.add_argument("--segment-ids", action="store_true", help="packed documents do not see each other")
    group.add_argument("--carry-state", action="store_true", help="recurrent: carry the state on where a document does")
    add_parts(p)
    add_recipe(p)
    add_devices(p)
    add_watching(p)


def add_starts(p):
    """Add the flags of how a run begins and goes on, and of its checkpoints."""
    p.add_argument("--overwrite", action="store_true", help="replace a run folder that exists")
    p.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the run that the folder holds (default)",
    )
    p.add_argument("--checkpoint-every", type=int, default=100, metavar="N", help="steps (default 100)")
    p.add_argument("--keep", type=int, default=2, metavar="K", help="newest checkpoints that stay, beside the best one")
    p.add_argument("--allow-changes", action="store_true", help="go on although settings or data changed")
    add_backend(p)
    add_imports(p)


def add_tokenizer(p, kind="byte", size=8192):
    """Add the flags of the tokenizer, whose defaults the verb fills in."""
    group = p.add_argument_group("tokenizer")
    group.add_argument(
        "--tokenizer",
        help=f"byte, character, bpe, wordpiece, sentencepiece, or a saved tokenizer's folder (default {kind})",
    )
    group.add_argument("--vocabulary-size", type=int, default=None, help=f"of a trained tokenizer (default {size})")


def add_parts(p, dropout=0):
    """Add the flags of the model's parts; the default of dropout the verb fills in."""
    group = p.add_argument_group("parts of the model (override the size)")
    for name in ("layers", "hidden-dim", "heads", "kv-heads", "intermediate-dim", "embedding-dim", "context"):
        group.add_argument(f"--{name}", type=int, default=None)
    group.add_argument("--activation", default=None, help="gelu_tanh, gelu, relu, swiglu, geglu")
    group.add_argument("--norm", default=None, help="layer, rms")
    group.add_argument("--positions", default=None, help="learned, sinusoidal, rotary")
    group.add_argument("--untied", action="store_true", help="an output projection of its own")
    group.add_argument("--dropout", type=float, help=f"default {dropout}")


def add_recipe(p, rates="1e-3, recurrent 4e-3"):
    """Add the flags of the recipe; `rates` says the default of the learning rate, which the verb fills in."""
    group = p.add_argument_group("recipe")
    group.add_argument("--batch", type=int, default=16)
    group.add_argument("--learning-rate", type=float, default=None, help=f"default {rates}")
    group.add_argument("--optimizer", default="adamw", help="adamw, muon, or any of Keras's")
    group.add_argument("--schedule", default="cosine", help="cosine, linear, constant, inverse_sqrt, wsd")
    group.add_argument("--decay-fraction", type=float, default=0.2, help="of the steps, at the end of wsd")
    group.add_argument("--warmup", type=int, default=None, help="steps (default 100, at most a tenth)")
    group.add_argument("--weight-decay", type=float, default=0.1)
    group.add_argument("--clip-norm", type=float, default=1.0, help="0 switches it off")
    group.add_argument("--precision", default="float32", help="float32, mixed_bfloat16, mixed_float16, bfloat16")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--validate-every", type=int, default=None, help="steps (default a tenth)")
    group.add_argument(
        "--early-stopping",
        type=int,
        default=None,
        metavar="N",
        help="end after N validations without a better one, and keep the best",
    )
    group.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one update")
    group.add_argument("--ema", type=float, default=None, help="momentum of averaged weights, as 0.999")
    group.add_argument("--label-smoothing", type=float, default=0.0)
    group.add_argument("--z-loss", type=float, default=0.0, help="weight of the squared log of the partition function")
    group.add_argument("--stop-after-skipped", type=int, default=10, help="updates in a row that are not finite")
    group.add_argument(
        "--roll-back", type=float, default=None, metavar="FACTOR", help="undo a jump of the loss, as 2.0"
    )


def add_devices(p):
    """Add the flags of devices and memory."""
    group = p.add_argument_group("devices and memory")
    group.add_argument(
        "--distribution",
        default="single",
        help="auto, single, mirrored (TensorFlow), data-parallel (JAX; torch under torchrun) or model-parallel (JAX)",
    )
    group.add_argument("--rematerialize", action="store_true", help="less memory for one more forward pass in a step")
    group.add_argument("--steps-per-execution", type=int, default=1, help="batches in one call (TensorFlow, JAX)")
    group.add_argument("--jit-compile", choices=["auto", "on", "off"], default="auto", help="compile the step")


def add_watching(p):
    """Add the flags of what is written while a run trains."""
    group = p.add_argument_group("watching")
    group.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard")
    group.add_argument("--sample-every", type=int, default=None, metavar="N", help="steps (default each validation)")


def run(args):
    """`seqlm train`: from text files to a run folder; a run that is there goes on."""
    from keras_seqlm import training
    from keras_seqlm.corpora.paths import check_name

    for value in vars(args).values():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str):
                check_name(word)  # before anything is written
    import_modules(args.imports)
    recurrent = _check_options(args)
    recipe = recipe_of(args)
    training.strategy(recipe.distribution)  # joins the processes of the run, where there are several
    folder = training.RunFolder(args.out)
    try:
        going_on = training.chief_decides(lambda: open_run(folder, args))
        _train(args, folder, going_on, recipe, recurrent)
    finally:
        folder.close()


def _train(args, folder, going_on, recipe, recurrent):
    from keras_seqlm import tokenizers, training

    tokenizer = tokenizers.load(folder.path / "tokenizer") if going_on else _tokenizer(args)
    with recipe.scope():
        model = _model(args, tokenizer, recurrent)
    context = args.context or model.max_length or 128
    train_blocks, validation = blocks_of(args, corpora_of(args.text), tokenizer, context)
    task = task_of(args, model, tokenizer, train_blocks)
    prompts = prompts_from(train_blocks.tokens if validation is None else validation.tokens, tokenizer)
    prompts = prompts_for(task, prompts)
    begin = functools.partial(_begin, args, folder, going_on, recipe, task, prompts)
    if not going_on:
        training.chief_decides(begin)
    resume = training.Resume(
        folder.path / training.CHECKPOINTS,
        every=args.checkpoint_every,
        keep=args.keep,
        settings=_settings(args, train_blocks, validation, tokenizer),
        allow_changes=args.allow_changes,
    )
    try:
        refuse_fewer_steps(args, folder, resume)
        if going_on:  # only now: what is refused leaves the folder as it was
            training.chief_decides(begin)
        for name, times in train_blocks.epochs(args.steps).items() if hasattr(train_blocks, "epochs") else ():
            print(f"{name} is read {times:.2f} times in {args.steps} steps", file=sys.stderr)
        print(
            f"{type(model).__name__}: {model.count_params():,} parameters, vocabulary {tokenizer.vocabulary_size:,}; "
            f"{train_blocks.num_tokens:,} tokens to train on"
            + (f", {validation.num_tokens:,} to validate on" if validation is not None else "")
            + (f"; going on from step {resume.step_before}" if resume.step_before else ""),
            file=sys.stderr,
        )
        callbacks = _callbacks(args, folder.path, task, prompts)
        recipe.fit(model, train_blocks, validation, callbacks=callbacks, resume=resume)
    finally:
        resume.close()
    task, step = kept_of(args, folder, resume, task)
    if training.is_chief():
        task.save(folder.path)
        print(f"{folder.path}: {last_words(folder.path, step)}")


def refuse_fewer_steps(args, folder, resume):
    """Refuse `--steps` below those that the run has made."""
    if args.steps < resume.step_before:
        raise ValueError(
            f"{folder.path} has made {resume.step_before} steps already, and --steps is {args.steps}: give at least "
            f"{resume.step_before}, or name another folder; nothing was changed"
        )


def kept_of(args, folder, resume, task):
    """What a run that has ended leaves, and of which step: the best under `--early-stopping`, else the last."""
    from keras_seqlm import tasks

    if args.early_stopping and resume.checkpoints.best_score() < math.inf:
        step = resume.checkpoints.best().step
        return tasks.load(folder.path, step), step
    return task, max(resume.step, resume.step_before)


def last_words(folder, step, of="a token"):
    """The step of the model that was saved, and its validation loss where the history has it, in nats of what `of` says."""
    from keras_seqlm import training

    try:
        rows = training.read_history(folder / "history.csv")
    except (OSError, ValueError):  # a disk that refused it has been told of
        rows = []
    loss = next((row["validation_loss"] for row in reversed(rows) if row["step"] == step), None)
    return f"step {step}" + ("" if loss is None else f", validation loss {loss:.4f} nats {of}")


def _callbacks(args, folder, task, prompts):
    import keras

    from keras_seqlm import training

    callbacks = [
        training.HistoryCSV(folder / "history.csv"),
        training.LossPlot(folder / "history.csv", folder / "loss.png"),
        training.SampleWriter(
            lambda model: _sample(task, prompts), folder / "samples.txt", every_steps=args.sample_every
        ),
    ]
    if args.early_stopping:
        callbacks.append(keras.callbacks.EarlyStopping(patience=args.early_stopping, verbose=1))
    if args.tensorboard:
        callbacks.append(training.TensorBoardScalars(folder / "tensorboard"))
    return callbacks


def prompts_from(tokens, tokenizer):
    """Twenty beginnings of text from a part of a corpus, evenly spread, for `verify` and the samples."""
    span, prompts = max(1, (len(tokens) - PROMPT_TOKENS) // NUM_PROMPTS), []
    for i in range(NUM_PROMPTS):
        # Byte tokenizers may cut a character: what is no whole character is left out.
        text = tokenizer.decode(tokens[i * span : i * span + PROMPT_TOKENS]).strip("\ufffd")
        prompts.append(text[text.find(" ") + 1 :].rstrip() if " " in text.strip() else text)
    return prompts


def open_run(folder, args):
    """Take the folder; returns whether the run that it holds goes on."""
    folder.open()
    if args.overwrite:
        return False
    if not folder.holds_run:
        if (folder.path / "model.keras").exists():
            raise FileExistsError(f"{folder.path} was not written by `seqlm train`; name another folder")
        return False
    if not args.resume:
        raise FileExistsError(
            f"{folder.path} holds a run; leave --no-resume out to go on with it, or replace it: --overwrite"
        )
    before = folder.content().get("command")
    if before is None:
        raise FileExistsError(f"{folder.path} was not written by `seqlm train`; name another folder")
    before, now = (
        {"objective": "causal", "architecture": "causal", "attention": None, **before},
        vars(args),
    )  # of a run of before there were others
    if before.get("task") != now.get("task"):
        verbs = [
            "`seqlm finetune --task {}`".format(one["task"]) if "task" in one else "`seqlm train`"
            for one in (before, now)
        ]
        raise FileExistsError(f"{folder.path} holds a run of {verbs[0]}, and this is {verbs[1]}; name another folder")
    of_before, of_now = in_effect(before), in_effect(now)
    changed = [
        f"--{flag_of(name)} was {before[name]} and is {now[name]}"
        for name in sorted(before)
        if name not in MAY_CHANGE
        and name in now
        and not _same(name, before[name], now[name])
        and of_now[name] != of_before[name]
    ]
    if changed and not args.allow_changes:
        raise ValueError(
            f"{folder.path} holds a run with other settings: {'; '.join(changed)}. Give the same to go on with it, name "
            "another folder, replace it with --overwrite, or go on all the same with --allow-changes"
        )
    for change in changed:
        print(f"changed since the run began: {change}", file=sys.stderr)
    return True


def _same(name, before, now):
    """Whether a flag says what it said before; a folder may be written in several ways."""
    if name in ("start", "tokenizer") and None not in (before, now):
        before, now = (pathlib.Path(one).resolve() for one in (before, now))
    return before == now


def _begin(args, folder, going_on, recipe, task, prompts):
    """Write what the run is made of; `recipe.json` comes last, and says that all is there."""
    from keras_seqlm.files import write_json

    if not going_on:
        if args.overwrite:
            folder.replace()
        task.begin(folder.path)
        write_json(folder.path / "prompts.json", {"prompts": prompts})
    write_settings(args, folder, recipe)


def write_settings(args, folder, recipe):
    """Write `run.toml` and, last, `recipe.json`: with what flags a run was begun, or goes on."""
    import keras

    from keras_seqlm.checkpoints.run_folder import FLAGS
    from keras_seqlm.files import write_text

    settings = {key: value for key, value in vars(args).items() if key not in OF_ONE_START}
    write_text(folder.path / FLAGS, as_toml(settings))
    folder.begin({"recipe": recipe.to_dict(), "command": settings, "backend": keras.backend.backend()})


def _settings(args, train, validation, tokenizer):
    """What must not change between two starts, by its content: a copy of a text is the text."""
    return {
        "text": train.content_hash,
        "weights of the texts": list(getattr(train, "weights", {}).values()),
        "validation text": None if validation is None else validation.content_hash,
        "validation fraction": None if args.validation else args.validation_fraction,
        "tokenizer": tokenizer.hash,
        **({} if args.objective == "causal" else {"objective": repr(train.objective)}),
    }


def corpora_of(words):
    """What `--text` names: a list of paths, or a dict of paths to weights.

    >>> corpora_of(["a/*.txt", "b.jsonl"]), corpora_of(["a/*.txt=0.7", "b.jsonl=0.3"])
    (['a/*.txt', 'b.jsonl'], {'a/*.txt': 0.7, 'b.jsonl': 0.3})

    Raises:
        ValueError: some have a weight and some have none, or one is named twice.
    """
    weighed = [re.fullmatch(r"(.+)=([0-9]*\.?[0-9]+)", word) for word in words]
    weighed = [None if pathlib.Path(word).exists() else match for word, match in zip(words, weighed, strict=True)]
    if not any(weighed):
        return words
    if not all(weighed):
        plain = next(word for word, match in zip(words, weighed, strict=True) if match is None)
        raise ValueError(f"--text gives a weight to some texts and none to {plain}; give each one, as {plain}=1")
    weights = {match[1]: float(match[2]) for match in weighed}
    if len(weights) < len(words):
        raise ValueError(f"--text names one text twice: {' '.join(words)}")
    return weights


def _check_options(args):
    """Refuse what does not go together, fill in what `--from` and the defaults say; returns whether the model is recurrent."""
    fill_in_parts(args, _DEFAULTS)
    refuse_parts_of_others(args)
    check_objective(args)
    return args.model != "transformer"


def refuse_parts_of_others(args):
    """Refuse the parts of a Transformer with a recurrent model, and of one with a Transformer."""
    recurrent = args.model != "transformer"
    for name in _TRANSFORMER_ONLY if recurrent else _RECURRENT_ONLY:
        if getattr(args, name, None):
            owner = "a Transformer" if recurrent else "a recurrent model"
            raise ValueError(f"--{name.replace('_', '-')} belongs to {owner}, and --model is {args.model}")


def fill_in_parts(args, defaults):
    """Refuse counts below 1, and parts beside `--from` that are not those of its run; set those that are not given."""
    for name in (*_COUNTS, "early_stopping", "vocabulary_size", "batch", "steps", "sample_every"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    parts = defaults if args.start is None else parts_of(args)
    if args.start is not None:
        own = [name for name in OF_THE_MODEL if _given(args, name) and getattr(args, name) != parts.get(name)]
        if own:
            said = ", ".join(f"--{flag_of(name)}" for name in own)
            raise ValueError(f"--from takes model and tokenizer as they are in {args.start}; leave out {said}")
    for name, value in parts.items():
        if not _given(args, name):
            setattr(args, name, value)


def _given(args, name):
    value = getattr(args, name)
    return value is not None and value is not False  # a dropout of 0 is given


def recipe_of(args):
    from keras_seqlm import training

    words = in_effect(vars(args))
    return training.Recipe(
        optimizer=args.optimizer,
        learning_rate=words["learning_rate"],
        schedule=args.schedule,
        warmup_steps=words["warmup"],
        weight_decay=args.weight_decay,
        clip_norm=args.clip_norm or None,
        precision=args.precision,
        batch_size=args.batch,
        steps=args.steps,
        seed=args.seed,
        distribution=args.distribution,
        validate_every=args.validate_every,
        decay_fraction=args.decay_fraction,
        accumulate=args.accumulate,
        ema=args.ema,
        label_smoothing=args.label_smoothing,
        z_loss=args.z_loss,
        rematerialize=args.rematerialize,
        steps_per_execution=args.steps_per_execution,
        jit_compile={"auto": "auto", "on": True, "off": False}[args.jit_compile],
        stop_after_skipped=args.stop_after_skipped,
        roll_back_factor=args.roll_back,
        layer_decay=getattr(args, "layer_decay", None) or 1.0,
    )


def _tokenizer(args):
    from keras_seqlm import tokenizers

    if args.start is not None:
        return prepared_for(args, tokenizers.load(pathlib.Path(args.start) / "tokenizer"))
    return prepared_for(args, _new_tokenizer(args))


def _new_tokenizer(args):
    from keras_seqlm import data

    size = in_effect(vars(args))["vocabulary_size"]
    return new_tokenizer(
        args.tokenizer, size, lambda: data.texts(list(corpora_of(args.text)), args.text_field, tolerance=args.tolerance)
    )


def new_tokenizer(name, vocabulary_size, texts):
    """What `--tokenizer` names: a saved one, or one of a kind that learns from texts, which a function gives."""
    from keras_seqlm import tokenizers

    if name in TRAINED_TOKENIZERS:
        return getattr(tokenizers, TRAINED_TOKENIZERS[name]).train(texts=texts(), vocabulary_size=vocabulary_size)
    if not pathlib.Path(name).is_dir():
        names = ", ".join(TRAINED_TOKENIZERS)
        raise ValueError(f"--tokenizer must be one of {names}, or a saved tokenizer's folder; got {name!r}")
    return tokenizers.load(name)


def _model(args, tokenizer, recurrent):
    from keras_seqlm.models import MaskedLM, RecurrentEncoder, RecurrentLM, Seq2SeqLM, TransformerEncoder, TransformerLM

    masked = args.objective == "masked"
    if args.start is not None:
        model = model_of(args)
        check_start(args, model)
        return model
    parts = {"size": args.size, "num_layers": args.layers, "hidden_dim": args.hidden_dim, "dropout": args.dropout}
    parts |= {"tokenizer_hash": tokenizer.hash}
    if not masked:
        parts |= {"tie_embedding": not args.untied}
    if args.architecture == "seq2seq":
        named = {"attention": args.attention} if recurrent else {"max_length": args.context, "num_heads": args.heads}
        named |= {name: getattr(args, name) for name in ("intermediate_dim", "activation", "positions")}
        model = Seq2SeqLM(tokenizer.vocabulary_size, args.model, **parts, **named)
    elif recurrent:
        parts |= {"cell": args.model, "embedding_dim": args.embedding_dim}
        if not masked:
            parts |= {"stateful_batch_size": args.batch if args.carry_state else None}
        model = (RecurrentEncoder if masked else RecurrentLM)(tokenizer.vocabulary_size, **parts)
    else:
        parts |= {"max_length": args.context, "num_heads": args.heads, "num_kv_heads": args.kv_heads}
        parts |= {"intermediate_dim": args.intermediate_dim}
        parts |= {name: getattr(args, name) for name in ("activation", "norm", "positions") if getattr(args, name)}
        model = (TransformerEncoder if masked else TransformerLM)(tokenizer.vocabulary_size, **parts)
    if masked:
        model = MaskedLM(model)
    model.build()
    return model


def _sample(task, prompts):
    from keras_seqlm import tasks

    if isinstance(task, tasks.FillMask):
        return filled(task, prompts[:4])
    if isinstance(task, tasks.TextToText):
        return "\n".join(task.samples(prompts[:4]))
    prompts = prompts[:2]
    texts = task.generate(prompts, max_new_tokens=48, temperature=0.8, seed=1)
    return "\n".join(f"{prompt!r} -> {text!r}" for prompt, text in zip(prompts, texts, strict=True))
