"""What the tasks share that are learned from rows of named fields, and answer each row by itself."""

import collections
import pathlib

import keras
import numpy as np
from keras import ops

from keras_seqlm.corpora import Rows
from keras_seqlm.corpora.words import joined
from keras_seqlm.data import Examples
from keras_seqlm.data.examples import width_of
from keras_seqlm.files import write_json
from keras_seqlm.generation.compiled import compiled
from keras_seqlm.tasks.class_weights import class_weights_of
from keras_seqlm.tasks.task import Task
from seqlm_runtime.prompts import MAX_PROMPT_TOKENS
from seqlm_runtime.row_tasks.reading import ids_of, pair_ids

FIGURES = "figures.json"


class RowTask(Task):
    """A subclass names its `head` and says what a row is to the model (`example`) and what the model's numbers mean.

    Its texts are read as `bos + text + eos`, from their beginning, as far as the model reads.
    """

    of_tokens = False  # whether there is a target for each token
    fields = ()  # what every row must have
    chosen = ()  # settings that rows do not tell: they are options of `begin_with`
    batches = Examples  # the class of `examples`
    served = None  # the class of `seqlm_runtime.row_tasks` that exports of it are read and answered by
    most_ids = None  # ids of a row, where fewer are read than the model could: what an export reads
    lower_is_better = ("mse",)  # of the figures

    def __init__(self, model, tokenizer):
        super().__init__(model, tokenizer)
        self.notes = collections.Counter()  # what was mended or lost of the rows that were last read, by what it was

    @classmethod
    def settings_from(cls, rows):
        """The task's settings, as far as rows tell them: the labels, say.

        Args:
            rows: an iterable of (place, row), as `data.Rows`.
        """
        return {}

    @classmethod
    def figures_of(cls, settings, rows=()):
        """Names of what `evaluate` says of rows; by the first one a run is judged that is told no other.

        Args:
            settings: of the task.
            rows: an iterable of (place, row), where the figures depend on what rows have.
        """
        raise TypeError(f"{cls.__name__} must define figures_of(settings, rows)")

    @classmethod
    def head(cls, backbone, settings, **options):
        """The model to be trained, around a backbone."""
        raise TypeError(f"{cls.__name__} must define head(backbone, settings)")

    @classmethod
    def begin_with(cls, rows, backbone, tokenizer, **options):
        """The task before it has learned anything: with a new head, for what the rows hold.

        Args:
            rows: `data.Rows`, or what makes them.
            backbone: an encoder or a language model.
            tokenizer: the backbone's.
            **options: of the head, and settings that rows do not tell.
        """
        settings = cls.settings_from(as_rows(rows))
        settings |= {name: options.pop(name) for name in cls.chosen if name in options}
        model = cls.head(backbone, settings, **options)
        model.build()
        return cls(model, tokenizer, **settings)

    def example(self, row):
        """The inputs of a row, a dict of lists of ints, and its target.

        Raises:
            ValueError: the row lacks something, or holds what cannot be; it is counted as broken.
        """
        raise TypeError(f"{type(self).__name__} must define example(row)")

    def examples_of(self, row):
        """The examples that a row makes, a list of (inputs, target): one, unless a subclass says otherwise."""
        return [self.example(row)]

    def class_names(self):
        """Names of the classes that targets are numbers of, and what other names stand for some of them; None without."""
        return None

    def examples(self, rows, batch_size, *, seed=0, complete=False, class_weights=None):
        """Batches of rows to train on, or with `complete` to validate on; see `data.Examples`.

        Args:
            rows: `data.Rows`, or what makes them.
            batch_size: rows of a batch.
            seed: of their order.
            complete: whether all are read, each once.
            class_weights: how much the rows of each class weigh in the loss (of a tagger, the tokens): "balanced", or a dict of
                names and weights, see `class_weights_of`. The mean is still over all that counts.

        Raises:
            ValueError: more than the tolerance of the rows are broken; they are named. Class weights of what has no classes, or
                to validate.
        """
        made = [one for row in self.read(rows, self.examples_of) for one in row]
        inputs, targets = self.made([inputs for inputs, _ in made], [target for _, target in made])
        options = {"of_tokens": self.of_tokens, "max_length": self.room}
        if class_weights is not None:
            names = self.class_names()
            if names is None or complete:
                what = "validation is not weighed" if names else f"this {type(self).__name__} has no one class a row"
                raise ValueError(f"class_weights are for training on classes, and {what}; leave them out")
            flat = np.concatenate(targets) if self.of_tokens else np.asarray(targets)
            options["class_weights"] = class_weights_of(class_weights, names[0], flat, names[1])
        return self.batches(inputs, targets, batch_size, seed=seed, complete=complete, **options)

    def made(self, inputs, targets):
        """What batches are made of, from the inputs and the targets of all rows."""
        return inputs, targets

    def read(self, rows, make):
        """What `make` makes of each row, a list; rows of which it raises a ValueError are broken.

        Raises:
            ValueError: more than the tolerance of the rows are broken; they are named.
        """
        rows, made = as_rows(rows), []
        self.notes.clear()
        for place, row in rows:
            try:
                made.append(make(self._held(row)))
            except ValueError as error:
                rows.refuse(place, str(error))
        rows.check()
        return made

    def judged(self, rows, batch_size=32):
        """What was given for labelled rows, for pictures of it: a dict of what the task has of

        `names`, `truth` and `predicted`: the classes, and their numbers for each row or token;
        `confidence` and `right`: how probable each answer was to the model, and whether it was right.
        """
        return {}

    @property
    def room(self):
        """How many ids are read of a row."""
        return min(self.model.max_length or MAX_PROMPT_TOKENS, self.most_ids or MAX_PROMPT_TOKENS)

    def as_served(self, most=None):
        """The task as a server has it: what it reads of a row, and what the model's numbers say.

        Args:
            most: ids that are read of a text that is cut into windows; None for all.
        """
        return self.served(self.tokenizer, self.room, self.model.reads, most, **self.settings_served())

    def is_cut(self, row):
        """Whether a row has more text than is read of it: a dict of its fields, as `predict` takes it."""
        served = self.as_served()
        return bool(served.read(row_of_texts(served, row)).truncated)

    def settings_served(self):
        """The settings that its answers depend on, as JSON takes them."""
        return self.settings()

    def ids_of(self, text):
        """The ids of one text: bos, its own as far as there is room, eos. int32 (time,)."""
        return ids_of(self.tokenizer, text, self.room)[0]

    def pair_inputs(self, text, pair=None):
        """What the model reads of one text, or of two: bos, the first, eos, the second, eos; of the longer one its end goes first.

        An empty second text is none. `token_types` are 0 in the first and 1 in the second, where the model reads some.
        """
        ids, types, _ = pair_ids(self.tokenizer, text, pair, self.room)
        return {"token_ids": ids, **({"token_types": types} if "token_types" in self.model.reads else {})}

    def _held(self, row):
        missing = [name for name in self.fields if row.get(name) is None]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}; its fields are {', '.join(map(str, row)) or 'none'}")
        return row

    def outputs(self, inputs, batch_size=32):
        """The model's numbers for rows of any lengths, a list of arrays, one a row, in the order of the rows.

        Args:
            inputs: a list of dicts, as `example` gives them.
            batch_size: rows of a call.
        """
        return outputs_of(self.model, inputs, batch_size, self.room)


