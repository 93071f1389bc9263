"""From raw text to a server and a phone: one script, one model, the same words everywhere.

Question: how do I get from a folder of text files to a model that TensorFlow Serving and LiteRT run, and how do I know
that they say what my model says?

The report at the end says so: each artifact beside the model, token by token, greedy and sampled. `main` returns it.
"""

import pathlib
import sys

import keras

import keras_seqlm as seqlm
from seqlm_cli.demo import write_corpus


def main(folder="runs/guide", steps=600):
    """Everything below in order; `folder` gets all that is written."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # Text. Any .txt, .md, .jsonl, or .gz of them, a folder or a glob; here the documentation that came with Python.
    corpus = write_corpus(folder / "corpus.jsonl")

    # A tokenizer, trained on it. Byte pairs need no unknown token: any text comes back as it was.
    tokenizer = seqlm.tokenizers.BytePairTokenizer.train(texts=seqlm.data.texts(corpus), vocabulary_size=1024)

    # Blocks of tokens, packed without padding; the last tenth of the stream is kept for validation.
    train, validation = seqlm.data.causal_blocks(corpus, tokenizer, sequence_length=128, batch_size=16, seed=1)

    # A model. `RecurrentLM(..., cell="lstm")` goes the same way to the end.
    keras.utils.set_random_seed(1)
    model = seqlm.models.TransformerLM(tokenizer.vocabulary_size, size="nano", max_length=128)

    # Training is Keras's own: your optimizer, your callbacks, your strategy.
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-3, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    epochs = max(1, steps // len(train))
    model.fit(train, validation_data=validation, epochs=epochs, steps_per_epoch=min(steps, len(train)), verbose=2)

    # A task joins model and tokenizer: text in, text out.
    writer = seqlm.tasks.TextGeneration(model, tokenizer)
    print(writer.generate("The function returns", max_new_tokens=40, temperature=0.7, seed=1))
    writer.save(folder / "run")  # `seqlm.load` reads it back, and so do `seqlm generate`, `evaluate` and `export`

    # A server: text in, text out, with the tokenizer and the loop inside.
    server = seqlm.export.saved_model(writer, folder / "saved_models/guide/1", overwrite=True)

    # A phone: ids and the state in the open, the tokenizer's files beside it.
    phone = seqlm.export.litert(writer, folder / "saved_models/guide.tflite", overwrite=True)
    small = seqlm.export.litert(writer, folder / "saved_models/guide.tflite", quantize="int8", overwrite=True)

    # The proof.
    report = seqlm.export.verify(writer, server, phone, small)
    print(report)

    # What the phone runs: NumPy and LiteRT, no TensorFlow, no Keras.
    from seqlm_runtime import LiteRTModel

    print(LiteRTModel(phone).generate("The function returns", max_new_tokens=40, temperature=0.7, seed=1)["text"])
    return report


if __name__ == "__main__":
    sys.exit(0 if main().ok else 1)
