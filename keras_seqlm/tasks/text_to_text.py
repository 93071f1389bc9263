"""A text in, another one out: an encoder-decoder that writes after it has read a source."""

import dataclasses

import numpy as np
from keras import ops

from keras_seqlm import data
from keras_seqlm.data.draws import generator_of
from keras_seqlm.data.objective_blocks import RowsOfText
from keras_seqlm.data.prepared import OBJECTIVES
from keras_seqlm.data.vocabulary import Vocabulary
from keras_seqlm.generation import generate
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.generation.score import of_targets
from keras_seqlm.models import Seq2SeqLM
from keras_seqlm.tasks.task import Task
from seqlm_runtime.prompts import read_ids


@dataclasses.dataclass
class Written:
    """What `TextToText.predict` says of one text."""

    text: str  # special tokens that the objective writes, as <extra_id_0>, stand in it by their names
    token_ids: list
    stop_reason: str  # "eos" or "length"


class TextToText(Task):
    """Reads a text whole, then writes another one: what was left out of it, say, or what it was before noise.

    Args:
        model: a `Seq2SeqLM`.
        tokenizer: its tokenizer, of source and target.
        objective: what it was trained by, a dict of the `name` of an objective ("span", "denoising", "prefix") and its numbers;
            None for pairs of one's own. `evaluate` and `noised` need it.
        sequence_length: of the rows that it was trained on, which `evaluate` reads, too: of longer ones targets have sentinels
            that it has never seen. Default: the longest that the model reads.

    Raises:
        ValueError: as `Task`; an objective that has no sources, a model whose sources have ids of another number.

    Example:

    >>> from keras_seqlm.tokenizers import ByteTokenizer
    >>> tokenizer = data.prepared(ByteTokenizer(), "span")
    >>> model = Seq2SeqLM(tokenizer.vocabulary_size, "gru", size="nano")
    >>> task = TextToText(model, tokenizer, {"name": "span"})
    >>> [result] = task.predict(["It was a <extra_id_0> night"], max_new_tokens=6)
    >>> len(result.token_ids) <= 6
    True
    """

    model_class = Seq2SeqLM

    def __init__(self, model, tokenizer, objective=None, sequence_length=None):
        super().__init__(model, tokenizer)
        if model.source_vocabulary_size != tokenizer.vocabulary_size:
            raise ValueError(
                f"the model knows {model.source_vocabulary_size} ids of sources and the tokenizer has "
                f"{tokenizer.vocabulary_size}; build it with the tokenizer's vocabulary_size for both"
            )
        self.objective, self.sequence_length = None, sequence_length
        self._vocabulary = Vocabulary(tokenizer)
        if self._vocabulary.start_id is None:
            raise ValueError("the tokenizer has neither bos nor eos, and a target begins with one of them")
        if objective is not None:
            numbers = {name: value for name, value in objective.items() if name != "name"}
            self.objective = OBJECTIVES[objective["name"]](**numbers)
            self.objective.checked_layout("encoder-decoder")
        written = self.objective.tokens if isinstance(self.objective, data.SpanCorruption) else ()
        self._names = {self._vocabulary.id_of(token): token for token in written}

    def settings(self):
        if self.objective is None:
            return {}
        numbers = {"name": self.objective.name, **dataclasses.asdict(self.objective)}
        return {"objective": numbers, "sequence_length": self.sequence_length}

    def predict(self, texts, batch_size=32, max_new_tokens=64, **options):
        """What is written of each text.

        Args:
            texts: a list of str (or their bytes), or of rows with a `text`.
            batch_size: texts of a call.
            max_new_tokens, **options: see `generation.generate`.

        Returns:
            A list of `Written`.

        Raises:
            ValueError: no list of texts, or one that is longer than the model reads.
        """
        if isinstance(texts, str | bytes):
            raise ValueError("expected a list of texts, got one; write predict([...])")
        sources = [self.ids_of(text.get("text") if isinstance(text, dict) else text) for text in texts]
        return self._written(sources, batch_size, max_new_tokens, **options)

    def _written(self, sources, batch_size=32, max_new_tokens=64, **options):
        rules = {"eos_id": self.tokenizer.eos_id}
        rules["suppressed_ids"] = [i for i in self.tokenizer.suppressed_ids if i not in self._names]
        results = []
        for first in range(0, len(sources), batch_size):
            part = sources[first : first + batch_size]
            starts = [[self._vocabulary.start_id]] * len(part)
            results += generate(self.model, starts, max_new_tokens, source_ids=part, **rules, **options)
        return [Written(self.shown(one.token_ids), one.token_ids.tolist(), one.stop_reason) for one in results]

    def ids_of(self, text):
        """The ids of a source: `bos`, its own, `eos`, int32 (time,), as a document stands in the stream of the training."""
        if not isinstance(text, str | bytes):
            raise ValueError(f"expected a text, got {type(text).__name__} {str(text)[:80]!r}")
        ids, _ = read_ids(self.tokenizer, text)
        return ids if self.tokenizer.eos_id is None else np.append(ids, np.int32(self.tokenizer.eos_id))

    def shown(self, ids):
        """The text of some ids, the special ones that an objective puts there by their names."""
        names, text, run = self._names, "", []
        if self.objective is not None:
            names = {self._vocabulary.id_of(token): token for token in self.objective.tokens}
        for i in [*np.asarray(ids).tolist(), None]:
            if i is None or i in names:
                text += self.tokenizer.decode(run, after_text=bool(text)) + (names[i] if i is not None else "")
                run = []
            else:
                run.append(i)
        return text

    def noised(self, text, seed=0):
        """What the objective makes of a text, two int32 arrays: the source, and the target that is to be written of it.

        Raises:
            ValueError: the task has no objective, or the text is longer than the model reads.
        """
        self._check_objective()
        ids = self.ids_of(text)
        limit = self.model.max_source_length
        return self.objective.pair(ids if limit is None else ids[: limit - 1], generator_of(seed, 0), self._vocabulary)

    def samples(self, texts):
        """Lines that show what is written of some texts: "noised -> written"."""
        sources = [self.noised(text, row)[0] for row, text in enumerate(texts)]
        written = self._written(sources)
        return [f"{self.shown(ids)!r} -> {one.text!r}" for ids, one in zip(sources, written, strict=True)]

    def evaluate(self, files, batch_size=32, cache_dir=None, text_field="text"):
        """How well the model writes the targets that its objective makes of text files; the noise is the same at each evaluation.

        Args:
            files, batch_size, cache_dir, text_field: as in `FillMask.evaluate`.

        Returns:
            dict of `loss` (nats a token of a target), `count` of those tokens, and `num_tokens` of the text.

        Raises:
            ValueError: a batch size below 1, files without text, or a task without an objective.
        """
        self._check_objective()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        store = data.pack(files, self.tokenizer, cache_dir=cache_dir, text_field=text_field)
        known = (self.sequence_length, self.model.max_length, self.model.max_source_length)
        context = min((one for one in known if one is not None), default=None)
        if context is None:
            raise ValueError(
                "the model reads any number of tokens: make the task with the sequence_length that it was trained on"
            )
        rows = RowsOfText(store, self.objective.lengths(context, "encoder-decoder").text, batch_size, complete=True)
        options = {"layout": "encoder-decoder", "seed": "evaluation"}
        blocks = data.ObjectiveBlocks(rows, self.objective, self.tokenizer, context, **options)
        run, nats, count = compiled(self.model, _losses), 0.0, 0
        for step in range(len(blocks)):
            x, y, _ = blocks.batch(step)
            tensors = (x["token_ids"], x["source_ids"], x["source_lengths"], np.maximum(y, 0))
            losses = ops.convert_to_numpy(run(*map(ops.convert_to_tensor, tensors)))
            nats, count = nats + float(np.sum(losses[y >= 0], dtype="float64")), count + int((y >= 0).sum())
        return {"loss": nats / count, "count": count, "num_tokens": len(store)}

    def _check_objective(self):
        if self.objective is None:
            raise ValueError(
                "the task was made without an objective, so there is none to make sources and targets of a text"
            )


def _losses(model, token_ids, source_ids, source_lengths, targets):
    inputs = {"token_ids": token_ids, "source_ids": source_ids, "source_lengths": source_lengths}
    hidden, _ = model.hidden_states(inputs, training=False)
    return -of_targets(model, hidden, targets)
