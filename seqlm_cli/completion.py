"""`seqlm completion`: what a shell needs to complete commands, flags, their choices and files."""

from seqlm_cli.parsers import Parser

HELP = "print the completion of a shell"
NEEDS_KERAS = False
SHELLS = ("bash", "zsh", "fish")
EXAMPLES = (
    ("seqlm completion bash > ~/.local/share/bash-completion/completions/seqlm", "bash, with bash-completion"),
    ("source <(seqlm completion bash)", "bash, in this shell alone"),
    ("seqlm completion zsh > ~/.zfunc/_seqlm", "zsh, where ~/.zfunc is in fpath"),
    ("seqlm completion fish > ~/.config/fish/completions/seqlm.fish", "fish"),
)
_FOLDERS = ("RUN", "FOLDER", "runs/NAME")  # what a metavar says of a value
_FILES = ("FILE", "FILE.toml", "ARTIFACT")


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("shell", choices=SHELLS, help="whose completion to print")


def run(args):
    """`seqlm completion`: made from the parsers, so that it knows every flag that they know."""
    import shtab

    import seqlm_cli

    parser = seqlm_cli.parser()
    for action in _arguments_of(parser):
        if action.metavar in _FOLDERS or action.metavar in _FILES:
            action.complete = shtab.DIRECTORY if action.metavar in _FOLDERS else shtab.FILE
    print(shtab.complete(parser, shell=args.shell))


def _arguments_of(parser):
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                if isinstance(below, Parser):
                    yield from _arguments_of(below)
        else:
            yield action
