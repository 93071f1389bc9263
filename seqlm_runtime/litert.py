"""Run an exported .tflite language model, as a phone does: ai-edge-litert for the network, NumPy for the rest."""

import math
import pathlib
import threading
from numbers import Integral

import numpy as np

from seqlm_runtime import tokenizers
from seqlm_runtime.op_gate import check_lite_file
from seqlm_runtime.options import OPTIONS, check_option
from seqlm_runtime.prompts import MAX_PROMPT_TOKENS, has_text, read_ids
from seqlm_runtime.sampler import sample
from seqlm_runtime.seals import check_files, read_sealed

FORMAT = 1
_SIDECAR = {
    "sha256": str,
    "tokenizer_files": dict,
    "state": dict,
    "prefill_lengths": list,
    "max_length": (int, type(None)),
    "vocabulary_size": int,
    "bos_id": (int, type(None)),
    "eos_id": (int, type(None)),
    "suppressed_ids": list,
    "tokenizer_hash": str,
}


class LiteRTModel:
    """A language model in a .tflite file that writes text.

    Beside `NAME.tflite` lie `NAME.json`, which says what the file takes, and the folder `NAME.tokenizer`; a file
    `NAME-int8.tflite` or `NAME-float16.tflite` may share the folder of `NAME`. Threads may use one
    object at the same time; their steps are taken one after another. Before the file is loaded, all three are held to
    the checksums in the sidecar, and its operations to the list of those that our exports hold
    (`seqlm_runtime.op_gate`).

    Args:
        path: the .tflite file.
        num_threads: threads for one step; None leaves the choice to LiteRT.
        allow_ops: names of operations that are allowed beside ours, for layers of your own.

    Raises:
        FileNotFoundError: one of the three is missing.
        ValueError: they do not belong together, one was changed, or the sidecar is damaged.
        RefusedOps: it holds an operation that none of our exports holds; a ValueError.
        ImportError: ai-edge-litert is not installed.

    Attributes:
        sidecar: what `NAME.json` says. tokenizer, max_length, max_prompt_tokens, vocabulary_size,
            prefill_lengths: parts of it. file: what stands in the .tflite, read from its bytes.

    Example:

        model = LiteRTModel("saved_models/books.tflite")
        model.generate("It was a dark night", max_new_tokens=50, temperature=0.8, seed=1)["text"]
    """

    def __init__(self, path, num_threads=None, allow_ops=()):
        path = pathlib.Path(path)
        self.path = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"No LiteRT model at {path}.")
        self.sidecar = read_sidecar(path)
        self.file = check_lite_file(path, self.sidecar, allow_ops)
        self.tokenizer = read_tokenizer(path, self.sidecar)
        self.max_length = self.sidecar["max_length"]
        self.max_prompt_tokens = self.sidecar["max_prompt_tokens"]  # `read_sidecar` checks it
        self.vocabulary_size = self.sidecar["vocabulary_size"]
        self.prefill_lengths = sorted(self.sidecar["prefill_lengths"])
        self._runners = signature_runners(self.file, num_threads)
        self._one_call = threading.Lock()  # the signatures share the memory of one interpreter

    def initial_state(self):
        """The state before the first token: a dict of leaf name -> array of zeros."""
        return {name: np.zeros(leaf["shape"], leaf["dtype"]) for name, leaf in self.sidecar["state"].items()}

    def step(self, token_ids, state):
        """Read some tokens: a prompt, a part of one, or the token written last.

        Args:
            token_ids: one or more ids, (time,).
            state: what `initial_state` or the last `step` returned; it is left as it was.

        Returns:
            A pair of the logits (vocabulary,) after the last of them, and the state to read on with.

        Raises:
            ValueError: no id, an id outside the vocabulary, or more than `max_length` in all.
        """
        token_ids = np.asarray(token_ids)
        if token_ids.ndim != 1 or token_ids.size == 0 or token_ids.dtype.kind not in "iu":
            raise ValueError(f"token_ids must be one or more integers in a row; got {token_ids!r}.")
        if token_ids.min() < 0 or token_ids.max() >= self.vocabulary_size:
            raise ValueError(f"token_ids must lie in 0 ... {self.vocabulary_size - 1}; got {token_ids.tolist()}.")
        position = int(state["position"][0])
        if self.max_length is not None and position + len(token_ids) > self.max_length:
            raise ValueError(
                f"The context holds {self.max_length} tokens: {position} are read and {len(token_ids)} more do not fit."
            )
        for name, count in self._chunks(position, len(token_ids)):
            logits, state = self.run(name, token_ids[:count], state)
            token_ids = token_ids[count:]
        return logits, state

    def run(self, signature, token_ids, state):
        """One run of a signature: what `step` is made of, where you choose yourself.

        Args:
            signature: "decode", which reads one id, or "prefill_N", which reads 1 to N.
            token_ids: ids, (time,), which are not checked.
            state: as in `step`; with N more tokens than it has read it must still lie within the context.

        Returns:
            The pair that `step` returns.
        """
        length = 1 if signature == "decode" else int(signature.removeprefix("prefill_"))
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(token_ids)] = token_ids
        lengths = np.array([len(token_ids)], np.int32)
        with self._one_call:
            outputs = self._runners[signature](token_ids=padded, lengths=lengths, **state)
        return outputs.pop("logits")[0], outputs

    def logits(self, token_ids):
        """The logits (vocabulary,) of the token that follows `token_ids`, read from the start."""
        return self.step(token_ids, self.initial_state())[0]

    def generate(
        self,
        prompt,
        max_new_tokens=64,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=0,
    ):
        """Write on from a prompt.

        Args:
            prompt: str or bytes; `bos` is put before it, where the tokenizer has one.
            max_new_tokens: most tokens to write. The prompt goes first: the context may end the text earlier.
            temperature: 0 for greedy, or above 0.
            top_k, top_p, min_p, repetition_penalty, seed: as in `keras_seqlm.generation`.

        Returns:
            dict of `text` (the new text alone), `token_ids` (int32, without the end-of-text id), `stop_reason`
            ("eos" or "length"), `truncated` (whether the prompt was longer than `max_prompt_tokens`, and lost its beginning;
            see `seqlm_runtime.prompts`) and `num_tokens`.

        Raises:
            ValueError: a number out of range, or nothing to read: an empty prompt where the tokenizer has no `bos`.
        """
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Integral) or max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be a whole number of 0 or more; got {max_new_tokens!r}.")
        options = dict(zip(OPTIONS, (temperature, top_k, top_p, min_p, repetition_penalty, seed), strict=True))
        for name, value in options.items():
            check_option(name, value)
        prompt_ids, truncated = read_ids(self.tokenizer, prompt, self.max_prompt_tokens)
        if not len(prompt_ids):
            raise ValueError("The prompt is empty and the tokenizer has no bos: there is nothing to write on from.")
        if self.max_length is not None:  # a context of 1 writes one id, too
            max_new_tokens = min(max_new_tokens, max(1, self.max_length - len(prompt_ids)))
        written, stop_reason = [], "length"
        seen = np.zeros(self.vocabulary_size, np.float32)
        seen[prompt_ids] = 1.0
        unread, state = prompt_ids, self.initial_state()
        while len(written) < max_new_tokens:
            logits, state = self.step(unread, state)
            read = len(prompt_ids) + len(written)
            chosen = int(sample(logits, options, seen, read, self.sidecar["suppressed_ids"])[0])
            if chosen == self.sidecar["eos_id"]:
                stop_reason = "eos"
                break
            written.append(chosen)
            seen[chosen] = 1.0
            unread = [chosen]
        token_ids = np.array(written, np.int32)
        return {
            "text": self.tokenizer.decode(token_ids, has_text(self.tokenizer, prompt_ids, truncated)),
            "token_ids": token_ids,
            "stop_reason": stop_reason,
            "truncated": truncated,
            "num_tokens": len(token_ids),
        }

    def _chunks(self, position, count):
        """How `count` tokens are read from `position` on: (signature, tokens) one after another."""
        while count:
            fitting = [length for length in self.prefill_lengths if length <= count]
            # Padding past the end of a cache would be shifted over older keys (house rule: position + T <= max_length).
            padded = [
                length
                for length in self.prefill_lengths
                if length > count and (self.max_length is None or position + length <= self.max_length)
            ]
            if count > 1 and fitting:
                length = real = fitting[-1]
            elif count > 1 and padded:
                length, real = padded[0], count
            else:
                length = real = 1
            yield ("decode" if length == 1 else f"prefill_{length}"), real
            position, count = position + real, count - real


