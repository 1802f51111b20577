"""The Python of README and of docs/models.md runs as it stands, and their links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import descramble_fast as df

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


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
    monkeypatch.chdir(tmp_path)  # it writes a report
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
    for link in links:
        assert (page.parent / link).exists(), link
