"""A recipe: every number a training run depends on, in one place, and the three steps that use them."""

import contextlib
import dataclasses
import inspect
import json
import math
import os
import pathlib

import keras
import numpy as np

from keras_seqlm.training.callbacks import Progress, Run, RunCallback
from keras_seqlm.training.distribution import STRATEGIES, feed, feed_validation, strategy
from keras_seqlm.training.schedules import SCHEDULES, WarmupSchedule

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a language model is trained. `dataclasses.replace(recipe, steps=50)` makes another from one.

    Plain `model.compile` and `model.fit` need nothing of it.

    Args:
        optimizer: name of any Keras optimizer, as "adamw", "adam", "sgd".
        learning_rate: the highest; schedule, warmup_steps, final_learning_rate_fraction: see `WarmupSchedule`.
        weight_decay: decoupled, in steps of learning_rate * weight_decay; biases, scales of norms and tables of
            positions are left out.
        beta_1, beta_2: of Adam and its kin; others take no notice.
        clip_norm: the gradient's global norm is clipped to it; None leaves it.
        precision: the dtype policy of what is built in `scope()`: "float32", "mixed_bfloat16", "mixed_float16", or
            "bfloat16", in which the weights themselves are bfloat16.
        batch_size: rows of a batch, over all devices together.
        steps: updates in the whole run.
        seed: of the weights and of dropout; data has its own.
        distribution: "single", "mirrored" (TensorFlow: the machine's GPUs) or "data-parallel" (JAX: its devices).
        validate_every: steps between two validations, counted from where `fit` starts; None makes ten of them.

    Raises:
        ValueError: a field that cannot be.

    Example:

    ```python
    recipe = Recipe(steps=2000, batch_size=16, precision="mixed_bfloat16")
    with recipe.scope():
        model = TransformerLM(tokenizer.vocabulary_size, size="tiny")
    recipe.fit(model, train, validation, callbacks=[HistoryCSV("runs/books/history.csv")])
    ```
    """

    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    final_learning_rate_fraction: float = 0.1
    weight_decay: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    clip_norm: float | None = 1.0
    precision: str = "float32"
    batch_size: int = 16
    steps: int = 1000
    seed: int = 0
    distribution: str = "single"
    validate_every: int | None = None

    def __post_init__(self):
        for name, names in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("distribution", tuple(STRATEGIES))):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {list(names)}, got {getattr(self, name)!r}")
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup_steps", 0), ("seed", 0), ("validate_every", 1)):
            value = getattr(self, name)
            if name == "validate_every" and value is None:
                continue
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
            object.__setattr__(self, name, int(value))
        ranges = {
            "learning_rate": (lambda value: 0 < value < math.inf, "above 0"),
            "final_learning_rate_fraction": (lambda value: 0 <= value <= 1, "between 0 and 1"),
            "weight_decay": (lambda value: 0 <= value < math.inf, "at least 0"),
            "beta_1": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
            "beta_2": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
            "clip_norm": (lambda value: 0 < value < math.inf, "above 0, or None"),
        }
        for name, (fits, range_) in ranges.items():
            value = getattr(self, name)
            if name == "clip_norm" and value is None:
                continue
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not number or not fits(value):
                raise ValueError(f"{name} must be a number {range_}, got {value!r}")
            object.__setattr__(self, name, float(value))
        _optimizer_class(self.optimizer)

    @contextlib.contextmanager
    def scope(self):
        """Build or load the model in here: it sets the seed, the precision and the devices, and sets them back.

        Raises:
            ValueError: a distribution that the backend does not have, or a batch that its devices do not divide.
        """
        devices = strategy(self.distribution)
        self._check_rows(self.batch_size, devices)
        before = keras.config.dtype_policy()
        keras.utils.set_random_seed(self.seed)
        keras.config.set_dtype_policy(self.precision)
        try:
            with devices.scope():
                yield
        finally:
            keras.config.set_dtype_policy(before)

    def learning_rate_schedule(self):
        """The `WarmupSchedule` of this recipe."""
        final = self.learning_rate * self.final_learning_rate_fraction
        return WarmupSchedule(self.schedule, self.learning_rate, self.steps, self.warmup_steps, final)

    def compile(self, model):
        """Compile with the recipe's optimizer and the cross-entropy of the next token, in nats.

        Args:
            model: gives logits (batch, time, vocabulary); built in `scope()`.

        Raises:
            ValueError: the model was built outside the strategy's scope, or does not go with it.
        """
        devices = strategy(self.distribution)
        devices.check(model)
        with devices.scope():
            _build(model)
            model.compile(
                optimizer=self._new_optimizer(model.trainable_variables),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        devices.check(model)
        devices.prepare(model.optimizer)

    def fit(self, model, train, validation=None, callbacks=(), first_step=0, progress=True):
        """Train up to step `steps` in one call of `model.fit`, whose epochs are the pieces between two validations.

        Args:
            model: built in `scope()`. It is compiled by the recipe if it is not compiled yet; a compiled one, as
                loaded from a file, goes on with its own optimizer, on this recipe's learning rates.
            train: data with `batches(first_step)`, as `data.causal_blocks` gives; or whatever `model.fit` takes and
                that does not end before the run does.
            validation: what `model.fit` takes as `validation_data`.
            callbacks: Keras callbacks; those of `training.callbacks` learn the step, the tokens and the bytes.
            first_step: steps made before; a run that goes on gives it, and a model that brings its optimizer.
            progress: whether to show a progress line.

        Returns:
            The Keras `History`: one entry of `loss` (and `val_loss`) for each piece.

        Raises:
            ValueError: batches of another size than `batch_size`, a model that does not go with the distribution,
                a first step that does not fit the optimizer or the data.
        """
        if not 0 <= first_step < self.steps:
            raise ValueError(f"first_step must be between 0 and steps - 1 = {self.steps - 1}, got {first_step}")
        if first_step and not hasattr(train, "batches"):
            raise ValueError("a run can go on only with data that has batches(first_step), as data.causal_blocks gives")
        devices = strategy(self.distribution)
        if not model.compiled:
            self.compile(model)
        devices.check(model)
        devices.prepare(model.optimizer)
        _check_iterations(model.optimizer, first_step)
        self._renew(model)
        tokens = self._check_batch(train, first_step, devices)
        if first_step == 0 and getattr(model, "stateful_batch_size", None) is not None:
            model.reset_state()

        pieces = self.validate_every or math.ceil(self.steps / 10)
        pieces = min(pieces, self.steps - first_step)
        epochs = math.ceil((self.steps - first_step) / pieces)
        run = Run(first_step, self.steps, tokens, _bytes_per_token(validation))
        callbacks = list(callbacks)
        if progress and not any(isinstance(callback, Progress) for callback in callbacks):
            callbacks.insert(0, Progress())
        if (self.steps - first_step) % pieces:
            callbacks.insert(0, _StopAt(self.steps - first_step))
        for callback in callbacks:
            if isinstance(callback, RunCallback):
                callback.run = run
        with devices.scope():
            return model.fit(
                feed(train, first_step),
                validation_data=feed_validation(validation),
                epochs=epochs,
                steps_per_epoch=pieces,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )

    def to_dict(self):
        """All fields, as JSON takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields):
        """The recipe of `to_dict`; fields that are missing take their defaults.

        Raises:
            ValueError: a field that no recipe has.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"a recipe has no field {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**fields)

    def to_json(self, path):
        """Write `recipe.json`, whole or not at all."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".new")
        beside.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        os.replace(beside, path)

    @classmethod
    def from_json(cls, path):
        """Read `recipe.json`: a recipe's own, or a run folder's, which holds one beside what else was asked for."""
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return cls.from_dict(content.get("recipe", content))

    def _new_optimizer(self, variables):
        kind = _optimizer_class(self.optimizer)
        takes = inspect.signature(kind.__init__).parameters
        betas = {name: getattr(self, name) for name in ("beta_1", "beta_2") if name in takes}
        optimizer = kind(
            learning_rate=self.learning_rate_schedule(),
            weight_decay=self.weight_decay,
            global_clipnorm=self.clip_norm,
            **betas,
        )
        _exclude(optimizer, variables)
        return optimizer

    def _renew(self, model):
        """What a compiled model's own optimizer needs to go on by this recipe: a file does not hold all of it."""
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        old, new = getattr(optimizer, "_learning_rate", None), self.learning_rate_schedule()
        if not isinstance(old, WarmupSchedule):
            return  # compiled by the user, who has set what is wanted
        _exclude(optimizer, model.trainable_variables)
        if old.get_config() != new.get_config():  # `steps` may be others than before
            optimizer.learning_rate = new
            model.make_train_function(force=True)  # the traced one has the old schedule in it

    def _check_rows(self, rows, devices):
        if rows % devices.num_replicas:
            raise ValueError(
                f"a batch of {rows} rows does not divide by the {devices.num_replicas} devices of "
                f"distribution={self.distribution!r}; use a batch_size that is a multiple of {devices.num_replicas}"
            )

    def _check_batch(self, train, first_step, devices):
        """Targets of a training batch, or None where the data cannot be asked without taking a batch away."""
        if not hasattr(train, "batches"):
            self._check_rows(self.batch_size, devices)
            return None
        y = keras.tree.flatten(next(iter(train.batches(first_step)))[1])[0]
        if len(y) != self.batch_size:
            raise ValueError(
                f"the recipe says batch_size={self.batch_size}, and the data has batches of {len(y)} rows; make both the same"
            )
        self._check_rows(len(y), devices)
        return int(np.prod(y.shape))


