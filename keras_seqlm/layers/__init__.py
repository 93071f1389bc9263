"""Mathematics only: layers that know nothing of text."""

from keras_seqlm.layers.attention import SelfAttention, attend, write_cache
from keras_seqlm.layers.blocks import TransformerBlock
from keras_seqlm.layers.embeddings import TokenEmbedding, lookup
from keras_seqlm.layers.feed_forward import FeedForward
from keras_seqlm.layers.positions import LearnedPositions, SinusoidalPositions, rotate
from keras_seqlm.layers.recurrent import RecurrentStack

__all__ = [
    "FeedForward",
    "LearnedPositions",
    "RecurrentStack",
    "SelfAttention",
    "SinusoidalPositions",
    "TokenEmbedding",
    "TransformerBlock",
    "attend",
    "lookup",
    "rotate",
    "write_cache",
]
