"""What a program needs to run exported models, on NumPy alone.

`tokenizers` reads and writes text, `sampler` chooses tokens, `SavedModel` runs a SavedModel through TensorFlow's C
library; `LiteRTModel` and `LiteRTTask` run a .tflite file through ai-edge-litert. Neither keras nor TensorFlow's Python is imported.
"""

import importlib

__all__ = ["LiteRTModel", "LiteRTTask", "SavedModel"]

_MODULES = {
    "LiteRTModel": "seqlm_runtime.litert",
    "LiteRTTask": "seqlm_runtime.lite_task",
    "SavedModel": "seqlm_runtime.saved_model",
}


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'seqlm_runtime' has no attribute {name!r}")
