"""Text becomes token blocks for `fit`: read as a stream, tokenized once into a memory-mapped cache, cut anew in each epoch."""

from keras_seqlm.corpora import Corpus, Rows, texts
from keras_seqlm.data.blocks import CausalBlocks
from keras_seqlm.data.cache_folder import list_cache, prune_cache
from keras_seqlm.data.causal import causal_blocks
from keras_seqlm.data.continuing import FillInTheMiddle, PrefixLM
from keras_seqlm.data.denoising import Denoising
from keras_seqlm.data.examples import Examples
from keras_seqlm.data.masked import Masked
from keras_seqlm.data.mixtures import MixedBlocks
from keras_seqlm.data.objective_blocks import ObjectiveBlocks, objective_blocks
from keras_seqlm.data.packing import TokenStore, pack
from keras_seqlm.data.paired_examples import PairedExamples
from keras_seqlm.data.permutation import permute
from keras_seqlm.data.prepared import prepared
from keras_seqlm.data.spans import SpanCorruption

__all__ = [
    "CausalBlocks",
    "Corpus",
    "Denoising",
    "Examples",
    "FillInTheMiddle",
    "Masked",
    "MixedBlocks",
    "ObjectiveBlocks",
    "PairedExamples",
    "PrefixLM",
    "Rows",
    "SpanCorruption",
    "TokenStore",
    "causal_blocks",
    "list_cache",
    "objective_blocks",
    "pack",
    "permute",
    "prepared",
    "prune_cache",
    "texts",
]
