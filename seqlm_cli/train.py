"""`seqlm train`: from text files to a run folder."""

import argparse
import pathlib
import shutil
import sys

from seqlm_cli.options import add_backend, size_table

HELP = "train a language model on text files"
TRAINED_TOKENIZERS = {
    "byte": "ByteTokenizer",
    "character": "CharacterTokenizer",
    "bpe": "BytePairTokenizer",
    "wordpiece": "WordPieceTokenizer",
    "sentencepiece": "SentencePieceTokenizer",
}
NUM_PROMPTS, PROMPT_TOKENS = 20, 24
_TRANSFORMER_ONLY = ("heads", "kv_heads", "intermediate_dim", "activation", "norm", "positions")
RUN_FILES = ("recipe.json", "model.keras")
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
    "out",
)
_COUNTS = ("layers", "hidden_dim", "heads", "kv_heads", "intermediate_dim", "embedding_dim", "context")
_RECURRENT_ONLY = ("embedding_dim", "carry_state")


def arguments(p):
    """Add what the verb takes to its parser."""
    p.epilog, p.formatter_class = size_table(), argparse.RawDescriptionHelpFormatter
    p.add_argument(
        "--text", nargs="+", required=True, metavar="FILE", help="files, folders, globs; .txt .md .jsonl .gz"
    )
    p.add_argument("--out", required=True, metavar="runs/NAME", help="the run folder to write")
    p.add_argument("--model", choices=["transformer", "lstm", "gru", "rnn"], default="transformer")
    p.add_argument("--size", default="tiny", help="see the table below (default tiny)")
    p.add_argument("--steps", type=int, default=1000)
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
    group = p.add_argument_group("tokenizer")
    group.add_argument(
        "--tokenizer",
        default="byte",
        help="byte, character, bpe, wordpiece, sentencepiece, or a saved tokenizer's folder",
    )
    group.add_argument("--vocabulary-size", type=int, default=None, help="of a trained tokenizer (default 8192)")
    group = p.add_argument_group("data")
    group.add_argument("--tolerance", type=float, default=0.001, help="share of a corpus that may be damaged")
    group.add_argument("--validation", nargs="+", metavar="FILE", help="validate on these files")
    group.add_argument("--validation-fraction", type=float, default=0.1, help="else on the tail (default 0.1)")
    group.add_argument("--segment-ids", action="store_true", help="packed documents do not see each other")
    group.add_argument("--carry-state", action="store_true", help="recurrent: carry the state on where a document does")
    group = p.add_argument_group("parts of the model (override the size)")
    for name in ("layers", "hidden-dim", "heads", "kv-heads", "intermediate-dim", "embedding-dim", "context"):
        group.add_argument(f"--{name}", type=int, default=None)
    group.add_argument("--activation", default=None, help="gelu_tanh, gelu, relu, swiglu, geglu")
    group.add_argument("--norm", default=None, help="layer, rms")
    group.add_argument("--positions", default=None, help="learned, sinusoidal, rotary")
    group.add_argument("--untied", action="store_true", help="an output projection of its own")
    group.add_argument("--dropout", type=float, default=0.0)
    group = p.add_argument_group("recipe")
    group.add_argument("--batch", type=int, default=16)
    group.add_argument("--learning-rate", type=float, default=None, help="default 1e-3, recurrent 4e-3")
    group.add_argument("--optimizer", default="adamw", help="adamw, muon, or any of Keras's")
    group.add_argument("--schedule", default="cosine", help="cosine, linear, constant, inverse_sqrt, wsd")
    group.add_argument("--decay-fraction", type=float, default=0.2, help="of the steps, at the end of wsd")
    group.add_argument("--warmup", type=int, default=None, help="steps (default 100, at most a tenth)")
    group.add_argument("--weight-decay", type=float, default=0.1)
    group.add_argument("--clip-norm", type=float, default=1.0, help="0 switches it off")
    group.add_argument("--precision", default="float32", help="float32, mixed_bfloat16, mixed_float16, bfloat16")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--validate-every", type=int, default=None, help="steps (default a tenth)")
    group.add_argument("--accumulate", type=int, default=1, help="batches whose gradients make one update")
    group.add_argument("--ema", type=float, default=None, help="momentum of averaged weights, as 0.999")
    group.add_argument("--label-smoothing", type=float, default=0.0)
    group.add_argument("--z-loss", type=float, default=0.0, help="weight of the squared log of the partition function")
    group.add_argument("--stop-after-skipped", type=int, default=10, help="updates in a row that are not finite")
    group.add_argument(
        "--roll-back", type=float, default=None, metavar="FACTOR", help="undo a jump of the loss, as 2.0"
    )
    group = p.add_argument_group("devices and memory")
    group.add_argument(
        "--distribution",
        default="single",
        help="auto, single, mirrored (TensorFlow), data-parallel (JAX; torch under torchrun) or model-parallel (JAX)",
    )
    group.add_argument("--rematerialize", action="store_true", help="less memory for one more forward pass in a step")
    group.add_argument("--steps-per-execution", type=int, default=1, help="batches in one call (TensorFlow, JAX)")
    group.add_argument("--jit-compile", choices=["auto", "on", "off"], default="auto", help="compile the step")
    group = p.add_argument_group("watching")
    group.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard")
    group.add_argument("--sample-every", type=int, default=None, metavar="N", help="steps (default each validation)")


