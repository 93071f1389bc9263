"""One process of torch, of those that `test_torch_processes.py` starts: it trains, saves and goes on beside the others."""

import json
import os
import pathlib
import signal
import sys

import keras
import numpy as np
from training_toy import Batches, blocks, compiled, held, new_model

from keras_seqlm.training import Recipe, Resume, SafeOptimizer

# The clip bites at each step, so that one made before the mean would show.
TWENTY = {"steps": 20, "batch_size": 4, "warmup_steps": 2, "learning_rate": 0.01, "clip_norm": 0.3, "validate_every": 1}


class Uneven(Batches):
    """Rows of which unequally many targets count: of one process 13 of 16, of the other 6."""

    def batch(self, step):
        x, y = super().batch(step)
        counted = np.arange(y.shape[1]) < np.array([8, 1, 5, 5])[:, None]
        return x, np.where(counted, y, -1)


class Poisoned(Batches):
    """Steps 3 and 4 have a weight that is no number, in a row of the second process."""

    def batch(self, step):
        x, y = super().batch(step)
        weights = np.ones(y.shape, "float32")
        weights[1, 0] = np.nan if step in (3, 4) else 1
        return x, y, weights


def uneven(distribution):
    recipe = Recipe(**TWENTY, distribution=distribution)
    return fitted(recipe, compiled(recipe, "tied"), Uneven(), held())


def accumulated(distribution):
    recipe = Recipe(**TWENTY, distribution=distribution, accumulate=2, ema=0.9, optimizer="muon")
    return fitted(recipe, compiled(recipe, "lstm"), Uneven(), held())


def of_blocks(distribution):
    recipe = Recipe(**TWENTY, distribution=distribution)
    return fitted(recipe, compiled(recipe, "gru", vocabulary_size=260), *blocks(4))


def of_keras(distribution):
    """A model, a loss, an optimizer and a metric of Keras's."""
    recipe = Recipe(**TWENTY, distribution=distribution)
    with recipe.scope():
        model = new_model("bigram")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=0.3), loss, metrics=["accuracy"])
    return fitted(recipe, model, Batches(), held())


def poisoned(distribution):
    """An update that is skipped since one process alone has no finite gradient."""
    recipe = Recipe(**TWENTY, distribution=distribution)
    model = compiled(recipe, "tied")
    [losses], weights = fitted(recipe, model, Poisoned(), None)
    assert isinstance(model.optimizer, SafeOptimizer) and int(model.optimizer.skipped) == 2
    return [losses[:3] + losses[5:]], weights  # of the steps between each process shows what is finite of its own


CASES = [uneven, accumulated, of_blocks, of_keras, poisoned]


def fitted(recipe, model, train, validation):
    """The numbers of every step, and the weights after them."""
    history = recipe.fit(model, train, validation, progress=False).history
    weights = {v.path.partition("/")[2]: keras.ops.convert_to_numpy(v).tolist() for v in model.trainable_variables}
    return [history[name] for name in sorted(history)], weights


def resumed(folder, kill_at=-1, number=None):
    """Train to step 12 with dropout, saving every 3 steps. After a step both processes die, or one is told to end."""

    class Kill(keras.callbacks.Callback):
        step = 0

        def on_train_batch_end(self, batch, logs=None):
            self.step += 1
            if self.step == kill_at and (number == signal.SIGKILL or os.environ["RANK"] == "1"):
                os.kill(os.getpid(), number)

    recipe = Recipe(**{**TWENTY, "steps": 12, "validate_every": 4}, distribution="auto")
    with recipe.scope():  # joins the processes
        model = new_model("tied", dropout=0.2)
    resume = Resume(folder, every=3)
    losses = recipe.fit(model, Uneven(), held(), callbacks=[Kill()], resume=resume, progress=False).history
    return resume.step_before, losses


def stopped():
    """At which step both end, when a callback of the second one alone says so; what an odd run says of itself."""

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2 and os.environ["RANK"] == "1"

    class Change(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if os.environ["RANK"] == "1":
                variable = self.model.trainable_variables[0]
                variable.assign(variable * 1.1)

    recipe = Recipe(**{**TWENTY, "validate_every": 10}, distribution="auto")
    model = compiled(recipe, "tied")
    recipe.fit(model, Batches(), callbacks=[Stop()], progress=False)
    said = {"steps": int(model.optimizer.iterations)}
    model = compiled(recipe, "tied")
    attempts = {
        "drift": lambda: recipe.fit(model, Batches(), callbacks=[Change()], progress=False),
        "arrays": lambda: recipe.fit(compiled(recipe, "tied"), Batches(), Batches().batch(0), progress=False),
        "carried": lambda: compiled(recipe, "lstm", stateful_batch_size=4),
        "odd": lambda: Recipe(**{**TWENTY, "batch_size": 3}, distribution="auto").scope().__enter__(),
        "single": lambda: compiled(Recipe(**TWENTY), "tied"),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, RuntimeError) as error:
            said[name] = str(error)
    return said


def main(folder, kind):
    """What the test asks for: "die", and then "train"."""
    if kind == "die":
        try:
            resumed(folder / "ended", 5, signal.SIGTERM)
        except SystemExit as end:
            assert end.code == 143
            resumed(folder / "killed", 7, signal.SIGKILL)
    result = {"resumed": {name: resumed(folder / name) for name in ("alone", "ended", "killed")}}
    result["cases"] = {case.__name__: case("data-parallel") for case in CASES}
    result["stopped"] = stopped()
    (folder / f"{kind} {os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
