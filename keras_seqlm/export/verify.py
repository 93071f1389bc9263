"""The proof that an artifact says what its model says: read before it is loaded, and then asked in every way it can be."""

import importlib.util
import json
import os
import pathlib
import tempfile

import numpy as np

from keras_seqlm import tokenizers
from keras_seqlm.export.agreement import MAX_LOSS_INCREASE, MAX_METRIC_LOSS, MOST_APART, Agreement, Report
from keras_seqlm.export.clean_process import run_clean
from keras_seqlm.export.comparison import (
    TIE,
    compare_logits,
    compare_texts,
    spread,
    wrong_answers,
    wrong_cuts,
    wrong_readings,
    wrong_shapes,
    wrong_vectors,
)
from keras_seqlm.export.inspection import contradictions, inspect
from keras_seqlm.export.questions import DEFAULT_NEW_TOKENS, Way, as_json, from_json
from keras_seqlm.export.replaying import DoesNotRunError, replayed
from keras_seqlm.export.row_verify import row_agreements, rows_of
from keras_seqlm.export.run_folder import PROMPTS, as_run_folder, verb_in
from keras_seqlm.export.stages import tell
from keras_seqlm.files import read_json

DEFAULT_PROMPTS = ("", "The", "It is", "In the", "A ", "If you", "This ", "1. ", "What", "and then")


def verify(
    task,
    *artifacts,
    prompts=None,
    imports=(),
    max_loss_increase=MAX_LOSS_INCREASE,
    allow_ops=(),
    rows=None,
    max_metric_loss=MAX_METRIC_LOSS,
):
    """Compare exported artifacts with the model they came from.

    Each artifact is read first, and loaded only if its files have their checksums and its operations are those of our
    exports (`seqlm_runtime.op_gate`); if its sidecar, its defaults and the tokenizer beside it say of the model what an
    export of it says. The model is read back at float32 in a clean TensorFlow process and writes after each of up to 20
    prompts: 64 tokens greedily, 32 once sampled and up to 32 with other options for each prompt; after some with each
    option alone; after texts that are empty, no UTF-8, as long as what is read and longer. Each artifact, in a process of
    its own that imports neither TensorFlow's Python nor Keras (the SavedModel in TensorFlow's C library, XLA off, as the
    stock server runs it; `generate_xla` in one more, XLA on), writes by itself, by every signature, in several orders, one
    row alone and many, with options and without, and reads the model's texts (see `keras_seqlm.export.questions`).

    Its ids must be the model's up to the first step whose choice hangs on less than 1e-4; from there its choice along
    the model's text must be the model's, but for such steps, which are counted. Logits must lie within 1e-4, scores
    within 1e-4 a token of those that NumPy makes of the model's logits. A file whose tensors are float16 or int8 has other
    weights: its loss may differ as much as `max_loss_increase`, up or down, and its logits, after every signature, by a part
    of their spread (`MOST_APART`).

    An export of a task that answers rows is asked with the rows of its run folder, with empty and odd texts and long ones:
    all at once, in another order, alone. Its answers must be the task's, their numbers within 1e-4, but where the task's own
    hang on less; a float16 or int8 file may be worse than the task by `max_metric_loss` of its figure over the rows (accuracy,
    span F1; where the rows do not say what is right, the share of equal answers), and its numbers differ by `MOST_APART`.

    Args:
        task: a `TextGeneration`, a task that answers rows, or the path of a run folder, whose `prompts.json` or
            `examples.json` says what is asked.
        *artifacts: version folders of SavedModels and .tflite files.
        prompts: texts to use instead.
        imports: modules to import first, for your own registered classes.
        max_loss_increase: how much less probable, or more, a quantised file may find the model's texts, in nats a token.
        allow_ops: names of operations that are allowed beside ours, for layers of your own.
        rows: what a task is asked, in place of the rows of the folder: a list of dicts, with what is right where it is known.
        max_metric_loss: how much worse than its task a quantised file may be.

    Returns:
        A `Report`; `report.ok` says whether all is well, `print(report)` shows the table. An artifact that is damaged or
        refused is a row of it, with the reason.

    Raises:
        FileNotFoundError: an artifact is missing.
        ImportError: ai-edge-litert is missing, and a .tflite file is to be verified.
        ValueError: the run folder is damaged, a prompt is no text, or prompts are given for a task that answers rows.
    """
    artifacts = [str(artifact) for artifact in artifacts]
    for artifact in artifacts:
        if not pathlib.Path(artifact).exists():
            raise FileNotFoundError(f"there is no artifact {artifact!r}")
        if artifact.endswith(".tflite") and importlib.util.find_spec("ai_edge_litert") is None:
            raise ImportError("a .tflite file is run with ai-edge-litert: pip install ai-edge-litert")
    inspections = [inspect(artifact, allow_ops) for artifact in artifacts]
    with as_run_folder(task) as run_folder, tempfile.TemporaryDirectory() as folder:
        verb = verb_in(run_folder)
        if (rows if verb is None else prompts) is not None:
            wrong, wanted = ("rows", "prompts") if verb is None else ("prompts", "rows")
            raise ValueError(f"the run holds a task that is asked with {wanted}, and {wrong} were given")
        if verb is not None:
            asked = rows or rows_of(run_folder, verb, tokenizers.load(run_folder / "tokenizer"))
            options = (folder, imports, max_metric_loss, allow_ops)
            return Report(row_agreements(run_folder, asked, artifacts, inspections, *options))
        if prompts is None:
            prompts = _stored_prompts(run_folder / PROMPTS)
        _check_prompts(prompts)
        references = {}
        for (limit, most), numbers in _bounds(inspections).items():
            path = os.path.join(folder, "reference.npz")
            tell("the model itself")
            run_clean(
                "keras_seqlm.export.reference:write_reference",
                imports=imports,
                run_folder=str(run_folder),
                prompts=list(prompts),
                path=path,
                limit=limit,
                max_prompt_tokens=most,
            )
            with np.load(path) as stored:
                expected = dict(stored)
            expected |= {"asked": from_json(str(expected["asked"])), "facts": json.loads(str(expected["facts"]))}
            references |= dict.fromkeys(numbers, expected)
        tokenizer = tokenizers.load(run_folder / "tokenizer")
        return Report(
            _agreement(artifact, found, references[number], tokenizer, folder, max_loss_increase, allow_ops)
            for number, (artifact, found) in enumerate(zip(artifacts, inspections, strict=True))
        )


