"""The proof that an artifact says what its model says: read before it is loaded, and then asked in every way it can be."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

from keras_seqlm import tokenizers
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
from keras_seqlm.export.run_folder import PROMPTS, as_run_folder
from keras_seqlm.export.stages import tell
from keras_seqlm.files import read_json

DEFAULT_PROMPTS = ("", "The", "It is", "In the", "A ", "If you", "This ", "1. ", "What", "and then")
MAX_LOSS_INCREASE = 0.05  # nats a token
EXACT = ("saved-model", "litert")  # kinds whose weights are the model's own
# How far the logits of other weights may be from the model's, as a part of the spread of these: three times what the worst
# of our models has, rounded up.
MOST_APART = {"litert-float16": 0.02, "litert-int8": 0.3}
_QUICK_XLA = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # known to TensorFlow 2.21
_SECONDS = 3600  # for one artifact
_ERROR = re.compile(r"[\w.]*(Error|Exception|RefusedOps): ")


@dataclasses.dataclass
class Agreement:
    """How one artifact stands to its model; of one that was refused and not run the figures are None."""

    artifact: str
    kind: str  # "saved-model", "litert", "litert-int8" or "litert-float16"
    prompts: int
    agree: int
    exempt_steps: int
    same_choices: float | None  # share of the steps along the model's own texts where both choose the same token
    max_logit_difference: float | None
    forbidden_ops: list
    first_disagreement: str = ""
    loss_increase: float | None = 0.0  # nats a token, along the model's own texts
    relative_difference: float | None = 0.0  # of the logits, as a part of their spread
    max_loss_increase: float = MAX_LOSS_INCREASE
    reasons: list = dataclasses.field(default_factory=list)  # why it may not be shipped, in sentences

    @property
    def exact(self):
        """Whether its every choice has to be the model's; quantised weights are other weights, held to loss and logits."""
        return self.kind in EXACT

    @property
    def ok(self):
        """Whether the artifact may be shipped."""
        if self.forbidden_ops or self.reasons:
            return False
        if self.exact:
            return self.agree == self.prompts and self.max_logit_difference <= TIE
        most = MOST_APART[self.kind]
        return abs(self.loss_increase) <= self.max_loss_increase and self.relative_difference <= most

    @property
    def figure(self):
        """What it was held to, in a few letters: "20/20" texts, "loss +0.0003" or "not run"."""
        if self.same_choices is None:
            return "not run"
        return f"{self.agree}/{self.prompts}" if self.exact else f"loss {self.loss_increase:+.4f}"


class Report(list):
    """A list of `Agreement`, one an artifact, that prints as a table."""

    @property
    def ok(self):
        """Whether every artifact is."""
        return all(agreement.ok for agreement in self)

    def to_dict(self):
        """What `seqlm verify --json` writes: the artifact -> its figures."""
        return {a.artifact: {**_for_json(dataclasses.asdict(a)), "ok": a.ok, "exact": a.exact} for a in self}

    def table(self):
        """The titles and the rows of the table, as str."""
        titles = ("artifact", "kind", "agreement", "same choices", "exempt steps", "max |logit difference|", "")
        rows = []
        for a in self:
            figures = [a.figure, "-", "-", "-"]
            if a.same_choices is not None:
                figures[1:] = f"{a.same_choices:.1%}", str(a.exempt_steps), f"{a.max_logit_difference:.1e}"
            rows.append((a.artifact, a.kind, *figures, "ok" if a.ok else "FAILED"))
        return titles, rows

    def notes(self):
        """What stands below the table: each artifact's reasons."""
        return [f"{a.artifact}: {reason}" for a in self for reason in a.reasons or [a.first_disagreement] if reason]

    def __str__(self):
        titles, rows = self.table()
        widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [titles, *rows])
        return "\n".join([*lines, *self.notes()])


def _for_json(figures):
    """JSON has no numbers that are not finite."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in figures.items()
    }


def verify(task, *artifacts, prompts=None, imports=(), max_loss_increase=MAX_LOSS_INCREASE, allow_ops=()):
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

    Args:
        task: a `TextGeneration`, or the path of a run folder, whose `prompts.json` gives the prompts.
        *artifacts: version folders of SavedModels and .tflite files.
        prompts: texts to use instead.
        imports: modules to import first, for your own registered classes.
        max_loss_increase: how much less probable, or more, a quantised file may find the model's texts, in nats a token.
        allow_ops: names of operations that are allowed beside ours, for layers of your own.

    Returns:
        A `Report`; `report.ok` says whether all is well, `print(report)` shows the table. An artifact that is damaged or
        refused is a row of it, with the reason.

    Raises:
        FileNotFoundError: an artifact is missing.
        ImportError: ai-edge-litert is missing, and a .tflite file is to be verified.
        ValueError: the run folder is damaged, or a prompt is no text.
    """
    artifacts = [str(artifact) for artifact in artifacts]
    for artifact in artifacts:
        if not pathlib.Path(artifact).exists():
            raise FileNotFoundError(f"there is no artifact {artifact!r}")
        if artifact.endswith(".tflite") and importlib.util.find_spec("ai_edge_litert") is None:
            raise ImportError("a .tflite file is run with ai-edge-litert: pip install ai-edge-litert")
    inspections = [inspect(artifact, allow_ops) for artifact in artifacts]
    with as_run_folder(task) as run_folder, tempfile.TemporaryDirectory() as folder:
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
        got = _replayed(artifact, expected, folder, allow_ops)
        result.reasons += wrong_shapes(expected, got)
        if result.reasons:
            return result
        ways = _ways_of(expected["ways"]) if saved else _lite_ways(expected["asked"])
        agrees, result.exempt_steps, complaints = compare_texts(ways, expected, got)
        result.reasons += wrong_answers(expected, got, tokenizer) if saved else []
        if saved and not complaints and not result.reasons:  # compiling takes long
            got |= _replayed(artifact, expected, folder, allow_ops, xla=True)
            compiled, _, complaints = compare_texts(_ways_of(expected["xla_ways"]), expected, got)
            agrees = [one and other for one, other in zip(agrees, compiled, strict=True)]
    except _DoesNotRunError as error:
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


class _DoesNotRunError(Exception):
    """The artifact's process ended without an answer; the message says how."""


def _replayed(artifact, expected, folder, allow_ops, xla=False):
    """The answer of `seqlm_runtime.replay`, from a process of its own."""
    request, answer = (os.path.join(folder, f"{name}.npz") for name in ("request", "answer"))
    pathlib.Path(answer).unlink(missing_ok=True)
    asked = {name: value for name, value in expected.items() if "logits" not in name}
    asked |= {"asked": as_json(expected["asked"]), "facts": "", "ways": expected["xla_ways" if xla else "ways"]}
    np.savez(request, artifact=artifact, xla=xla, allow_ops=json.dumps(list(allow_ops)), **asked)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    if xla:  # what is compiled is verified, and not the compiler's optimisations, which take twice as long
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_QUICK_XLA}".strip()
    doing = "generate_xla does not run" if xla else "it does not run"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "seqlm_runtime.replay", request, answer],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise _DoesNotRunError(f"{doing}: after {_SECONDS} seconds it had not ended") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"]
        errors = [i for i, line in enumerate(said) if _ERROR.match(line)]  # the last one is what the runner raised
        raise _DoesNotRunError(f"{doing}: {' '.join(said[errors[-1] if errors else -1 :])[-1500:]}")
    with np.load(answer) as stored:
        return dict(stored)
