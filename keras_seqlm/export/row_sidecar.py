"""What a stranger needs to program against an export of a task that answers rows: the fields of its sidecar."""

from keras_seqlm.export.row_signatures import FORWARD, number_name, optional_inputs
from keras_seqlm.export.sidecar import tensor_entry, tokenizer_entry
from keras_seqlm.export.vectors import tokenizer_vectors
from seqlm_runtime.prompts import byte_limits

_INPUTS = {
    "text": "a text a row, UTF-8; what is none is read as U+FFFD, but kept by byte and byte_pair tokenizers",
    "pair": "a second text a row, empty for none",
    "before": "a text that is read before the other; left out it is empty",
    "question": "a question a row",
    "context": "the text in which its answer is looked for",
    "token_ids": "ids of the tokenizer, padding on the right",
    "lengths": "how many ids of the row are real, at least 1",
    "token_types": "0 or 1, the part of the row that an id is in",
}
_OUTPUTS = {
    "label": "the most probable label; of several labels empty where none is more probable than not",
    "labels": "all labels, in the order of probabilities",
    "value": "the number",
    "truncated": "whether text was cut off to fit the model",
    "embedding": "a vector of Euclidean length 1",
    "logits": "the model's own numbers, from which the answer is computed",
    "filled": "the text with the best candidate in each mask's place",
    "candidates": "for each mask the tokens of highest probability, as text; empty beyond num_masks",
    "candidate_ids": "their ids",
    "num_masks": "how many masks the row has",
    "num_spans": "how many spans the row has; what stands beyond is filled up with 0 and empty texts",
    "span_labels": "what each span is",
    "span_starts": "where it starts, in code points of the text",
    "span_ends": "and where it ends, the code point behind it",
    "span_texts": "its text",
    "span_scores": "the geometric mean of the probabilities of its tags",
    "num_tokens": "how many tokens have a tag",
    "tokens": "what the tokenizer took for one",
    "tags": "the tag of each",
    "answer": "the answer, empty where there is none",
    "start": "where it starts, in code points of the context",
    "end": "and where it ends, the code point behind it",
    "score": "p(begin) p(end) of the answer, in the window where it was found; of none the least that a window gives it",
}
_MEANINGS = {
    "classify": "the class of each text",
    "tag": "the spans of each text, or the tags of its tokens",
    "answer": "the answer to each question in its context",
    "embed": "a vector of each text",
    "fill-mask": "what may stand in place of each [MASK]",
}
_PROBABILITIES = {
    "classify": "of each label; they sum to 1, but where a text may have several labels",
    "fill-mask": "of each candidate",
}


def row_entry(verb):
    """`sidecar.signature_entry` with the words of a task."""

    def entry(name, inputs, outputs, optional=()):
        number = name.removeprefix(f"{verb.replace('-', '_')}_")
        if name == "serving_default":
            meaning = f"text in, answers out: {_MEANINGS[verb]}"
        elif name == FORWARD:
            meaning = "one pass over ids that are given: the numbers that serving_default makes its answers of"
        elif number != name and number.isdecimal():
            meaning = f"one pass over up to {number} ids, bos and eos among them: the numbers that answers are made of"
        else:
            raise ValueError(f"the signature {name!r} has no words in {__name__}: say there what it does.")
        words = {**_OUTPUTS, "probabilities": _PROBABILITIES.get(verb, "")}
        return {
            "meaning": meaning,
            "inputs": {
                key: {**tensor_entry(key, *spec, _INPUTS), **({"optional": True} if key in optional else {})}
                for key, spec in inputs.items()
            },
            "outputs": {key: tensor_entry(key, *spec, words) for key, spec in outputs.items()},
        }

    return entry


def row_facts(task, model, folder):
    """What every sidecar of an export says of its model: dict of what JSON can hold, all but its signatures.

    Args:
        task: a `seqlm_runtime.row_tasks.RowTask`.
        model: its model.
        folder: name of the folder beside the sidecar that holds the tokenizer's files.
    """
    tokenizer = task.tokenizer
    return {
        "format": 1,
        "model": type(model).__name__,
        "backbone": type(model.backbone).__name__,
        "max_length": model.max_length,
        "vocabulary_size": model.vocabulary_size,
        "tokenizer_hash": tokenizer.hash,
        "max_prompt_tokens": task.most,
        "task": {
            "name": task.verb,
            "inputs": [*task.fields, *optional_inputs(task)],
            "settings": task.settings,
            "room": task.room,
            "reads": [name for name in task.reads if name != "segment_ids"],
            "numbers": number_name(task),
            "text_bytes": list(byte_limits(tokenizer, task.most)),
        },
        "tokenizer": tokenizer_entry(tokenizer, folder),
        "test_vectors": {"tokenizer": tokenizer_vectors(tokenizer)},
    }
