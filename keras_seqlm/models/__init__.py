"""Language models on one contract: state in, state out."""

from keras_seqlm.models.language_model import LanguageModel
from keras_seqlm.models.presets import RECURRENT_SIZES, SIZES, TRANSFORMER_SIZES
from keras_seqlm.models.recurrent_lm import RecurrentLM
from keras_seqlm.models.transformer_lm import TransformerLM

__all__ = ["RECURRENT_SIZES", "SIZES", "TRANSFORMER_SIZES", "LanguageModel", "RecurrentLM", "TransformerLM"]
