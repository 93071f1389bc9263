"""What is read from an artifact without running it: whether it may be run, what it is, and what it says of its model."""

import dataclasses
import json
import pathlib

import numpy as np

from keras_seqlm.export.row_sidecar import row_entry
from keras_seqlm.export.row_signatures import lite_lengths, lite_name, optional_inputs, row_signatures
from keras_seqlm.export.sidecar import signature_entry
from keras_seqlm.export.signatures import DEFAULT_NEW_TOKENS
from keras_seqlm.generation.samplers import OPTIONS
from seqlm_runtime.graph_file import graph_file, read_graph
from seqlm_runtime.lite_file import parse_lite_file
from seqlm_runtime.lite_task import read_task_sidecar
from seqlm_runtime.litert import read_sidecar, read_tokenizer, tokenizer_folder
from seqlm_runtime.op_gate import RefusedOps, check_lite_file, check_saved_model, printable, refused_in, refused_lite
from seqlm_runtime.row_tasks import task_of
from seqlm_runtime.seals import SEAL, read_sealed
from seqlm_runtime.warm_up import read_defaults, read_warm_up
from seqlm_runtime.wire import Message

_TEXT = {"text": object}
_WRITTEN = {"generated_text": object, "token_ids": np.int32, "num_tokens": np.int32, "truncated": np.bool_}
_REQUEST = {**_TEXT, "max_new_tokens": np.int32} | {name: np.dtype(kind).type for name, (kind, _) in OPTIONS.items()}
# What each signature of a SavedModel takes and gives.
SIGNATURES = {
    "serving_default": (_TEXT, _WRITTEN),
    "generate_text": (_TEXT, _WRITTEN),
    "generate": (_REQUEST, _WRITTEN),
    "generate_xla": (_REQUEST, _WRITTEN),
    "score": (_TEXT, {"log_probability": np.float32, "num_tokens": np.int32, "truncated": np.bool_}),
    "logits": ({"token_ids": np.int32, "lengths": np.int32}, {"logits": np.float32}),
}
# What stands in for an input that a request leaves out, by signature.
_STANDS_IN = {"max_new_tokens": DEFAULT_NEW_TOKENS, **{name: value for name, (_, value) in OPTIONS.items()}}
_DEFAULTS = {"generate": _STANDS_IN, "generate_xla": _STANDS_IN}
_BOUNDS = ("max_new_tokens_limit", "max_prompt_tokens")
_SAVED_FACTS = ("model", "max_length", "vocabulary_size", "tokenizer_hash")
_TOKENIZER = "assets.extra/tokenizer/"
_SAID = ("format", "model", "max_length", "max_prompt_tokens", "vocabulary_size", "tokenizer_hash", "signatures")
_SAID += ("tokenizer", "context", "stop", "sampler", "test_vectors")
# The fields of a sidecar that are held to the model, and those that are held to the files or to answers.
_FIELDS = {
    "saved-model": (_SAID, ("max_new_tokens_limit", "files", SEAL)),
    "litert": (
        (*_SAID, "state", "prefill_lengths", "bos_id", "eos_id", "suppressed_ids", "tokenizer_files"),
        ("sha256", "quantize", SEAL),
    ),
}
_ROW_SAID = (
    "format",
    "model",
    "backbone",
    "max_length",
    "vocabulary_size",
    "tokenizer_hash",
    "max_prompt_tokens",
    "task",
)
_ROW_SAID += ("tokenizer", "test_vectors", "signatures")
_ROW_FIELDS = {
    "saved-model": (_ROW_SAID, ("files", SEAL)),
    "litert": ((*_ROW_SAID, "tokenizer_files"), ("sha256", "quantize", SEAL)),
}
KINDS = ("litert", "litert-float16", "litert-int8")  # from the exact to the coarse
_KIND_OF = {"none": "litert", "float16": "litert-float16", "int8": "litert-int8"}


@dataclasses.dataclass
class Inspection:
    """What `inspect` found: `reasons` not to run it, in words, and `forbidden_ops`, the names of operations.

    `signatures` is what a sidecar should say of those of a SavedModel, and `tokenizer` the name of the folder that holds a
    LiteRT file's.
    """

    kind: str
    signatures: dict = dataclasses.field(default_factory=dict)
    tokenizer: str = "tokenizer"
    sidecar: dict = dataclasses.field(default_factory=dict)
    reasons: list = dataclasses.field(default_factory=list)
    forbidden_ops: list = dataclasses.field(default_factory=list)


