"""An artifact's answer beside the model's reference: what differs, and by how much.

`expected` is the reference (`keras_seqlm.export.reference`), `got` the answer (`seqlm_runtime.replay`), both dicts of arrays;
`asked`, the rows that both were asked, stands in the reference as `keras_seqlm.export.questions` makes it.
"""

import json

import numpy as np

from keras_seqlm.export.questions import MODES, MOST_TOKENS
from keras_seqlm.export.reference import log_probabilities
from keras_seqlm.export.vectors import SURE, written_vectors
from seqlm_runtime.options import DEFAULTS
from seqlm_runtime.prompts import has_text
from seqlm_runtime.sampler import sample

TIE = 1e-4  # two logits, or a draw and a border, that are closer than this may go either way
SCORED = ("log_probability", "num_tokens", "truncated")


def rows_along(expected):
    """The rows along which an artifact's logits are asked: pairs of a mode and a number."""
    every = ((mode, row) for mode, rows in expected["asked"].items() for row in range(len(rows)))
    return [(mode, row) for mode, row in every if f"{mode}_{row}_ids" in expected]


def wrong_shapes(expected, got):
    """A sentence in a list where an artifact's logits are of another vocabulary or number than the model's, else none."""
    for mode, row in rows_along(expected):
        wanted, found = expected[f"{mode}_{row}_logits"].shape, got[f"{mode}_{row}_logits"].shape
        if wanted != found:
            return [f"logits: along the model's {mode} text of row {row} their shape is {found}, not {wanted}"]
    return []


def compare_texts(ways, expected, got):
    """All texts of an artifact beside the model's.

    Args:
        ways: list of `questions.Way`.
        expected, got: see above.

    Returns:
        The prompts whose rows agree in every way (a list of bool), the number of steps of the modes that were exempt, and
        the first complaint of each way and mode, as sentences.
    """
    agrees, exempt, complaints = [True] * len(expected["asked"]["greedy"]), {}, {}
    for way in ways:
        for at, (mode, row) in enumerate(way.rows):
            complaint, ties = compare_text(mode, row, expected, got, way, at)
            complaint = complaint or wrong_cut(mode, row, expected, got, way, at)
            exempt[mode, row] = ties
            if complaint and mode in MODES:
                agrees[row] = False
            if complaint:
                complaints.setdefault((way.name, mode), f"{'prompt' if mode in MODES else 'text'} {row}, {complaint}")
    return agrees, sum(exempt[mode, row] for mode, row in exempt if mode in MODES), list(complaints.values())


def wrong_cuts(ways, expected, got):
    """Where an artifact says otherwise than the model of a text whether it is cut, whatever its weights are: sentences."""
    found = (wrong_cut(*pair, expected, got, way, at) for way in ways for at, pair in enumerate(way.rows))
    return [complaint for complaint in found if complaint][:1]


def wrong_cut(mode, row, expected, got, way, at):
    """What is wrong about `truncated` of one text, "" where nothing is."""
    wanted, found = bool(expected[f"{mode}_{row}_truncated"]), bool(got[f"{way.name}|truncated"][at])
    if wanted == found:
        return ""
    return f"{_named(way, mode)}: of row {row} truncated is {found}, and of the model {wanted}"


