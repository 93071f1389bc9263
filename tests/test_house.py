"""How the house stands: floors, circles, public names, docstrings and the examples in them."""

import ast
import doctest
import functools
import importlib
import inspect
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# A room imports from lower floors alone; what stands beside it on its floor it does not know.
FLOORS = {
    "nesting": -2,
    "corpora": -1,
    **dict.fromkeys(("cache", "files", "half_precision", "products", "status_line"), -1),
    **dict.fromkeys(("layers", "tokenizers", "generation", "losses", "metrics"), 0),
    **dict.fromkeys(("checkpoints", "data", "devices", "models"), 1),
    "training": 1.5,
    **dict.fromkeys(("tasks", "convert"), 2),
    **dict.fromkeys(("analysis", "export"), 3),
}
LIGHT_ROOMS = (
    "cache",
    "products",
    "half_precision",
    "nesting",
    "corpora",
    "files",
    "status_line",
    "checkpoints",
    "devices",
    "layers",
    "losses",
    "models",
    "generation",
    "training",
)  # keras, and nothing heavier, is enough to import them
FILES = sorted(path for name in ("keras_seqlm", "seqlm_cli", "seqlm_runtime") for path in (ROOT / name).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


@functools.cache
def imports(module, anywhere=True):
    """Names of the modules that `module` imports; without `anywhere` only what its own import runs."""
    found, todo = [], [ast.parse(MODULES[module].read_text("utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by dots"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else node.module for name in names]
        if anywhere or not isinstance(node, ast.FunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return tuple(sorted(set(found)))


def room(module):
    package, _, rest = module.partition(".")
    name = rest.split(".")[0] if package == "keras_seqlm" else None
    return name


def test_every_room_has_its_floor():
    rooms = {room(module) for module in MODULES} - {None, ""}
    assert rooms <= set(FLOORS), f"give {sorted(rooms - set(FLOORS))} a floor, and a noun for a name"


@pytest.mark.parametrize("module", [module for module in MODULES if room(module)])
def test_a_room_imports_from_lower_floors(module):
    here = room(module)
    there = {room(name) for name in imports(module)} - {None, "", here}
    wrong = sorted(name for name in there if FLOORS[name] >= FLOORS[here])
    assert not wrong, f"{module} (floor {FLOORS[here]}) imports from {wrong}"
    assert not any(name == "keras_seqlm" for name in imports(module, anywhere=False)), "name the room"


def test_the_runtime_needs_numpy_alone():
    allowed = {"numpy", "seqlm_runtime", *sys.stdlib_module_names}
    for module in MODULES:
        if module.startswith("seqlm_runtime"):
            heavy = {name.split(".")[0] for name in imports(module, anywhere=False)} - allowed
            assert not heavy, f"{module} imports {sorted(heavy)}"
            heavy = {name.split(".")[0] for name in imports(module)} - allowed
            assert heavy <= {"ai_edge_litert"}, f"{module} imports {sorted(heavy)} in a function"


def test_light_rooms_need_keras_alone():
    allowed = {"keras", "numpy", "keras_seqlm", "seqlm_runtime", *sys.stdlib_module_names}
    for module in MODULES:
        if room(module) in LIGHT_ROOMS:
            heavy = {name.split(".")[0] for name in imports(module, anywhere=False)} - allowed
            assert not heavy, f"{module} imports {sorted(heavy)}"


def test_no_circles():
    """No file comes back to itself by the imports that run when it is imported."""
    done = set()

    def visit(module, way):
        assert module not in way, f"a circle: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for name in imports(module, anywhere=False):
                if name in MODULES and name != module:
                    visit(name, [*way, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def public_names():
    """(module, name) of all that `__all__` lists, in the packages and in every room."""
    names = []
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            names += [(module, name) for name in getattr(importlib.import_module(module), "__all__", [])]
    return names


def test_public_names_are_few():
    names = [(module, name) for module, name in public_names() if module.startswith("keras_seqlm")]
    assert 20 < len(names) < 180  # 120 of them are the spine of language models
    assert len(set(names)) == len(names)
    for module, name in names:
        assert hasattr(importlib.import_module(module), name), f"{module}.__all__ lists {name}, which is not there"


def undocumented(label, thing):
    """What of a public class or function has no docstring of ours: itself, its public methods."""
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return []
    missing = [] if thing.__doc__ else [label]
    if inspect.isclass(thing):
        inherited = {name for base in thing.__mro__[1:] for name in vars(base)}  # those keep the docstring of the base
        for name, method in vars(thing).items():
            method = getattr(method, "__func__", method)
            if inspect.isfunction(method) and not name.startswith("_") and name not in inherited and not method.__doc__:
                missing.append(f"{label}.{name}")
    return missing


def test_public_classes_and_functions_have_docstrings():
    missing = []
    for module, name in public_names():
        missing += undocumented(f"{module}.{name}", getattr(importlib.import_module(module), name))
    assert not missing


def test_modules_have_docstrings():
    missing = [module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not missing


WITH_EXAMPLES = [module for module, path in MODULES.items() if ">>> " in path.read_text("utf-8")]


SHOWN_ONLY = {"keras_seqlm.tasks.task"}  # it loads a run folder that the reader has


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_in_docstrings(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert not failed
    assert tried or module in SHOWN_ONLY, "its examples are skipped, all of them"


def test_the_layers_and_models_have_examples():
    finder = doctest.DocTestFinder()
    found = {"layers": 0, "models": 0}
    for name in WITH_EXAMPLES:
        if room(name) in found:
            found[room(name)] += sum(len(test.examples) for test in finder.find(importlib.import_module(name)))
    assert found["layers"] >= 10 and found["models"] >= 4, found


def test_what_quick_leaves_out_is_there():
    for line in (ROOT / "tests" / "not_quick.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            file, _, name = line.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{line} of not_quick.txt is no more"


def test_the_walk_over_imports_sees_both_kinds():
    assert "keras_seqlm.layers.positions" in imports("keras_seqlm.layers.attention")
    assert "torch" in imports("keras_seqlm.layers.recurrent")
    assert "torch" not in imports("keras_seqlm.layers.recurrent", anywhere=False)