def inspect(artifact, allow_ops=()):
    """Read an artifact, of which nothing is loaded or run.

    Args:
        artifact: path of a version folder or of a .tflite file.
        allow_ops: names of operations that are allowed beside ours.

    Returns:
        `Inspection`.
    """
    found = Inspection(kind="litert" if artifact.endswith(".tflite") else "saved-model")
    try:
        (_inspect_lite if artifact.endswith(".tflite") else _inspect_saved)(artifact, allow_ops, found)
    except RefusedOps as error:
        found.forbidden_ops = error.ops
        found.reasons.append(str(error))
    except (ValueError, OSError) as error:
        found.reasons.append(str(error))
    found.reasons = list(map(printable, found.reasons))
    return found


def _inspect_saved(path, allow_ops, found):
    found.sidecar, graph = check_saved_model(path, allow_ops)
    if "task" in found.sidecar:
        inspect_rows(path, graph, found)
        return
    missing = [name for name in _SAVED_FACTS if name not in found.sidecar]
    missing += [name for name in _BOUNDS if not _is_bound(found.sidecar.get(name))]
    if missing:
        raise ValueError(f"{path} is damaged: in its sidecar {missing} are missing, or no numbers above 0.")
    found.forbidden_ops = _xla_in(graph)
    found.reasons += [f"a server without XLA cannot run {name}" for name in found.forbidden_ops]
    found.reasons += _wrong_signatures(graph.signatures)
    found.reasons += _wrong_defaults(path)
    found.reasons += _wrong_warm_up(path, graph.signatures)
    if not found.reasons:
        found.signatures = {name: _entry(name, *graph.signatures[name]) for name in graph.signatures}
    if {"serving_default", "generate_text"} <= set(graph.signatures) and not _same_function(graph):
        found.reasons.append("serving_default is another function than generate_text")


def _entry(name, inputs, outputs, entry=signature_entry, defaults=None):
    """What a sidecar should say of a signature, by what stands in the graph."""
    inputs, outputs = (
        {
            key: ("string" if info.dtype is object else np.dtype(info.dtype).name, info.shape and list(info.shape))
            for key, info in infos.items()
        }
        for infos in (inputs, outputs)
    )
    return entry(name, inputs, outputs, (_DEFAULTS if defaults is None else defaults).get(name, ()))


def _is_bound(number):
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**31


def inspect_rows(path, graph, found):
    """Look at a SavedModel of a task that answers rows; see `inspect`."""
    task = task_of(found.sidecar)
    wanted, optional = row_signatures(task), optional_inputs(task)
    defaults = {"serving_default": dict.fromkeys(optional, b"")} if optional else {}
    found.forbidden_ops = _xla_in(graph)
    found.reasons += [f"a server without XLA cannot run {name}" for name in found.forbidden_ops]
    found.reasons += _wrong_signatures(graph.signatures, wanted)
    found.reasons += _wrong_defaults(path, wanted, defaults)
    found.reasons += _wrong_warm_up(path, graph.signatures, wanted, defaults)
    if not found.reasons:
        entry = row_entry(task.verb)
        found.signatures = {
            name: _entry(name, *signature, entry, defaults) for name, signature in graph.signatures.items()
        }


def _xla_in(graph):
    return sorted(
        {name for signature in graph.signatures if signature != "generate_xla" for name in graph.xla(signature)}
    )


def _wrong_signatures(signatures, ours=SIGNATURES):
    wrong = [f"the signature {name!r} is missing" for name in ours if name not in signatures]
    wrong += [f"the signature {name!r} is none of ours" for name in signatures if name not in ours]
    for name in sorted(set(signatures) & set(ours)):
        for side, wanted, given in zip(("takes", "gives"), ours[name], signatures[name], strict=True):
            types = {key: info.dtype for key, info in given.items()}
            if types != wanted:
                wrong.append(f"the signature {name!r} {side} {_shown(types)}, and not {_shown(wanted)}")
    return wrong


def _shown(types):
    return ", ".join(f"{key} ({np.dtype(kind).name if kind else kind})" for key, kind in sorted(types.items()))


def _wrong_defaults(path, ours=SIGNATURES, defaults=_DEFAULTS):
    """What stands in for inputs that are left out, where it is not what the sidecar says and what Python takes."""
    with open(graph_file(path), "rb") as stream:
        found = read_defaults(Message(Message(stream.read()).block(2)))
    wrong = []
    for name in sorted({*ours, *found}):
        wanted, given = defaults.get(name, {}), found.get(name, {})
        for key in sorted({*wanted, *given}):
            right = key in wanted and key in given
            if right:
                value = np.array([wanted[key]], ours[name][0][key])
                right = given[key].dtype == value.dtype and np.array_equal(given[key], value)
            if not right:
                said = given[key].tolist() if key in given else "nothing"
                wrong.append(f"{name} takes {said} for {key} where a request leaves it out, not {wanted.get(key)}")
    return wrong


