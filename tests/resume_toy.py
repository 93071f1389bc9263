"""One process of a run of several, which trains, saves and goes on; `test_resume.py` starts and kills it."""

import json
import os
import signal
import sys
import time


def main(folder, distribution, kill_at, number):
    import keras
    from training_toy import Batches, compiled

    from keras_seqlm.training import Recipe, Resume, strategy

    strategy(distribution)  # joins the others

    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch + 1 == kill_at:
                os.kill(os.getpid(), number)
            if 0 < kill_at <= epoch + 1:
                time.sleep(2)  # steps of a millisecond would be over before JAX has told the other process

    recipe = Recipe(
        steps=12, batch_size=4, warmup_steps=2, learning_rate=0.01, validate_every=1, distribution=distribution
    )
    resume = Resume(folder, every=3)
    kill = [Kill()] if os.environ["KERAS_DISTRIBUTION_PROCESS_ID"] == "1" else []
    model = compiled(recipe, "tied", dropout=0.2)
    losses = recipe.fit(model, Batches(4), callbacks=kill, resume=resume, progress=False).history["loss"]
    print(json.dumps([resume.step_before, losses]), flush=True)


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), signal.Signals(int(sys.argv[4])))
