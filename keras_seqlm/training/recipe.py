"""A recipe: every number a training run depends on, in one place, and the three steps that use them."""

import contextlib
import dataclasses
import inspect
import json
import math
import pathlib

import keras
import numpy as np

from keras_seqlm.devices import check_name, strategy
from keras_seqlm.files import write_json
from keras_seqlm.half_precision import refuse_lost_decays
from keras_seqlm.losses import CrossEntropy
from keras_seqlm.nesting import innermost
from keras_seqlm.training.callbacks import Progress, Run, RunCallback, ValidateAverage, tell_of_run
from keras_seqlm.training.guards import RollBack, StopAfterSkipped, average_finite_losses, is_out_of_memory
from keras_seqlm.training.layer_rates import layer_factors, scale_rates
from keras_seqlm.training.optimizers import clip_after_all_reduce, exclude_from_decay, new_optimizer, optimizer_class
from keras_seqlm.training.schedules import SCHEDULES, WarmupSchedule

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")


def _one_of(default, *choices):
    """A field that is one of some values."""

    def check(name, value):
        if not any(type(value) is type(one) and value == one for one in choices):  # 1 is not True
            raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
        return value

    return dataclasses.field(default=default, metadata={"check": check})


def _count(default, least):
    """A field that is an integer of at least `least`; None where that is its default."""

    def check(name, value):
        if value is None and default is None:
            return None
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        return int(value)

    return dataclasses.field(default=default, metadata={"check": check})


