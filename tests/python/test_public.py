"""The public surface: documented, typed, runnable as documented, and light to import."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import descramble_fast as df

FreshPython = Callable[..., str]
EXTRAS = {
    "cli": ["click", "tqdm"],
    "dask": ["dask.array"],
    "demo": ["matplotlib", "tqdm"],
    "plot": ["matplotlib"],
    "torch": ["torch", "tqdm"],
}
TORCH = importlib.util.find_spec("descramble_fast.torch")
assert TORCH is not None
MODULES = sorted(
    module.name
    for folder, prefix in ((df.__path__, ""), (TORCH.submodule_search_locations, "torch."))
    for module in pkgutil.iter_modules(folder, prefix)
    if module.name not in ("_core", "__main__")
)


def public_objects() -> Iterator[tuple[str, Any]]:
    for module in (df, df.operators):
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


def public_functions() -> Iterator[tuple[str, Any]]:
    """Functions, and the public methods and properties of classes."""
    for name, thing in public_objects():
        if inspect.isclass(thing):
            for attribute, member in vars(thing).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                function = getattr(function, "func", function)
                if not attribute.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{attribute}", function
        elif inspect.isfunction(thing):
            yield name, thing


@pytest.mark.usefixtures("default_threads")
@pytest.mark.parametrize("name", MODULES)
def test_examples_run_as_printed(name: str) -> None:
    for extra in EXTRAS.get(name.partition(".")[0], []):
        pytest.importorskip(extra)
    results = doctest.testmod(importlib.import_module(f"descramble_fast.{name}"))
    assert results.failed == 0


def test_every_public_function_has_an_example() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name, thing in public_objects():
        if inspect.isfunction(thing):
            assert any(test.examples for test in finder.find(thing, name)), f"{name} has none"


def test_every_public_name_exists_and_is_documented() -> None:
    for name, thing in public_objects():
        if not isinstance(thing, str):
            assert inspect.getdoc(thing), f"{name} has no docstring"
    assert len(df.__all__) == len(set(df.__all__))


def test_every_public_function_has_a_docstring_and_types() -> None:
    found = dict(public_functions())
    assert len(found) > 40
    for name, function in found.items():
        assert function.__doc__, f"{name} has no docstring"
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            typed = parameter.annotation is not inspect.Parameter.empty
            assert typed or parameter.name in ("self", "cls"), f"{name}: {parameter.name}"


def test_every_argument_is_in_its_functions_docstring() -> None:
    for name, function in public_functions():
        if "." in name.removeprefix("descramble_fast.").removeprefix("operators."):
            continue  # short methods describe theirs in a sentence
        for argument in inspect.signature(function).parameters:
            assert re.search(rf"\b{argument}\b", function.__doc__ or ""), f"{name}: {argument}"


def test_the_design_names_are_there() -> None:
    for name in [
        "Covariance",
        "CrossCovariance",
        "operators",
        "descramble",
        "descramble_many",
        "descramble_weights",
        "descramble_permutation",
        "linear_assignment",
        "quadratic_assignment",
        "match_modes",
        "nearest_permutation",
        "match_neurons",
        "apply_permutation",
        "eigh",
        "show_config",
        "cuda_available",
        "set_num_threads",
        "BackendError",
        "descramble_conv",
    ]:
        assert name in df.__all__
    for name in [
        "fourier",
        "difference",
        "central_difference",
        "grid",
        "from_matrix",
        "from_graph",
    ]:
        assert name in df.operators.__all__
    assert issubclass(df.BackendError, RuntimeError)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", df.__version__)


def test_the_checked_in_stub_is_what_the_extension_says(tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen")
    command = [sys.executable, "-m", "pybind11_stubgen", "descramble_fast._core", "-o", tmp_path]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    generated = tmp_path / "descramble_fast" / "_core.pyi"
    checked_in = Path(str(files("descramble_fast") / "_core.pyi"))
    assert generated.read_text() == checked_in.read_text()


def test_configuration_is_printed_or_returned(capsys: pytest.CaptureFixture[str]) -> None:
    config = df.show_config("dict")
    assert config is not None
    assert config["descramble_fast"] == df.__version__
    assert config["threads"] >= 1
    assert config["lapack"]
    assert df.show_config() is None
    printed = capsys.readouterr().out
    assert all(str(value) in printed for value in config.values())
    with pytest.raises(ValueError, match="mode: got 'json'"):
        df.show_config("json")
    assert df.cuda_available() is config["cuda"].startswith("cuda:0 ")


@pytest.mark.usefixtures("default_threads")
def test_the_thread_count_can_be_set_and_put_back() -> None:
    def threads() -> int:
        config = df.show_config("dict")
        assert config is not None
        return int(config["threads"])

    default = threads()
    df.set_num_threads(default + 3)
    assert threads() == default + 3
    df.set_num_threads(0)
    assert threads() == default
    with pytest.raises(ValueError, match="k: got -1"):
        df.set_num_threads(-1)
    assert threads() == default


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DESCRAMBLE_FAST_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"DESCRAMBLE_FAST_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"DESCRAMBLE_FAST_NUM_THREADS": "many", "OMP_NUM_THREADS": "5"}, 5),
    ],
)
def test_the_environment_sets_the_thread_count(
    fresh_python: FreshPython,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: int,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    printed = fresh_python("import descramble_fast as df; print(df.show_config('dict')['threads'])")
    assert int(printed) == expected


def test_the_import_loads_no_heavy_library(fresh_python: FreshPython) -> None:
    printed = fresh_python(
        """
        import sys
        import numpy as np
        import descramble_fast as df
        df.descramble(np.eye(5)).transform(np.eye(5))
        heavy = "torch cupy jax dask matplotlib click tqdm scipy sklearn pandas deerlab".split()
        print(*sorted(set(sys.modules) & set(heavy)))
        """
    )
    assert printed.strip() == ""


def test_results_print_without_their_internals() -> None:
    d = df.descramble(np.eye(3))
    assert "_core" not in repr(d)
    assert "SmoothnessDescrambler(" in repr(d)
    assert repr(df.Covariance(3)) == "<Covariance of 3 features, 0 samples>"