def compare_text(mode, row, expected, got, way, at):
    """One text of the artifact beside the model's.

    Args:
        mode, row: which text of the reference.
        expected, got: see above.
        way: how the artifact was asked for it, and `at` its row there.

    Returns:
        What is wrong ("" where nothing is), and how many steps were exempt because their choice hangs on a tie.
    """
    name, said, eos_id = f"{mode}_{row}", _named(way, mode), int(expected["eos_id"])
    wanted = expected[f"{name}_new"].tolist()
    whole, count = got[f"{way.name}|token_ids"][at], int(got[f"{way.name}|num_tokens"][at])
    if not 0 <= count <= len(whole) or whole[count:].any():
        return f"{said}: its num_tokens is {count}, and token_ids are {whole.tolist()}", 0
    written = whole[:count].tolist()
    if not way.options:  # it may write more than the model was asked for
        written = written[: expected["asked"][mode][row]["max_new_tokens"]]
    steps = len(wanted) + bool(expected[f"{name}_ended"])
    choices, margins = choices_along(expected[f"{name}_logits"][:steps], mode, row, expected)
    ties = margins < TIE
    # A text that the model ended has the end id as its last choice; so has the artifact's that stops short.
    wanted_choices = wanted + [eos_id] * (steps - len(wanted))
    written_choices = (written + [eos_id])[:steps] if len(written) < steps else written[:steps]
    tie = int(np.argmax(ties)) if ties.any() else steps
    if wanted_choices == written_choices:
        if wanted != written:
            return f"{said}: it writes {len(written)} tokens, not {len(wanted)}", int(ties.sum())
        text = _texts(got, way)[at].encode("latin-1")
        if count == len(written) and expected[f"{name}_text"].tobytes() != text:
            return f"{said}: the ids agree, and their text does not: it is {text[:60]!r}", 0
        return "", int(ties.sum())
    differs = next(i for i, (a, b) in enumerate(zip(wanted_choices, written_choices, strict=True)) if a != b)
    if differs < tie:
        return f"{said}: step {differs} is {written_choices[differs]}, not {wanted_choices[differs]}", int(ties.sum())
    if f"{name}_logits" not in got:
        return "", int(ties.sum())
    taught, _ = choices_along(got[f"{name}_logits"][:steps], mode, row, expected)
    wrong = np.flatnonzero((taught != choices) & ~ties)
    if len(wrong):
        at = wrong[0]
        return f"{said}: along the model's text step {at} is {taught[at]}, not {choices[at]}", int(ties.sum())
    return "", int(ties.sum())


def _named(way, mode):
    return mode if way.name in ("generate", mode) else f"{mode} by {way.name}"


def _texts(got, way):
    """The texts of a way, read from JSON once."""
    texts = got[f"{way.name}|texts"]
    if not isinstance(texts, list):
        texts = got[f"{way.name}|texts"] = json.loads(str(texts))
    return texts


def choices_along(logits, mode, row, expected):
    """The sampler's choice and its margin at each step of a text of the reference, from logits (steps, vocabulary)."""
    if not len(logits):
        return np.zeros(0, "int32"), np.zeros(0)
    options = {key: expected["asked"][mode][row][key] for key in DEFAULTS}
    first, seen = int(expected[f"{mode}_{row}_first"]), None
    if options["repetition_penalty"] != 1:
        ids, seen = expected[f"{mode}_{row}_ids"], np.zeros(logits.shape, bool)
        for step in range(len(logits)):
            seen[step, ids[: first + step]] = True
    positions = first + np.arange(len(logits))
    return sample(logits, options, seen, positions, tuple(expected["suppressed_ids"].tolist()), with_margin=True)


def compare_logits(expected, got):
    """The logits of both along the model's own texts.

    Returns:
        The share of steps where both choose the same token, the greatest difference (infinite for NaN), the same as a part
        of the spread of the model's, and how much less probable the artifact finds the texts, in nats a token; NaN where
        its logits are not finite.
    """
    same, difference, losses, names = [], 0.0, ([], []), rows_along(expected)
    for mode, row in names:
        name = f"{mode}_{row}_logits"
        difference = max(difference, distance(expected[name], got[name]))
        chosen = [choices_along(part[name], mode, row, expected)[0] for part in (expected, got)]
        same += (chosen[0] == chosen[1]).tolist()
        ended = bool(expected[f"{mode}_{row}_ended"])
        targets = expected[f"{mode}_{row}_new"].tolist() + [int(expected["eos_id"])] * ended
        for loss, part in zip(losses, (expected, got), strict=True):
            loss.append(-log_probabilities(part[name], targets))
    with np.errstate(invalid="ignore"):
        model, artifact = (np.concatenate(loss).mean() if any(map(len, loss)) else 0.0 for loss in losses)
    return float(np.mean(same)) if same else 1.0, difference, difference / spread(expected), float(artifact - model)