def _wrong_warm_up(path, signatures, ours=SIGNATURES, defaults=_DEFAULTS):
    """A request that fails keeps a server from loading the model: those that cannot be answered by any of ours."""
    wrong = []
    for name, inputs in read_warm_up(path):
        if name == "generate_xla" or name not in ours or name not in signatures:
            wrong.append(f"its warm-up asks for the signature {name!r}, which a stock server does not answer")
            continue
        wanted = ours[name][0]
        if set(inputs) - set(wanted) or set(wanted) - set(inputs) - set(defaults.get(name, ())):
            wrong.append(f"its warm-up gives {name} the inputs {sorted(inputs)}, and it takes {sorted(wanted)}")
            continue
        types = {key: np.dtype(value.dtype).type for key, value in inputs.items()}
        types = {key: object if kind is np.object_ else kind for key, kind in types.items()}
        if types != {key: wanted[key] for key in inputs}:
            wrong.append(f"its warm-up gives {name} {_shown(types)}, and it takes {_shown(wanted)}")
        rows = {value.shape[:1] for value in inputs.values()}
        ranks = {key: 2 if key in ("token_ids", "token_types") else 1 for key in inputs}
        if len(rows) != 1 or ranks != {key: value.ndim for key, value in inputs.items()}:
            shapes = {key: value.shape for key, value in inputs.items()}
            wrong.append(f"its warm-up gives {name} inputs of the shapes {shapes}")
    return list(dict.fromkeys(wrong))


def _same_function(graph):
    """Whether serving_default and generate_text give, output by output, what one function gives."""
    default, plain = (graph.signatures[name].outputs for name in ("serving_default", "generate_text"))
    return set(default) == set(plain) and all(_alike(graph, default[key].tensor, plain[key].tensor) for key in plain)


def _alike(graph, first, second):
    """Whether two tensors of the graph are the same output of calls of the same function with the same variables."""
    (first, place), (second, other_place) = first.rsplit(":", 1), second.rsplit(":", 1)
    first, second = graph.nodes[first], graph.nodes[second]
    if place != other_place or first.op != second.op or len(first.inputs) != len(second.inputs):
        return False
    for given, other in zip(first.inputs, second.inputs, strict=True):
        texts = all(name in graph.nodes and graph.nodes[name].op == "Placeholder" for name in (given, other))
        if given != other and not texts:
            return False
    wrappers, bodies = [], []
    for node in (first, second):
        parts = [graph.functions[name].nodes for name in sorted(node.calls & set(graph.functions))]
        wrappers.append([[(inner.name, inner.op, inner.inputs) for inner in part] for part in parts])
        bodies.append(sorted(graph.called(inner for part in parts for inner in part)))
    return wrappers[0] == wrappers[1] and bodies[0] == bodies[1] and bool(bodies[0])


def _inspect_lite(path, allow_ops, found):
    found.sidecar = (read_task_sidecar if _is_of_a_task(path) else read_sidecar)(pathlib.Path(path))
    file = check_lite_file(path, found.sidecar, allow_ops)
    read_tokenizer(pathlib.Path(path), found.sidecar)
    found.tokenizer = tokenizer_folder(pathlib.Path(path)).name
    said = found.sidecar.get("quantize")
    found.kind, told = kind_of(file), _KIND_OF.get(said) if isinstance(said, str) else None
    if told is None or KINDS.index(told) < KINDS.index(found.kind):
        found.reasons.append(f"its sidecar calls it {said!r}, and its tensors make it {found.kind}")
    found.reasons += _not_finite(file)


def _is_of_a_task(path):
    return "task" in read_sealed(pathlib.Path(path).with_suffix(".json"))


def kind_of(file):
    """Which of `KINDS` the constants of a LiteRT file make it, whatever its sidecar says."""
    types = {tensor.dtype for graph in file.graphs for tensor in graph if len(tensor.content)}
    if types - {np.float32, np.float16, np.int32, np.int64, np.bool_}:
        return "litert-int8"
    return "litert-float16" if np.float16 in types else "litert"


def _not_finite(file):
    wrong, tensors = (
        [],
        {id(tensor.content): tensor for graph in file.graphs for tensor in graph if len(tensor.content)},
    )
    for tensor in tensors.values():  # the signatures share them
        numbers = tensor.values() if tensor.dtype in (np.float32, np.float16) else tensor.scales
        if not np.isfinite(numbers).all():
            wrong.append(f"the numbers of the tensor {tensor.name!r} are not all finite")
    return wrong[:3]


