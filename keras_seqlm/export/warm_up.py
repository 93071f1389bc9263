"""What a server does before its first request, and how it is told to serve: files beside the graph.

`assets.extra/tf_serving_warmup_requests` of a version holds requests that TF Serving answers while it loads the model:
one of each signature for each bucket of prompts, so that no client waits for what a first request sets up. Beside the
versions lie `models.config` and `batching.txt`, which the server takes as `--model_config_file` and
`--batching_parameters_file`. `generate_xla` is not in the requests: it fails on a server without XLA, and one failing
request keeps a model from being loaded.
"""

import numpy as np

from keras_seqlm.generation.buckets import SMALLEST, buckets
from keras_seqlm.generation.samplers import OPTIONS
from seqlm_runtime.graph_file import DTYPES
from seqlm_runtime.prompts import read_ids

WARM_UP = "assets.extra/tf_serving_warmup_requests"
MODELS_CONFIG, BATCHING = "models.config", "batching.txt"
NEW_TOKENS = 2  # of the requests that say how many
WORD = "a "
FEW = (8, 4, 2, 1)  # tokens of the requests to `logits` that have fewer than any bucket

# Requests that wait together are answered in one run of the graph. Rows are bounded, so a batch of them is; a prompt that
# is long does not make the short ones beside it longer.
_BATCHING = """\
# --enable_batching=true --batching_parameters_file=.../batching.txt
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 }  # as many as the server has cores
pad_variable_length_inputs: true  # of `logits`, whose token_ids may be of any width
"""
_CONFIG = """\
# --model_config_file=.../models.config; base_path is the folder as the server sees it
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
  }}
}}
"""


def warm_up_requests(tokenizer, max_prompt_tokens, longest, new_tokens=NEW_TOKENS):
    """The requests of a warm-up.

    Args:
        tokenizer: of the model.
        max_prompt_tokens: ids that are read of a prompt.
        longest: ids that `logits` reads.

    Returns:
        A list of pairs: the name of a signature, and a dict of arrays of one row.
    """
    off = {name: np.array([value], dtype) for name, (dtype, value) in OPTIONS.items()}
    sampled = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1, "seed": 7}
    sampled = {name: np.array([sampled[name]], value.dtype) for name, value in off.items()}
    wanted = {"max_new_tokens": np.array([new_tokens], "int32")}
    requests = []
    for length in buckets(max_prompt_tokens):
        text = {"text": np.array([text_of_tokens(tokenizer, length)], object)}
        requests += [(name, text) for name in ("serving_default", "generate_text", "score")]
        requests += [("generate", {**text, **wanted, **options}) for options in (off, sampled)]
    # A matrix product of few rows is another program, which is made at its first use.
    for length in (*buckets(longest), *(length for length in FEW if length < min(longest, SMALLEST))):
        ids = {"token_ids": np.zeros((1, length), "int32"), "lengths": np.array([length], "int32")}
        requests.append(("logits", ids))
    return requests


def text_of_tokens(tokenizer, length):
    """A text of about so many ids, and no more."""
    count = length
    while count > 1 and len(read_ids(tokenizer, WORD * count)[0]) > length:
        count = count * 7 // 8
    return (WORD * count).encode()


def write_warm_up(path, requests):
    """Write `requests` as TF Serving reads them: a TFRecord of `tensorflow.serving.PredictionLog`."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(_prediction_log(signature, inputs))


def write_server_files(folder, name):
    """Write `models.config` and `batching.txt` beside the versions of a model; those that are there stay as they are."""
    for file, content in ((MODELS_CONFIG, _CONFIG.format(name=name)), (BATCHING, _BATCHING)):
        if not (folder / file).exists():
            (folder / file).write_text(content, encoding="utf-8")


# The numbers of the fields are from prediction_log.proto, predict.proto and model.proto of tensorflow/serving, and from
# tensor.proto and tensor_shape.proto of tensorflow.
def _prediction_log(signature, inputs):
    request = _block(1, _block(3, signature.encode()))
    for name, value in inputs.items():
        request += _block(2, _block(1, name.encode()) + _block(2, _tensor(value)))
    return _block(6, _block(1, request))


def _tensor(value):
    number = next(number for number, dtype in DTYPES.items() if np.dtype(dtype) == value.dtype)
    shape = b"".join(_block(2, _number(1, size)) for size in value.shape)
    content = (
        b"".join(_block(8, text) for text in value.ravel()) if value.dtype == object else _block(4, value.tobytes())
    )
    return _number(1, number) + _block(2, shape) + content


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _block(field, data):
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _varint(value):
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes(digits) + bytes([value])
