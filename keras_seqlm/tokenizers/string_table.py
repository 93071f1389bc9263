"""Finding strings in a fixed list, in a TensorFlow graph: a served graph has no lookup tables."""


class StringTable:
    """Numbers of strings in a list, by a hash into a tensor of slots and a comparison of the whole string.

    Args:
        strings: list of bytes, no two of them equal; not empty.
    """

    def __init__(self, strings):
        import tensorflow as tf

        self.strings = list(strings)
        self.size = 2 * len(self.strings)
        with tf.init_scope():
            slots = tf.strings.to_hash_bucket_fast(self.strings, self.size).numpy().tolist()
        lists = [[] for _ in range(self.size)]
        for number, slot in enumerate(slots):
            lists[slot].append(number)
        depth = max(map(len, lists))
        self.slots = [one + [-1] * (depth - len(one)) for one in lists]

    def find(self, strings):
        """The number of each of `strings` (n,) in the list, or -1, as (n,) int32."""
        import tensorflow as tf

        numbers = tf.gather(tf.constant(self.slots, tf.int32), tf.strings.to_hash_bucket_fast(strings, self.size))
        known = tf.gather(tf.constant(self.strings), tf.maximum(numbers, 0))  # (n, depth)
        equal = tf.equal(known, strings[:, tf.newaxis]) & (numbers >= 0)
        return tf.reduce_max(tf.where(equal, numbers, -1), axis=1)
