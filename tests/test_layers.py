"""The layers of the package, held by what its modules import."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import dumap

PACKAGE = Path(dumap.__file__).parent
TESTS = Path(__file__).parent
STAGES = {path.stem for path in PACKAGE.glob("stages/[!_]*.py")}
KERNELS = {path.stem for path in PACKAGE.glob("kernels/[!_]*.py")}

PARTS = {"repair": "audit"}
"""Modules that are part of another's stage."""
ONLY_IN = {"zarr": "store", "obstore": "store", "dask": "engine", "distributed": "engine"}
DOORS = ("dumap.cli", "dumap.api", "dumap.show", "dumap.recipe")
PLANNING = ("dumap.planning",)
NEVER_IN = {
    "kernels": (
        *("os", "io", "pathlib", "shutil", "socket", "tempfile", "subprocess", "mmap", "urllib", "http", "fsspec"),
        *("logging", "time", "datetime", "importlib", "yaml", "pickle"),
    ),
    "stages": ("dumap.engine", *DOORS),
    "artifacts": ("dumap.engine", "dumap.stages", *DOORS),
    "planning": ("dumap.stages", "dumap.engine", *DOORS),
    "sources": ("dumap.stages", "dumap.engine", *PLANNING, *DOORS),
    "store": ("dumap.stages", "dumap.engine", *PLANNING, *DOORS),
    "config": ("dumap.stages", "dumap.engine", *PLANNING, "dumap.store", *DOORS),
    "engine": DOORS,
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a tree imports when it runs, lazily or not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ("." * child.level + f"{child.module or ''}.{alias.name}" for alias in child.names)
        elif is_type_checking(child):
            yield from (name for other in child.orelse for name in imports(ast.Module([other], [])))
        else:
            yield from imports(child)


def within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def breaches(package: Path) -> list[str]:
    """List what the modules of a package import against the layers."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where, tree = path.relative_to(package).as_posix(), ast.parse(path.read_text())
        for name in imports(tree):
            wrong = name.startswith(".")
            wrong |= any(
                within(name, module) and not within(where.replace("/", "."), home) for module, home in ONLY_IN.items()
            )
            for layer, modules in NEVER_IN.items():
                wrong |= within(where.replace("/", "."), layer) and any(within(name, module) for module in modules)
            wrong |= where.startswith("kernels/") and within(name, "dumap") and not within(name, "dumap.kernels")
            if wrong:
                found.append(f"{where}: {name}")
        if where.startswith("kernels/"):
            calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
            found += [f"{where}: {f.id}()" for f in calls if isinstance(f, ast.Name) and f.id in ("open", "print")]
    return found


def test_package_keeps_its_layers():
    assert breaches(PACKAGE) == []


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("kernels/cells.py", "import zarr"),
        ("kernels/cells.py", "def lazy():\n    import zarr"),
        ("kernels/cells.py", "from zarr.storage import LocalStore"),
        ("kernels/graph.py", "from dask import delayed"),
        ("kernels/graph.py", "from pathlib import Path"),
        ("kernels/layout.py", "import os.path as p"),
        ("kernels/layout.py", "def clock():\n    from time import monotonic"),
        ("kernels/start.py", "import logging"),
        ("kernels/start.py", "from dumap.store import Run"),
        ("kernels/start.py", "from dumap import errors"),
        ("kernels/quality.py", "from . import maths"),
        ("kernels/quality.py", "def show(x):\n    print(x)"),
        ("stages/graph.py", "import distributed"),
        ("stages/graph.py", "def lazy():\n    from dumap.engine import cluster"),
        ("stages/layout.py", "from dumap.recipe.pipeline import run"),
        ("store/run.py", "from dumap.stages import Job"),
        ("planning/plan.py", "from dumap.stages.graph import Shards"),
        ("planning/plan.py", "import dumap.engine.cluster"),
        ("store/run.py", "from dumap.planning.plan import make_plan"),
        ("engine/cluster.py", "from dumap.recipe import pipeline"),
        ("recipe/pipeline.py", "import zarr"),
        ("recipe/pipeline.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import dask"),
    ],
)
def test_a_breach_is_found(tmp_path, where, line):
    copy = shutil.copytree(PACKAGE, tmp_path / "dumap", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / where).open("a") as file:
        file.write(f"\n{line}\n")
    assert [found.split(":")[0] for found in breaches(copy)] == [where]


def test_imports_for_type_checkers_alone_are_no_breach(tmp_path):
    (tmp_path / "api.py").write_text("if TYPE_CHECKING:\n    from distributed import Client\n")
    assert breaches(tmp_path) == []


def undocumented(node: ast.AST, where: str) -> Iterator[str]:
    if not ast.get_docstring(node):
        yield where
    for child in getattr(node, "body", []):
        public = isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_")
        if public and not isinstance(node, ast.FunctionDef):
            yield from undocumented(child, f"{where}: {child.name}")


def test_all_that_is_public_is_documented():
    trees = [(ast.parse(path.read_text()), path.relative_to(PACKAGE).as_posix()) for path in PACKAGE.rglob("*.py")]
    assert [where for tree, name in trees for where in undocumented(tree, name)] == []


def test_one_noun_everywhere():
    shared = ["axes", "coarse", "codes", "hashing", "kmeans", "leaves", "lists", "maths", "products", "threads", "tree"]
    assert sorted(KERNELS - STAGES) == shared, "a kernel is named after its stage"
    assert sorted(STAGES - KERNELS) == ["embedding"], "a stage that only moves rows needs no kernel"
    assert {path.stem.removeprefix("test_") for path in TESTS.glob("kernels/test_*.py")} == KERNELS


@pytest.mark.parametrize("noun", sorted(STAGES))
def test_a_stage_speaks_its_own_noun(noun):
    tree = ast.parse((PACKAGE / f"stages/{noun}.py").read_text())
    constants = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    assert ast.literal_eval(constants["STAGE"]) == PARTS.get(noun, noun)
    assert ast.get_docstring(tree).startswith(f"{noun}: ")
    assert noun not in KERNELS or f"dumap.kernels.{noun}" in set(imports(tree))
