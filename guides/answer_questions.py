"""How do I let a model find answers in a text, and say where they stand, or that there is none?

Rows are dicts with `question`, `context` and `answers`, a list of {"text", "start"}: files of SQuAD's form are read as they
are, packed or not, or any iterable. An empty list says that the context has no answer; where some rows have none the model
learns to say so. A context that is longer than a window is read in windows that share half their tokens, and the best answer
of all of them counts. `context[answer.start : answer.end]` is what was found, in characters of what was given.

The texts here are what every Python has: what its functions do, in the first line of their docstrings. Six functions make a
context, and the question asks for one of them, or for a function that is not there. The functions of the test are not those
of training, so that their names say nothing by themselves: the model must find the name in the context. A small model that
begins from nothing hardly learns to compare the tokens of a question with those of a context; `matches=True` shows it which
they are (`num_token_types=4` are what it is shown). The command line does all that by itself:

    seqlm finetune --task answer --data train.json --out runs/answers
    seqlm evaluate runs/answers --data test.json
    seqlm predict runs/answers --data questions.jsonl
    seqlm export runs/answers --to saved-model
    seqlm export runs/answers --to litert --quantize int8

Run it: python guides/answer_questions.py
"""

import builtins
import inspect
import json
import math
import os
import pathlib
import random
import statistics
import tempfile
import textwrap

import keras_seqlm as seqlm

MODULES = (builtins, str, bytes, list, dict, set, int, float, math, os, os.path, random.Random, statistics, textwrap)
FUNCTIONS = 6  # of a context
STEPS = 400


def main(folder, steps=STEPS):
    folder = pathlib.Path(folder)
    known = sorted(functions().items())
    random.Random(1).shuffle(known)
    border = len(known) * 4 // 5
    train, test = list(rows(known[:border], 2000, seed=2)), list(rows(known[border:], 200, seed=3))
    write_squad(folder / "test.json", test)
    tokenizer = seqlm.tokenizers.BytePairTokenizer.train(texts=[row["context"] for row in train], vocabulary_size=800)

    figures = {}
    for name, matches in (("the words alone", False), ("with matches", True)):
        encoder = seqlm.models.RecurrentEncoder(
            tokenizer.vocabulary_size, cell="gru", size="nano", hidden_dim=64, num_token_types=4, dropout=0.1
        )
        task = seqlm.tasks.QuestionAnswering.begin_with(train, encoder, tokenizer, matches=matches)
        recipe = seqlm.training.Recipe(steps=steps, batch_size=16, learning_rate=4e-3, validate_every=steps)
        recipe.fit(task.model, task.examples(seqlm.data.Rows(train), 16, seed=1), progress=False)
        found = figures[name] = task.evaluate(seqlm.data.Rows(folder / "test.json"))
        print(
            f"{name}: exact match {found['exact_match']:.3f} ({found['exact_match_low']:.3f} to "
            f"{found['exact_match_high']:.3f}), F1 {found['f1']:.3f}, {found['count']} questions on functions that it has not seen"
        )

    task.save(folder / "answers")  # a run folder, as the command line reads it
    again = seqlm.tasks.load(folder / "answers")
    context = " ".join(f"{name}: {line}" for name, line in known[border:])  # all of the test at once, in windows
    asked = known[border + 1][0]
    (answer,) = again.predict([(f"What does {asked} do?", context)])
    print(f"What does {asked} do? {answer.text!r}, characters {answer.start} to {answer.end} of {len(context):,}")
    return figures, answer, context


def functions():
    """What functions of Python do, by name: the first lines of their docstrings that are one sentence."""
    found = {}
    for module in MODULES:
        for name, function in vars(module).items():
            line = (inspect.getdoc(function) or "").partition("\n")[0]
            if callable(function) and name.isalpha() and line.endswith(".") and 20 <= len(line) <= 90:
                found.setdefault(name, line)
    return found


def rows(known, count, seed):
    """Questions on functions, each with a context of six; in one row of five the function that is asked for is another."""
    draw = random.Random(seed)
    for _ in range(count):
        *chosen, other = draw.sample(known, FUNCTIONS + 1)
        context = " ".join(f"{name}: {line}" for name, line in chosen)
        name, line = other if draw.random() < 0.2 else draw.choice(chosen)
        start = context.find(f"{name}: {line}")
        answers = [] if start < 0 else [{"text": line, "start": start + len(name) + 2}]
        yield {"question": f"What does {name} do?", "context": context, "answers": answers}


def write_squad(path, found):
    """A file of SQuAD's form, version 2."""
    paragraphs = []
    for number, row in enumerate(found):
        answers = [{"text": one["text"], "answer_start": one["start"]} for one in row["answers"]]
        question = {"id": str(number), "question": row["question"], "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": row["context"], "qas": [question]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Python", "paragraphs": paragraphs}]}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
