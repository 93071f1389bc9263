"""What may stand where a text is masked: a masked language model and its tokenizer."""

import dataclasses

import numpy as np
from keras import ops

from keras_seqlm import data
from keras_seqlm.data.objective_blocks import RowsOfText
from keras_seqlm.data.vocabulary import MASK, Vocabulary
from keras_seqlm.generation.buckets import bucket
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.score import of_targets
from keras_seqlm.models import MaskedLM
from keras_seqlm.tasks.row_task import outputs_of
from keras_seqlm.tasks.task import Task
from seqlm_runtime import row_tasks
from seqlm_runtime.prompts import MAX_PROMPT_TOKENS
from seqlm_runtime.row_tasks.fill_mask import filled, masked_ids

RECURRENT_CONTEXT = 128  # tokens of a row of an evaluation, where the model reads any number


@dataclasses.dataclass
class Candidate:
    """What may stand in a mask's place."""

    text: str  # with the space before it, where its token has one
    token_id: int
    probability: float


@dataclasses.dataclass
class FilledMask:
    """What `FillMask.predict` says of one text."""

    filled: str  # the text with the most probable candidate in each mask's place
    candidates: list  # for each mask, in their order, a list of `Candidate`, the most probable first


class FillMask(Task):
    """Says which token stands where a text has [MASK], each mask one token; no special token is proposed.

    Where the tokenizer's words hold the space before them, a mask stands for the space before it, too, as in training.

    Args:
        model: a `MaskedLM`.
        tokenizer: its tokenizer, with a token that it masks with (`data.prepared(tokenizer, "masked")`).
        masked: the numbers of the `data.Masked` that the model is trained by, a dict; `evaluate` masks so. Default: BERT's.

    Raises:
        ValueError: as `Task`; the tokenizer has no mask.

    Example:

    >>> from keras_seqlm.models import RecurrentEncoder
    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> tokenizer = data.prepared(ByteTokenizer(), "masked")
    >>> task = FillMask(MaskedLM(RecurrentEncoder(261, cell="gru", size="nano")), tokenizer)
    >>> [result] = task.predict(["It was a d[MASK]rk night"])
    >>> len(result.candidates), len(result.candidates[0])
    (1, 5)
    """

    model_class = MaskedLM
    served = row_tasks.FillMask  # see `RowTask`, as of the next
    most_ids = None

    def __init__(self, model, tokenizer, masked=None):
        super().__init__(model, tokenizer)
        self.objective = data.Masked(**(masked or {}))
        self._vocabulary = Vocabulary(tokenizer)
        self.mask_id = self._vocabulary.id_of(MASK)
        entries = tokenizer.added_tokens.entries
        self._mask_text = next((entry["content"] for entry in entries if entry["id"] == self.mask_id), None)

    def settings(self):
        return {"masked": dataclasses.asdict(self.objective)}

    def outputs(self, inputs, batch_size=8):
        """The model's numbers for rows as `as_served().read` gives them; see `RowTask`."""
        return outputs_of(self.model, inputs, batch_size, self.room)

    @property
    def room(self):
        """How many ids an export reads of a row."""
        return min(self.model.max_length or MAX_PROMPT_TOKENS, self.most_ids or MAX_PROMPT_TOKENS)

    def as_served(self, most=None):
        """See `RowTask`."""
        return self.served(self.tokenizer, self.room, self.model.reads, most, **self.settings_served())

    def settings_served(self):
        """See `RowTask`."""
        return {
            "mask_id": int(self.mask_id),
            "mask_text": self._mask_text,
            "takes_space": self._vocabulary.holds_spaces,
            "special": np.flatnonzero(self._vocabulary.special).tolist(),
        }

    def predict(self, texts, batch_size=32, top_k=5):
        """What may stand in the masks of each text.

        Args:
            texts: a list of str (or their bytes), or of rows with a `text`, each with [MASK] once or more.
            batch_size: texts of a call.
            top_k: candidates of each mask.

        Returns:
            A list of `FilledMask`.

        Raises:
            ValueError: no list of texts, a text without a mask, or one that is longer than the model reads.
        """
        if isinstance(texts, str | bytes):
            raise ValueError("expected a list of texts, got one; write predict([...])")
        if not 1 <= top_k <= len(self._vocabulary.ordinary):
            raise ValueError(f"top_k must be from 1 to {len(self._vocabulary.ordinary)}, got {top_k}")
        rows = [self.ids_of(text.get("text") if isinstance(text, dict) else text) for text in texts]
        run, results = compiled(self.model, _logits), []
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            width = bucket(max(map(len, part)))
            width = width if self.model.max_length is None else min(width, self.model.max_length)
            ids, lengths = np.zeros((bucket(len(part), 1), width), "int32"), np.ones(bucket(len(part), 1), "int32")
            for row, own in enumerate(part):
                ids[row, : len(own)], lengths[row] = own, len(own)
            logits = ops.convert_to_numpy(run(ops.convert_to_tensor(ids), ops.convert_to_tensor(lengths)))
            results += [self._filled(own, logits[row], top_k) for row, own in enumerate(part)]
        return results

    def ids_of(self, text):
        """The ids of a text: `bos`, its own, `eos`, int32 (time,), as the model reads it."""
        if not isinstance(text, str | bytes):
            raise ValueError(f"expected a text, got {type(text).__name__} {str(text)[:80]!r}")
        ids, _ = masked_ids(self.tokenizer, text, self.mask_id, self._mask_text, self._vocabulary.holds_spaces)
        if self.mask_id not in ids:
            raise ValueError(f"the text {text[:80]!r} has no {MASK}: put one where a token is to be found")
        if self.model.max_length is not None and len(ids) > self.model.max_length:
            raise ValueError(
                f"the text {text[:40]!r}... has {len(ids)} tokens, and this model reads {self.model.max_length}: cut it "
                f"around the {MASK}"
            )
        return ids

    def _filled(self, ids, logits, top_k):
        found = filled(self.tokenizer, ids, logits, self.mask_id, self._vocabulary.special, top_k)
        return FilledMask(found["filled"], [[Candidate(**one) for one in group] for group in found["candidates"]])

    def evaluate(self, files, batch_size=32, cache_dir=None, text_field="text"):
        """How well the model finds what is masked in text files; the masks are the same at each evaluation.

        Args:
            files: a path, a glob, a folder, or a list of them.
            batch_size: rows of a batch.
            cache_dir: where tokens are kept; see `data.pack`.
            text_field: of a record that holds the text.

        Returns:
            dict of `loss` (nats a masked token), `accuracy` of the masked tokens with the ends of its 95% interval,
            `accuracy_low` and `accuracy_high`, `count` of the masked tokens, and `num_tokens` of all.

        Raises:
            ValueError: a batch size below 1, or files without text.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        store = data.pack(files, self.tokenizer, cache_dir=cache_dir, text_field=text_field)
        context = self.model.max_length or RECURRENT_CONTEXT
        rows = RowsOfText(store, context, batch_size, complete=True)
        blocks = data.ObjectiveBlocks(rows, self.objective, self.tokenizer, context, seed="evaluation")
        run, nats, right, count = compiled(self.model, _judged), 0.0, 0, 0
        for step in range(len(blocks)):
            x, y, _ = blocks.batch(step)
            tensors = (x["token_ids"], x["lengths"], np.maximum(y, 0))
            losses, found = (ops.convert_to_numpy(part) for part in run(*map(ops.convert_to_tensor, tensors)))
            counted = y >= 0
            nats += float(np.sum(losses[counted], dtype="float64"))
            right, count = right + int((found == y)[counted].sum()), count + int(counted.sum())
        if not count:
            raise ValueError("the files have no token that could be masked")
        # A sample of 0s and 1s, drawn with replacement, has a binomial number of 1s: the bootstrap, without drawing each.
        draws = np.random.default_rng(0).binomial(count, right / count, 1000) / count
        low, high = np.quantile(draws, [0.025, 0.975])
        return {
            "loss": nats / count,
            "accuracy": right / count,
            "accuracy_low": float(low),
            "accuracy_high": float(high),
            "count": count,
            "num_tokens": len(store),
        }


def _logits(model, token_ids, lengths):
    return model({"token_ids": token_ids, "lengths": lengths}, training=False)


def _judged(model, token_ids, lengths, targets):
    """The loss of each target, and the most probable id of each place."""
    hidden, _ = model.hidden_states({"token_ids": token_ids, "lengths": lengths}, training=False)
    logits = model.logits_of(hidden)
    return -of_targets(model, hidden, targets), ops.argmax(logits, axis=-1)
