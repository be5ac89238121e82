"""What tests compare with: umap-learn and pynndescent, compiled as little as can be.

Both compile functions as they are imported, for 20 s where nothing is compiled yet. So tests import them where they
call them, and never as they are collected, which all processes do at once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest


def class_source() -> ast.ClassDef:
    """Return the source of umap-learn's class UMAP as a syntax tree."""
    tree = ast.parse((Path(find_spec("umap").submodule_search_locations[0]) / "umap_.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "UMAP")


def method_sources() -> dict[str, ast.FunctionDef]:
    """Return the methods of that class by name."""
    return {node.name: node for node in class_source().body if isinstance(node, ast.FunctionDef)}


def default_values() -> dict[str, Any]:
    """Return the parameters of that class with their defaults, in its order."""
    arguments = method_sources()["__init__"].args
    names = [argument.arg for argument in arguments.args[1:]]
    return dict(zip(names, map(ast.literal_eval, arguments.defaults), strict=True))


@contextmanager
def umap_in_python() -> Iterator[ModuleType]:
    """Let umap-learn build graphs without compiling, which takes longer than the loops over a few hundred rows."""
    from umap import umap_

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fast_knn_indices", "smooth_knn_dist", "compute_membership_strengths"):
            patch.setattr(umap_, name, getattr(umap_, name).py_func)
        yield umap_


def pynndescent_distance(metric: str) -> Callable[..., float]:
    """Return a distance of pynndescent's that is not compiled, nor what it calls, as it is called for a few rows."""
    from pynndescent.distances import named_distances

    distance = named_distances[metric].py_func
    called = {name: distance.__globals__.get(name) for name in distance.__code__.co_names}
    in_python = {name: function.py_func for name, function in called.items() if hasattr(function, "py_func")}
    return FunctionType(
        distance.__code__, {**distance.__globals__, **in_python}, distance.__name__, distance.__defaults__
    )
