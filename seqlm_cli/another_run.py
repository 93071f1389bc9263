"""`seqlm train --from RUN`: the model of another run, until the run that began with it has a checkpoint of its own."""

import json
import pathlib
import zipfile

OF_THE_MODEL = (
    "layers",
    "hidden_dim",
    "heads",
    "kv_heads",
    "intermediate_dim",
    "embedding_dim",
    "model",
    "size",
    "activation",
    "norm",
    "positions",
    "untied",
    "dropout",
    "tokenizer",
    "vocabulary_size",
)


def parts_of(args):
    """The flags of the model that a run begins with; of one that no command began only `model` is known, from its file.

    Args:
        args: of `seqlm train`.

    Raises:
        FileNotFoundError: the other run is not there, and it is needed.
    """
    from keras_seqlm.files import read_json

    run = pathlib.Path(args.out if _goes_on_alone(args) else args.start)
    if not run.is_dir():
        begun = command_of(args.out).get("start") == args.start and not args.overwrite
        raise FileNotFoundError(
            f"--from: there is no run folder {str(args.start)!r}"
            + (
                f"; {args.out} was begun with its model and has no checkpoint yet, so that it is needed once more: bring it back, "
                "or begin with another one and --overwrite"
                if begun
                else ""
            )
        )
    path = run / "recipe.json"
    command = read_json(path).get("command") if path.exists() else None
    if command is not None:
        return {name: command[name] for name in OF_THE_MODEL if name in command}
    try:
        with zipfile.ZipFile(run / "model.keras") as archive:
            config = json.loads(archive.read("config.json"))["config"]
    except (zipfile.BadZipFile, KeyError, FileNotFoundError):
        return {"model": "transformer"}  # `tasks.load` says what is wrong with it, or missing
    # of a head that of what stands below it, of an encoder-decoder that of what writes
    config = (config.get("backbone") or config.get("decoder") or {"config": config})["config"]
    return {"model": config.get("cell", "transformer")}


def model_of(args):
    """The model of another run, whose weights a new schedule starts from; of a run that goes on its own."""
    model, whose = start_of(args)
    carried = getattr(model, "stateful_batch_size", None)
    if carried != (args.batch if args.carry_state else None):
        fix = "leave out --carry-state" if carried is None else f"give --carry-state --batch {carried}"
        raise ValueError(
            f"the model of {whose} {'does not carry' if carried is None else 'carries'} its state from batch to batch; {fix}"
        )
    return model


def start_of(args):
    """The model that a run starts from, and the folder that it is from; see `model_of`.

    Raises:
        ValueError: it is in another precision than `--precision`.
    """
    from keras_seqlm import tasks
    from keras_seqlm.models import merge_lora
    from keras_seqlm.models.adapters import has_lora

    alone = _goes_on_alone(args)
    model = (tasks.load(args.out, "newest") if alone else tasks.load(args.start)).model
    if not alone and has_lora(model):
        if getattr(args, "lora", None):
            raise ValueError(
                f"{args.start} learned adapters beside the model of another run, and adapters of adapters are not kept: "
                f"seqlm finetune --config {args.start}/run.toml --merge makes one model of it, to begin with"
            )
        model = merge_lora(model)
    whose = args.out if alone else args.start
    if model.dtype_policy.name != args.precision:
        raise ValueError(
            f"the model of {whose} is in {model.dtype_policy.name}; give --precision {model.dtype_policy.name}"
        )
    return model, whose


def _goes_on_alone(args):
    """Whether the run was begun with this `--from` and has a checkpoint, so that nothing of the other one is needed."""
    from keras_seqlm.training import CHECKPOINTS, Checkpoints

    if args.overwrite or command_of(args.out).get("start") != args.start:
        return False
    return bool(Checkpoints(pathlib.Path(args.out) / CHECKPOINTS).steps())


def command_of(folder):
    """The flags of the command that a run was begun with; none where there is no run."""
    from keras_seqlm.files import read_json

    path = pathlib.Path(folder) / "recipe.json"
    return (read_json(path).get("command") or {}) if path.exists() else {}