def row_of_texts(served, row):
    """The texts alone of a row that may have more, or tokens for a text; None of one that is broken."""
    texts = {name: row.get(name) for name in (*served.fields, *served.optional())}
    if served.verb == "tag" and row.get("tokens") is not None:
        texts["text"] = joined(row["tokens"])[0]
    texts = {name: text for name, text in texts.items() if text is not None}
    kinds = {name: str if name in served.fields else str | list for name in texts}
    whole = all(name in texts for name in served.fields) and all(map(isinstance, texts.values(), kinds.values()))
    return served.row_of(texts) if whole else None


def rows_given(rows):
    """What `predict` is given as a list.

    Raises:
        ValueError: it is one text, whose characters would be answered one by one.
    """
    if isinstance(rows, str | bytes | dict):
        raise ValueError("expected a list of texts or rows, got one; write predict([...])")
    return list(rows)


def outputs_of(model, inputs, batch_size, room):
    """What a model gives for rows of any lengths, at most `room` ids each: a list of arrays, in the order of the rows."""
    run = compiled(model, _forward)
    found = [None] * len(inputs)
    order = np.argsort([len(one["token_ids"]) for one in inputs], kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        sizes = np.array([len(inputs[row]["token_ids"]) for row in chosen], "int32")
        width = width_of(int(sizes.max()), room)
        batch = {name: np.zeros((batch_size, width), "int32") for name in inputs[0]}
        for index, row in enumerate(chosen):
            for name, ids in inputs[row].items():
                batch[name][index, : len(ids)] = ids
        batch["lengths"] = np.concatenate([sizes, np.ones(batch_size - len(sizes), "int32")])
        numbers = ops.convert_to_numpy(run(keras.tree.map_structure(ops.convert_to_tensor, batch)))
        for index, row in enumerate(chosen):
            found[row] = numbers[index]
    return found


def as_rows(rows):
    """`data.Rows`, or the rows of what it takes."""
    return rows if isinstance(rows, Rows) else Rows(rows)


def write_figures(folder, figures):
    """Keep what `evaluate` gave as `figures.json` in a run folder."""
    write_json(pathlib.Path(folder) / FIGURES, figures)


def _forward(model, inputs):
    return model(inputs, training=False)
