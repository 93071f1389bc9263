"""What a function of a user's does, known by a hash, so that another one of the same name is seen as another one."""

import functools
import hashlib
import sys
import types

import keras
import numpy as np

OF_LIBRARIES = ("builtins", "keras", "tensorflow", "jax", "jaxlib", "torch", "numpy", "keras_seqlm")
KEY = f"code in Python {sys.version_info.major}.{sys.version_info.minor}"  # which compiles one source otherwise
_DEEP = 4  # functions that call functions, containers in containers
_MANY = 10_000  # elements of a container: of more the number is looked at
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)
_OF_KERAS = (keras.layers.Layer, keras.optimizers.Optimizer, keras.callbacks.Callback, keras.Variable)


def is_users(thing):
    """Whether a function, or the class of an object, is a user's own, and not of Python, Keras, its backends or this package."""
    if isinstance(thing, functools.partial):
        return True
    module = getattr(thing, "__module__", None) or type(thing).__module__
    return str(module).partition(".")[0] not in OF_LIBRARIES


def code_of(function):
    """`{KEY: hash}` of a user's function, method, `functools.partial` or object that is called; nothing of any other thing.

    The hash is of what the function does, its defaults, and the plain values and functions that it finds where it was made
    (its closure) and in its module; not of its name, its place in a file, its comments or its docstring. What it finds in
    objects of other classes is not looked at.

    Example:

    >>> def half(x):
    ...     return x / 2
    >>> def third(x):
    ...     return x / 3
    >>> half.__module__ = third.__module__ = "__main__"  # as in a script
    >>> code_of(half) == code_of(third), code_of(print)
    (False, {})
    """
    if isinstance(function, type) or not callable(function) or not is_users(function):
        return {}
    parts = list(_parts(function, _DEEP, set()))
    return {KEY: hashlib.sha256(repr(parts).encode()).hexdigest()[:12]} if parts else {}


def _parts(value, depth, seen):
    """Texts that stay the same as long as a function does what it did, and a value is what it was."""
    if isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, sorted(value.keywords.items())), depth, seen)
    elif isinstance(value, types.MethodType):
        yield from _parts(value.__func__, depth, seen)
        yield from _parts_of_object(value.__self__, depth, seen)
    elif isinstance(value, types.FunctionType) and is_users(value):
        if depth and id(value) not in seen:
            seen.add(id(value))
            yield from _parts_of_function(value, depth, seen)
    elif isinstance(value, list | tuple | dict | set | frozenset):
        yield f"{type(value).__name__} {len(value)}"
        if len(value) <= _MANY and depth:
            found = value.items() if isinstance(value, dict) else value
            for one in found if isinstance(value, list | tuple) else sorted(found, key=repr):
                yield from _parts(one, depth - 1, seen)
    elif isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, np.ndarray) or keras.ops.is_tensor(value):
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
        yield f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    elif isinstance(value, types.ModuleType | type) or not is_users(value):
        yield getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    elif callable(value) and id(value) not in seen:
        seen.add(id(value))
        yield from _parts_of_object(value, depth, seen)


def _parts_of_object(value, depth, seen):
    """Of an object that is called: what it does then, and its plain attributes."""
    if isinstance(value, _OF_KERAS) or not depth:
        return  # whose state is no part of what was written
    if callable(value):
        yield from _parts(type(value).__call__, depth - 1, seen)
    yield from _parts(
        {name: one for name, one in getattr(value, "__dict__", {}).items() if isinstance(one, _PLAIN)}, depth, seen
    )


def _parts_of_function(function, depth, seen):
    code = function.__code__
    yield from _parts_of_code(code)
    yield from _parts((function.__defaults__, function.__kwdefaults__), depth - 1, seen)
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        yield name
        try:
            yield from _parts(cell.cell_contents, depth - 1, seen)
        except ValueError:  # it holds nothing yet
            yield "empty"
    for name in sorted(names_in(code)):
        if name in function.__globals__ and not isinstance(function.__globals__[name], dict):  # settings of all kinds
            yield name
            yield from _parts(function.__globals__[name], depth - 1, seen)


def _parts_of_code(code):
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_argcount, code.co_kwonlyargcount, code.co_flags & 0x0C))
    for number, constant in enumerate(code.co_consts):
        if isinstance(constant, types.CodeType):
            yield from _parts_of_code(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(constant, key=repr))
        elif number or not isinstance(constant, str) or code.co_name.startswith("<"):  # else it is the docstring
            yield repr(constant)


def names_in(code):
    """The names of attributes, and of what lies in their module, that a code and those within it use."""
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))
