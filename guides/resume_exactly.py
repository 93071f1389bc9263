"""How do I go on with a run that was killed, as if nothing had happened?

A callback alone cannot: Keras moves no iterator to where it was, and saves neither the state of dropout nor half an
epoch. Three lines do it: `Resume` saves everything that a step reads or writes, `resume.data` makes the batch of a step
a function of its number, and `resume.fit_arguments` tells `fit` where the run stands. Here a run is killed twice, by
`kill -9` in all but name, and ends with the very weights of the run that was left alone.

Run it: python guides/resume_exactly.py
"""

import pathlib
import tempfile

import keras
import numpy as np

import keras_seqlm as seqlm

STEPS_PER_EPOCH, EPOCHS = 20, 3
SAVE_EVERY = 8
KILL_AT = (13, 37)
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 400


def main(folder):
    folder = pathlib.Path(folder)
    (folder / "fox.txt").write_text(TEXT)
    whole = train(folder, folder / "left_alone")
    for step in KILL_AT:
        try:
            train(folder, folder / "killed", kill=KillAt(step))
        except Killed:
            print(f"killed at step {step}")
    gone_on = train(folder, folder / "killed")

    print("weights equal:", all((a == b).all() for a, b in zip(whole["weights"], gone_on["weights"], strict=True)))
    for name in ("loss", "val_loss"):
        print(f"{name} of the last epoch: {whole[name][-1]!r} left alone, {gone_on[name][-1]!r} killed twice")
    return whole, gone_on


def train(folder, checkpoints, kill=None):
    """What your script does, each time it is started: there is no word in it of whether the run is new."""
    keras.utils.set_random_seed(1)
    tokenizer = seqlm.tokenizers.ByteTokenizer()
    batches, validation = seqlm.data.causal_blocks(
        folder / "fox.txt", tokenizer, sequence_length=32, batch_size=8, seed=1, cache_dir=folder
    )
    model = seqlm.models.TransformerLM(tokenizer.vocabulary_size, size="nano", max_length=32, dropout=0.1)
    model.compile("adamw", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    resume = seqlm.training.Resume(checkpoints, every=SAVE_EVERY)
    history = model.fit(
        resume.data(batches),
        validation_data=validation,
        epochs=EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        callbacks=[*filter(None, [kill]), resume],
        verbose=0,
        **resume.fit_arguments(),
    )
    if resume.step_before:
        print(f"went on from step {resume.step_before}")
    return {**history.history, "weights": [np.array(weight) for weight in model.get_weights()]}


class Killed(Exception):
    """In place of SIGKILL, so that this guide lives to tell."""


class KillAt(keras.callbacks.Callback):
    """Ends the process, so to speak, in the middle of an epoch."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def get_state(self):
        return {}  # a callback that remembers gives it here, and finds it in set_state when the run goes on

    def set_state(self, state):
        assert state == {}

    def on_epoch_begin(self, epoch, logs=None):
        self.before = epoch * STEPS_PER_EPOCH

    def on_train_batch_end(self, batch, logs=None):
        if self.before + batch + 1 == self.step:
            raise Killed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(name)
