"""Which cases of a property run where: what costs seconds, and says the same of a further case, runs once in a while.

A case is named by its id: a text is its own, another one has the id that `pytest.param` gave it, or its number.
"""

import pytest


def some_of(cases, *kept):
    """Cases of which `make test` runs those that are named here, and `make soak` all."""
    return [case if name in kept else _marked(name, case, pytest.mark.soak) for name, case in _named(cases, kept)]


def on_all(cases, *kept):
    """Cases that run on all backends where they are named here, and the others where their file says."""
    return [_marked(name, case, pytest.mark.backends) if name in kept else case for name, case in _named(cases, kept)]


def _named(cases, kept):
    cases = list(cases)
    names = [_id_of(case, number) for number, case in enumerate(cases)]
    assert set(kept) <= set(names), f"no cases: {set(kept) - set(names)} of {names}"
    return zip(names, cases, strict=True)


def _id_of(case, number):
    name = case.id if hasattr(case, "marks") else case
    return name if isinstance(name, str) else number


def _marked(name, case, mark):
    if hasattr(case, "marks"):
        return pytest.param(*case.values, id=case.id, marks=[*case.marks, mark])
    return pytest.param(*case, marks=mark) if isinstance(case, tuple) else pytest.param(case, marks=mark)
