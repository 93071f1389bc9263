"""Models of sequences: language models on one contract (state in, state out), encoders, and heads on either."""

from keras_seqlm.models.adapters import add_lora, merge_lora
from keras_seqlm.models.encoders import RecurrentEncoder, TransformerEncoder
from keras_seqlm.models.heads import Head, backbone_of
from keras_seqlm.models.language_model import LanguageModel
from keras_seqlm.models.presets import RECURRENT_SIZES, SIZES, TRANSFORMER_SIZES
from keras_seqlm.models.recurrent_lm import RecurrentLM
from keras_seqlm.models.seq2seq_lm import Seq2SeqLM
from keras_seqlm.models.sequence_model import SequenceModel
from keras_seqlm.models.text_heads import Classifier, Embedder
from keras_seqlm.models.token_heads import MaskedLM, SpanFinder, Tagger
from keras_seqlm.models.token_model import TokenModel
from keras_seqlm.models.transformer_lm import TransformerLM

__all__ = [
    "RECURRENT_SIZES",
    "SIZES",
    "TRANSFORMER_SIZES",
    "Classifier",
    "Embedder",
    "Head",
    "LanguageModel",
    "MaskedLM",
    "RecurrentEncoder",
    "RecurrentLM",
    "Seq2SeqLM",
    "SequenceModel",
    "SpanFinder",
    "Tagger",
    "TokenModel",
    "TransformerEncoder",
    "TransformerLM",
    "add_lora",
    "backbone_of",
    "merge_lora",
]
