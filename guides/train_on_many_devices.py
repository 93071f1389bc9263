"""Training on many devices by one word, with the losses of one device.

Question: how do I train on many devices, and how do I know that they train what one device would?

| `distribution` | backend | what it does | 20 losses differ from one device's by at most |
|---|---|---|---|
| `"single"` | all | one device | - |
| `"mirrored"` | TensorFlow | a copy of the model on each GPU of a machine | 1.0e-6 |
| `"data-parallel"` | JAX | a copy on each device of all machines | 1.0e-6 |
| `"data-parallel"` | torch | a copy in each process that `torchrun` starts, one for each GPU of all machines | 1.0e-6 |
| `"model-parallel:N"` | JAX | each copy cut over N devices, weights and optimizer alike | 1.0e-6 |
| `"auto"` | all | several GPUs (torch: processes): mirrored or data-parallel; else single | |

Measured on two to four devices of a CPU, in one process with a SimpleRNN, a GRU, an LSTM and two Transformers, and on JAX
and torch in two processes with a GRU, an LSTM and a Transformer; `pytest tests/devices` does most of it anew.
`batch_size` is that of all devices together.

One machine: write the word. Several machines: set `KERAS_BACKEND=jax` (for torch see below), start the same script once on
each, and it finds the others in its environment. Nothing in the script changes; each process reads its own rows. The first
one writes; with `Resume` each process saves, through Orbax, its own parts of weights that no process has the whole of.

    srun --ntasks=4 --gpus-per-task=8 python train.py            # Slurm; Open MPI's mpirun likewise, and Cloud TPU
    KERAS_DISTRIBUTION_JOB_ADDRESSES=host0:1234 KERAS_DISTRIBUTION_NUM_PROCESSES=4 \\
        KERAS_DISTRIBUTION_PROCESS_ID=0 python train.py          # by hand, or in a Kubernetes job; 1, 2, 3 on the others

On torch a process has one GPU, so that one machine, too, needs several, and `torchrun` starts them. `"auto"` without it
takes one GPU and says so:

    torchrun --nproc-per-node=8 train.py                         # one machine of 8 GPUs; two machines, on each of them:
    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=host0:1234 train.py

There `Recipe.fit` trains in all processes as in one; a `fit` of your own needs `strategy.start` and `strategy.training`
(see `devices/torch_processes.py`). TensorFlow past one machine is refused: Keras's `fit` does not work there.

Ray Train joins its workers itself. On a Cloud TPU outside of Kubernetes, call `keras.distribution.initialize()` first.
What Keras would train wrongly under a distribution is refused before the first step, with the reason and the way out.
"""

import dataclasses
import pathlib
import sys

import keras

import keras_seqlm as seqlm

TEXT = "Many hands make light work, and many devices make the same steps sooner. " * 200


def main(folder="runs/many_devices", steps=20):
    """Train the same model by each distribution; returns {distribution: the loss of each step}."""
    words = two_devices_on_a_cpu()  # your machine has devices of its own: leave this line out

    # Data know nothing of devices. Each batch is a function of the step, so every process can tell which rows are its own.
    corpus = pathlib.Path(folder, "hands.txt")
    corpus.parent.mkdir(parents=True, exist_ok=True)
    corpus.write_text(TEXT, encoding="utf-8")
    tokenizer = seqlm.tokenizers.ByteTokenizer()
    train, _ = seqlm.data.causal_blocks(corpus, tokenizer, sequence_length=32, batch_size=8, seed=1, cache_dir=folder)

    recipe = seqlm.training.Recipe(steps=steps, batch_size=8, warmup_steps=5, validate_every=1, seed=1)
    losses = {}
    for word in ("single", *words):
        recipe = dataclasses.replace(recipe, distribution=word)
        # The devices have to be known when weights are made; so build, or load, the model in here.
        with recipe.scope():
            model = seqlm.models.TransformerLM(tokenizer.vocabulary_size, size="nano", hidden_dim=32, num_heads=4)
        losses[word] = recipe.fit(model, train, progress=False).history["loss"]
        furthest = max(abs(here - there) for here, there in zip(losses[word], losses["single"], strict=True))
        print(
            f"{word:16}  first loss {losses[word][0]:.6f}  last {losses[word][-1]:.6f}  furthest from single {furthest:.1e}"
        )
    return losses


def two_devices_on_a_cpu():
    """Two logical devices, so that the guide runs anywhere, and the words that spread over them."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        return ["mirrored"]
    if backend == "jax":
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", 2)
        return ["data-parallel", "model-parallel:2"]
    return []  # on torch each device has a process of its own, which torchrun starts


if __name__ == "__main__":
    losses = main(*sys.argv[1:])
    same = all(abs(a - b) < 1e-5 for one in losses.values() for a, b in zip(one, losses["single"], strict=True))
    sys.exit(0 if same else 1)
