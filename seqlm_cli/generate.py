"""`seqlm generate`: a text goes on."""

import sys

from seqlm_cli.options import add_checkpoint, add_common, write_answer

HELP = "write on after a prompt"


def arguments(p):
    """Add what the verb takes to its parser."""
    p.add_argument("run", metavar="RUN", help="a run folder")
    add_checkpoint(p)
    p.add_argument("--prompt", default="", help="the text to write on from")
    p.add_argument("--max-new-tokens", type=int, default=64)
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    p.add_argument("--top-k", type=int, default=0)
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--min-p", type=float, default=0.0)
    p.add_argument("--repetition-penalty", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--stop", action="append", default=[], help="end before this text; may be given again")
    add_common(p)


def run(args):
    """`seqlm generate`: the prompt and the new text."""
    from keras_seqlm import tasks

    task = tasks.load(args.run, args.checkpoint)
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
            f"seqlm: the prompt is longer than the {task.model.max_length - 1} tokens that this model reads of one; its "
            "beginning was left out",
            file=sys.stderr,
        )
    print(f"{result.prompt}{result.text}")
    write_answer(args, {name: getattr(result, name) for name in ("prompt", "text", "token_ids", "stop_reason")})
