"""`seqlm predict`: what a task's model says of texts, or an export of it."""

import dataclasses
import json
import pathlib
import sys

from seqlm_cli.finetune import add_data, rows_of
from seqlm_cli.options import add_common, add_run, load_task, write_answer

HELP = "what the model of a task says of texts"
EXAMPLES = (
    ("seqlm predict runs/intents --text 'Where is my card?'", "of one text"),
    ("seqlm predict runs/intents --data a.csv --columns text=body > answers.jsonl", "of many, a line of JSON each"),
    ("seqlm predict runs/intents --data mails.jsonl --json answers.json", "into a file"),
    ("seqlm predict saved_models/intents-int8.tflite --text 'Where is my card?'", "by an export, as the phone does"),
)
_PIECE = 256  # rows that are read before their answers are written


def arguments(p):
    """Add what the verb takes to its parser."""
    add_run(p, "a run folder, or an export of one: a version folder or a .tflite file")
    p.add_argument("--text", nargs="+", metavar="TEXT", help="texts to be answered")
    add_data(p)
    p.add_argument("--batch", type=int, default=32, help="rows of a batch")
    add_common(p)


def run(args):
    """`seqlm predict`: a line of JSON for each text or row, in their order."""
    if (args.text is None) == (args.data is None):
        raise ValueError("give --text TEXT, or --data FILE, one of the two")
    if _is_artifact(args.run) and args.checkpoint is not None:
        raise ValueError(f"--checkpoint is of run folders, and {args.run} is an export, which holds one model")
    task = _Artifact(args.run) if _is_artifact(args.run) else load_task(args, writes=False)
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
    answers = task.predict(rows, batch_size) if rows else []
    found = [_as_json(one) for one in answers]
    if hasattr(task, "is_cut"):  # as exports say it
        found = [{**one, "truncated": task.is_cut(row)} for one, row in zip(found, rows, strict=True)]
    for one in found:
        print(json.dumps(one, ensure_ascii=False))
    sys.stdout.flush()
    return found


def _as_json(answer):
    if isinstance(answer, dict):
        return answer
    return dataclasses.asdict(answer) if dataclasses.is_dataclass(answer) else {"embedding": answer.tolist()}


def _is_artifact(path):
    return path.endswith(".tflite") or (pathlib.Path(path) / "saved_model.pb").is_file()


class _Artifact:
    """An export, which answers as a task does."""

    def __init__(self, path):
        from seqlm_runtime import LiteRTTask, SavedModel

        self._model = LiteRTTask(path) if path.endswith(".tflite") else SavedModel(path)

    def predict(self, rows, batch_size):
        """A list of dicts, one a row."""
        from seqlm_runtime import LiteRTTask

        alone = isinstance(self._model, LiteRTTask)
        return self._model.predict(rows) if alone else self._model.predict(rows, batch_size)
