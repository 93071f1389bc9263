"""What each command of the console script does: a dictionary name -> function of its parsed arguments."""

import os
import pathlib
import shutil
import sys

from keras_seqlm import data, export, tasks, tokenizers, training
from keras_seqlm.demo import demo
from keras_seqlm.models import RecurrentLM, TransformerLM
from keras_seqlm.tasks.task import read_json, write_json

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


def train(args):
    """`seqlm train`: from text files to a run folder; a run that is there goes on."""
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
        write_json(folder / "recipe.json", {"recipe": recipe.to_dict(), "command": settings, "backend": _backend()})
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


def runs(args):
    """`seqlm runs`: a line for each run below a folder."""
    found = training.list_runs(args.folder)
    rows = [("run", "model", "step", "loss", "validation loss", "best", "state")]
    for run in found:
        losses = [run[name] for name in ("loss", "validation_loss", "best_validation_loss")]
        shown = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
        rows.append((run["name"], run["model"] or "-", f"{run['step']}/{run['steps'] or '?'}", *shown, run["state"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not found:
        print(f"no run in {args.folder}")
    _json(args, {"runs": found})


def generate(args):
    """`seqlm generate`: the prompt and the new text."""
    task = tasks.load(args.run)
    (result,) = task.write(
        args.prompt,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
    )
    if result.truncated:
        print(
            f"seqlm: prompt and {args.max_new_tokens} new tokens do not fit the context of {task.model.max_length}; "
            "the beginning of the prompt was left out",
            file=sys.stderr,
        )
    print(f"{result.prompt}{result.text}")
    _json(args, {name: getattr(result, name) for name in ("prompt", "text", "token_ids", "stop_reason")})


def evaluate(args):
    """`seqlm evaluate`: loss, bits per byte, perplexity."""
    result = tasks.evaluate(tasks.load(args.run), args.text, stride=args.stride, batch_size=args.batch)
    print(
        f"loss {result['loss']:.4f} nats a token, {result['bits_per_byte']:.4f} bits a byte, "
        f"perplexity {result['perplexity']:.2f}, {result['num_tokens']:,} tokens, {result['num_bytes']:,} bytes"
    )
    _json(args, result)


def export_(args):
    """`seqlm export`: one artifact, compared with its model at the end."""
    name, root = args.name or artifact_name(args.run), pathlib.Path(args.saved_models)
    if args.to == "saved-model":
        if args.quantize != "none":
            raise ValueError("--quantize is for --to litert; a SavedModel is exact")
        target = root / name / str(export.next_version(root / name))
        artifact = export.saved_model(args.run, target, args.max_new_tokens_limit, imports=args.imports)
    else:
        target = root / f"{name}.tflite"
        artifact = export.litert(args.run, target, args.quantize, args.overwrite, imports=args.imports)
    print(f"wrote {artifact}")
    return 0 if args.no_verify else _report(args, export.verify(args.run, artifact, imports=args.imports))


def verify(args):
    """`seqlm verify`: every artifact of a run beside its model; exit code 1 on a disagreement."""
    artifacts = args.artifacts or artifacts_of(args.name or artifact_name(args.run), args.saved_models)
    return _report(args, export.verify(args.run, *artifacts, imports=args.imports))


def artifact_name(run):
    """The name of a run's artifacts: its path below `runs/`, with `-` for `/`.

    >>> artifact_name("runs/demo/rnn"), artifact_name("/tmp/runs/books/"), artifact_name("elsewhere/books")
    ('demo-rnn', 'books', 'books')
    """
    parts = pathlib.PurePath(os.path.normpath(run)).parts
    below = parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else parts[-1:]
    return "-".join(below) or parts[-1]


def artifacts_of(name, saved_models):
    """The newest SavedModel and the LiteRT files called `name`.

    Raises:
        FileNotFoundError: there is none.
    """
    root = pathlib.Path(saved_models)
    versions = export.next_version(root / name) - 1
    found = [root / name / str(versions)] if versions else []
    found += [path for suffix in ("", "-float16", "-int8") if (path := root / f"{name}{suffix}.tflite").exists()]
    if not found:
        raise FileNotFoundError(f"there is no artifact of {name!r} in {root}; run `seqlm export` first, or name one")
    return found


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


def _report(args, report):
    print(report)
    _json(args, report.to_dict())
    return 0 if report.ok else 1


def _json(args, content):
    if args.json:
        write_json(args.json, content)


def _backend():
    import keras

    return keras.backend.backend()


def demo_(args):
    """`seqlm demo`: three models from Python's own documentation, exported and verified."""

    def run_command(words):
        parsed = args.parse(words)
        COMMANDS[parsed.command](parsed)

    return demo(args.runs, args.saved_models, args.steps, args.seed, run_command)


COMMANDS = {
    "demo": demo_,
    "train": train,
    "runs": runs,
    "generate": generate,
    "evaluate": evaluate,
    "export": export_,
    "verify": verify,
}
