"""From a trained model to what a server or a phone runs, and the proof that it says the same."""

from keras_seqlm.export.litert import litert
from keras_seqlm.export.saved_model import next_version, saved_model
from keras_seqlm.export.verify import Report, verify

__all__ = ["Report", "litert", "next_version", "saved_model", "verify"]
