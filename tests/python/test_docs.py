"""The Python of these pages runs, their links lead somewhere, and the reference is complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import descramble_fast as df

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
API = ROOT / "docs" / "api"


def blocks(page: Path) -> Iterator[str]:
    yield from re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run(page: Path, **given: Any) -> dict[str, Any]:
    """Run the blocks of a page one after another, as a reader would."""
    names: dict[str, Any] = dict(given)
    found = list(blocks(page))
    assert found
    for block in found:
        exec(compile(block, page.name, "exec"), names)
    return names


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)  # it writes a report
    np.save("activations.npy", np.random.default_rng(0).normal(size=(200, 8)))
    names = run(ROOT / "README.md")
    assert names["d"].cost < names["d"].initial_cost
    assert names["r"].cost < names["r"].initial_cost
    assert names["layer"].max_difference < 1e-5


def test_the_page_on_models_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("dask.array")
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(100, 6))
    np.save("activations.npy", x)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        names = run(ROOT / "docs" / "models.md")
    finally:
        torch.distributed.destroy_process_group()
    assert names["found"]["0"].descrambler.cost < names["found"]["0"].descrambler.initial_cost
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert names["permuted"].max_difference < 1e-5
    assert names["cov"].count == df.Covariance.from_samples(x).count == 100
    # The page shows a table as it is printed.
    page = (ROOT / "docs" / "models.md").read_text()
    (table,) = re.findall(r"^```text\n(layer  neurons.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert table in capsys.readouterr().out


@pytest.mark.parametrize("name", ["concepts.md", "how-to.md"])
def test_the_guides_run_and_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / name
    run(page)
    printed = " ".join(capsys.readouterr().out.split())
    for said in re.findall(r"^ *print\(.*\)  # (.+)$", "\n".join(blocks(page)), re.MULTILINE):
        assert said in printed


def test_no_python_on_a_page_goes_untested() -> None:
    tested = {"README.md", "models.md", "index.md", "concepts.md", "how-to.md"}
    assert {page.name for page in PAGES if any(blocks(page))} == tested


def test_the_front_page_runs() -> None:
    names = run(ROOT / "docs" / "index.md")
    assert names["d"].cost < names["d"].initial_cost


def exported(module: str) -> list[str]:
    """Names in a module's ``__all__``, without importing what it needs."""
    path = ROOT.joinpath("python", *module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise AssertionError(f"{module} has no __all__")


def described() -> tuple[set[str], set[str]]:
    """Names that the Python reference describes, and modules that it describes with all members."""
    names, modules = set(), set()
    for page in (API / "python").glob("*.rst"):
        module = ""
        lines = page.read_text().splitlines()
        for line, below in zip(lines, [*lines[1:], ""], strict=True):
            if not (found := re.fullmatch(r"\.\. (currentmodule|auto\w+):: ([\w.]+)", line)):
                continue
            directive, name = found.groups()
            if directive == "currentmodule":
                module = name
            elif directive == "automodule":
                names.add(name)
                if ":no-members:" not in below:
                    modules.add(name)
            else:
                names.add(name if "." in name else f"{module}.{name}")
    return names, modules


@pytest.mark.parametrize(
    "module",
    ["descramble_fast", *(f"descramble_fast.{m}" for m in ["dask", "operators", "plot", "torch"])],
)
def test_the_python_reference_is_complete(module: str) -> None:
    names, modules = described()
    if module not in modules:
        assert {f"{module}.{name}" for name in exported(module)} <= names


def test_the_header_reference_is_complete() -> None:
    include = ROOT / "cpp" / "include"
    headers = {path.relative_to(include).as_posix() for path in include.rglob("*.h*")}
    pages = "\n".join(page.read_text() for page in API.rglob("*.rst"))
    described = re.findall(r"^\.\. header:: (\S+)$", pages, re.MULTILINE)
    assert len(described) == len(set(described))
    # This one declares nothing but what the others mark their names with.
    assert set(described) == headers - {"descramble_fast/export.hpp"}


def test_every_variable_of_the_environment_is_described() -> None:
    sources = [
        path.read_text()
        for folder in ("cpp/src", "cuda", "python", "tests/emulation")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".cpp", ".hpp", ".cu", ".cuh", ".py")
    ]
    known = r"\b(?:DESCRAMBLE_FAST|EMULATED|OMP)_[A-Z0-9_]+"
    read = set(re.findall(rf'"({known})"', "\n".join(sources)))
    assert set(re.findall(rf"`({known})`", (API / "environment.md").read_text())) == read


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as links have them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}#{anchor}"


def shell(page: Path) -> list[str]:
    """Commands of a page, one a line, without what follows a pipe or a comment."""
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))
    lines = text.replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in re.split(r"&&|\|| #", line) if part.strip()]


COMMANDS = [command for page in PAGES for command in shell(page)]
OURS = [c.split()[1:] for c in COMMANDS if c.split()[0].endswith("descramble-fast")]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_commands_have_the_options_that_pages_use(words: list[str]) -> None:
    pytest.importorskip("click")
    from descramble_fast.cli import descramble_fast

    name, *arguments = words
    used = {word.split("=")[0] for word in arguments if word.startswith("--")}
    if name == "bench":  # it reads its arguments in a process of its own
        source = (ROOT / "bench" / "suite.py").read_text()
        assert used <= set(re.findall(r'add\(\s*"(--[\w-]+)"', source))
    else:
        known = descramble_fast.commands[name].params
        assert used <= {option for parameter in known for option in parameter.opts}


def test_extras_that_pages_name_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    known = set(re.findall(r"^(\w+) = \[", text.split("[project.optional-dependencies]")[1], re.M))
    named = [e for command in COMMANDS for e in re.findall(r"\.?\[([\w,]+)\]\"", command)]
    assert named
    assert {extra for extras in named for extra in extras.split(",")} <= known | {"nvcc"}
