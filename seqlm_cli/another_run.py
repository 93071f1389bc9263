"""What `seqlm train --from` takes of another run: the flags of its model, and the model with its weights."""

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


def model_of(args):
    """The model of another run, whose weights a new schedule starts from."""
    from keras_seqlm import tasks

    model = tasks.load(args.start).model
    if model.dtype_policy.name != args.precision:
        raise ValueError(
            f"the model of {args.start} is in {model.dtype_policy.name}; give --precision {model.dtype_policy.name}"
        )
    carried = getattr(model, "stateful_batch_size", None)
    if carried != (args.batch if args.carry_state else None):
        fix = "leave out --carry-state" if carried is None else f"give --carry-state --batch {carried}"
        raise ValueError(
            f"the model of {args.start} {'does not carry' if carried is None else 'carries'} its state from batch to batch; {fix}"
        )
    return model


def parts_of(run):
    """The flags of the model of another run; of one that no command began only `model` is known, from its file."""
    from keras_seqlm.files import read_json

    path = pathlib.Path(run) / "recipe.json"
    command = read_json(path).get("command") if path.exists() else None
    if command is not None:
        return {name: command[name] for name in OF_THE_MODEL if name in command}
    try:
        with zipfile.ZipFile(pathlib.Path(run) / "model.keras") as archive:
            config = json.loads(archive.read("config.json"))["config"]
    except (zipfile.BadZipFile, KeyError, FileNotFoundError):
        return {"model": "transformer"}  # `tasks.load` says what is wrong with it, or missing
    return {"model": config.get("cell", "transformer")}