def decays(variable):
    """Whether weight decay pulls at a variable: at matrices and tables of tokens, not at biases, scales and positions."""
    *parts, name = variable.path.split("/")
    return len(variable.shape) >= 2 and "bias" not in name and "positions" not in parts


def _exclude(optimizer, variables):
    optimizer.exclude_from_weight_decay(var_list=[variable for variable in variables if not decays(variable)])


class _StopAt(keras.callbacks.Callback):
    """Ends the last piece, where it is shorter than the others."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_epoch_begin(self, epoch, logs=None):
        self._before = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        if self._before + batch + 1 >= self.steps:
            self.model.stop_training = True


def _bytes_per_token(validation):
    size, targets = getattr(validation, "num_bytes", None), getattr(validation, "num_targets", None)
    return size / targets if size and targets else None


def _build(model):
    if model.built:
        return
    parameters = inspect.signature(model.build).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    needed = any(parameter.default is parameter.empty for parameter in named)
    if needed:
        raise ValueError(
            "the model has no weights yet, and they decide where weight decay pulls; call it once on a batch in the "
            "recipe's scope before it is compiled"
        )
    model.build()


def _check_iterations(optimizer, first_step):
    made = int(keras.ops.convert_to_numpy(optimizer.iterations))
    # With a scaled loss, steps that overflowed were left out.
    skipped = hasattr(optimizer, "inner_optimizer") and 0 < made < first_step
    if made == first_step or skipped:
        return
    raise ValueError(
        f"the optimizer has made {made} steps, and first_step is {first_step}, so that learning rate and data would not "
        f"fit together; go on with first_step={made}, or start over with recipe.compile(model)"
    )


def _optimizer_class(name):
    # By name alone: to make one would start the backend, whose devices could not be set up afterwards.
    kinds = {
        kind.__name__.lower(): kind
        for kind in vars(keras.optimizers).values()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    kinds = {key: kind for key, kind in kinds.items() if key not in ("optimizer", "lossscaleoptimizer")}
    if not isinstance(name, str) or name.lower() not in kinds:
        raise ValueError(f"optimizer must be one of {sorted(kinds)}, got {name!r}")
    return kinds[name.lower()]
