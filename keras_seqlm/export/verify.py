"""The proof that an artifact says what its model says: token by token, and operation by operation."""

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

from keras_seqlm.export.clean_process import run_clean
from keras_seqlm.export.loading import load_reference
from keras_seqlm.export.run_folder import PROMPTS, as_run_folder
from keras_seqlm.export.stages import tell
from keras_seqlm.files import read_json
from seqlm_runtime.graph_file import operations
from seqlm_runtime.replay import MODES
from seqlm_runtime.sampler import sample

NEW_TOKENS = 32
TIE = 1e-4  # two logits, or a draw and a border, that are closer than this may go either way
DEFAULT_PROMPTS = ("", "The", "It is", "In the", "A ", "If you", "This ", "1. ", "What", "and then")
# A server's graph touches no file, runs no Python and keeps no table that grows with its traffic.
_FORBIDDEN = {"ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "PyFuncStateless", "MutableHashTableV2"}
_ERROR = re.compile(r"[\w.]*(Error|Exception): ")
_LITERT_FORBIDDEN = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}


@dataclasses.dataclass
class Agreement:
    """How one artifact stands to its model."""

    artifact: str
    kind: str  # "saved-model", "litert", "litert-int8" or "litert-float16"
    prompts: int
    agree: int
    exempt_steps: int
    same_choices: float  # share of the steps along the model's own texts where both choose the same token
    max_logit_difference: float
    forbidden_ops: list
    first_disagreement: str = ""

    @property
    def gated(self):
        """Whether a disagreement is a failure: quantised weights are other weights, so they are only reported."""
        return self.kind in ("saved-model", "litert")

    @property
    def ok(self):
        """Whether the artifact may be shipped."""
        exact = self.agree == self.prompts and self.max_logit_difference <= TIE
        return not self.forbidden_ops and (exact or not self.gated)


class Report(list):
    """A list of `Agreement`, one an artifact, that prints as a table."""

    @property
    def ok(self):
        """Whether every artifact is."""
        return all(agreement.ok for agreement in self)

    def to_dict(self):
        """What `seqlm verify --json` writes: the artifact -> its figures."""
        return {a.artifact: {**dataclasses.asdict(a), "ok": a.ok, "gated": a.gated} for a in self}

    def table(self):
        """The titles and the rows of the table, as str."""
        titles = (
            "artifact",
            "kind",
            "agree",
            "same choices",
            "exempt steps",
            "max |logit difference|",
            "forbidden ops",
        )
        rows = []
        for a in self:
            verdict = "ok" if a.ok and a.gated else "reported" if a.ok else "FAILED"
            figures = (
                f"{a.agree}/{a.prompts}",
                f"{a.same_choices:.1%}",
                str(a.exempt_steps),
                f"{a.max_logit_difference:.1e}",
            )
            rows.append((a.artifact, a.kind, *figures, ", ".join(a.forbidden_ops) or "none", verdict))
        return (*titles, ""), rows

    def notes(self):
        """What stands below the table: each artifact's first disagreement."""
        return [f"{a.artifact}: {a.first_disagreement}" for a in self if a.first_disagreement]

    def __str__(self):
        titles, rows = self.table()
        widths = [max(len(row[i]) for row in [titles, *rows]) for i in range(len(titles))]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [titles, *rows])
        return "\n".join([*lines, *self.notes()])


