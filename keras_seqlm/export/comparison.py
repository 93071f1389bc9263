"""An artifact's answer beside the model's reference: what differs, and by how much."""

import numpy as np

from keras_seqlm.export.reference import log_probabilities
from seqlm_runtime.replay import MOST_TOKENS, WAYS, options_of
from seqlm_runtime.sampler import sample

TIE = 1e-4  # two logits, or a draw and a border, that are closer than this may go either way


def wrong_shapes(modes, rows, expected, got):
    """A sentence in a list where an artifact's logits are of another vocabulary or number than the model's, else none."""
    for mode in modes:
        for row in range(rows):
            wanted, found = expected[f"{mode}_logits_{row}"].shape, got[f"{mode}_logits_{row}"].shape
            if wanted != found:
                return [f"logits: along the model's {mode} text of prompt {row} their shape is {found}, not {wanted}"]
    return []


def compare_texts(ways, rows, expected, got):
    """All texts of an artifact beside the model's.

    Args:
        ways: those of `seqlm_runtime.replay` that it was asked.
        rows: number of prompts.
        expected: the reference, a dict of arrays.
        got: the artifact's answer.

    Returns:
        The rows that agree in every way (a list of bool), the number of steps that were exempt, and the first complaint
        of each way, as sentences.
    """
    agrees, exempt, complaints = [True] * rows, 0, {}
    for way in ways:
        mode = WAYS[way][0]
        for row in range(rows):
            complaint, ties = compare_text(mode, row, expected, got, way)
            if not complaint and bool(got[f"{way}_truncated_{row}"]) != bool(expected[f"{mode}_truncated_{row}"]):
                complaint = f"{way}: truncated is {bool(got[f'{way}_truncated_{row}'])}, and of the model it is not"
            exempt += ties if way == mode else 0
            if complaint:
                agrees[row] = False
                complaints.setdefault(way, f"prompt {row}, {complaint}")
    return agrees, exempt, list(complaints.values())


def compare_text(mode, row, expected, got, way=None):
    """One text of the artifact beside the model's.

    Args:
        mode, row: which text of the reference.
        expected, got: as in `compare_texts`.
        way: how the artifact was asked for it; default: the one that is called as the mode.

    Returns:
        What is wrong ("" where nothing is), and how many steps were exempt because their choice hangs on a tie.
    """
    way = way or mode
    first, eos_id = int(expected[f"{mode}_first_{row}"]), int(expected["eos_id"])
    wanted = expected[f"{mode}_ids_{row}"][first:].tolist()
    written = got[f"{way}_new_{row}"].tolist()
    steps = len(wanted) + bool(expected[f"{mode}_ended_{row}"])
    choices, margins = choices_along(expected[f"{mode}_logits_{row}"][:steps], mode, row, expected)
    ties = margins < TIE
    # A text that the model ended has the end id as its last choice; so has the artifact's that stops short.
    wanted_choices = wanted + [eos_id] * (steps - len(wanted))
    written_choices = (written + [eos_id])[:steps] if len(written) < steps else written[:steps]
    tie = int(np.argmax(ties)) if ties.any() else steps
    if wanted_choices == written_choices:
        if wanted != written:
            return f"{way}: it writes {len(written)} tokens, not {len(wanted)}", int(ties.sum())
        if str(expected[f"{mode}_text_{row}"]).encode() != got[f"{way}_text_{row}"].tobytes():
            return f"{way}: the ids agree, and their text does not", 0
        return "", int(ties.sum())
    differs = next(i for i, (a, b) in enumerate(zip(wanted_choices, written_choices, strict=True)) if a != b)
    if differs < tie:
        return f"{way}: step {differs} is {written_choices[differs]}, not {wanted_choices[differs]}", int(ties.sum())
    taught, _ = choices_along(got[f"{mode}_logits_{row}"][:steps], mode, row, expected)
    wrong = np.flatnonzero((taught != choices) & ~ties)
    if len(wrong):
        at = wrong[0]
        return f"{way}: along the model's text step {at} is {taught[at]}, not {choices[at]}", int(ties.sum())
    return "", int(ties.sum())


