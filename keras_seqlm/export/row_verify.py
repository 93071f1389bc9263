"""The proof that an export of a task that answers rows says what its task says: asked with rows, and held to it."""

import json
import os

import numpy as np

from keras_seqlm.export.agreement import RowAgreement
from keras_seqlm.export.clean_process import run_clean
from keras_seqlm.export.comparison import TIE, distance
from keras_seqlm.export.inspection import contradictions
from keras_seqlm.export.replaying import DoesNotRunError, replayed
from keras_seqlm.export.row_reference import metric_of, packed_numbers, unpacked_numbers
from keras_seqlm.export.run_folder import EXAMPLES, PROMPTS
from keras_seqlm.export.stages import tell
from keras_seqlm.files import read_json

NUM_ROWS = 50
TOLERANCE = 1e-4  # of probabilities, scores and vectors
_TEXTS = ("The", "It is", "In the morning the cat sat on the mat.", "What is it?", "秦川雄帝宅", "Zoë paid 12 € in May")
_PLAIN = {
    "fill-mask": [{"text": f"{text} [MASK] and [MASK]."} for text in _TEXTS],
    "answer": [{"question": "What is it?", "context": text} for text in _TEXTS],
}


def rows_of(folder, verb, tokenizer):
    """The rows that a run folder keeps of its validation part, at most 50; a few texts where it keeps none.

    Of a run that has learned to fill masks, its prompts, with one token of each masked.
    """
    path = folder / EXAMPLES
    if path.exists():
        rows = read_json(path).get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f'{path} is damaged: expected a list of rows under "rows"')
        if rows:
            return rows[:NUM_ROWS]
    path = folder / PROMPTS
    if verb == "fill-mask" and path.exists():
        made = [masked(tokenizer, text) for text in read_json(path).get("prompts", []) if isinstance(text, str)]
        if any(made):
            return [row for row in made if row][:NUM_ROWS]
    return _PLAIN.get(verb, [{"text": text} for text in _TEXTS])