def run(args):
    """`seqlm train`: from text files to a run folder; a run that is there goes on."""
    import keras

    from keras_seqlm import data, tasks, tokenizers, training
    from keras_seqlm.files import write_json

    folder = pathlib.Path(args.out)
    going_on = _run_to_go_on(folder, args)
    recurrent = _check_options(args)
    recipe = _recipe(args, recurrent)
    tokenizer = tokenizers.load(folder / "tokenizer") if going_on else _tokenizer(args)
    with recipe.scope():
        model = _model(args, tokenizer, recurrent)
    context = args.context or model.max_length or 128
    train_blocks, validation = data.causal_blocks(
        args.text,
        tokenizer,
        sequence_length=context,
        batch_size=args.batch,
        seed=args.seed,
        validation=args.validation,
        validation_fraction=args.validation_fraction,
        segment_ids=args.segment_ids or None,
        contiguous=args.carry_state,
        tolerance=args.tolerance,
    )
    task = tasks.TextGeneration(model, tokenizer)
    prompts = prompts_from(train_blocks.tokens if validation is None else validation.tokens, tokenizer)
    if training.is_chief():
        if not going_on:
            _begin(folder, args.overwrite, tokenizer, prompts)
        settings = {key: value for key, value in vars(args).items() if key not in ("command", "version", "overwrite")}
        write_json(
            folder / "recipe.json",
            {"recipe": recipe.to_dict(), "command": settings, "backend": keras.backend.backend()},
        )
    resume = training.Resume(
        folder / training.CHECKPOINTS,
        every=args.checkpoint_every,
        keep=args.keep,
        settings={"data": train_blocks.tokens.folder.name, "tokenizer": tokenizer.hash},
        allow_changes=args.allow_changes,
    )
    print(
        f"{type(model).__name__}: {model.count_params():,} parameters, vocabulary {tokenizer.vocabulary_size:,}; "
        f"{train_blocks.num_tokens:,} tokens to train on"
        + (f", {validation.num_tokens:,} to validate on" if validation is not None else "")
        + (f"; going on from step {resume.step_before}" if resume.step_before else ""),
        file=sys.stderr,
    )
    samples = training.SampleWriter(
        lambda model: _sample(task, prompts), folder / "samples.txt", every_steps=args.sample_every
    )
    callbacks = [
        training.HistoryCSV(folder / "history.csv"),
        training.LossPlot(folder / "history.csv", folder / "loss.png"),
        samples,
    ]
    if args.tensorboard:
        callbacks.append(training.TensorBoardScalars(folder / "tensorboard"))
    recipe.fit(model, train_blocks, validation, callbacks=callbacks, resume=resume)
    task.save(folder)
    last = training.read_history(folder / "history.csv")[-1]
    loss = "" if last["validation_loss"] is None else f", validation loss {last['validation_loss']:.4f} nats a token"
    print(f"{folder}: step {last['step']}{loss}")


