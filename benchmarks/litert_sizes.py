"""What a LiteRT file weighs, and what its weights cost: sizes, and the loss along a text, beside the exact file's.

    python benchmarks/litert_sizes.py runs/demo/lstm --text runs/demo/corpus.jsonl

Reads a run folder. Each kind of file is measured as LiteRT's converter makes it and as `keras_seqlm.export.litert` writes
it, in LiteRT itself, token after token over the first `--tokens` tokens of the text.
"""

import argparse
import os
import pathlib
import tempfile
from unittest import mock

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib

import numpy as np

from keras_seqlm import corpora
from keras_seqlm.export.litert import QUANTIZATIONS
from keras_seqlm.files import write_json
from seqlm_runtime import LiteRTModel

litert = importlib.import_module("keras_seqlm.export.litert")


def loss(path, ids):
    """Nats a token over rows of ids, each read from its start."""
    model, total, count = LiteRTModel(path), 0.0, 0
    for row in ids:
        state = model.initial_state()
        for here, following in zip(row[:-1], row[1:], strict=True):
            logits, state = model.step([here], state)
            logits = logits.astype("float64")
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[following]
            count += 1
    return total / count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--text", required=True, help="a file of text")
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in QUANTIZATIONS:
            for maker in ("converter", "ours"):
                path = pathlib.Path(folder) / f"{maker}.tflite"
                keep = mock.patch.object(litert, "compact", lambda content: content)
                with keep if maker == "converter" else mock.MagicMock():
                    tokenizer = path.with_suffix(".tokenizer")
                    sidecar = litert.write_litert(args.run, str(path), str(tokenizer), kind, overwrite=True)
                write_json(path.with_suffix(".json"), sidecar)
                tokens = LiteRTModel(path)
                if not rows:
                    ids = rows_of(args.text, tokens, args.tokens)
                rows.append((kind, maker, path.stat().st_size, loss(path, ids)))
    exact = next(row for row in rows if row[:2] == ("none", "ours"))
    print("| weights | file of | bytes | of the exact file | loss, nats a token | more than the exact file |")
    print("|---|---|---|---|---|---|")
    for kind, maker, size, value in rows:
        share, more = size / exact[2], value - exact[3]
        print(f"| {kind} | {maker} | {size:,} | {share:.1%} | {value:.4f} | {more:+.4f} |")


def rows_of(text, model, count):
    width = min(model.max_length or 128, 128)
    ids = []
    for document in corpora.texts([text]):
        ids += model.tokenizer.encode(document).tolist()
        if len(ids) >= count:
            break
    ids = ids[: len(ids) // width * width]
    return np.array(ids[: count // width * width]).reshape(-1, width)


if __name__ == "__main__":
    main()
