"""A loss of vectors by what else stands in the batch: near to those that mean the same, far from the others."""

import keras
from keras import ops

from keras_seqlm.losses.targets import UNCOUNTED, share_of
from keras_seqlm.products import matmul_in_float32


@keras.saving.register_keras_serializable("keras_seqlm")
class InBatchNegatives(keras.losses.Loss):
    """-ln of the share that a row's vector gives to rows of the same id, among all other rows of the batch.

        s_ij = z_i . z_j / t
        loss_i = mean over j with y_j = y_i, j != i, of (ln sum_k!=i exp(s_ik) - s_ij)

    With ids of classes it is the supervised contrastive loss (its L_out), with an id for each pair the InfoNCE loss of
    both directions, in which the texts of one side count as negatives, too. The mean is over rows that have another of
    their id; rows of id -1, and of sample weight 0, are as if they were not there. Where a batch is divided among devices
    by `MirroredStrategy` or by processes of torch, a row sees those on its own device alone.

    References: van den Oord et al. 2018, arXiv:1807.03748; Khosla et al. 2020, arXiv:2004.11362.

    Args:
        temperature: t; smaller pays more heed to the negatives that are nearest.
        reduction, name: as in `keras.losses.Loss`.

    Call arguments:
        y_true: int (batch,), the id of what a row means.
        y_pred: (batch, width), vectors of length 1, as an `Embedder` gives.
        sample_weight: None, or (batch,).

    Raises:
        ValueError: a temperature that is not above 0.

    Example:

    >>> vectors = keras.ops.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> loss = InBatchNegatives(temperature=0.5)
    >>> round(float(loss(keras.ops.array([0, 0, 1, 1]), vectors)), 4)  # ln(1 + 2 exp(-2))
    0.2395
    """

    def __init__(self, temperature=0.05, reduction="sum_over_batch_size", name="in_batch_negatives"):
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a number above 0, got {temperature!r}")
        self.temperature = temperature

    def __call__(self, y_true, y_pred, sample_weight=None):
        ids = ops.reshape(ops.cast(ops.convert_to_tensor(y_true), "int32"), (-1,))
        y_pred = ops.convert_to_tensor(y_pred)
        weights = ops.ones(ops.shape(ids), "float32")
        if sample_weight is not None:
            weights = ops.reshape(ops.cast(ops.convert_to_tensor(sample_weight), "float32"), (-1,))
            ids = ops.where(weights == 0, UNCOUNTED, ids)
        counted = ops.cast(ops.any(_same(ids), axis=1), "float32")
        weights = weights * counted
        if self.reduction in ("sum_over_batch_size", "mean"):
            weights = ops.divide_no_nan(weights, share_of(counted))
        return super().__call__(ids, y_pred, weights)

    def call(self, y_true, y_pred):
        """The loss of each row, float32 (batch,); 0 of those that have no other of their id."""
        ids = ops.cast(y_true, "int32")
        z = ops.cast(y_pred, "float32")
        likeness = matmul_in_float32(z, ops.transpose(z)) / self.temperature
        others = ops.logical_and(ops.not_equal(ids, UNCOUNTED)[None], ops.logical_not(_itself(ids)))
        same = ops.cast(_same(ids), "float32")
        # A number far below any likeness, and not the least there is, whose exponent a gradient could not bear.
        log_sum = ops.logsumexp(ops.where(others, likeness, -1e9), axis=1)
        count = ops.sum(same, axis=1)
        mean = ops.divide_no_nan(ops.sum(same * likeness, axis=1), count)
        return ops.where(count > 0, log_sum - mean, 0.0)

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}


def _itself(ids):
    """Bool (batch, batch): a row and itself."""
    places = ops.arange(ops.shape(ids)[0], dtype="int32")
    return places[:, None] == places[None]


def _same(ids):
    """Bool (batch, batch): two rows of one id."""
    same = ops.logical_and(ids[:, None] == ids[None], ops.not_equal(ids, UNCOUNTED)[:, None])
    return ops.logical_and(same, ops.logical_not(_itself(ids)))
