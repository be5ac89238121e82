"""The examples in docstrings of public names run and are right."""

from __future__ import annotations

import doctest
import inspect

import pytest

import dumap

WITHOUT = {"CancelledError", "Config", "DumapError"}
"""Names whose docstrings need no example."""
NAMES = [name for name in dumap.__all__ if not name.startswith("_") and name not in WITHOUT]


@pytest.fixture(scope="module")
def folder(digits_300, tmp_path_factory):
    """Return a folder with data and a run."""
    import zarr

    path = tmp_path_factory.mktemp("examples")
    zarr.create_group(path / "DATA.zarr").create_array("vectors", data=digits_300, chunks=(100, 64))
    dumap.run(path / "DATA.zarr", output=path / "RUN.zarr", n_neighbors=10, n_epochs=20)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    docstring = inspect.getdoc(getattr(dumap, name))
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)
    assert example.examples, f"dumap.{name} has no example"
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_numpydoc_docstrings(name):
    public = getattr(dumap, name)
    docstring = inspect.getdoc(public)
    if inspect.isfunction(public):
        assert all(
            f"\n{section}\n{'-' * len(section)}\n" in docstring for section in ("Parameters", "Returns", "Raises")
        )
        parameters = docstring.partition("\nParameters\n")[2].partition("\nReturns\n")[0]
        assert all(parameter in parameters for parameter in inspect.signature(public).parameters)
