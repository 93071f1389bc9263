"""A Transformer block: attention, to a memory too, and feed-forward, each with its norm and residual connection."""

import keras
from keras import ops

from keras_seqlm.layers.attention import SelfAttention
from keras_seqlm.layers.cross_attention import CrossAttention
from keras_seqlm.layers.dense import straight
from keras_seqlm.layers.feed_forward import FeedForward
from keras_seqlm.layers.normalization import normalization
from keras_seqlm.layers.quantization import Quantizable


def recomputed(layer, function, *tensors):
    """`function(*tensors)`, whose activations are not kept for the backward pass but computed there once more.

    Memory for computation: of a layer only its input is kept. Weights and random seeds are handed in, so that both
    computations drop the same units; `keras.RematScope` fails on TensorFlow and JAX where a layer has dropout.
    Reference: Chen et al. 2016, arXiv:1604.06174.

    Args:
        layer: a built layer; the only one whose variables `function` may read.
        function: from tensors to one tensor. What else it reads gets no gradient.
        tensors: float tensors, or None, which is handed on.

    Returns:
        What `function` returns.
    """
    # On TensorFlow a variable among the arguments would get its gradient twice: as argument, and as variable.
    read = ops.copy if keras.backend.backend() == "tensorflow" else lambda weight: weight.value
    weights, frozen = layer.trainable_weights, layer.non_trainable_weights
    seeds = [variable for variable in layer.variables if not any(variable is weight for weight in layer.weights)]
    fixed = [*zip(frozen, map(read, frozen), strict=True), *((seed, ops.copy(seed)) for seed in seeds)]
    given = [i for i, tensor in enumerate(tensors) if tensor is not None]

    def pure(*values):
        arguments = [None] * len(tensors)
        for i, value in zip(given, values[len(weights) :], strict=True):
            arguments[i] = value
        mapping = [*zip(weights, values, strict=False), *fixed]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            output = function(*arguments)
        return output, *(scope.get_current_value(seed) for seed in seeds)

    output, *after = keras.remat(pure)(*map(read, weights), *(tensors[i] for i in given))
    for seed, value in zip(seeds, after, strict=True):
        seed.assign(value)
    return output


