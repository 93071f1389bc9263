"""`seqlm predict`: what a task's model says of texts."""

import dataclasses
import json
import sys

from seqlm_cli.finetune import add_data, rows_of
from seqlm_cli.options import add_common, add_run, load_task, write_answer

HELP = "what the model of a task says of texts"
EXAMPLES = (
    ("seqlm predict runs/intents --text 'Where is my card?'", "of one text"),
    ("seqlm predict runs/intents --data a.csv --columns text=body > answers.jsonl", "of many, a line of JSON each"),
    ("seqlm predict runs/intents --data mails.jsonl --json answers.json", "into a file"),
    ("seqlm predict runs/intents --text 'Where is my card?' --checkpoint best", "by the best checkpoint"),
)
_PIECE = 256  # rows that are read before their answers are written


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p)
    p.add_argument("--text", nargs="+", metavar="TEXT", help="texts to be answered")
    add_data(p)
    p.add_argument("--batch", type=int, default=32, help="rows of a batch")
    add_common(p)


def run(args):
    """`seqlm predict`: a line of JSON for each text or row, in their order."""
    if (args.text is None) == (args.data is None):
        raise ValueError("give --text TEXT, or --data FILE, one of the two")
    task = load_task(args, writes=False)
    rows = [{"text": text} for text in args.text] if args.data is None else None
    source = rows_of(args, args.data) if rows is None else ((None, row) for row in rows)
    answers, piece = [], []
    for _, row in source:
        piece.append(row)
        if len(piece) == _PIECE:
            answers += _answered(task, piece, args.batch)
            piece = []
    answers += _answered(task, piece, args.batch)
    if rows is None:
        source.check()
        for place, reason in source.bad:
            print(f"left out: {place}: {reason}", file=sys.stderr)
    write_answer(args, {"answers": answers})


def _answered(task, rows, batch_size):
    found = [dataclasses.asdict(one) for one in task.predict(rows, batch_size)] if rows else []
    for one in found:
        print(json.dumps(one, ensure_ascii=False))
    sys.stdout.flush()
    return found