def masked(tokenizer, text):
    """A row of a text with a token in its middle masked, and the token's id; None of a text of fewer than 3.

    Example:

    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> masked(ByteTokenizer(), "abc")
    {'text': 'a[MASK]c', 'token_id': 102}
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    if len(ids) < 3:
        return None
    start, end = offsets[len(ids) // 2].tolist()
    alone = [number for number, other in enumerate(offsets.tolist()) if other[0] < end and other[1] > start]
    if alone != [len(ids) // 2]:  # a byte of a character
        return None
    return {"text": f"{text[:start]}[MASK]{text[end:]}", "token_id": int(ids[len(ids) // 2])}


def row_agreements(run_folder, rows, artifacts, inspections, folder, imports, max_metric_loss, allow_ops):
    """The `RowAgreement` of each artifact, in their order.

    Args:
        rows: list of dicts.
        folder: for files that are passed on.
    """
    references, agreements = {}, []
    for artifact, found in zip(artifacts, inspections, strict=True):
        said = found.sidecar.get("task")
        bounds = (said["room"], found.sidecar["max_prompt_tokens"]) if said and not found.reasons else None
        result = RowAgreement(artifact, found.kind, len(rows), 0, 0, None, None, found.forbidden_ops)
        result.reasons, result.max_metric_loss = list(found.reasons), max_metric_loss
        agreements.append(result)
        if result.reasons or result.forbidden_ops:
            continue
        if bounds is None:
            result.reasons.append("it is an export of a language model, and the run is of a task that answers rows")
            continue
        if bounds not in references:
            tell("the model itself")
            path = os.path.join(folder, "reference.npz")
            run_clean(
                "keras_seqlm.export.row_reference:write_row_reference",
                imports=imports,
                run_folder=str(run_folder),
                rows=rows,
                path=path,
                room=bounds[0],
                most=bounds[1],
            )
            with np.load(path) as stored:
                references[bounds] = dict(stored)
        expected = references[bounds]
        facts = json.loads(str(expected["facts"]))
        result.prompts = len(json.loads(str(expected["rows"])))
        result.reasons = contradictions(found, facts)
        if result.reasons:
            continue
        tell(artifact)
        try:
            got = _asked(artifact, expected, facts, folder, allow_ops)
        except DoesNotRunError as error:
            result.reasons.append(str(error))
            continue
        _hold(result, expected, got, facts)
        if not result.exact and not result.reasons:
            _hold_to_figures(result, expected, got, facts, run_folder, rows, folder, imports)
    return agreements


def _asked(artifact, expected, facts, folder, allow_ops):
    names = ("rows", "sizes", "vocabulary_size")
    asked = {name: value for name, value in expected.items() if name in names or name.startswith("input ")}
    asked |= {"artifact": artifact, "allow_ops": json.dumps(list(allow_ops)), "room": facts["task"]["room"]}
    return replayed("seqlm_runtime.replay_rows", asked, folder)


def _hold(result, expected, got, facts):
    """The figures of numbers and answers, and what is wrong by them."""
    wanted, found = unpacked_numbers(expected), [got[f"numbers {row}"] for row in range(len(expected["sizes"]))]
    found = [_real(one, size, facts) for one, size in zip(found, expected["sizes"].tolist(), strict=True)]
    shapes = [(one.shape, other.shape) for one, other in zip(wanted, found, strict=True) if one.shape != other.shape]
    if shapes:
        result.reasons.append(f"its numbers have the shape {shapes[0][1]}, and those of the model {shapes[0][0]}")
        return
    got["real"] = found
    possible = [np.abs(one) < 1e30 for one in wanted]  # where no answer can be they say so
    spread = max(float(np.std(np.concatenate([one[real] for one, real in zip(wanted, possible, strict=True)]))), 1e-6)
    pairs = [
        *zip(wanted, found, strict=True),
        *((wanted[row], _real(part, size, facts)) for row, size, part in _by_length(expected, got)),
    ]
    result.max_logit_difference = max(_apart(one, other) for one, other in pairs)
    result.relative_difference = result.max_logit_difference / spread
    answers, margins = json.loads(str(expected["answers"])), expected["margins"]
    if not result.exact:
        near = result.max_logit_difference * 8  # of two sums of two log-probabilities, each of a logit and a normaliser
        pairs = zip(answers, _answers(got, "all rows"), strict=True)
        agree = [same_choice(one, other, result.most_apart * spread) for one, other in pairs]
        result.agree, result.same_choices = sum(agree), float(np.mean(agree))
        chosen = [not _is_measured(answer) for answer in answers]
        wrong = [row for row, same in enumerate(agree) if not same and chosen[row] and margins[row] > near]
        if wrong and result.relative_difference <= result.most_apart:
            result.reasons.append(
                f"row {wrong[0]}: it answers {_short(_answers(got, 'all rows')[wrong[0]])}, and the model {_short(answers[wrong[0]])}"
            )
    else:
        _hold_to_answers(result, answers, margins, got)
    if not result.relative_difference <= result.most_apart and not result.exact:
        result.reasons.append(
            f"its weights are not the model's: its numbers differ by {result.relative_difference:.2f} of their spread, and at "
            f"most {result.most_apart:.2f} is allowed"
        )
    if result.exact and not result.max_logit_difference <= TIE:
        result.reasons.append(f"its numbers differ from the model's by {result.max_logit_difference:.1e}")
    if "beside" in got:
        if not got["beside"] <= TIE:
            result.reasons.append(f"forward: a row beside others differs from itself alone by {got['beside']:.1e}")
        result.reasons += [
            f"forward: it answers {said}, and has to refuse it" for said in json.loads(str(got["accepted"]))
        ]
        if not int(got["warm_up"]):
            result.reasons.append(
                "it has no requests by which a server warms up, and its first ones would be slow: export it again"
            )


def _hold_to_answers(result, answers, margins, got):
    ways = [name.removesuffix("|rows") for name in got if name.endswith("|rows")]
    wrong, complaints = set(), {}
    for way in ways:
        for row, found in zip(got[f"{way}|rows"].tolist(), _answers(got, way), strict=True):
            if not alike(answers[row], found, margins[row]):
                wrong.add(row)
                said = f"row {row} by {way}: it answers {_short(found)}, and the model {_short(answers[row])}"
                complaints.setdefault(way, said)
    result.agree = len(answers) - len(wrong)
    result.exempt_steps = int(np.sum(margins < TIE))
    result.same_choices = result.agree / len(answers)
    result.reasons += list(complaints.values())
    if result.exempt_steps == len(answers):
        result.reasons.append(
            f"every answer of the model hangs on less than {TIE:g}, so that none was held to it: train it further, or verify with "
            "other rows"
        )


def _hold_to_figures(result, expected, got, facts, run_folder, rows, folder, imports):
    """Quantised weights are other weights: the task's figure may be as much worse as is allowed."""
    path, figures = os.path.join(folder, "answered.npz"), json.loads(str(expected["figures"]))
    result.metric = metric_of(facts["task"], figures)
    if result.metric is None or figures[result.metric] <= 0:  # of a model that is never right none can be worse
        result.metric, result.metric_loss = "agreement", 1 - result.same_choices
    else:
        inputs = {name: value for name, value in expected.items() if name.startswith("input ") or name == "sizes"}
        np.savez(path, **inputs, **packed_numbers(got["real"]))
        bounds = {"room": facts["task"]["room"], "most": facts["max_prompt_tokens"]}
        found = run_clean(
            "keras_seqlm.export.row_reference:figures_with",
            imports=imports,
            run_folder=str(run_folder),
            rows=rows,
            path=path,
            **bounds,
        )
        result.metric_loss = figures[result.metric] - found[result.metric]
    if not result.metric_loss <= result.max_metric_loss:
        result.reasons.append(
            f"its {result.metric} is {result.metric_loss:.4f} below the model's, and at most {result.max_metric_loss:.4f} is allowed"
        )