def choices_along(logits, mode, row, expected):
    """The sampler's choice and its margin at each step of a text of the reference, from logits (steps, vocabulary)."""
    if not len(logits):
        return np.zeros(0, "int32"), np.zeros(0)
    ids, first = expected[f"{mode}_ids_{row}"], int(expected[f"{mode}_first_{row}"])
    options = options_of(mode, row)
    del options["max_new_tokens"]
    seen = None
    if options["repetition_penalty"] != 1:
        seen = np.zeros(logits.shape, bool)
        for step in range(len(logits)):
            seen[step, ids[: first + step]] = True
    positions = first + np.arange(len(logits))
    return sample(logits, options, seen, positions, tuple(expected["suppressed_ids"].tolist()), with_margin=True)


def compare_logits(modes, rows, expected, got):
    """The logits of both along the model's own texts.

    Returns:
        The share of steps where both choose the same token, the greatest difference (infinite for NaN), and how much
        less probable the artifact finds the texts, in nats a token; NaN where its logits are not finite.
    """
    same, difference, losses = [], 0.0, ([], [])
    for mode in modes:
        for row in range(rows):
            name = f"{mode}_logits_{row}"
            difference = max(difference, distance(expected[name], got[name]))
            chosen = [choices_along(part[name], mode, row, expected)[0] for part in (expected, got)]
            same += (chosen[0] == chosen[1]).tolist()
            first, ended = int(expected[f"{mode}_first_{row}"]), bool(expected[f"{mode}_ended_{row}"])
            targets = expected[f"{mode}_ids_{row}"][first:].tolist() + [int(expected["eos_id"])] * ended
            for loss, part in zip(losses, (expected, got), strict=True):
                loss.append(-log_probabilities(part[name], targets))
    with np.errstate(invalid="ignore"):
        model, artifact = (np.concatenate(loss).mean() if any(map(len, loss)) else 0.0 for loss in losses)
    return float(np.mean(same)) if same else 1.0, difference, float(artifact - model)


def distance(expected, got):
    """The greatest difference of two arrays; infinite where one is NaN."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.asarray(expected, "float64") - got)
    return float(np.max(np.where(np.isnan(apart), np.inf, apart), initial=0.0))  # `max` would pass over NaN


def wrong_answers(expected, got):
    """What a SavedModel answers wrongly beside texts: sentences about `score`, padding, and the most tokens it writes."""
    wrong = []
    counts, sums = expected["score_num_tokens"], expected["score_log_probability"]
    apart = np.abs(got["score_log_probability"] - sums)
    for row in np.flatnonzero(~(apart <= TIE * np.maximum(counts, 10)))[:1]:
        wrong.append(
            f"score: text {row} has the log-probability {got['score_log_probability'][row]:.4f}, and by the model's "
            f"logits {sums[row]:.4f}"
        )
    for row in np.flatnonzero(got["score_num_tokens"] != counts)[:1]:
        wrong.append(f"score: text {row} has {got['score_num_tokens'][row]} tokens, not {counts[row]}")
    if not got["padding_difference"] <= TIE:
        wrong.append(f"logits: a row beside a longer one differs from itself by {got['padding_difference']:.1e}")
    longest = np.minimum(got["longest"], MOST_TOKENS)
    if longest.tolist() != expected["longest"].tolist():
        wrong.append(
            f"generate: asked for any number of tokens it writes {longest.tolist()}, and with the limit of its sidecar "
            f"these are {expected['longest'].tolist()}"
        )
    return wrong


def wrong_readings(rows, exact, expected, got):
    """What a LiteRT file reads wrongly: sentences about its tokenizer and its prefill signatures.

    Args:
        rows: number of prompts.
        exact: whether its logits have to be the model's, and not only finite.
        expected, got: as in `compare_texts`.
    """
    wrong = []
    for row in range(rows):
        if not np.array_equal(expected[f"prompt_ids_{row}"], got[f"prompt_ids_{row}"]):
            wrong.append(f"its tokenizer reads prompt {row} as other ids")
            break
    for length, count in expected["long_places"].tolist():
        name = f"{length}_{count}"
        wanted, found = expected[f"long_logits_{name}"], got[f"long_logits_{name}"]
        apart = distance(wanted, found) if wanted.shape == found.shape else np.inf
        if not (apart <= TIE if exact else np.isfinite(found).all()):
            wrong.append(f"prefill_{length}: after {count} ids its logits are not the model's, by {apart:.1e}")
        if got[f"long_position_{name}"].tolist() != [count + len(wanted) - 1]:
            wrong.append(f"prefill_{length}: after {count + len(wanted) - 1} ids it counts others")
    return wrong
