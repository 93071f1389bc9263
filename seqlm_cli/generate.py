"""`seqlm generate`: a text goes on."""

import os
import stat
import sys

from seqlm_cli.options import add_common, add_run, load_task, write_answer
from seqlm_cli.streams import say

HELP = "write on after a prompt"
EXAMPLES = (
    ("seqlm generate runs/books --prompt 'It was a dark night'", "the text appears as it is written"),
    ("seqlm generate runs/books --temperature 0.8 --top-p 0.9 --seed 1 < start.txt", "drawn by chance, after a file"),
    ("seqlm generate runs/books --prompt 'Q: Why? A:' --stop Q: --json a.json", "up to a text, and as JSON, too"),
    ("seqlm generate runs/books -i", "in turns: it writes on after each line of yours"),
)


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p)
    p.add_argument(
        "--prompt",
        help="the text to write on from; - or none reads it from a pipe or a file on standard input, without its last line end",
    )
    p.add_argument("-i", "--interactive", action="store_true", help="write on after each line that is typed, to ^D")
    p.add_argument("--max-new-tokens", type=int, default=64, help="tokens of the new text at most (default 64)")
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    p.add_argument("--top-k", type=int, default=0, help="draw among so many tokens; 0: all (default)")
    p.add_argument("--top-p", type=float, default=1.0, help="draw among the most probable that make up this share")
    p.add_argument("--min-p", type=float, default=0.0, help="leave out what is rarer than this share of the first")
    p.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: what was said comes less often")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn by chance (default 0)")
    p.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be given again")
    add_common(p)


def run(args):
    """`seqlm generate`: the prompt and the new text, piece by piece as it is written."""
    if args.interactive:
        return _converse(args)
    prompt = _prompt(args)
    task = load_task(args)
    result = _write(args, task, prompt, before=prompt)
    print()
    if result.truncated:
        _say_truncated(args, task)
    write_answer(args, {name: getattr(result, name) for name in ("prompt", "text", "token_ids", "stop_reason")})


def _write(args, task, prompt, written=None, before=""):
    """Print the new text as it comes, and `before` before it; keep its pieces in the list `written`; returns the `Text`."""
    pieces = task.stream(
        prompt,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
    )
    written = [] if written is None else written
    while True:
        piece, result = _next(pieces)
        if not written:
            print(before, end="", flush=True)  # not sooner: where options are refused, nothing is shown
        if result is not None:
            return result
        written.append(piece)
        print(piece, end="", flush=True)


def _next(pieces):
    """The next piece of a stream, or at its end None and the result."""
    try:
        return next(pieces), None
    except StopIteration as ended:
        return None, ended.value


def _prompt(args):
    """What `--prompt` says, or what a pipe or a file on standard input holds."""
    if args.prompt not in (None, "-"):
        return args.prompt
    if args.prompt == "-" or _is_fed(sys.stdin):
        return sys.stdin.read().removesuffix("\n")
    return ""


def _is_fed(stream):
    """Whether a stream is a pipe or a file, and not a terminal or nothing at all."""
    try:
        kind = os.fstat(stream.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind)


def _converse(args):
    """Turns: a line of the user's, then what the model writes on after all that was said; ^C ends a text, ^D all."""
    if args.prompt == "-":
        raise ValueError("-i reads what is typed, so --prompt - cannot read a text, too; give it as --prompt TEXT")
    if args.json:
        raise ValueError("-i has no single result for --json to hold; leave one of them out")
    task = load_task(args)
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  (lines can be edited and come back with the arrow keys)

        say("Type a line, and the model writes on; an empty one lets it go on. ^C ends a text, ^D the conversation.")
    said = args.prompt or ""
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:  # an unfinished line is given up
            print()
            continue
        if line:
            said += f"{line}\n" if said.endswith("\n") or not said else f"\n{line}\n"
        written = []
        try:
            result = _write(args, task, said, written)
            if result.truncated:
                _say_truncated(args, task)
        except KeyboardInterrupt:  # the text ends here
            pass
        print()
        said += "".join(written)


def _say_truncated(args, task):
    say(
        f"seqlm: the prompt is longer than the {task.model.max_length - 1} tokens that this model reads of one; its "
        "beginning was left out"
    )
