"""Devices and processes: one word spreads a run over them, and what Keras would train wrongly there is refused."""

from keras_seqlm.devices.strategies import STRATEGIES, Single, check_name, strategy

__all__ = ["STRATEGIES", "Single", "check_name", "strategy"]
