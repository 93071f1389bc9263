"""The answers that a row of questions gives, and where in its context they stand."""


def answers_of(row):
    """The answers of a row, a list of {"text", "start"}, none where it cannot be answered. `start` may be None.

    `answers` may be such a list, one of texts, a text, or as Hugging Face has SQuAD, {"text": [...], "answer_start": [...]}.

    Raises:
        ValueError: no answers at all, or of another form.

    Example:

    >>> answers_of({"answers": {"text": ["Seine"], "answer_start": [4]}}), answers_of({"answers": ["Seine"]})
    ([{'text': 'Seine', 'start': 4}], [{'text': 'Seine', 'start': None}])
    """
    answers = row.get("answers")
    if answers is None:
        raise ValueError(f"it has no answers ([] where there is none); its fields are {', '.join(map(str, row))}")
    if isinstance(answers, str):
        answers = [answers]
    if isinstance(answers, dict) and isinstance(answers.get("text"), list | tuple):
        starts = answers.get("answer_start", answers.get("start", [None] * len(answers["text"])))
        answers = [{"text": text, "start": start} for text, start in zip(answers["text"], starts, strict=True)]
    made = [{"text": one, "start": None} if isinstance(one, str) else one for one in answers]
    for one in made:
        if not isinstance(one, dict) or not isinstance(one.get("text"), str) or not one["text"].strip():
            raise ValueError(f"an answer must be {{'text', 'start'}} with a text, got {one!r:.60}")
    return [{"text": one["text"], "start": one.get("start")} for one in made]


def place_of(answer, context):
    """(start, end) of an answer in its context, in code points, and whether its start had to be repaired.

    Raises:
        ValueError: it is not at its start, and in the context not at all, or more than once.
    """
    text, start = answer["text"], answer["start"]
    if start is not None and 0 <= int(start) and context.startswith(text, int(start)):
        return int(start), int(start) + len(text), False
    first = context.find(text)
    if first < 0 or context.find(text, first + 1) >= 0:
        times = "not at all" if first < 0 else "more than once"
        raise ValueError(f"the answer {text!r:.40} is not at its start, {start}, and {times} in the context")
    return first, first + len(text), True
