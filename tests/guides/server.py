"""A small server that speaks TensorFlow Serving's REST and gRPC around TensorFlow's C library, for the clients of the guide.

`python server.py FOLDER NAME` serves the newest version of a SavedModel under a name and prints its ports as JSON. The
messages are the official ones of tensorflow-serving-api; the JSON follows https://www.tensorflow.org/tfx/serving/api_rest.
It is no TensorFlow Serving: it has no batching, no warm-up, one model and one lock. TensorFlow's Python is not imported.
"""

import base64
import concurrent.futures
import http.server
import importlib.util
import json
import pathlib
import re
import sys
import threading
import types

import numpy as np

# The stubs import `tensorflow.core...`, messages alone: without this they would import all of TensorFlow.
_package = types.ModuleType("tensorflow")
_package.__spec__ = importlib.util.find_spec("tensorflow")  # finds the folder and imports nothing
_package.__path__ = list(_package.__spec__.submodule_search_locations)
sys.modules["tensorflow"] = _package

import grpc  # noqa: E402
from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from seqlm_runtime import SavedModel  # noqa: E402

_FIELDS = {  # type -> NumPy's name for it, and the field that holds numbers that are not in tensor_content
    types_pb2.DT_FLOAT: ("float32", "float_val"),
    types_pb2.DT_INT32: ("int32", "int_val"),
    types_pb2.DT_INT64: ("int64", "int64_val"),
    types_pb2.DT_BOOL: ("bool", "bool_val"),
    types_pb2.DT_STRING: ("object", "string_val"),
}
_CODES = {name: code for code, (name, _) in _FIELDS.items()}


class Refused(Exception):
    """What the client did wrong, with the HTTP status that says so."""

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


class Served:
    """One model, one request at a time."""

    def __init__(self, folder, name):
        self.version = max(int(path.name) for path in pathlib.Path(folder).iterdir() if path.name.isdigit())
        self.model, self.name, self._lock = SavedModel(pathlib.Path(folder, str(self.version))), name, threading.Lock()

    def signature(self, name, version, signature):
        """The inputs and outputs of a signature."""
        if name != self.name or version not in (None, self.version):
            raise Refused(f"Servable not found for request: {name} {version}", 404)
        if signature not in self.model.signatures:
            raise Refused(f'Serving signature name: "{signature}" not found in signature def')
        return self.model.signatures[signature]

    def run(self, signature, inputs):
        """The outputs, in the order of their names."""
        with self._lock:
            try:
                answer = self.model.run(signature, **inputs)
            except (ValueError, RuntimeError) as error:
                raise Refused(str(error)) from error
        return dict(sorted(answer.items()))


def array_of(proto):
    """The NumPy array in a TensorProto."""
    if proto.dtype not in _FIELDS:
        raise Refused(f"tensors of type {proto.dtype} are not served here")
    dtype, field = _FIELDS[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    values, size = list(getattr(proto, field)), int(np.prod(shape))
    values += values[-1:] * (size - len(values))  # one value may stand for all that follow
    array = np.empty(size, dtype)
    array[:] = values
    return array.reshape(shape)


def proto_of(array):
    """The TensorProto of a NumPy array."""
    proto = tensor_pb2.TensorProto(dtype=_CODES[array.dtype.name])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = np.ascontiguousarray(array).tobytes()
    return proto


class Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, served):
        self.served = served

    def Predict(self, request, context):
        spec = request.model_spec
        signature = spec.signature_name or "serving_default"
        version = spec.version.value if spec.HasField("version") else None
        try:
            self.served.signature(spec.name, version, signature)
            answer = self.served.run(signature, {name: array_of(proto) for name, proto in request.inputs.items()})
        except Refused as error:
            code = grpc.StatusCode.NOT_FOUND if error.status == 404 else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = spec.name, signature
        response.model_spec.version.value = self.served.version
        for name, array in answer.items():
            response.outputs[name].CopyFrom(proto_of(array))
        return response


class Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, served):
        self.served = served

    def GetModelStatus(self, request, context):
        if request.model_spec.name != self.served.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response.model_version_status.add(version=self.served.version, state=state)
        return response


