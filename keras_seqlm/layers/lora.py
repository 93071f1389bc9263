"""Low-rank adapters: what is learned beside a kernel that stays as it is."""

import keras
from keras import ops

from keras_seqlm.products import project


class LowRank(keras.layers.Layer):
    """The update (alpha / r) A B of a kernel W (features, width) that is frozen, so that

        y = x W + (alpha / r) x A B,    with A (features, r) and B (r, width)

    B starts at zero, and with it the update. Columns of W that are kernels of their own, as those of queries, keys and values,
    have each an A and a B of their own; those without a name are left as they are.

    Why not `enable_lora` of Keras's layers: it has one adapter for the whole of a fused kernel and none for recurrent ones, makes
    the whole kernel anew in each step, and a file of such a layer holds the sum, in which base and adapter cannot be told apart.

    Reference: Hu et al. 2021, arXiv:2106.09685.

    Args:
        rank: r.
        alpha: of the scale.
        parts: (name, columns) of each kernel in W, in their order; `None` for a name is not adapted. The first letters of the
            weights are `a` and `b`, then the name.
        groups: how often the parts stand side by side: by key-value head in a fused kernel of attention.
        begins: "b" where B starts at zero; "a" where A does, as of a table, of which a step reads few rows.

    Call arguments:
        x: (..., features).

    Returns:
        (..., width) in the dtype of `x`.

    Raises:
        ValueError: a rank below 1, an alpha that is not above 0.

    Example:

    >>> adapter = LowRank(rank=2, alpha=4, parts=[("q", 6), (None, 3), ("v", 3)])
    >>> adapter.build((None, 8))
    >>> [tuple(weight.shape) for weight in adapter.weights], tuple(adapter.of(keras.ops.ones((5, 8))).shape)
    ([(8, 2), (2, 6), (8, 2), (2, 3)], (5, 12))
    """

    def __init__(self, rank, alpha, parts, groups=1, begins="b", name="lora", **kwargs):
        super().__init__(name=name, **kwargs)
        check_numbers(rank, alpha)
        self.rank, self.alpha, self.groups, self.begins = rank, alpha, groups, begins
        self.parts = [(name, columns) for name, columns in parts]
        self.scale = alpha / rank
        self.pairs = []

    def build(self, input_shape):
        spread = {
            # As torch's layers begin; of a table so that a step moves its rows as far as if they were learned themselves.
            "a": keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
            "b": keras.initializers.RandomNormal(stddev=self.rank**-0.5),
        }
        spread[self.begins] = "zeros"
        for part, columns in self.parts:
            if part is None:
                continue
            shapes = {"a": (input_shape[-1], self.rank), "b": (self.rank, self.groups * columns)}
            # In float32 on their way into a layer, too: small updates are what half precision loses.
            pair = [
                self.add_weight(
                    name=f"{letter}_{part}" if part else letter,
                    shape=shape,
                    initializer=spread[letter],
                    dtype="float32",
                    autocast=False,
                )
                for letter, shape in shapes.items()
            ]
            self.pairs.append(tuple(pair))

    def factors(self):
        """A and B as one pair, float32 (features, n r) and (n r, width) of n parts."""
        if len(self.parts) == 1:
            return tuple(map(ops.convert_to_tensor, self.pairs[0]))
        width, rows, before = sum(columns for _, columns in self.parts), [], 0
        pairs = iter(self.pairs)
        for part, columns in self.parts:
            if part is not None:
                own = ops.reshape(next(pairs)[1], (self.rank, self.groups, columns))
                own = ops.pad(own, ((0, 0), (0, 0), (before, width - before - columns)))
                rows.append(ops.reshape(own, (self.rank, self.groups * width)))
            before += columns
        return ops.concatenate([a for a, _ in self.pairs], axis=1), ops.concatenate(rows, axis=0)

    def update(self):
        """What is added to W, float32 (features, width): for kernels that take no two products in place of one."""
        a, b = self.factors()
        return self.scale * ops.matmul(a, b)

    def of(self, x, training=None):
        """What is added to x W: two thin products. To train they are differentiable once."""
        product = project if training else ops.matmul
        a, b = (ops.cast(factor, x.dtype) for factor in self.factors())
        return product(product(x, a) * self.scale, b)

    def call(self, x, training=None):
        return self.of(x, training)


def check_numbers(rank, alpha):
    """Refuse a rank that is no number of columns, and a scale that would be zero or turn the update around."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank must be an integer of at least 1, got {rank!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be a number above 0, got {alpha!r}")


def effective(kernel, adapter):
    """A kernel with its adapter's update in it, in the dtype of the kernel; without an adapter the kernel itself."""
    if adapter is None:
        return kernel
    return ops.cast(ops.cast(kernel, "float32") + adapter.update(), kernel.dtype)