def read_sidecar(path):
    """The checked dict of the sidecar `NAME.json` of a .tflite file, given by the file's `pathlib.Path`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format, or was changed after the export.
    """
    file = path.with_suffix(".json")
    sidecar = read_sealed(file)
    if "task" in sidecar:
        raise ValueError(f"{file} is of a task that answers rows, which seqlm_runtime.LiteRTTask runs.")
    if sidecar.get("format") != FORMAT:
        raise ValueError(f"{file} is no sidecar of format {FORMAT}, the one that this version reads.")
    wrong = [name for name, kind in _SIDECAR.items() if name not in sidecar or not isinstance(sidecar[name], kind)]
    if wrong:
        raise ValueError(f"{file} is damaged: {wrong} are missing or of another type.")
    context, vocabulary = sidecar["max_length"], sidecar["vocabulary_size"]
    # A sidecar of an earlier version names no number.
    most = sidecar.setdefault("max_prompt_tokens", MAX_PROMPT_TOKENS if context is None else max(1, context - 1))
    wrong = [name for name in ("vocabulary_size", "max_prompt_tokens") if not _is_whole(sidecar[name], 1)]
    wrong += ["max_length"] * (context is not None and not _is_whole(context, 1))
    wrong += [name for name in ("bos_id", "eos_id") if sidecar[name] is not None and not _is_whole(sidecar[name])]
    wrong += ["suppressed_ids"] * (not all(map(_is_whole, sidecar["suppressed_ids"])))
    lengths = sidecar["prefill_lengths"]
    wrong += ["prefill_lengths"] * (
        not all(_is_whole(length, 1) for length in lengths) or len(set(lengths)) < len(lengths)
    )
    if wrong:
        raise ValueError(f"{file} is damaged: {wrong} are no whole numbers, too small, or there twice.")
    ids = [
        number for number in (sidecar["bos_id"], sidecar["eos_id"], *sidecar["suppressed_ids"]) if number is not None
    ]
    if any(number >= vocabulary for number in ids):
        raise ValueError(f"{file} is damaged: it names ids beyond its vocabulary_size of {vocabulary}.")
    if context is not None and most > max(1, context - 1):
        raise ValueError(f"{file} is damaged: max_prompt_tokens is {most!r}, with a max_length of {context}.")
    if "position" not in sidecar["state"]:
        raise ValueError(f"{file} names no leaf 'position' in the state; it has {sorted(sidecar['state'])}.")
    for name, leaf in sidecar["state"].items():
        if not _is_leaf(leaf):
            raise ValueError(f"{file} is damaged: the leaf {name!r} has no usable shape and dtype: {leaf!r}.")
    return sidecar