def _by_length(expected, got):
    """(row, its size, the numbers) of each signature of a LiteRT file that was asked by itself."""
    for name, numbers in got.items():
        if name.startswith("length "):
            row = int(name.rsplit(" ", 1)[1])
            yield row, int(expected["sizes"][row]), numbers


def _real(numbers, size, facts):
    """Numbers without those of padding."""
    if facts["task"]["name"] in ("tag", "fill-mask"):
        return numbers[:size]
    return numbers[:, :size] if facts["task"]["name"] == "answer" else numbers


def _apart(wanted, found):
    if wanted.shape != found.shape:
        return np.inf
    real = np.abs(wanted) < 1e30
    if not np.array_equal(real, np.abs(found) < 1e30):
        return np.inf
    return distance(wanted[real], found[real])


def _answers(got, way):
    name = f"{way}|answers"
    if not isinstance(got[name], list):
        got[name] = json.loads(str(got[name]))
    return got[name]


def alike(wanted, found, margin, tolerance=TOLERANCE):
    """Whether an answer is the other one: texts, labels and places equal, numbers within `tolerance`.

    Args:
        wanted, found: what JSON can hold.
        margin: how far the first is from being another one. Below 1e-4 it may be, and then its fields, its numbers and whether
            text was cut are held, and not what was chosen.
    """
    if isinstance(wanted, dict) and isinstance(found, dict):
        same = set(wanted) == set(found) and wanted.get("truncated") == found.get("truncated")
        return same and all(alike(wanted[name], found[name], margin, tolerance) for name in wanted)
    if isinstance(wanted, float) and isinstance(found, float | int):
        return abs(wanted - found) <= tolerance
    if margin < TIE:
        return True
    if isinstance(wanted, list) and isinstance(found, list):
        pairs = zip(wanted, found, strict=False)
        return len(wanted) == len(found) and all(alike(one, other, margin, tolerance) for one, other in pairs)
    return type(wanted) is type(found) and wanted == found


def same_choice(wanted, found, apart):
    """Whether a model of other weights chose the same; where nothing is chosen, whether a vector points the same way (a cosine of
    0.99), or a number is no further off than `apart`."""
    if "embedding" in wanted:
        one, other = (np.asarray(answer.get("embedding"), "float64") for answer in (wanted, found))
        return one.shape == other.shape and bool(one @ other >= 0.99 * np.sqrt((one @ one) * (other @ other)))
    return alike(_said(wanted), _said(found), np.inf, apart if _is_measured(wanted) else np.inf)


def _is_measured(answer):
    """Whether an answer is a vector or a number, in which nothing is chosen."""
    return "embedding" in answer or answer.get("value") is not None


def _said(answer):
    """What of an answer has to be the same with other weights: of masks the best candidates alone."""
    return {name: value for name, value in answer.items() if name != "candidates"}


def _short(answer):
    text = json.dumps(answer, ensure_ascii=False)
    return text if len(text) < 160 else text[:160] + " ..."