def _bounds(inspections):
    """The numbers of the artifacts by how many tokens they write and read at most: (limit, max_prompt_tokens) -> numbers.

    Each is compared with a model that writes and reads as few. A LiteRT file writes as many as it is asked for, so that
    it goes with a SavedModel that does, and with it what is not run at all.
    """
    bounds = {}
    for number, found in enumerate(inspections):
        limit = found.sidecar.get("max_new_tokens_limit")
        if not found.reasons and limit is not None:
            bounds.setdefault((limit, found.sidecar["max_prompt_tokens"]), []).append(number)
    for number in set(range(len(inspections))) - {number for numbers in bounds.values() for number in numbers}:
        found = inspections[number]
        fitting = [
            (limit, most)
            for limit, most in bounds
            if limit >= DEFAULT_NEW_TOKENS and (found.reasons or most == found.sidecar["max_prompt_tokens"])
        ]
        most = None if found.reasons else found.sidecar["max_prompt_tokens"]
        bounds.setdefault(fitting[0] if fitting else (DEFAULT_NEW_TOKENS, most), []).append(number)
    return bounds


def _stored_prompts(path):
    if not path.exists():
        return DEFAULT_PROMPTS
    prompts = read_json(path).get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts) or not prompts:
        raise ValueError(f'{path} is damaged: expected a list of texts under "prompts"')
    return prompts


def _check_prompts(prompts):
    """A ValueError that names the first that is no text: JSON can spell half a surrogate pair, and UTF-8 cannot."""
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"a prompt must be a text, got {prompt!r}")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            half = f"its character {error.start} is half a surrogate pair, which UTF-8 lacks"
            raise ValueError(f"the prompt {prompt!r} is no text: {half}") from error