class Rest(http.server.BaseHTTPRequestHandler):
    served = None
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != f"/v1/models/{self.served.name}":
            return self.answer(404, {"error": f"Malformed request: GET {self.path}"})
        status = {"error_code": "OK", "error_message": ""}
        version = {"version": str(self.served.version), "state": "AVAILABLE", "status": status}
        self.answer(200, {"model_version_status": [version]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.answer(200, self.predict(body))
        except Refused as error:
            self.answer(error.status, {"error": str(error)})

    def predict(self, body):
        place = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/([0-9]+))?:predict", self.path)
        if place is None:
            raise Refused(f"Malformed request: POST {self.path}", 404)
        try:
            request = json.loads(body)
        except ValueError as error:
            raise Refused(f"JSON Parse error: {error}") from error
        if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
            raise Refused("Missing 'inputs' or 'instances' key")
        signature = request.get("signature_name", "serving_default")
        version = None if place[2] is None else int(place[2])
        wanted, _ = self.served.signature(place[1], version, signature)
        rows = "instances" in request
        columns = columns_of(request["instances"], wanted) if rows else request["inputs"]
        if not rows and not (isinstance(columns, dict) and set(columns) <= set(wanted)):
            columns = {next(iter(wanted)): columns}  # the value itself, where there is one input
        answer = self.served.run(signature, {name: read(value, wanted.get(name)) for name, value in columns.items()})
        shown = {name: written(name, array) for name, array in answer.items()}
        if not rows:
            return {"outputs": next(iter(shown.values())) if len(shown) == 1 else shown}
        if len({len(values) for values in shown.values()}) > 1:
            raise Refused("Tensor has inconsistent batch size")
        if len(shown) == 1:
            return {"predictions": next(iter(shown.values()))}
        return {"predictions": [dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True)]}

    def answer(self, status, content):
        body = json.dumps(content, indent=4).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # the test reads what it wants to know from the answers


def columns_of(instances, wanted):
    """Rows as columns. A row is an object of inputs, or the value itself where there is one input."""
    if not isinstance(instances, list) or not instances:
        raise Refused("Request data must be a list of one row or more")
    named = [isinstance(row, dict) and set(row) != {"b64"} for row in instances]
    if not any(named) and len(wanted) == 1:
        return {next(iter(wanted)): instances}
    if not all(named) or any(set(row) != set(instances[0]) for row in instances):
        raise Refused("instance is missing a key, or has one that others lack: every row names the same inputs")
    return {name: [row[name] for row in instances] for name in instances[0]}


def read(value, info):
    """The array of an input's JSON; a binary string is `{"b64": ...}`."""
    if info is None:
        raise Refused("the request names an input that the signature has not")
    kind = "strings" if info.dtype is object else np.dtype(info.dtype).name
    array = np.array(plain(value, kind), dtype=info.dtype)
    return array


def plain(value, kind):
    if isinstance(value, list):
        return [plain(item, kind) for item in value]
    if kind == "strings":
        if isinstance(value, dict) and set(value) == {"b64"}:
            return base64.b64decode(value["b64"])
        if isinstance(value, str):
            return value.encode()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if kind.startswith("float") or isinstance(value, int):
            return value
    raise Refused(f"JSON Value: {json.dumps(value)} is not of the type that is expected: {kind}")


def written(name, array):
    """An output as JSON: strings as text, those of a tensor whose name ends in `_bytes` in base 64."""
    if array.dtype != object:
        return array.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(value).decode()} for value in array.ravel()]
    return [value.decode() for value in array.ravel()]


def main(folder, name):
    served = Served(folder, name)
    Rest.served = served
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rest)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Prediction(served), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Status(served), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    loaded = [name for name in ("tensorflow.python", "keras", "keras_seqlm") if name in sys.modules]
    print(json.dumps({"rest": rest.server_port, "grpc": port, "loaded": loaded}), flush=True)
    sys.stdin.read()  # until whoever started it closes the pipe, or ends
    server.stop(None)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
