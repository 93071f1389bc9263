"""Records that hold many rows, by the forms that published data sets have."""


def _is_squad(record):
    return isinstance(record.get("data"), list) and all(
        isinstance(article, dict) and "paragraphs" in article for article in record["data"]
    )


def _of_squad(record):
    """A row for each question: `question`, `context`, `answers` as [{"text", "start"}], none where it cannot be answered."""
    for number, article in enumerate(record["data"], 1):
        for paragraph in article["paragraphs"]:
            for question in paragraph.get("qas", ()):
                place = f"article {number}, question {question.get('id', '?')}"
                answers = [] if question.get("is_impossible") else question.get("answers", [])
                try:
                    row = {
                        "id": question.get("id"),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": [{"text": one["text"], "start": one["answer_start"]} for one in answers],
                    }
                except (KeyError, TypeError) as error:
                    row = ValueError(f"no question of SQuAD's form: {error!r}")
                yield place, row


def _is_span_file(record):
    return isinstance(record.get("userInput"), dict)


def _of_span_file(record):
    """PolyAI's: `text`, `spans` as [{"label", "start", "end"}], `requested` slots. An absent start is 0, an absent end, too."""
    try:
        spans = [
            {
                "label": label["slot"],
                "start": label["valueSpan"].get("startIndex", 0),
                "end": label["valueSpan"]["endIndex"],
            }
            for label in record.get("labels", ())
        ]
        requested = record.get("context", {}).get("requestedSlots", [])
        yield "", {"text": record["userInput"]["text"], "spans": spans, "requested": requested}
    except (KeyError, TypeError, AttributeError) as error:
        yield "", ValueError(f"no utterance of this form: {error!r}")


UNFOLDED = ((_is_squad, _of_squad), (_is_span_file, _of_span_file))