def verify(task, *artifacts, prompts=None, imports=()):
    """Compare exported artifacts with the model they came from.

    The model is read back at float32 in a clean TensorFlow process and writes 32 tokens after each of up to 20 prompts,
    greedily and once sampled. Each artifact, in a process of its own that imports neither TensorFlow's Python nor Keras
    (the SavedModel in TensorFlow's C library, XLA off, as the stock server runs it), writes by itself and reads the
    model's text. Its ids must be the model's up to the first step whose choice hangs on less than 1e-4; from there its
    choice along the model's text must be the model's, but for such steps, which are counted. Logits must lie within
    1e-4. The list of operations must hold no XLA (SavedModel), no custom, Flex or variable op (LiteRT).

    Args:
        task: a `TextGeneration`, or the path of a run folder, whose `prompts.json` gives the prompts.
        *artifacts: version folders of SavedModels and .tflite files.
        prompts: texts to use instead.
        imports: modules to import first, for your own registered classes.

    Returns:
        A `Report`; `report.ok` says whether all is well, `print(report)` shows the table.

    Raises:
        FileNotFoundError: an artifact is missing.
        ValueError: an artifact is damaged or of another tokenizer.
    """
    for artifact in artifacts:
        if not pathlib.Path(artifact).exists():
            raise FileNotFoundError(f"there is no artifact {str(artifact)!r}")
    with as_run_folder(task) as run_folder, tempfile.TemporaryDirectory() as folder:
        if prompts is None:
            prompts = _stored_prompts(run_folder / PROMPTS)
        prompts, reference = list(prompts), os.path.join(folder, "reference.npz")
        tell("the model itself")
        run_clean(
            "keras_seqlm.export.verify:write_reference",
            imports=imports,
            run_folder=str(run_folder),
            prompts=prompts,
            path=reference,
        )
        return Report(_compare(str(artifact), prompts, reference, folder) for artifact in artifacts)


def _stored_prompts(path):
    if not path.exists():
        return DEFAULT_PROMPTS
    prompts = read_json(path).get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts) or not prompts:
        raise ValueError(f'{path} is damaged: expected a list of texts under "prompts"')
    return prompts


def write_reference(run_folder, prompts, path):
    """The model's half, in the clean process: its texts, and its logits along them."""
    task = load_reference(run_folder)
    model, context = task.model, task.model.max_length
    keep = None if context is None else max(1, context - 1)
    content = {
        "prompts": json.dumps(prompts),
        "max_new_tokens": NEW_TOKENS,
        "eos_id": -1 if task.tokenizer.eos_id is None else task.tokenizer.eos_id,
        "suppressed_ids": np.array(task.tokenizer.suppressed_ids, "int32"),
    }
    for mode, options in MODES.items():
        for row, result in enumerate(task.write(prompts, NEW_TOKENS, **options)):
            ids = task.ids_of(prompts[row])
            ids = ids if keep is None else ids[-keep:]
            text = np.concatenate([ids, np.asarray(result.token_ids, "int32")])
            content[f"{mode}_ids_{row}"] = text
            content[f"{mode}_first_{row}"] = len(ids)
            content[f"{mode}_ended_{row}"] = result.stop_reason == "eos"
            content[f"{mode}_text_{row}"] = result.text
            content[f"{mode}_logits_{row}"] = np.asarray(model(text[None]))[0, len(ids) - 1 :]
    np.savez(path, **content)


def _compare(artifact, prompts, reference, folder):
    tell(artifact)
    kind = _kind(artifact)
    answer = os.path.join(folder, "answer.npz")
    with np.load(reference) as stored:
        expected = dict(stored)
    request = os.path.join(folder, "request.npz")
    np.savez(request, artifact=artifact, **{k: v for k, v in expected.items() if "logits" not in k})
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "seqlm_runtime.replay", request, answer], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with exit code {done.returncode}"]
        errors = [i for i, line in enumerate(said) if _ERROR.match(line)]  # the last one is what the runner raised
        raise ValueError(f"{artifact} does not run: {' '.join(said[errors[-1] if errors else -1 :])[-1500:]}")
    with np.load(answer) as stored:
        got = dict(stored)
    agreeing, exempt, difference, first, same = 0, 0, 0.0, "", []
    for row in range(len(prompts)):
        complaints = []
        for mode in MODES:
            complaint, ties = compare_text(mode, row, expected, got)
            complaints += [complaint] if complaint else []
            exempt += ties
            logits = [source[f"{mode}_logits_{row}"] for source in (expected, got)]
            difference = max(difference, _distance(*logits))
            first_step = int(expected[f"{mode}_first_{row}"])
            choices = [_choices(part, mode, first_step, expected["suppressed_ids"])[0] for part in logits]
            same += (choices[0] == choices[1]).tolist()
        agreeing += not complaints
        if complaints and not first:
            first = f"prompt {row} ({prompts[row]!r}), {complaints[0]}"
    return Agreement(
        artifact=artifact,
        kind=kind,
        prompts=len(prompts),
        agree=agreeing,
        exempt_steps=exempt,
        same_choices=float(np.mean(same)) if same else 1.0,
        max_logit_difference=difference,
        forbidden_ops=forbidden_ops(artifact),
        first_disagreement=first if kind in ("saved-model", "litert") else "",
    )


