"""`seqlm generate`: a text goes on."""

import argparse
import codecs
import os
import stat
import sys

from seqlm_cli.options import add_common, add_run, load_task, write_answer
from seqlm_cli.streams import say

HELP = "write on after a prompt"
SHOWN = ("prompt", "text", "token_ids", "stop_reason", "truncated")  # by --json, of the `Text`
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
    p.add_argument(
        "--stop",
        type=_stop,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before it; may be given again",
    )
    add_common(p)


def _stop(text):
    """A text to end before; before an empty one every text would end."""
    if not text:
        raise argparse.ArgumentTypeError(
            "an empty text stands everywhere; give the text to end before, or leave it out"
        )
    return text


def run(args):
    """`seqlm generate`: the prompt and the new text, piece by piece as it is written."""
    if args.interactive:
        return _converse(args)
    prompt = _prompt(args)
    task = load_task(args, writes=True)
    result = _write(args, task, prompt, before=prompt)
    print()
    if result.truncated:
        _say_truncated(args, task)
    write_answer(args, {name: getattr(result, name) for name in SHOWN})


def _write(args, task, prompt, written=None, before="", room=None):
    """Print the new text as it comes, and `before` before it; keep its pieces in the list `written`; returns the `Text`.

    Of the prompt so many ids are read as `room` says.
    """
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
        max_prompt_tokens=room,
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
    """What `--prompt` says, or what a pipe or a file on standard input holds, as the model reads it: U+FFFD for no UTF-8."""
    from seqlm_runtime.tokenizers.tokenizer import as_text

    if args.prompt not in (None, "-"):
        return as_text(args.prompt)
    if args.prompt == "-" or _is_fed(sys.stdin):
        return as_text(_without_ends(_bytes_of(sys.stdin)))
    return ""


def _bytes_of(stream):
    """All that a stream holds, as it stands there; of one without bytes (a notebook's) the text."""
    return stream.buffer.read() if hasattr(stream, "buffer") else stream.read().encode("utf-8", "surrogateescape")


def _without_ends(data):
    """Bytes of a file without the mark of UTF-8 that it may begin with, and without its last line end.

    >>> _without_ends(codecs.BOM_UTF8 + b"one\\r\\ntwo\\r\\n")
    b'one\\r\\ntwo'
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.removesuffix(b"\r\n") if data.endswith(b"\r\n") else data.removesuffix(b"\n")


def _is_fed(stream):
    """Whether a stream is a pipe or a file, and not a terminal or nothing at all."""
    try:
        kind = os.fstat(stream.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISREG(kind)


def _converse(args):
    """Turns: a line of the user's, then what the model writes on after all that was said; ^C ends a text, ^D all.

    What was said is kept as bytes: a text may end inside a character, and the next one goes on with it.
    """
    if args.prompt == "-":
        raise ValueError("-i reads what is typed, so --prompt - cannot read a text, too; give it as --prompt TEXT")
    if args.json:
        raise ValueError("-i has no single result for --json to hold; leave one of them out")
    from seqlm_runtime.tokenizers.tokenizer import as_bytes

    task = load_task(args, writes=True)
    room = _room(task.model, args.max_new_tokens)
    said, told = as_bytes(args.prompt or ""), False
    for line in _lines():
        if line:
            said += line + b"\n" if said.endswith(b"\n") or not said else b"\n" + line + b"\n"
        written = []
        try:
            result = _write(args, task, said, written, room=room)
            said += _bytes_written(task, said, result)
            if result.truncated and not told:
                say(
                    f"seqlm: all that was said is longer than the {room} tokens that are read of it, so that there is room "
                    f"for new ones in this model's context of {task.model.max_length}; from now on its beginning is left out"
                )
                told = True
        except KeyboardInterrupt:  # the text ends here
            said += as_bytes("".join(written))
        print()


def _lines():
    """The lines that are typed or piped, as bytes without their ends, until there are no more."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401  (lines can be edited and come back with the arrow keys)

        say("Type a line, and the model writes on; an empty one lets it go on. ^C ends a text, ^D the conversation.")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no UTF-8 are read as they are
    mark = codecs.BOM_UTF8
    while True:
        try:
            line = input("> " if terminal else "").encode("utf-8", "surrogateescape")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:  # an unfinished line is given up
            print()
            continue
        yield line.removeprefix(mark)
        mark = b""


def _room(model, max_new_tokens):
    """How many ids are read of a conversation, so that `max_new_tokens` go after them; None for all.

    Where the context has no room for so many new ones, half of it is read.
    """
    context = getattr(model, "max_length", None)
    if context is None:
        return None
    return max(1, min(context - 1, context - max_new_tokens if max_new_tokens < context else context // 2))


def _bytes_written(task, prompt, result):
    """The bytes of a `Text`, whose own text has U+FFFD for a part of a character."""
    from seqlm_runtime.prompts import has_text
    from seqlm_runtime.tokenizers.tokenizer import as_bytes

    after_text = has_text(task.tokenizer, task.ids_of(prompt), False)
    data = task.tokenizer.decode_bytes(result.token_ids, after_text)
    shown = data.decode("utf-8", "replace")
    return data + as_bytes(result.text[len(shown) :])  # and what stands before a text of --stop, of a token across it


def _say_truncated(args, task):
    say(
        f"seqlm: the prompt is longer than the {task.model.max_length - 1} tokens that this model reads of one; its "
        "beginning was left out"
    )
