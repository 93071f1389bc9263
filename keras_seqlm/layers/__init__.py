"""Mathematics only: layers that know nothing of text."""

from keras_seqlm.cache import cache_slots, first_cache, single_tokens_written, write_cache
from keras_seqlm.layers.attention import SelfAttention, as_bias, attend, causal_mask
from keras_seqlm.layers.attentive_stack import AttentiveStack
from keras_seqlm.layers.blocks import TransformerBlock
from keras_seqlm.layers.cross_attention import CrossAttention
from keras_seqlm.layers.embeddings import TokenEmbedding, lookup
from keras_seqlm.layers.feed_forward import FeedForward
from keras_seqlm.layers.positions import LearnedPositions, SinusoidalPositions, rotary_frequencies, rotate, rotation
from keras_seqlm.layers.recurrent import RecurrentStack

__all__ = [
    "AttentiveStack",
    "CrossAttention",
    "FeedForward",
    "LearnedPositions",
    "RecurrentStack",
    "SelfAttention",
    "SinusoidalPositions",
    "TokenEmbedding",
    "TransformerBlock",
    "as_bias",
    "attend",
    "cache_slots",
    "causal_mask",
    "first_cache",
    "lookup",
    "rotary_frequencies",
    "rotate",
    "rotation",
    "single_tokens_written",
    "write_cache",
]