def forbidden_ops(artifact):
    """The names of the operations that an artifact must not hold, read without loading it: sorted, empty where all is well.

    Args:
        artifact: path of a version folder or of a .tflite file; its checksums are not looked at.
    """
    if artifact.endswith(".tflite"):
        return sorted(refused_lite(parse_lite_file(pathlib.Path(artifact).read_bytes())))
    graph = read_graph(artifact)
    return sorted({*refused_in(graph), *_xla_in(graph)})


def contradictions(found, facts):
    """Where a sidecar says something else of the model than the model, and where the tokenizer beside it is another.

    Args:
        found: an `Inspection`.
        facts: of the model, as `keras_seqlm.export.reference` gives them.

    Returns:
        A list of sentences.
    """
    saved, of_a_task = found.kind == "saved-model", "task" in facts
    if of_a_task != ("task" in found.sidecar):
        one, other = ("a task that answers rows", "a language model")[:: 1 if of_a_task else -1]
        return [f"it is an export of {other}, and the run is of {one}"]
    held, others = (_ROW_FIELDS if of_a_task else _FIELDS)["saved-model" if saved else "litert"]
    lite_signatures = _lite_row_signatures if of_a_task else _lite_signatures
    facts = {**facts, "signatures": found.signatures if saved else lite_signatures(facts)}
    facts["tokenizer"] = {**facts["tokenizer"], "folder": found.tokenizer}
    wanted, said = {name: facts[name] for name in held}, dict(found.sidecar)
    wrong = [f"its sidecar lacks {name}: export it again" for name in (*held, *others) if name not in said]
    wrong += [
        f"its sidecar has {name!r}, which no export of ours writes" for name in said if name not in (*held, *others)
    ]
    context, most = said.get("context"), said.get("max_prompt_tokens")
    if isinstance(context, dict) and context.get("max_prompt_tokens") != most:
        wrong.append(
            f"its sidecar says max_prompt_tokens {most!r}, and in context {context.get('max_prompt_tokens')!r}"
        )
        del said["context"]
    vectors = said.get("test_vectors")
    if isinstance(vectors, dict):  # those are held to the answers
        said["test_vectors"] = {name: vectors[name] for name in vectors if name != "written"}
    for name in sorted(held):
        if name in said:
            wrong += _differences(name, said[name], wanted[name])[:1]
    if saved:
        files = found.sidecar["files"]
        files = {name.removeprefix(_TOKENIZER): files[name] for name in files if name.startswith(_TOKENIZER)}
        if files != facts["tokenizer_files"]:
            wrong.append("the tokenizer beside its sidecar is not the model's")
    return [printable(sentence) for sentence in wrong]


def _differences(path, said, wanted):
    """Sentences about the places where two contents of JSON differ."""
    if isinstance(said, dict) and isinstance(wanted, dict):
        nothing = object()
        pairs = ((key, said.get(key, nothing), wanted.get(key, nothing)) for key in sorted({*said, *wanted}))
        return [
            sentence
            for key, one, other in pairs
            for sentence in (
                [f"its sidecar {'lacks' if one is nothing else 'has'} {path}.{key}"]
                if nothing in (one, other)
                else _differences(f"{path}.{key}", one, other)
            )
        ]
    if json.dumps(said, sort_keys=True) == json.dumps(wanted, sort_keys=True):
        return []
    return [f"its sidecar says {path} {_cut(said)}, and the model {_cut(wanted)}"]


def _cut(value):
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + " ..."


def _lite_row_signatures(facts):
    """What a LiteRT file's sidecar should say of the signatures of a task."""
    task, entry = facts["task"], row_entry(facts["task"]["name"])
    made = {}
    for length in lite_lengths(task["room"]):
        inputs = {"token_ids": ("int32", [1, length]), "lengths": ("int32", [1])}
        inputs |= {"token_types": ("int32", [1, length])} if "token_types" in task["reads"] else {}
        shape = [length if size is None else size for size in facts["shape"]]
        name = lite_name(task["name"], length)
        made[name] = entry(name, inputs, {task["numbers"]: ("float32", shape)})
    return made


def _lite_signatures(facts):
    """What a LiteRT file's sidecar should say of its signatures."""
    state = {name: (leaf["dtype"], leaf["shape"]) for name, leaf in facts["state"].items()}
    outputs = {"logits": ("float32", [1, facts["vocabulary_size"]]), **state}
    lengths = {**{f"prefill_{length}": length for length in facts["prefill_lengths"]}, "decode": 1}
    return {
        name: signature_entry(name, {"token_ids": ("int32", [1, length]), "lengths": ("int32", [1]), **state}, outputs)
        for name, length in lengths.items()
    }