def prompts_from(tokens, tokenizer):
    """Twenty beginnings of text from a part of a corpus, evenly spread, for `verify` and the samples."""
    span, prompts = max(1, (len(tokens) - PROMPT_TOKENS) // NUM_PROMPTS), []
    for i in range(NUM_PROMPTS):
        # Byte tokenizers may cut a character: what is no whole character is left out.
        text = tokenizer.decode(tokens[i * span : i * span + PROMPT_TOKENS]).strip("\ufffd")
        prompts.append(text[text.find(" ") + 1 :].rstrip() if " " in text.strip() else text)
    return prompts


def _run_to_go_on(folder, args):
    """Whether `folder` holds a run that goes on; an error where it holds anything else, or a run of other settings."""
    if not folder.exists() or args.overwrite:
        if args.overwrite and folder.exists() and not any((folder / name).exists() for name in RUN_FILES):
            raise FileExistsError(f"{folder} is no run folder, so --overwrite does not delete it; name another one")
        return False
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name another folder")
    if not (folder / "recipe.json").exists():
        # What a run leaves that was killed before it began.
        if all(path.name in ("tokenizer", "prompts.json", "task.json", "checkpoints") for path in _visible(folder)):
            return False
        raise FileExistsError(f"{folder} exists and is no run folder; name another one")
    if not args.resume:
        raise FileExistsError(
            f"{folder} holds a run; leave --no-resume out to go on with it, or replace it: --overwrite"
        )
    from keras_seqlm.files import read_json

    before = read_json(folder / "recipe.json").get("command")
    if before is None:
        raise FileExistsError(f"{folder} was not written by `seqlm train`; name another folder")
    changed = [
        f"--{name.replace('_', '-')} was {before[name]} and is {getattr(args, name)}"
        for name in sorted(before)
        if name not in MAY_CHANGE and hasattr(args, name) and getattr(args, name) != before[name]
    ]
    if changed and not args.allow_changes:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}. Give the same to go on with it, name another "
            "folder, replace it with --overwrite, or go on all the same with --allow-changes"
        )
    return True


def _visible(folder):
    return [path for path in folder.iterdir() if not path.name.endswith((".part", ".new"))]


def _begin(folder, overwrite, tokenizer, prompts):
    """A new run folder, with what the run is made of; `recipe.json` comes last, and says that all is there."""
    from keras_seqlm.files import write_json

    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "prompts.json", {"prompts": prompts})


def _check_options(args):
    """Refuse what does not go together; returns whether the model is recurrent."""
    recurrent = args.model != "transformer"
    for name in _COUNTS:
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    for name in _TRANSFORMER_ONLY if recurrent else _RECURRENT_ONLY:
        if getattr(args, name):
            owner = "a Transformer" if recurrent else "a recurrent model"
            raise ValueError(f"--{name.replace('_', '-')} belongs to {owner}, and --model is {args.model}")
    return recurrent


def _recipe(args, recurrent):
    from keras_seqlm import training

    return training.Recipe(
        optimizer=args.optimizer,
        learning_rate=args.learning_rate or (4e-3 if recurrent else 1e-3),
        schedule=args.schedule,
        warmup_steps=min(100, args.steps // 10) if args.warmup is None else args.warmup,
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
    )


def _tokenizer(args):
    from keras_seqlm import data, tokenizers

    if args.tokenizer not in TRAINED_TOKENIZERS:
        if not pathlib.Path(args.tokenizer).is_dir():
            names = ", ".join(TRAINED_TOKENIZERS)
            raise ValueError(
                f"--tokenizer must be one of {names}, or a saved tokenizer's folder; got {args.tokenizer!r}"
            )
        return tokenizers.load(args.tokenizer)
    kind = getattr(tokenizers, TRAINED_TOKENIZERS[args.tokenizer])
    size = args.vocabulary_size or (None if args.tokenizer in ("byte", "character") else 8192)
    return kind.train(texts=data.texts(args.text), vocabulary_size=size)


def _model(args, tokenizer, recurrent):
    from keras_seqlm.models import RecurrentLM, TransformerLM

    parts = {"size": args.size, "num_layers": args.layers, "hidden_dim": args.hidden_dim, "dropout": args.dropout}
    parts |= {"tie_embedding": not args.untied, "tokenizer_hash": tokenizer.hash}
    if recurrent:
        carried = args.batch if args.carry_state else None
        parts |= {"cell": args.model, "embedding_dim": args.embedding_dim, "stateful_batch_size": carried}
        model = RecurrentLM(tokenizer.vocabulary_size, **parts)
    else:
        parts |= {"max_length": args.context, "num_heads": args.heads, "num_kv_heads": args.kv_heads}
        parts |= {"intermediate_dim": args.intermediate_dim}
        parts |= {name: getattr(args, name) for name in ("activation", "norm", "positions") if getattr(args, name)}
        model = TransformerLM(tokenizer.vocabulary_size, **parts)
    model.build()
    return model


def _sample(task, prompts):
    prompts = prompts[:2]
    texts = task.generate(prompts, max_new_tokens=48, temperature=0.8, seed=1)
    return "\n".join(f"{prompt!r} -> {text!r}" for prompt, text in zip(prompts, texts, strict=True))
