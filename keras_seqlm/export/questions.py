"""What `verify` asks a model and its artifacts: texts with options, and the requests that they are put together to.

A mode is a list of rows, each a text with options. A way is a request: a signature and rows of any modes. All rows of a way
are asked at once, since a row more costs little, and a signature or a shape more costs seconds.
"""

import dataclasses
import json

import numpy as np

from keras_seqlm.export.vectors import candidates
from keras_seqlm.generation.buckets import buckets
from seqlm_runtime.options import DEFAULTS
from seqlm_runtime.prompts import byte_limits, read_ids
from seqlm_runtime.sampler import uniform

NEW_TOKENS = 32
DEFAULT_NEW_TOKENS = 64  # of a request that names no options
MOST_TOKENS = 1024  # of the longest text that is looked at
# Asked with every prompt: an option has one value for all, or a list whose values they take in turn.
MODES = {
    "greedy": {"max_new_tokens": DEFAULT_NEW_TOKENS},
    "sampled": {"max_new_tokens": NEW_TOKENS, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 7},
    "mixed": {
        "max_new_tokens": [12, 32, 0, 20, 7, 28, 1, 32],
        "temperature": [0.0, 0.8, 0.8, 1.5, 0.0, 0.3, 1.0, 0.7],
        "top_k": [0, 40, 0, 5, 3, 0, 1, 0],
        "top_p": [1.0, 0.95, 0.5, 1.0, 1.0, 0.7, 1.0, 0.9],
        "min_p": [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.02],
        "repetition_penalty": [1.0, 1.0, 1.0, 1.2, 1.5, 1.0, 1.0, 1.1],
        "seed": [0, 7, 1, 2, 3, 2**31 - 1, 5, 6],
    },
}
# Every option alone, the others off, and where it says something of sampled rows alone, beside a temperature.
_ALONE = (
    *({"temperature": 1.3}, {"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"repetition_penalty": 1.7}, {"seed": 5}),
    *({"temperature": 1.0, **one} for one in ({"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2})),
    *({"temperature": 1.0, "seed": seed} for seed in (1, 2**24 + 1, 2**31 - 1)),
    {"temperature": 1e6, "top_k": 1},
    {"repetition_penalty": 0.6},
    {"max_new_tokens": 0},
    {"max_new_tokens": 1},
)
_ALONE_TOKENS = 12
# No text, no UTF-8, and what an encoder might trip over.
_ODD = (b"", b"\xff\xfe", b"caf\xc3", b"\x00a", "\u2581\ufffd e\u0301 ".encode(), b"\r\n\t ")
_ODD_TOKENS = 8
_SIZES = (1, 1, 1, 2, 3, 4, 5, 6, 7, 8)  # rows of requests to `generate` beside the one with all
_XLA_ROWS = 8
_SEEDS = 512  # that are tried, for texts that go on as long as they may
_SURE = 1e-3  # of a draw, how far from the end's it has to lie


@dataclasses.dataclass
class Way:
    """A request to a SavedModel.

    Attributes:
        name: by which a report calls it, another for every way.
        signature: that is asked.
        rows: pairs of a mode and the number of its row.
        options: whether it gives them; without, a text has `DEFAULT_NEW_TOKENS`, and is compared as far as the model's
            goes.
    """

    name: str
    signature: str
    rows: list
    options: bool = True


def options_of(mode, row):
    """The options of a mode's prompt: dict of every option, `max_new_tokens` among them."""
    given = {**DEFAULTS, **MODES[mode]}
    return {name: value[row % len(value)] if isinstance(value, list) else value for name, value in given.items()}


def questions(tokenizer, max_length, prompts, limit, most):
    """All rows that are asked.

    Args:
        tokenizer: of the model.
        max_length: its context, or None.
        prompts: list of str.
        limit: most new tokens that an artifact writes.
        most: ids that it reads of a prompt.

    Returns:
        dict of mode to a list of dicts of `text` (bytes), `max_new_tokens` and every option. Of the mode "read", whose
        texts are as long as what is read and longer, one token is asked.
    """
    asked = {
        mode: [{"text": prompt.encode(), **options_of(mode, row)} for row, prompt in enumerate(prompts)]
        for mode in MODES
    }
    asked["alone"] = [
        {"text": prompts[row % len(prompts)].encode(), "max_new_tokens": _ALONE_TOKENS, **DEFAULTS, **options}
        for row, options in enumerate(_ALONE)
    ]
    asked["odd"] = [{"text": text, "max_new_tokens": _ODD_TOKENS, **DEFAULTS} for text in _ODD]
    groups = candidates(tokenizer, max_length, most, limit)
    asked["vectors"] = [
        {"text": prompt.encode(), "max_new_tokens": new, **DEFAULTS, **options}
        for options, group in groups
        for prompt, _, new in group
        if len(prompt) < 100
    ]
    source = " ".join([*prompts, "and so on "])
    sizes = [*buckets(most), most + 1]
    texts = [text_of(tokenizer, source, size) for size in sizes] + [beyond_the_bytes(tokenizer, source, most)]
    texts += [prompt for _, group in groups for prompt, *_ in group if len(prompt) >= 100]
    asked["read"] = [{"text": text.encode(), "max_new_tokens": 1, **DEFAULTS} for text in texts]
    return asked


def saved_ways(asked, lengths, xla):
    """The requests that a SavedModel is asked to write by: a list of `Way`.

    Args:
        asked: from `questions`.
        lengths: dict of mode to how many ids the model reads of each row's text.
        xla: True for those to `generate_xla`, which compiles for seconds for each number of rows and bucket of lengths:
            twice, for several rows and for one alone, whose text is cut.
    """
    every = [(mode, row) for mode in asked for row in range(len(asked[mode]))]
    cut, greedy = ("read", len(asked["read"]) - 1), [pair for pair in every if pair[0] == "greedy"]
    some = [pair for pair in every if pair[0] not in ("greedy", "sampled")]
    if xla:
        short = sorted((pair for pair in some if pair[0] != "read"), key=lambda pair: lengths[pair[0]][pair[1]])
        mixed = {row % _XLA_ROWS: (mode, row) for mode, row in reversed(short) if mode == "mixed"}  # one of each kind
        others = [pair for pair in short if pair[0] != "mixed"][: _XLA_ROWS - 2]
        return [
            Way("generate_xla", "generate_xla", [mixed[kind] for kind in sorted(mixed)]),
            Way("generate_xla, fewer rows", "generate_xla", others),
            Way("generate_xla, text alone", "generate_xla", [p for p in short if p[0] == "odd"][:_XLA_ROWS], False),
            Way("generate_xla, one row", "generate_xla", [cut]),
        ]
    turned = [pair for pair in reversed(every) if pair[0] != "read"]  # reading long texts is what takes long here
    ways = [Way("generate", "generate", every), Way("generate, other order", "generate", turned)]
    ways.append(Way("generate, text alone", "generate", greedy, options=False))
    rows = [("mixed", 0), ("odd", 0), cut, *some]
    for number, size in enumerate(_SIZES):
        name = f"generate, request {number + 3} of {size}"
        ways.append(Way(name, "generate", [rows[i % len(rows)] for i in range(size)]))
        rows = rows[size:] + rows[:size]
    for name in ("serving_default", "generate_text"):
        ways.append(Way(name, name, greedy + [pair for pair in every if pair[0] == "odd"], options=False))
        ways.append(Way(f"{name}, one row", name, greedy[:1], options=False))
        ways.append(Way(f"{name}, one row that is cut", name, [cut], options=False))
    return ways


def as_json(asked):
    """The rows as JSON, their bytes as Latin-1."""
    return json.dumps({mode: [row | {"text": row["text"].decode("latin-1")} for row in asked[mode]] for mode in asked})


def from_json(text):
    """The way back."""
    asked = json.loads(text)
    return {mode: [row | {"text": row["text"].encode("latin-1")} for row in asked[mode]] for mode in asked}


def text_of(tokenizer, source, count):
    """A text that is read as so many ids, `bos` among them; as one less where none is of so many.

    Example:

    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> text_of(ByteTokenizer(), "abc", 6)
    'abcab'
    """
    text = source
    while len(read_ids(tokenizer, text)[0]) <= count and len(text) < 100 * count + 100:
        text += source
    shortest, longest = 0, len(text)  # the first has few enough, the second too many
    while longest - shortest > 1:
        middle = (shortest + longest) // 2
        few = len(read_ids(tokenizer, text[:middle])[0]) <= count
        shortest, longest = (middle, longest) if few else (shortest, middle)
    return text[:shortest]


def beyond_the_bytes(tokenizer, source, count):
    """A text of so many bytes that it is cut before it is tokenized."""
    _, longest = byte_limits(tokenizer, count)
    return source * (longest // len(source.encode()) + 2)


def longest_texts(tokenizer, vocabulary_size, first, most):
    """Seeds whose texts go on as long as they may, at a temperature at which any id is as probable as any other.

    Args:
        tokenizer: gives `eos_id` and `suppressed_ids`.
        vocabulary_size: of the model.
        first: ids that have been read before the first is written.
        most: tokens that are written at most.

    Returns:
        int32 seeds (4,); the numbers of tokens (4,) before the end or `most`; and the least and the greatest id (4, most)
        that each step may write, which are one id but where the draw lies near a border. Fewer than 4 where no more are
        sure.
    """
    seeds = np.arange(_SEEDS if tokenizer.eos_id is not None else 4, dtype="int32")
    counts = np.full(len(seeds), most)
    draws = uniform(seeds[:, None], first + np.arange(most)[None]).astype("float64")
    suppressed = set(tokenizer.suppressed_ids)
    ids = [i for i in range(vocabulary_size) if i not in suppressed]
    if tokenizer.eos_id is not None:
        start = ids.index(tokenizer.eos_id) / len(ids)
        stop = start + 1 / len(ids)
        near = (draws > start - _SURE) & (draws < stop + _SURE)
        ends = (draws > start + _SURE) & (draws < stop - _SURE)
        steps = np.where(near.any(axis=1), near.argmax(axis=1), most)
        sure = (steps == most) | ends[np.arange(len(seeds)), np.minimum(steps, most - 1)]
        seeds, counts, draws = seeds[sure], steps[sure], draws[sure]
    best = np.argsort(-counts, kind="stable")[:4]
    places = (np.clip((draws[best] + away) * len(ids), 0, len(ids) - 1).astype("int64") for away in (-_SURE, _SURE))
    return seeds[best], counts[best], *(np.array(ids, "int32")[place] for place in places)
