"""The parsers: help that begins with examples, and errors that say what is missing and how it is given."""

import argparse
import itertools
import pathlib
import re

# What Python calls it -> the flag's own name, where the two differ.
_IN_PYTHON = {
    "batch_size": "batch",
    "every_steps": "sample_every",
    "max_length": "context",
    "most_bytes": "to_size",
    "num_heads": "heads",
    "num_kv_heads": "kv_heads",
    "num_layers": "layers",
    "older_than_days": "older_than",
    "sequence_length": "context",
    "warmup_steps": "warmup",
}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` with `examples`, (command, what it does) each, which stand before all else in its help."""

    examples = ()

    def format_help(self):
        if not self.examples:
            return super().format_help()
        lines = [line for command, does in self.examples for line in (f"  # {does}", f"  {command}")]
        return "\n".join(["examples:", *lines, "", super().format_help()])

    def error(self, message):
        lines = [f"{self.prog}: error: {message}"]
        if message.startswith("the following arguments are required: "):
            missing = message.partition(": ")[2].split(", ")
            lines += [f"  {name}: {action.help}" for action in self._actions if (name := _name(action)) in missing]
            if "RUN" in missing and (runs := _runs_here()):
                lines.append(f"the runs here: {', '.join(runs)}")
        if self.examples:
            lines += [f"usage: {self.usage}", f"for example: {self.examples[0][0]}"]
        lines.append(f"{self.prog} --help tells all")
        self.exit(2, "\n".join(lines) + "\n")


def _name(action):
    """As argparse calls an argument in its messages."""
    return "/".join(action.option_strings) or action.metavar or action.dest


def _runs_here():
    found = (path for depth in ("*", "*/*") for path in pathlib.Path("runs").glob(f"{depth}/recipe.json"))
    return [str(path.parent) for path in itertools.islice(found, 6)]


def short_usage(parser):
    """A usage of one line: what must be given, and that there are options.

    >>> parser = argparse.ArgumentParser(prog="seqlm export")
    >>> _ = parser.add_argument("run", metavar="RUN")
    >>> _ = parser.add_argument("--to", required=True, choices=["saved-model", "litert"])
    >>> _ = parser.add_argument("--name")
    >>> short_usage(parser)
    'seqlm export RUN --to {saved-model,litert} [options]'
    """
    words = [_values(action) for action in parser._actions if not action.option_strings]
    for action in parser._actions:
        if action.option_strings and action.required:
            words.append(f"{action.option_strings[-1]} {_values(action)}")
    return " ".join([parser.prog, *words, "[options]"])


def _values(action):
    choices = action.choices and "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar or choices or action.dest.upper()
    return {"+": f"{name} ...", "*": f"[{name} ...]", "?": f"[{name}]"}.get(action.nargs, name)


def flags_named_in(message, parser):
    """The flags of a parser whose Python names stand in a message that does not name the flags themselves.

    >>> parser = argparse.ArgumentParser()
    >>> for flag in ("--batch", "--context", "--top-k", "--text"):
    ...     _ = parser.add_argument(flag)
    >>> flags_named_in("give more text, or a smaller `batch_size` or `sequence_length`", parser)
    ['--batch', '--context']
    >>> flags_named_in("top_k must be at least 0", parser), flags_named_in("--top-k: top_k is -1", parser)
    (['--top-k'], [])
    >>> flags_named_in("top_k/books is a path", parser)
    []
    """
    flags = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    names = flags | {name: flags[dest] for name, dest in _IN_PYTHON.items() if dest in flags}
    found = (flag for name, flag in names.items() if flag not in message and _stands_in(name, message))
    return sorted(set(found))


def _stands_in(name, message):
    """Whether a message means a name of Python, and no word of the language and no part of a path."""
    word = rf"(?<![\w/]){name}(?![\w/])" if "_" in name else rf"`{name}`|^{name} must"
    return re.search(word, message) is not None
