"""Writing with any model that keeps the contract: the loop, samplers, random numbers, scores."""

from keras_seqlm.generation.generate import Generated, generate, stream
from keras_seqlm.generation.samplers import options_for, sample
from keras_seqlm.generation.score import score

__all__ = ["Generated", "generate", "options_for", "sample", "score", "stream"]