def _agreement(artifact, found, expected, tokenizer, folder, max_loss_increase, allow_ops):
    saved = found.kind == "saved-model"
    result = Agreement(
        artifact=artifact,
        kind=found.kind,
        prompts=len(expected["asked"]["greedy"]),
        agree=0,
        exempt_steps=0,
        same_choices=None,
        max_logit_difference=None,
        loss_increase=None,
        relative_difference=None,
        max_loss_increase=max_loss_increase,
        forbidden_ops=found.forbidden_ops,
        reasons=found.reasons or contradictions(found, expected["facts"]),
    )
    tell(artifact)
    if result.reasons or result.forbidden_ops:
        return result
    try:
        got = _asked(artifact, expected, folder, allow_ops)
        result.reasons += wrong_shapes(expected, got)
        if result.reasons:
            return result
        ways = _ways_of(expected["ways"]) if saved else _lite_ways(expected["asked"])
        agrees, result.exempt_steps, complaints = compare_texts(ways, expected, got)
        result.reasons += wrong_answers(expected, got, tokenizer) if saved else []
        if saved and not complaints and not result.reasons:  # compiling takes long
            got |= _asked(artifact, expected, folder, allow_ops, xla=True)
            compiled, _, complaints = compare_texts(_ways_of(expected["xla_ways"]), expected, got)
            agrees = [one and other for one, other in zip(agrees, compiled, strict=True)]
    except DoesNotRunError as error:
        result.reasons.append(str(error))
        return result
    result.agree = sum(agrees)
    _hold_to_logits(result, complaints, ways, expected, got)
    if not result.reasons:
        result.reasons += wrong_vectors(found.sidecar["test_vectors"].get("written"), tokenizer, ways, expected, got)
    return result


def _hold_to_logits(result, complaints, ways, expected, got):
    """The figures of the logits, and what is wrong by them and by the texts."""
    result.same_choices, difference, relative, increase = compare_logits(expected, got)
    result.max_logit_difference, result.relative_difference, result.loss_increase = difference, relative, increase
    if result.kind != "saved-model":
        most_apart = TIE if result.exact else MOST_APART[result.kind] * spread(expected)
        result.reasons += wrong_readings(most_apart, expected, got)
    if result.exact:
        result.first_disagreement = complaints[0] if complaints else ""
        result.reasons += complaints
        result.reasons += [f"logits: they differ from the model's by {difference:.1e}"] if not difference <= TIE else []
        return
    result.reasons += wrong_cuts(ways, expected, got)
    if not abs(increase) <= result.max_loss_increase:
        result.reasons.append(
            f"its weights are not the model's: of the model's texts it has a loss that is {increase:+.4f} nats a token off, "
            f"and at most {result.max_loss_increase:+.4f} is allowed"
        )
    elif not relative <= MOST_APART[result.kind]:
        result.reasons.append(
            f"its weights are not the model's: the logits differ by {relative:.2f} of their spread, and at most "
            f"{MOST_APART[result.kind]:.2f} is allowed"
        )


def _ways_of(text):
    return [Way(name, signature, rows, options) for name, signature, rows, options in json.loads(str(text))]


def _lite_ways(asked):
    """A LiteRT file is asked mode by mode, a row at a time."""
    return [Way(mode, mode, [(mode, row) for row in range(len(rows))]) for mode, rows in asked.items()]


def _asked(artifact, expected, folder, allow_ops, xla=False):
    """The answer of `seqlm_runtime.replay`."""
    asked = {name: value for name, value in expected.items() if "logits" not in name}
    asked |= {"asked": as_json(expected["asked"]), "facts": "", "ways": expected["xla_ways" if xla else "ways"]}
    asked |= {"artifact": artifact, "xla": xla, "allow_ops": json.dumps(list(allow_ops))}
    return replayed("seqlm_runtime.replay", asked, folder, xla)