@keras.saving.register_keras_serializable("keras_seqlm")
class TransformerBlock(Quantizable):
    """Self-attention and feed-forward with residual connections.

    Pre-norm (`norm_first=True`, GPT-2, Llama): x = x + Attention(Norm(x)); x = x + FFN(Norm(x)).
    Post-norm (the first Transformer, BERT):    x = Norm(x + Attention(x)); x = Norm(x + FFN(x)).
    A decoder with a memory has a third branch between the two, of the same form: CrossAttention(x, memory).

    References: Vaswani et al. 2017, arXiv:1706.03762; pre-norm: Xiong et al. 2020, arXiv:2002.04745.

    Args:
        hidden_dim, num_heads, num_kv_heads, head_dim, causal: see `SelfAttention`.
        intermediate_dim, activation: see `FeedForward`.
        norm: "layer" or "rms".
        norm_first: pre-norm or post-norm.
        epsilon: of the norms.
        dropout: of both branches; attention_dropout: of the attention probabilities, see `SelfAttention`.
        attention_scale: of the scores; default 1 / sqrt(head_dim).
        use_bias: whether products have a bias; qkv_bias, output_bias (of the attention) and feed_forward_bias say
            otherwise of one of them.
        memory_dim: width of the memory that the block attends to, too; None for none.
        residual_branches: how many branches of the whole model write to the residual stream; their last products
            start smaller by its square root (Radford et al. 2019, GPT-2), so that depth does not blow up the stream.

    Attributes:
        rematerialize: set to True, training keeps the block's input alone and computes the rest once more in the
            backward pass (see `recomputed`). No part of the config: it changes memory, not numbers.

    Call arguments:
        x: (batch, time, hidden_dim).
        memory, memory_bias: with `memory_dim`, `memory` and `bias` of `CrossAttention`; `cross_attention.memory` makes it.
        The others as in `SelfAttention`.

    Returns:
        (batch, time, hidden_dim); where there is a cache, or with `return_keys`, also the pair of keys and values.

    Example:

    >>> block = TransformerBlock(hidden_dim=8, num_heads=2, intermediate_dim=32)
    >>> tuple(block(keras.ops.ones((2, 3, 8))).shape)
    (2, 3, 8)
    """

    def __init__(
        self,
        hidden_dim,
        num_heads,
        intermediate_dim,
        num_kv_heads=None,
        head_dim=None,
        causal=True,
        activation="gelu_tanh",
        norm="layer",
        norm_first=True,
        epsilon=1e-5,
        dropout=0.0,
        attention_dropout=0.0,
        attention_scale=None,
        use_bias=True,
        qkv_bias=None,
        output_bias=None,
        feed_forward_bias=None,
        memory_dim=None,
        residual_branches=2,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = head_dim
        self.causal = causal
        self.activation = activation
        self.norm = norm
        self.norm_first = norm_first
        self.epsilon = epsilon
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.attention_scale = attention_scale
        self.use_bias = use_bias
        self.qkv_bias, self.output_bias, self.feed_forward_bias = (
            use_bias if bias is None else bias for bias in (qkv_bias, output_bias, feed_forward_bias)
        )
        self.memory_dim = memory_dim
        self.residual_branches = residual_branches
        self.rematerialize = False

        def scaled(factor=1.0):
            return keras.initializers.VarianceScaling(scale=factor, mode="fan_in", distribution="truncated_normal")

        common = {
            "kernel_initializer": scaled(),
            "output_initializer": scaled(1.0 / residual_branches),
            "dtype": self.dtype_policy,
        }
        heads = {
            "num_kv_heads": num_kv_heads,
            "head_dim": head_dim,
            "scale": attention_scale,
            "use_bias": self.qkv_bias,
            "output_bias": self.output_bias,
            "dropout": attention_dropout,
            **common,
        }
        self.attention = SelfAttention(hidden_dim, num_heads, causal=causal, name="attention", **heads)
        self.cross_attention = self.cross_attention_norm = None
        if memory_dim is not None:
            self.cross_attention = CrossAttention(hidden_dim, num_heads, memory_dim, name="cross_attention", **heads)
        self.feed_forward = FeedForward(
            hidden_dim, intermediate_dim, activation, use_bias=self.feed_forward_bias, name="feed_forward", **common
        )
        norms = {"epsilon": epsilon, "dtype": self.dtype_policy}
        self.attention_norm = normalization(norm, name="attention_norm", **norms)
        self.feed_forward_norm = normalization(norm, name="feed_forward_norm", **norms)
        if memory_dim is not None:
            self.cross_attention_norm = normalization(norm, name="cross_attention_norm", **norms)
        self.branch_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy) if dropout else None

    def build(self, input_shape=None):
        layers = (self.attention, self.cross_attention, self.feed_forward)
        for layer in (*layers, self.attention_norm, self.cross_attention_norm, self.feed_forward_norm):
            if layer is not None:
                layer.build((None, None, self.hidden_dim))

    def call(
        self,
        x,
        rotation=None,
        causal=None,
        attention_mask=None,
        bias=None,
        cache=None,
        slots=None,
        memory=None,
        memory_bias=None,
        return_keys=False,
        training=None,
    ):
        if (memory is None) is not (self.memory_dim is None):
            raise ValueError(
                "a block with memory_dim attends to a memory, which a call must give, and a block without to none; got "
                f"memory_dim={self.memory_dim} and {'no memory' if memory is None else 'a memory'}"
            )
        x = ops.cast(x, self.compute_dtype)
        seen = {"rotation": rotation, "causal": causal, "attention_mask": attention_mask}
        if self.rematerialize and training and cache is None and not return_keys:

            def all_of_them(x, bias, memory_bias, *memory):
                return self._branches(x, training, memory or None, memory_bias, bias=bias, **seen)

            return recomputed(self, all_of_them, x, bias, memory_bias, *(memory or ()))
        seen |= {"bias": bias, "cache": cache, "slots": slots, "return_keys": return_keys}
        return self._branches(x, training, memory, memory_bias, **seen)

    def _branches(self, x, training, memory, memory_bias, **arguments):
        read = straight(self.attention_norm, x) if self.norm_first else x
        attended = straight(self.attention, read, training=training, **arguments)
        attended, *kept = attended if isinstance(attended, tuple) else (attended,)
        x = x + self._dropped(attended, training)
        x = x if self.norm_first else straight(self.attention_norm, x)
        if memory is not None:
            x = self._branch(self.cross_attention, self.cross_attention_norm, x, training, memory, memory_bias)
        x = self._branch(self.feed_forward, self.feed_forward_norm, x, training)
        return (x, *kept) if kept else x

    def _branch(self, layer, norm, x, training, *arguments):
        read = straight(norm, x) if self.norm_first else x
        x = x + self._dropped(straight(layer, read, *arguments, training=training), training)
        return x if self.norm_first else straight(norm, x)

    def _dropped(self, branch, training):
        return branch if self.branch_dropout is None else self.branch_dropout(branch, training=training)

    def get_config(self):
        names = (
            "hidden_dim",
            "num_heads",
            "intermediate_dim",
            "num_kv_heads",
            "head_dim",
            "causal",
            "activation",
            "norm",
            "norm_first",
            "epsilon",
            "dropout",
            "attention_dropout",
            "attention_scale",
            "use_bias",
            "qkv_bias",
            "output_bias",
            "feed_forward_bias",
            "memory_dim",
            "residual_branches",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
