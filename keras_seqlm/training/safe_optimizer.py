"""An optimizer that leaves the weights alone where a gradient is not finite."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_seqlm")
class SafeOptimizer(keras.optimizers.LossScaleOptimizer):
    """Wraps an optimizer: an update with a NaN or an infinity in its gradient is skipped, and counted.

    Weights and slots then stay as they are, bit for bit, while `iterations` counts on, so that learning rate and data
    keep their step. Where gradients are accumulated, a bad one is left out of the sum; if it is the last of its update,
    the others go with it, or the next update would hold more than its own. In half precision it scales the loss as
    Keras's `LossScaleOptimizer` does, too; under `MirroredStrategy` it asks every replica, which Keras's does not.

    Args:
        inner_optimizer: any Keras optimizer.
        initial_scale: of the loss; 1 leaves it unscaled for good. `compile` under the policy mixed_float16 wants 2**15.
        dynamic_growth_steps: finite updates until a scale is doubled; a skipped one halves it.

    Attributes, each a scalar variable:
        gradient_norm: global norm of the last gradient, before clipping.
        skipped: updates left out so far; skipped_in_a_row: since the last good one; last_skipped: its step, from 0, or -1.

    Example:

    >>> optimizer = SafeOptimizer(keras.optimizers.SGD(0.1))
    >>> weight = keras.Variable([1.0, 2.0])
    >>> optimizer.apply([keras.ops.array([float("nan"), 1.0])], [weight])
    >>> keras.ops.convert_to_numpy(weight).tolist(), int(optimizer.skipped)
    ([1.0, 2.0], 1)

    Reference: Micikevicius et al. 2018, arXiv:1710.03740 (loss scaling).
    """

    def __init__(self, inner_optimizer, initial_scale=1.0, dynamic_growth_steps=2000, name=None, **kwargs):
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps, name=name, **kwargs)

    @property
    def scales(self):
        """Whether the loss is scaled."""
        return self.initial_scale != 1.0

    def build(self, var_list):
        super().build(var_list)
        counts = ("skipped", "skipped_in_a_row", "last_skipped")
        for name, start in (("gradient_norm", 0.0), *dict.fromkeys(counts, 0).items()):
            variable = self.add_variable(
                shape=(),
                dtype="float32" if name == "gradient_norm" else "int32",
                initializer=keras.initializers.Constant(-1 if name == "last_skipped" else start),
                aggregation="only_first_replica",
                name=name,
            )
            setattr(self, name, variable)

    def scale_loss(self, loss):
        return super().scale_loss(loss) if self.scales else loss

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            with keras.name_scope(self.name):
                self.build(trainable_variables)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if not tf.__internal__.distribute.strategy_supports_no_merge_call():
                replica = tf.distribute.get_replica_context()
                replica.merge_call(self._apply_to_replicas, args=(list(grads), trainable_variables))
                return
        norm = _global_norm(grads)
        # On JAX this is no traced step (that one is stateless), and a branch of JAX's own must not assign.
        choose = _choose_now if keras.backend.backend() == "jax" else ops.cond
        choose(ops.isfinite(norm), lambda: self._update(norm, grads, trainable_variables), lambda: self._skip(norm))

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        """The optimizer's and the model's variables after the update, as `keras.optimizers.Optimizer` gives them."""
        norm = _global_norm(grads)
        mapping = list(zip(self.variables, optimizer_variables, strict=True))
        mapping += zip(self._trainable_variables, trainable_variables, strict=True)

        def run(step):
            with keras.StatelessScope(state_mapping=mapping) as scope:
                step()
            return tuple([scope.get_current_value(v) for v in vs] for vs in (self._trainable_variables, self.variables))

        return ops.cond(
            ops.isfinite(norm),
            lambda: run(lambda: self._update(norm, grads, None)),
            lambda: run(lambda: self._skip(norm)),
        )

    def _update(self, norm, grads, trainable_variables):
        scale = ops.convert_to_tensor(self.dynamic_scale) if self.scales else 1.0
        if self.scales:
            grads = [None if gradient is None else ops.divide(gradient, scale) for gradient in grads]
        self.inner_optimizer.apply(grads, trainable_variables or self._trainable_variables)
        self.gradient_norm.assign(norm / scale)
        self.skipped_in_a_row.assign(0)
        if self.scales:
            counted = ops.convert_to_tensor(self.step_counter) + 1
            grown = ops.equal(counted, self.dynamic_growth_steps)
            self.dynamic_scale.assign(scale * ops.where(grown, 2.0, 1.0))
            self.step_counter.assign(ops.where(grown, 0, counted))

    def _skip(self, norm):
        self.gradient_norm.assign(norm)
        self.skipped.assign_add(1)
        self.skipped_in_a_row.assign_add(1)
        batches = self.inner_optimizer._iterations  # `iterations` is fewer where gradients are accumulated
        self.last_skipped.assign(ops.cast(batches, "int32"))
        if steps := self.inner_optimizer.gradient_accumulation_steps:
            is_last = ops.equal((ops.convert_to_tensor(batches) + 1) % steps, 0)
            for gradient in self.inner_optimizer._accumulated_gradients:
                gradient.assign(ops.where(is_last, 0.0, ops.convert_to_tensor(gradient)))
        batches.assign_add(1)
        if self.scales:
            self.step_counter.assign(0)
            self.dynamic_scale.assign(ops.multiply(self.dynamic_scale, 0.5))

    def _apply_to_replicas(self, distribution, grads, trainable_variables):
        """What `apply` does under `MirroredStrategy`, where a condition must stand outside of the replicas."""
        import tensorflow as tf

        norms = distribution.extended.call_for_each_replica(_global_norm, args=(grads,))
        # Of the parts: the norm of the sum is not known here. Any part that is not finite makes the sum so.
        norm = tf.norm(tf.stack(distribution.experimental_local_results(norms)))

        def update():
            distribution.extended.call_for_each_replica(self._update, args=(norm, grads, trainable_variables))

        def skip():
            distribution.extended.call_for_each_replica(self._skip, args=(norm,))

        tf.cond(tf.math.is_finite(norm), update, skip)


def _global_norm(grads):
    squares = [ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in grads if gradient is not None]
    return ops.sqrt(sum(squares))


def _choose_now(condition, true, false):
    return true() if bool(condition) else false()