def _number(default, fits, range_, optional=False):
    """A field that is a number in a range; None where it is `optional`."""

    def check(name, value):
        if value is None and optional:
            return None
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not fits(value):
            raise ValueError(f"{name} must be a number {range_}, got {value!r}")
        return float(value)

    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a language model is trained. `dataclasses.replace(recipe, steps=50)` makes another from one.

    Plain `model.compile` and `model.fit` need nothing of it.

    Args:
        optimizer: name of any Keras optimizer, as "adamw", "adam", "sgd"; "muon" for hidden matrices and AdamW for the
            rest (see `new_optimizer`).
        learning_rate: the highest; schedule, warmup_steps, final_learning_rate_fraction, decay_fraction: see
            `WarmupSchedule`.
        weight_decay: decoupled, in steps of learning_rate * weight_decay; biases, scales of norms and tables of
            positions are left out.
        beta_1, beta_2: of Adam and its kin; others take no notice.
        clip_norm: the gradient's global norm is clipped to it; None leaves it.
        precision: the dtype policy of what is built in `scope()`: "float32", "mixed_bfloat16", "mixed_float16", or
            "bfloat16", in which the weights themselves are bfloat16.
        batch_size: rows of a batch, over all devices together.
        steps: batches in the whole run.
        seed: of the weights and of dropout; data has its own.
        distribution: "auto", "single", "mirrored" (TensorFlow: the machine's GPUs), "data-parallel" or
            "model-parallel[:N]" (JAX: all devices of all processes; N share a model). On torch "data-parallel" takes the
            processes that `torchrun` starts, one for each GPU, and "auto" does so where it started them.
        validate_every: steps between two validations, counted from where `fit` starts; None makes ten of them.
        accumulate: gradients of so many batches are averaged into one update, as of a batch so many times larger.
            Steps, and with them the learning rate, go on counting batches.
        ema: momentum of an exponential moving average of the weights, as 0.999, in updates; None keeps none. Training
            goes on with the weights themselves; the average is what is validated, and what the model has when `fit` is
            over. Reference: Polyak and Juditsky 1992.
        label_smoothing, z_loss: see `losses.CrossEntropy`. The losses that are shown have them in.
        rematerialize: of each Transformer block keep the input alone, and compute the rest again in the backward pass:
            less memory for one more forward pass in each step.
        steps_per_execution: batches that the backend runs in one call (TensorFlow, JAX); callbacks see the last one.
        jit_compile: whether XLA (on torch: its own compiler) compiles the step; "auto" leaves it to Keras, which does so
            on JAX and on GPUs of TensorFlow. On a CPU, True makes an LSTM faster on TensorFlow, and a Transformer not.
        stop_after_skipped: an update whose gradient is not finite is left out (`SafeOptimizer`), and after so many in a
            row training stops; 0 makes every update, whatever it is.
        layer_decay: learning rates fall from the top down: that of a layer is multiplied by layer_decay ** (how far below the
            head it stands), see `layer_rates.layer_factors`. 1 leaves them alike.
        roll_back_factor: a loss so many times the usual one undoes the updates since the last checkpoint (`RollBack`),
            as 2.0; None goes on. It needs `fit(resume=...)`.

    Raises:
        ValueError: a field that cannot be; with precision="bfloat16" a beta or an `ema` that bfloat16 rounds to 1, as 0.999.

    Example:

    ```python
    recipe = Recipe(steps=2000, batch_size=16, precision="mixed_bfloat16")
    with recipe.scope():
        model = TransformerLM(tokenizer.vocabulary_size, size="tiny")
    recipe.fit(model, train, validation, callbacks=[HistoryCSV("runs/books/history.csv")])
    ```
    """

    optimizer: str = "adamw"
    learning_rate: float = _number(1e-3, lambda value: 0 < value < math.inf, "above 0")
    schedule: str = _one_of("cosine", *SCHEDULES)
    warmup_steps: int = _count(100, 0)
    final_learning_rate_fraction: float = _number(0.1, lambda value: 0 <= value <= 1, "between 0 and 1")
    weight_decay: float = _number(0.1, lambda value: 0 <= value < math.inf, "at least 0")
    beta_1: float = _number(0.9, lambda value: 0 <= value < 1, "at least 0 and below 1")
    beta_2: float = _number(0.99, lambda value: 0 <= value < 1, "at least 0 and below 1")
    clip_norm: float | None = _number(1.0, lambda value: 0 < value < math.inf, "above 0, or None", optional=True)
    precision: str = _one_of("float32", *PRECISIONS)
    batch_size: int = _count(16, 1)
    steps: int = _count(1000, 1)
    seed: int = _count(0, 0)
    distribution: str = "single"
    validate_every: int | None = _count(None, 1)
    decay_fraction: float = _number(0.2, lambda value: 0 < value <= 1, "above 0 and at most 1")
    accumulate: int = _count(1, 1)
    ema: float | None = _number(None, lambda value: 0 < value < 1, "between 0 and 1, or None", optional=True)
    label_smoothing: float = _number(0.0, lambda value: 0 <= value < 1, "at least 0 and below 1")
    z_loss: float = _number(0.0, lambda value: 0 <= value < math.inf, "at least 0")
    rematerialize: bool = _one_of(False, True, False)
    steps_per_execution: int = _count(1, 1)
    jit_compile: bool | str = _one_of("auto", "auto", True, False)
    stop_after_skipped: int = _count(10, 0)
    layer_decay: float = _number(1.0, lambda value: 0 < value <= 1, "above 0 and at most 1")
    roll_back_factor: float | None = _number(
        None, lambda value: 1 < value < math.inf, "above 1, or None", optional=True
    )

    def __post_init__(self):
        check_name(self.distribution)
        for field in dataclasses.fields(self):
            if "check" in field.metadata:
                object.__setattr__(self, field.name, field.metadata["check"](field.name, getattr(self, field.name)))
        refuse_lost_decays(self._decays(), self.precision, f"the recipe of {self.optimizer}")
        if self.accumulate > self.steps:
            raise ValueError(
                f"accumulate must be at most steps = {self.steps}, or nothing is learned; got {self.accumulate}"
            )
        for name in ("steps", "validate_every"):
            if (getattr(self, name) or 0) % self.steps_per_execution:
                raise ValueError(
                    f"{name} must be a multiple of steps_per_execution = {self.steps_per_execution}, got {getattr(self, name)}"
                )

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
        return WarmupSchedule(
            self.schedule, self.learning_rate, self.steps, self.warmup_steps, final, self.decay_fraction
        )

    def compile(self, model):
        """Compile with the recipe's optimizer and the model's default loss, as the cross-entropy of the next token in nats.

        Args:
            model: one of ours (its `default_loss`), or any that gives logits (batch, time, vocabulary); built in `scope()`.

        Raises:
            ValueError: the model was built outside the strategy's scope, or does not go with it; what the backend, or
                this model, cannot do.
        """
        devices = strategy(self.distribution)
        devices.check(model)
        if self.steps_per_execution > 1 and keras.backend.backend() == "torch":
            raise ValueError("steps_per_execution above 1 needs the tensorflow or jax backend; leave it at 1 on torch")
        with devices.scope():
            _build(model)
            self._rematerialize(model)
            model.compile(
                optimizer=new_optimizer(self, model),
                loss=getattr(model, "default_loss", CrossEntropy)(self.label_smoothing, self.z_loss),
                steps_per_execution=self.steps_per_execution,
                jit_compile=self.jit_compile,
            )
        devices.check(model)
        if devices.sums_gradients:
            clip_after_all_reduce(model.optimizer)

    def fit(self, model, train, validation=None, callbacks=(), first_step=0, progress=True, resume=None):
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
            resume: a `Resume`, which saves checkpoints and goes on from the newest; `first_step` is then its own.

        Returns:
            The Keras `History`: one entry of `loss` (and `val_loss`) for each piece that was left to do.

        Raises:
            ValueError: batches of another size than `batch_size`, a model that does not go with the distribution,
                a first step that does not fit the optimizer or the data.
            MemoryError: a step does not fit the memory; the message says what helps.
        """
        pieces = self.validate_every or math.ceil(self.steps / 10)
        pieces += -pieces % self.steps_per_execution
        if resume is not None:
            resume.divide(pieces)
            first_step = resume.first_step
        if self.roll_back_factor is not None and resume is None:
            raise ValueError("roll_back_factor goes back to checkpoints, so fit needs resume=Resume(folder)")
        if not 0 <= first_step < self.steps and resume is None:
            raise ValueError(f"first_step must be between 0 and steps - 1 = {self.steps - 1}, got {first_step}")
        if first_step and not hasattr(train, "batches"):
            raise ValueError("a run can go on only with data that has batches(first_step), as data.causal_blocks gives")
        devices = strategy(self.distribution)
        if not model.compiled:
            self.compile(model)
        self._rematerialize(model)
        devices.check(model)
        if devices.sums_gradients:
            clip_after_all_reduce(model.optimizer)
        if resume is not None:
            with devices.scope():  # where the optimizer's slots belong, too
                resume.restore(model)
        devices.start(model)
        step_before = first_step if resume is None else resume.step_before
        _check_iterations(model.optimizer, step_before)
        self._renew(model)
        tokens = self._check_batch(train, first_step, devices)
        if step_before == 0 and getattr(model, "stateful_batch_size", None) is not None:
            model.reset_state()

        arguments = {"initial_epoch": 0, "shuffle": False}
        if resume is None:
            pieces = min(pieces, self.steps - first_step)
        else:
            arguments = resume.fit_arguments()
        known = {"steps": self.steps, "tokens_per_step": tokens, "bytes_per_token": _bytes_per_token(validation)}
        known["targets"] = getattr(train, "targets_are", "tokens")
        run = Run(first_step, **known) if resume is None else resume.of_run(**known)
        nothing_left = first_step >= self.steps or (resume is not None and resume.ended)
        left = 0 if nothing_left else math.ceil((self.steps - first_step) / pieces)
        callbacks = [*callbacks, *devices.callbacks()]
        callbacks = self._callbacks(callbacks, model, resume, progress, uneven=(self.steps - first_step) % pieces)
        forget = tell_of_run(callbacks, run)
        try:
            with devices.training(model):
                return model.fit(
                    devices.feed(train, first_step) if resume is None else resume.data(train, devices, validation),
                    validation_data=devices.feed_validation(validation),
                    epochs=arguments["initial_epoch"] + left,
                    steps_per_epoch=pieces,
                    callbacks=callbacks,
                    verbose=0,
                    **arguments,
                )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"a step of {self.batch_size} rows does not fit the memory; use a smaller batch_size with accumulate, which "
                "keeps the size of an update, shorter sequences, rematerialize=True, or precision='mixed_bfloat16'. What "
                "was saved before is whole"
            ) from error
        finally:
            forget()
            if resume is not None:
                resume.close()

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
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path):
        """Read `recipe.json`: a recipe's own, or a run folder's, which holds one beside what else was asked for."""
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return cls.from_dict(content.get("recipe", content))

    def _decays(self):
        """The decay rates that the optimizer takes, and the average's, by the names of their fields."""
        takes = inspect.signature(optimizer_class(self.optimizer).__init__).parameters
        decays = {name: getattr(self, name) for name in ("beta_1", "beta_2") if {name, f"adam_{name}"} & set(takes)}
        return decays if self.ema is None else {**decays, "ema": self.ema ** (1 / self.accumulate)}

    def _callbacks(self, callbacks, model, resume, progress, uneven):
        """The caller's callbacks between our own; `uneven`: whether the last piece is shorter than the others."""
        callbacks = list(callbacks)
        if self.ema is not None:
            callbacks.insert(0, ValidateAverage())
        if progress and not any(isinstance(callback, Progress) for callback in callbacks):
            callbacks.insert(0, Progress())
        if uneven:
            callbacks.insert(0, _StopAtTheEnd())
        if self.stop_after_skipped:
            average_finite_losses(model)
            callbacks.append(StopAfterSkipped(self.stop_after_skipped))
        if self.roll_back_factor is not None:
            callbacks.append(RollBack(resume, self.roll_back_factor))
        if resume is not None:
            callbacks.append(resume)  # the last one: what others write at a step is on the disk before the checkpoint
        return callbacks

    def _rematerialize(self, model):
        blocks = [layer for layer in model._flatten_layers() if hasattr(layer, "rematerialize")]
        if self.rematerialize and not blocks:
            raise ValueError(
                "rematerialize=True is for Transformer blocks, and the model has none; leave it out, or wrap what is "
                "costly in your own layers in keras.remat"
            )
        for block in blocks:
            block.rematerialize = self.rematerialize

    def _renew(self, model):
        """What a compiled model's own optimizer needs to go on by this recipe: a file does not hold all of it."""
        optimizer = innermost(model.optimizer)
        old, new = getattr(optimizer, "_learning_rate", None), self.learning_rate_schedule()
        if not isinstance(old, WarmupSchedule):
            return  # compiled by the user, who has set what is wanted
        exclude_from_decay(optimizer, model.trainable_variables)
        if self.layer_decay != 1:
            scale_rates(optimizer, layer_factors(model, self.layer_decay))
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


class _StopAtTheEnd(RunCallback):
    """Ends the last piece, where it is shorter than the others."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step >= self.run.steps:
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
    made = int(keras.ops.convert_to_numpy(innermost(optimizer)._iterations))  # batches, where gradients are accumulated
    # With Keras's scaled loss, steps that overflowed were left out.
    skipped = hasattr(optimizer, "inner_optimizer") and 0 < made < first_step
    if made == first_step or skipped:
        return
    raise ValueError(
        f"the optimizer has made {made} steps, and first_step is {first_step}, so that learning rate and data would not "
        f"fit together; go on with first_step={made}, or start over with recipe.compile(model)"
    )
