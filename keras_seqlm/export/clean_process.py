"""Work that needs a TensorFlow process of its own: export and the reference side of verification.

Whatever backend, precision and devices the caller has, the work is done on TensorFlow, on the CPU. The request goes in
as JSON on standard input, the answer comes back as JSON in a file.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from keras_seqlm.export.stages import followed, passed_on_to

# Failures whose message is for the user, by name; they are raised again in the process that asked.
_FOR_USERS = {
    kind.__name__: kind
    for kind in (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, ImportError, ValueError)
}


def run_clean(function, imports=(), **arguments):
    """Call `function` ("module:name", a function of keywords that JSON can hold) in a clean process.

    Args:
        function: what to call there; it returns what JSON can hold.
        imports: modules to import first, for a user's own registered classes.
        **arguments: its keywords; paths as str.

    Returns:
        What the function returned.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, ImportError: as raised there.
        RuntimeError: the process failed in another way; the end of its output is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "answer.json"
        environment = {
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        request = {"function": function, "imports": list(imports), "arguments": arguments, "answer": str(answer)}
        request["stages"] = str(pathlib.Path(folder) / "stages")
        with followed(request["stages"]):
            done = subprocess.run(
                [sys.executable, "-m", "keras_seqlm.export.clean_process"],
                input=json.dumps(request),
                env=environment,
                text=True,
                capture_output=True,
            )
        content = json.loads(answer.read_text()) if answer.exists() else {}
    if "result" in content:
        return content["result"]
    if "error" in content:
        raise _FOR_USERS[content["kind"]](content["error"])
    raise RuntimeError(f"{function} failed in its own process (exit {done.returncode}):\n{done.stderr[-3000:]}")


def _main():
    request = json.load(sys.stdin)
    module, name = request["function"].split(":")
    try:
        with passed_on_to(request["stages"]):
            for imported in request["imports"]:
                importlib.import_module(imported)
            content = {"result": getattr(importlib.import_module(module), name)(**request["arguments"])}
    except tuple(_FOR_USERS.values()) as error:
        kind = next(name for name, kind in _FOR_USERS.items() if isinstance(error, kind))
        content = {"error": str(error), "kind": kind}
    pathlib.Path(request["answer"]).write_text(json.dumps(content))


if __name__ == "__main__":
    _main()