def _is_leaf(leaf):
    shape = leaf.get("shape") if isinstance(leaf, dict) else None
    sizes = isinstance(shape, list) and all(map(_is_whole, shape)) and math.prod(shape) < 2**31
    return sizes and leaf.get("dtype") in ("float32", "int32")


def _is_whole(number, least=0):
    return isinstance(number, int) and not isinstance(number, bool) and least <= number < 2**31


def tokenizer_folder(path):
    """The folder beside a .tflite file, given by its `pathlib.Path`, that holds its tokenizer.

    Raises:
        FileNotFoundError: there is none.
    """
    names = [path.stem] + [path.stem.removesuffix(end) for end in ("-int8", "-float16") if path.stem.endswith(end)]
    folders = [path.with_name(f"{name}.tokenizer") for name in names]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"{path} has no tokenizer: expected the folder {folders[0]}.")
    return folder


def read_tokenizer(path, sidecar):
    """The tokenizer beside a .tflite file, given by its `pathlib.Path`, whose files are those of its sidecar.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file of it is missing, too many or was changed, or it is not the model's.
    """
    folder = tokenizer_folder(path)
    check_files(folder, sidecar["tokenizer_files"])
    tokenizer, wanted = tokenizers.load(folder), sidecar["tokenizer_hash"]
    if tokenizer.hash != wanted:
        raise ValueError(
            f"The tokenizer in {folder} has the hash {tokenizer.hash}; the model was trained with {wanted}."
        )
    return tokenizer


def signature_runners(file, num_threads):
    """What runs each signature of a checked file: name -> runner; they share one interpreter."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("A .tflite model runs in LiteRT, which is missing: pip install ai-edge-litert.") from error
    # The bytes that were checked, which are in memory anyway: whatever becomes of the file.
    interpreter = Interpreter(model_content=file.content, num_threads=num_threads)
    return {name: interpreter.get_signature_runner(name) for name in file.signatures}