def compare_text(mode, row, expected, got):
    """One text of the artifact beside the model's.

    Returns:
        What is wrong ("" where nothing is), and how many steps were exempt because their choice hangs on a tie.
    """
    first, eos_id = int(expected[f"{mode}_first_{row}"]), int(expected["eos_id"])
    wanted = expected[f"{mode}_ids_{row}"][first:].tolist()
    written = got[f"{mode}_new_{row}"].tolist()
    steps = len(wanted) + bool(expected[f"{mode}_ended_{row}"])
    choices, margins = _choices(expected[f"{mode}_logits_{row}"][:steps], mode, first, expected["suppressed_ids"])
    ties = margins < TIE
    # A text that the model ended has the end id as its last choice; so has the artifact's that stops short.
    wanted_choices = wanted + [eos_id] * (steps - len(wanted))
    written_choices = (written + [eos_id])[:steps] if len(written) < steps else written[:steps]
    tie = int(np.argmax(ties)) if ties.any() else steps
    if wanted_choices == written_choices:
        if wanted != written:
            return f"{mode}: it writes {len(written)} tokens, not {len(wanted)}", int(ties.sum())
        if not _same_text(expected[f"{mode}_text_{row}"], got[f"{mode}_text_{row}"]):
            return f"{mode}: the ids agree, and their text does not", 0
        return "", int(ties.sum())
    differs = next(i for i, (a, b) in enumerate(zip(wanted_choices, written_choices, strict=True)) if a != b)
    if differs < tie:
        return f"{mode}: step {differs} is {written_choices[differs]}, not {wanted_choices[differs]}", int(ties.sum())
    taught, _ = _choices(got[f"{mode}_logits_{row}"][:steps], mode, first, expected["suppressed_ids"])
    wrong = np.flatnonzero((taught != choices) & ~ties)
    if len(wrong):
        return f"{mode}: along the model's text step {wrong[0]} is {taught[wrong[0]]}, not {choices[wrong[0]]}", int(
            ties.sum()
        )
    return "", int(ties.sum())


def _choices(logits, mode, first, suppressed_ids):
    """The sampler's choice and its margin at each step of a text."""
    if not len(logits):
        return np.zeros(0, "int32"), np.zeros(0)
    positions = first + np.arange(len(logits))
    return sample(logits, MODES[mode], None, positions, tuple(suppressed_ids.tolist()), with_margin=True)


def _distance(expected, got):
    distance = np.abs(expected - got)
    return float(np.max(np.where(np.isnan(distance), np.inf, distance), initial=0.0))  # `max` would pass over NaN


def _same_text(expected, got):
    return str(expected).encode() == got.tobytes()


def _kind(artifact):
    if not artifact.endswith(".tflite"):
        return "saved-model"
    quantize = read_json(pathlib.Path(artifact).with_suffix(".json")).get("quantize", "none")
    return "litert" if quantize == "none" else f"litert-{quantize}"


def forbidden_ops(artifact):
    """The operations that an artifact must not hold: a sorted list, empty where all is well."""
    if artifact.endswith(".tflite"):
        return _litert_forbidden(artifact)
    found = operations(artifact)
    wrong = set()
    for signature, ops in found.signatures.items():
        wrong |= ops & _FORBIDDEN
        wrong |= set() if signature == "generate_xla" else set(found.xla(signature))
    return sorted(wrong)


def _litert_forbidden(path):
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ImportError("a .tflite file is read with ai-edge-litert: pip install ai-edge-litert")
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.Model.GetRootAs(pathlib.Path(path).read_bytes(), 0)
    wrong = set()
    for i in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(i)
        name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "UNKNOWN")
        if name == "CUSTOM":
            wrong.add(f"CUSTOM:{(code.CustomCode() or b'').decode()}")
        elif name in _LITERT_FORBIDDEN:
            wrong.add(name)
    return sorted(wrong)
