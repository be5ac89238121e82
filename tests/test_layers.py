"""The layers of the package: what its modules import, and how large they are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dumap
from dumap.recipe.stage_names import STAGES

PACKAGE = Path(dumap.__file__).parent
TESTS = Path(__file__).parent
KERNELS = {path.stem for path in PACKAGE.glob("kernels/[!_]*.py")}

LAYERS = (
    *("cli", "api", "show", "recipe", "engine", "stages", "artifacts", "planning", "sources", "store", "config"),
    "kernels",
)
"""From the top: each imports what is below it, and nothing above."""
ENTRY_POINTS = ("single_cell", "neighbors_transformer", "estimator", "cluster_runs")
"""Modules above all layers but the command line, from the top."""
BASE_MODULES = {"compiled", "errors", "json_values", "version"}
"""Modules that all but kernels may import, and that import nothing of dumap but one another."""
FOLDER_OF_LIBRARY = {"zarr": "store", "obstore": "store", "dask": "engine", "distributed": "engine"}
NEVER_IN_KERNELS = (
    *("os", "io", "pathlib", "shutil", "socket", "tempfile", "subprocess", "mmap", "urllib", "http", "fsspec"),
    *("logging", "time", "datetime", "importlib", "yaml", "pickle"),
)
PART_SUBSTITUTE = "stages.given"
"""A module of other ways to do stages, which build on those."""
MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 8


def is_type_checking(node: ast.AST) -> bool:
    """Tell whether a node is a block for type checkers alone."""
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
    """Tell whether a dotted name is a module or lies in it."""
    return f"{name}.".startswith(f"{module}.")


def is_wrong(where: str, name: str) -> bool:
    """Tell whether a module, by its path with dots, may not import a name."""
    if name.startswith("."):
        return True
    if not within(name, "dumap"):
        elsewhere = any(within(name, module) and not within(where, home) for module, home in FOLDER_OF_LIBRARY.items())
        return elsewhere or (where.startswith("kernels.") and any(within(name, module) for module in NEVER_IN_KERNELS))
    layer, target = where.split(".")[0], f"{name}.".split(".")[1]
    if layer in LAYERS:
        allowed = {*LAYERS[LAYERS.index(layer) :], *BASE_MODULES, *(ENTRY_POINTS if layer == "cli" else ())}
    else:
        doors = ENTRY_POINTS[ENTRY_POINTS.index(layer) :] if layer in ENTRY_POINTS else ()
        allowed = BASE_MODULES if layer in BASE_MODULES else {*BASE_MODULES, *LAYERS, *doors}
    if layer == "kernels":
        allowed = {"kernels"}
    others = {f"dumap.stages.{noun}" for noun in STAGES} if layer == "stages" and where != PART_SUBSTITUTE else set()
    others -= {f"dumap.{where}"}
    return target not in allowed or any(within(name, other) for other in others)


def breaches(package: Path) -> list[str]:
    """List what the modules of a package import against the layers."""
    wrong = []
    for path in sorted(package.rglob("*.py")):
        where, tree = path.relative_to(package).as_posix(), ast.parse(path.read_text())
        wrong += [f"{where}: {name}" for name in imports(tree) if is_wrong(where[:-3].replace("/", "."), name)]
        if where.startswith("kernels/"):
            calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
            wrong += [f"{where}: {f.id}()" for f in calls if isinstance(f, ast.Name) and f.id in ("open", "print")]
    return wrong


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
        ("config/model.py", "from dumap.store import Run"),
        ("store/run.py", "from dumap.planning.plan import make_plan"),
        ("sources/zarr_array.py", "import dumap.planning.geometry"),
        ("sources/zarr_array.py", "import zarr"),
        ("planning/plan.py", "from dumap.artifacts.graph import RowRanges"),
        ("artifacts/cells.py", "from dumap.stages.cells import route"),
        ("stages/graph.py", "import distributed"),
        ("stages/graph.py", "def lazy():\n    from dumap.engine import cluster"),
        ("stages/graph.py", "from dumap.stages.neighbors import search_home_rows"),
        ("stages/graph.py", "from dumap.stages import neighbors"),
        ("stages/layout.py", "from dumap.recipe.pipeline import run"),
        ("engine/cluster.py", "from dumap.recipe import pipeline"),
        ("engine/worker.py", "import dumap"),
        ("recipe/pipeline.py", "from dumap import Config"),
        ("recipe/pipeline.py", "import zarr"),
        ("recipe/pipeline.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import dask"),
        ("errors.py", "from dumap.config import Config"),
        ("estimator.py", "from dumap.single_cell import umap"),
    ],
)
def test_a_breach_is_found(tmp_path, where, line):
    copy = tmp_path / where
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(f"{(PACKAGE / where).read_text()}\n{line}\n")
    assert [wrong.split(":")[0] for wrong in breaches(tmp_path)] == [where]


def test_imports_for_type_checkers_alone_are_no_breach(tmp_path):
    (tmp_path / "api.py").write_text("if TYPE_CHECKING:\n    from distributed import Client\n")
    assert breaches(tmp_path) == []


def undocumented(node: ast.AST, where: str) -> Iterator[str]:
    """Yield what of a module has no docstring."""
    if not ast.get_docstring(node):
        yield where
    for child in getattr(node, "body", []):
        public = isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_")
        if public and not isinstance(node, ast.FunctionDef):
            yield from undocumented(child, f"{where}: {child.name}")


def test_all_that_is_public_is_documented():
    trees = [(ast.parse(path.read_text()), path.relative_to(PACKAGE).as_posix()) for path in PACKAGE.rglob("*.py")]
    assert [where for tree, name in trees for where in undocumented(tree, name)] == []


@pytest.mark.parametrize("folder", [layer for layer in LAYERS if layer != "api"])
def test_every_folder_says_what_lives_there(folder):
    docstring = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))
    assert 3 <= len(docstring.splitlines()) <= 12


def oversized(text: str) -> Iterator[str]:
    """Yield what of a module is too large: the module, functions without their docstrings, their parameters.

    Functions that numba compiles take their arrays one by one; others say why there are so many.
    """
    if len(text.splitlines()) > MAX_LINES:
        yield "lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node) or ""
            lines = node.end_lineno - (node.body[0].end_lineno if docstring else node.lineno) + 1
            parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            compiled = any("njit" in ast.unparse(decorator) for decorator in node.decorator_list)
            if lines > MAX_FUNCTION_LINES:
                yield node.name
            too_many = len(set(parameters) - {"self", "cls"}) > MAX_PARAMETERS
            if too_many and not compiled and "So many parameters" not in docstring:
                yield f"{node.name}()"


def test_files_and_functions_are_small():
    oversized_by_file = {
        path.relative_to(PACKAGE).as_posix(): list(oversized(path.read_text())) for path in PACKAGE.rglob("*.py")
    }
    assert {name: large for name, large in oversized_by_file.items() if large} == {}


def test_large_modules_and_functions_are_found():
    parameters, reason = ", ".join("abcdefghi"), '"""Do.\n\n    So many parameters: they are one point\'s.\n    """'
    assert list(oversized("x = 1\n" * 401)) == ["lines"]
    assert list(oversized("def f():\n" + "    x = 1\n" * 61)) == ["f"]
    assert list(oversized(f"def f({parameters}):\n    pass")) == ["f()"]
    assert list(oversized(f"def f({parameters}):\n    {reason}")) == []


def test_one_noun_everywhere():
    shared = {
        "axes",
        "coarse",
        "csr",
        "codes",
        "curve",
        "edges",
        "exact",
        "hashing",
        "instructions",
        "kmeans",
        "leaves",
        "lists",
        "maths",
        "pairs",
        "pool",
        "products",
        "projection",
        "sparse_leaves",
        "sparse_products",
        "threads",
        "tree",
    }
    assert KERNELS - set(STAGES) == {*shared, "repair"}, "a kernel is named after its stage"
    assert set(STAGES) - KERNELS == {"coarsen", "embedding"}, "one has those of coarse and start, one only moves rows"
    assert {path.stem.removeprefix("test_") for path in TESTS.glob("kernels/test_*.py")} == KERNELS


@pytest.mark.parametrize("noun", STAGES)
def test_a_stage_speaks_its_own_noun(noun):
    tree = ast.parse((PACKAGE / f"stages/{noun}.py").read_text())
    assert ast.get_docstring(tree).startswith(f"{noun}: ")
    assert f"dumap.artifacts.part_names.{noun.upper()}" in set(imports(tree))
    assert noun not in KERNELS or f"dumap.kernels.{noun}" in set(imports(tree))
