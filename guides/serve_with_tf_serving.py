"""Ask a served model: the same question over REST, over gRPC, and of the folder itself.

Question: TensorFlow Serving (or whoever speaks its language) serves `saved_models/books/1` as `books`. How does a program ask
it for text, with an option of its own for each row, and do all ways give one answer?

Start a server first; `serve_with_tf_serving.md` says how, and has the same for curl, `saved_model_cli`, Java and Go. Then:

    python guides/serve_with_tf_serving.py saved_models/books localhost:8501 localhost:8500

gRPC needs `pip install tensorflow-serving-api`, REST nothing. `main` returns the texts of every client.
"""

import base64
import json
import pathlib
import sys
import urllib.error
import urllib.request

PROMPTS = ["It was a dark night", "Zoë said"]
# The signature `generate` takes every option for each row. 0, 0, 1, 0 and 1 switch them off; temperature 0 is greedy.
OPTIONS = {
    "max_new_tokens": ("int32", [20, 20]),
    "temperature": ("float32", [0.0, 0.8]),
    "top_k": ("int32", [0, 40]),
    "top_p": ("float32", [1.0, 0.95]),
    "min_p": ("float32", [0.0, 0.0]),
    "repetition_penalty": ("float32", [1.0, 1.0]),
    "seed": ("int32", [0, 7]),  # one seed, one text: the same on every server, in Python and on a phone
}


def rest(address, name, request):
    """Posts one request to the REST port; a server that refuses it raises ValueError with what it says."""
    url = f"http://{address}/v1/models/{name}:predict"
    try:
        with urllib.request.urlopen(url, json.dumps(request).encode(), timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from error


def ask_in_rows(address, name):
    """A row a prompt: `instances` goes in, `predictions` comes out. All inputs have one value a row."""
    columns = {"text": PROMPTS, **{option: values for option, (_, values) in OPTIONS.items()}}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    answer = rest(address, name, {"signature_name": "generate", "instances": rows})
    return [row["generated_text"] for row in answer["predictions"]]


def ask_in_columns(address, name):
    """The same by column: `inputs` goes in, `outputs` comes out. Here the text travels as bytes in base 64."""
    texts = [{"b64": base64.b64encode(prompt.encode()).decode()} for prompt in PROMPTS]
    columns = {"text": texts, **{option: values for option, (_, values) in OPTIONS.items()}}
    return rest(address, name, {"signature_name": "generate", "inputs": columns})["outputs"]["generated_text"]


def ask_over_grpc(address, name):
    """The same with the official stubs; they import TensorFlow, a few seconds."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, "generate"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(PROMPTS))
    for option, (dtype, values) in OPTIONS.items():
        request.inputs[option].CopyFrom(tf.make_tensor_proto(values, dtype))
    with grpc.insecure_channel(address) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    return [text.decode("utf-8") for text in tf.make_ndarray(answer.outputs["generated_text"])]


def ask_the_folder(version_folder):
    """No server: the SavedModel in this process. Its tokenizer may need the operations of tensorflow_text."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    generate = tf.saved_model.load(version_folder).signatures["generate"]
    options = {option: tf.constant(values, dtype) for option, (dtype, values) in OPTIONS.items()}
    return [text.decode("utf-8") for text in generate(text=tf.constant(PROMPTS), **options)["generated_text"].numpy()]


def score(address, name, texts):
    """How probable each text is: ln p after the beginning of a text, and how many tokens it has."""
    answer = rest(address, name, {"signature_name": "score", "inputs": {"text": texts}})["outputs"]
    return list(zip(answer["log_probability"], answer["num_tokens"], strict=True))


def main(folder="saved_models/books", rest_address="localhost:8501", grpc_address="localhost:8500"):
    """Asks in every way; returns a dict of the way -> the texts."""
    folder = pathlib.Path(folder)
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))

    # The default signature: text in, text out, greedily, 64 tokens.
    print(rest(rest_address, folder.name, {"instances": PROMPTS[:1]})["predictions"][0]["generated_text"])

    said = {
        "REST, rows": ask_in_rows(rest_address, folder.name),
        "REST, columns": ask_in_columns(rest_address, folder.name),
        "gRPC": ask_over_grpc(grpc_address, folder.name),
        "the folder": ask_the_folder(str(newest)),
    }
    for way, texts in said.items():
        print(f"{way:14}", texts)
    for text, (log_probability, tokens) in zip(PROMPTS, score(rest_address, folder.name, PROMPTS), strict=True):
        print(f"ln p({text!r}) = {log_probability:.2f}, {tokens} tokens")

    # What is wrong is said, not guessed.
    try:
        rest(rest_address, folder.name, {"signature_name": "sing", "instances": PROMPTS})
    except ValueError as error:
        print("refused:", error)
    return said


if __name__ == "__main__":
    said = main(*sys.argv[1:])
    sys.exit(0 if len({tuple(texts) for texts in said.values()}) == 1 else 1)
