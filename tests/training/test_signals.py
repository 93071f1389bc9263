"""Which signals a `fit` listens to, and what they do."""

import os
import signal
import threading

import pytest

from keras_seqlm.training import signals
from keras_seqlm.training.signals import EndSignals

NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Model:
    """Whose `fit` does one thing; `EndSignals` knows it by its frame."""

    def fit(self, act):
        act()


@pytest.fixture(autouse=True)
def as_before():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in NUMBERS[:2]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_heard_and_a_second_one_ends_at_once(monkeypatch, number):
    ended, model = [], Model()
    listening = EndSignals(model)
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    listening.listen()
    assert signal.getsignal(number) == listening._hear  # else it would end this process
    model.fit(lambda: os.kill(os.getpid(), number))
    assert listening.told == number and ended == []
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            model.fit(lambda: os.kill(os.getpid(), number))
    else:
        model.fit(lambda: os.kill(os.getpid(), number))
        assert ended == [143]
    listening.stop()
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda number, frame: None])
@pytest.mark.parametrize("number", NUMBERS[1:])
def test_what_the_user_has_set_stays(own, number):
    signal.signal(number, own)
    listening = EndSignals(Model())
    listening.listen()
    assert signal.getsignal(number) is own
    listening.stop()
    assert signal.getsignal(number) is own


@pytest.mark.parametrize("number", NUMBERS)
def test_a_fit_that_failed_before_leaves_the_signals_to_the_next_one(number):
    def fails():
        raise InterruptedError

    first, second, model = EndSignals(Model()), EndSignals(Model()), Model()
    first.listen()
    with pytest.raises(InterruptedError):
        first.model.fit(fails)
    second.model = model
    second.listen()
    model.fit(lambda: os.kill(os.getpid(), number))
    assert second.told == number and first.told is None
    second.stop()
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_fit_within_a_fit_leaves_the_signals_to_the_outer_one():
    outer, inner = EndSignals(Model()), EndSignals(Model())
    outer.listen()
    outer.model.fit(inner.listen)
    assert signal.getsignal(signal.SIGUSR1) == outer._hear
    inner.stop()
    outer.stop()


def test_sigterm_is_heard_whoever_had_it_before():
    """As a launcher's own handler, which gets it back."""

    def own(number, frame):
        raise AssertionError("the run was to be saved first")

    signal.signal(signal.SIGTERM, own)
    listening, model = EndSignals(Model()), Model()
    listening.model = model
    listening.listen()
    model.fit(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert listening.told == signal.SIGTERM
    listening.stop()
    assert signal.getsignal(signal.SIGTERM) is own


def test_another_thread_listens_to_nothing_and_does_not_fail():
    failed = []

    def listen():
        try:
            EndSignals(Model()).listen()
        except ValueError as error:  # as Python has it: "signal only works in main thread"
            failed.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert failed == [] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
