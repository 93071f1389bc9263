"""Flags in a TOML file: what `--config` reads, and what a run writes of itself."""

import argparse
import json
import pathlib
import tomllib


def words_of(path, parser):
    """The flags of a TOML file as words of a command line; a key is a flag without its dashes, `learning-rate = 1e-3`.

    Args:
        path: of the file.
        parser: whose flags they are.

    Raises:
        ValueError: it is no TOML, or a key is no flag; the message names those that are near.
        FileNotFoundError: there is no such file.
    """
    try:
        content = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    flags = {flag[2:]: action for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
    words = []
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in flags or name in ("config", "help"):
            known = ", ".join(sorted(set(flags) - {"config", "help"}))
            raise ValueError(f"{path} says {key!r}, and there is no flag --{name}; there are {known}")
        words += _words(name, value, flags[name])
    return words


def _words(name, value, action):
    if isinstance(value, bool):
        if isinstance(action, argparse.BooleanOptionalAction):
            return [f"--{name}" if value else f"--no-{name}"]
        if action.nargs != 0:
            raise ValueError(f"--{name} takes a value, got {str(value).lower()}")
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) else [value]
    if any(not isinstance(one, str | int | float) or isinstance(one, bool) for one in values):
        raise ValueError(f"{name} must be a text, a number, true or false, or a list of texts, got {value!r}")
    if action.nargs == "+":
        return [f"--{name}", *map(str, values)]
    if isinstance(action, argparse._AppendAction):
        return [f"--{name}={one}" for one in values]
    if len(values) != 1 or action.nargs == 0:
        raise ValueError(f"--{name} takes {'no value' if action.nargs == 0 else 'one value'}, got {value!r}")
    return [f"--{name}={values[0]}"]  # so that a value may begin with a dash


def flag_of(name):
    """The flag, without its dashes, that an argument comes from."""
    return {"start": "from", "imports": "import"}.get(name, name).replace("_", "-")


def as_toml(settings):
    """Settings, name -> value, as TOML; those that are None are left out, as the flags not given.

    >>> print(as_toml({"steps": 100, "learning_rate": None, "text": ["a.txt"], "untied": True}), end="")
    steps = 100
    text = ["a.txt"]
    untied = true
    """
    lines = [
        f"{flag_of(name)} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
        if value is not None and value != []
    ]
    return "\n".join(lines) + "\n"