def spread(expected):
    """How far the model's logits lie from each other: the mean over steps of their standard deviation."""
    parts = [expected[f"{mode}_{row}_logits"].std(axis=-1) for mode, row in rows_along(expected)]
    return max(float(np.concatenate(parts).mean()), 1e-6)


def distance(expected, got):
    """The greatest difference of two arrays; infinite where one is NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.asarray(expected, "float64") - got)
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))  # `max` would pass over NaN


def wrong_answers(expected, got, tokenizer):
    """What a SavedModel answers wrongly beside texts: sentences about `score`, padding, what it has to refuse, its warm-up,
    and the longest texts that it writes.

    Args:
        expected, got: see above.
        tokenizer: of the run.
    """
    wrong, rows = [], len(expected["score_num_tokens"])
    for name, asked in (("score", range(rows)), ("score, one row", [0]), ("score, one row cut", [rows - 1])):
        sums, counts, cuts = (expected[f"score_{key}"][list(asked)] for key in SCORED)
        found = {key: got[f"{name}|{key}"] for key in SCORED}
        apart = np.abs(found["log_probability"] - sums)
        for row in np.flatnonzero(~(apart <= TIE * np.maximum(counts, 10)))[:1]:
            wrong.append(
                f"{name}: text {row} has the log-probability {found['log_probability'][row]:.4f}, and by the model's "
                f"logits {sums[row]:.4f}"
            )
        for row in np.flatnonzero(found["num_tokens"] != counts)[:1]:
            wrong.append(f"{name}: text {row} has {found['num_tokens'][row]} tokens, not {counts[row]}")
        for row in np.flatnonzero(found["truncated"] != cuts)[:1]:
            wrong.append(f"{name}: of text {row} truncated is {found['truncated'][row]}, and of the model {cuts[row]}")
    if not got["beside"] <= TIE:
        wrong.append(f"logits: a row beside longer ones differs from itself alone by {got['beside']:.1e}")
    wrong += [f"logits: it answers {said}, and has to refuse it" for said in json.loads(str(got["accepted"]))]
    if not int(got["warm_up"]):
        wrong.append("it has no requests by which a server warms up, and its first ones would be slow: export it again")
    longest = np.minimum(got["longest"], MOST_TOKENS)
    if longest.tolist() != expected["longest"].tolist():
        wrong.append(
            f"generate: asked for any number of tokens it writes {longest.tolist()}, and with the limit of its sidecar "
            f"these are {expected['longest'].tolist()}"
        )
        return wrong
    return wrong + wrong_longest(expected, got, tokenizer)


def wrong_longest(expected, got, tokenizer):
    """What is wrong about the ids and the text of the longest texts, whose numbers of tokens are right: a sentence or none."""
    after_text = has_text(tokenizer, range(int(expected["greedy_0_first"])), bool(expected["greedy_0_truncated"]))
    texts = json.loads(str(got["longest_texts"]))
    for row, count in enumerate(got["longest"].tolist()):
        said, ids = f"generate: asked for any number of tokens, in text {row}", got["longest_ids"][row, :count]
        looked_at = ids[:MOST_TOKENS]
        least, greatest = (expected[f"longest_{end}"][row, : len(looked_at)] for end in ("least", "greatest"))
        suppressed = np.isin(looked_at, expected["suppressed_ids"])
        wrong = np.flatnonzero((looked_at < least) | (looked_at > greatest) | suppressed)
        if len(wrong):
            step = wrong[0]
            wanted = f"{least[step]}" if least[step] == greatest[step] else f"{least[step]} ... {greatest[step]}"
            return [f"{said} step {step} is {looked_at[step]}, and its draw is that of {wanted}"]
        if ((ids < 0) | (ids >= int(expected["vocabulary_size"]))).any():
            return [f"{said} are ids that are none: {ids[(ids < 0) | (ids >= int(expected['vocabulary_size']))][0]}"]
        wanted, found = tokenizer.decode(ids, after_text).encode(), texts[row].encode("latin-1")
        if wanted != found:
            return [f"{said} the ids are right, and their text is not: it is {found[:60]!r}"]
    return []


def wrong_readings(most_apart, expected, got):
    """What a LiteRT file reads wrongly: sentences about its tokenizer and its prefill signatures.

    Args:
        most_apart: how far its logits may be from the model's.
        expected, got: see above.
    """
    wrong = []
    for row in range(len(expected["asked"]["greedy"])):
        if not np.array_equal(expected[f"prompt_ids_{row}"], got[f"prompt_ids_{row}"]):
            wrong.append(f"its tokenizer reads prompt {row} as other ids")
            break
    for length, count in expected["long_places"].tolist():
        name = f"long_{length}_{count}"
        wanted, found = expected[f"{name}_logits"], got[f"{name}_logits"]
        apart = distance(wanted, found) if wanted.shape == found.shape else np.inf
        if not apart <= most_apart:
            wrong.append(f"prefill_{length}: after {count} ids its logits are not the model's, by {apart:.1e}")
        if got[f"{name}_position"].tolist() != [count + len(wanted) - 1]:
            wrong.append(f"prefill_{length}: after {count + len(wanted) - 1} ids it counts others")
    return wrong


def wrong_vectors(said, tokenizer, ways, expected, got):
    """Whether the texts among a sidecar's test vectors are those that the artifact writes: a sentence in a list, or none.

    Args:
        said: `written` of the sidecar.
        tokenizer: of the run.
        ways: those that the artifact was asked by.
        expected, got: see above.
    """
    places = {}  # prompt and options -> the text's name, the way and the row in it
    for way in reversed(ways):
        if way.options:
            for at, (mode, row) in enumerate(way.rows):
                if mode in ("vectors", "read"):
                    options = {key: expected["asked"][mode][row][key] for key in DEFAULTS}
                    places[expected["asked"][mode][row]["text"], json.dumps(options)] = (f"{mode}_{row}", way, at)

    last = []  # the name of the text that was asked for last

    def generate(prompt, max_new_tokens, options):
        name, way, at = places[prompt.encode(), json.dumps({**DEFAULTS, **options})]
        last[:] = [name]
        count = min(int(got[f"{way.name}|num_tokens"][at]), max_new_tokens)
        token_ids = got[f"{way.name}|token_ids"][at][:count].tolist()
        cut = bool(got[f"{way.name}|truncated"][at])
        after_text = has_text(tokenizer, range(int(expected[f"{name}_first"])), cut)
        return {"text": tokenizer.decode(token_ids, after_text), "token_ids": token_ids, "truncated": cut}

    def logits_after(ids, more):
        for logits in (got.get(f"{last[0]}_own"), got.get(f"{last[0]}_logits"), expected[f"{last[0]}_logits"]):
            if logits is not None:
                return logits[: len(more) + 1]

    def written(sure):
        limits = expected["facts"]["max_length"], int(expected["most"]), int(expected["limit"])
        return written_vectors(tokenizer, *limits, generate, logits_after, sure)

    # A margin that is just at the border may have been counted otherwise elsewhere.
    if any(_alike(said, written(sure)) for sure in (SURE, SURE - TIE, SURE + TIE)):
        return []
    wanted = written(SURE)
    if not isinstance(said, list) or len(said) != len(wanted):
        return [f"its sidecar has other test vectors than the {len(wanted)} texts that it writes"]
    row = next(row for row in range(len(wanted)) if not _alike(said[row : row + 1], wanted[row : row + 1]))
    return [
        f"its sidecar's test vector {row} of what it writes is {_short(said[row])}, and it writes {_short(wanted[row])}"
    ]


def _alike(said, wanted):
    """Whether lists of vectors are the same but for the last digits of margins."""
    if not isinstance(said, list) or len(said) != len(wanted):
        return False
    for one, other in zip(said, wanted, strict=True):
        if not isinstance(one, dict) or not isinstance(one.get("margin"), float | int):
            return False
        if not abs(one["margin"] - other["margin"]) <= 10 * TIE:
            return False
        one, other = (json.dumps({**part, "margin": 0}, sort_keys=True) for part in (one, other))
        if one != other:
            return False
    return True


def _short(value):
    text = json.dumps(value)
    return text if len(text) < 160 else text[:160] + " ..."
