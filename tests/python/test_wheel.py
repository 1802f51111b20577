"""Wheel and source package: all that runs, is linked with or licensed, nothing of the workshop."""

from __future__ import annotations

import csv
import email
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest

import descramble_fast as df

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "descramble_fast"

LIBRARY = r"descramble_fast/(lib/)?(lib)?{}\.(so|dylib|dll|lib|dll\.a)"
KINDS = {
    "extension": r"descramble_fast/_core\.[\w-]+\.(so|pyd)",
    "library": LIBRARY.format("descramble_fast"),
    "CUDA backend": r"descramble_fast/lib/libdescramble_fast_cuda\.so",
    "OpenBLAS": LIBRARY.format("scipy_openblas64_"),
    "C++ run time (Windows)": r"descramble_fast\.libs/(msvcp140[\w.-]*\.dll|\.load-order-[\w.-]+)",
    "headers": r"descramble_fast/include/descramble_fast(/\w+\.hpp|\.h)",
    "CMake and pkg-config files": r"descramble_fast/lib/(cmake/descramble_fast/[\w-]+\.cmake"
    r"|pkgconfig/descramble_fast\.pc)",
    "modules": r"descramble_fast/((torch|demo|bench)/)?\w+\.py",
    "data": r"descramble_fast/data/\w+\.(css|safetensors)",
    "types": r"descramble_fast/(py\.typed|_core\.pyi)",
    "metadata": r"descramble_fast-[\d.]+\.dist-info/(METADATA|RECORD|WHEEL|entry_points\.txt)",
    "licences": r"descramble_fast-[\d.]+\.dist-info/licenses/(LICENSE|OpenBLAS/LICENSE\.txt)",
}
ABSENT_AT_TIMES = {"CUDA backend", "C++ run time (Windows)"}
OF_INSTALLERS = re.compile(r"__pycache__/|^\.\./|dist-info/(INSTALLER|REQUESTED|direct_url\.json)$")


@pytest.fixture(scope="module")
def wheel() -> dict[str, bytes]:
    """The files of the wheel that DESCRAMBLE_FAST_WHEEL names, else of the installed one."""
    if path := os.environ.get("DESCRAMBLE_FAST_WHEEL"):
        with zipfile.ZipFile(path) as archive:
            return {n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}
    installed = distribution("descramble-fast")
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("installed editable, so not from a wheel")
    assert installed.files is not None
    names = [str(PurePosixPath(f)) for f in installed.files]
    return {
        n: Path(str(installed.locate_file(n))).read_bytes()
        for n in names
        if not OF_INSTALLERS.search(n)
    }


def kind_of(name: str) -> str:
    kinds = [kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)]
    assert len(kinds) == 1, f"{name} is of kinds {kinds}"
    return kinds[0]


def metadata(wheel: dict[str, bytes], name: str) -> Message:
    (file,) = (n for n in wheel if n.endswith(f".dist-info/{name}"))
    return email.message_from_bytes(wheel[file])


def test_every_file_is_of_a_known_kind_and_no_kind_is_missing(wheel: dict[str, bytes]) -> None:
    kinds = {kind_of(name) for name in wheel}
    assert set(KINDS) - kinds <= ABSENT_AT_TIMES
    binaries = Counter(kind_of(n) for n in wheel if re.search(r"\.(so|dylib|dll|pyd)$", n))
    assert binaries.keys() - ABSENT_AT_TIMES == {"extension", "library", "OpenBLAS"}
    assert set(binaries.values()) == {1}


def test_nothing_of_the_sources_is_left_out(wheel: dict[str, bytes]) -> None:
    def below(folder: Path, *patterns: str) -> set[str]:
        return {f.relative_to(folder).as_posix() for p in patterns for f in folder.rglob(p)}

    package = {f"descramble_fast/{f}" for f in below(PACKAGE, "*.py", "*.pyi", "py.typed")}
    package |= {f"descramble_fast/data/{f}" for f in below(PACKAGE / "data", "*")}
    package |= {f"descramble_fast/bench/{f.name}" for f in (ROOT / "bench").glob("*.py")}
    headers = below(ROOT / "cpp" / "include", "*.h", "*.hpp")
    assert {n for n in wheel if kind_of(n) in ("modules", "data", "types")} == package
    assert {n for n in wheel if kind_of(n) == "headers"} == {
        f"descramble_fast/include/{f}" for f in headers
    }


def test_the_record_lists_every_file(wheel: dict[str, bytes]) -> None:
    (record,) = (n for n in wheel if n.endswith(".dist-info/RECORD"))
    listed = {row[0] for row in csv.reader(io.StringIO(wheel[record].decode()))}
    assert {n for n in listed if not OF_INSTALLERS.search(n)} == set(wheel)


def test_all_but_openblas_takes_at_most_5_mb(wheel: dict[str, bytes]) -> None:
    ours = {n: len(zlib.compress(b)) for n, b in wheel.items() if kind_of(n) != "OpenBLAS"}
    assert sum(ours.values()) <= 5_000_000, sorted(ours.items(), key=lambda item: -item[1])[:5]


def test_libraries_carry_no_symbols_and_nothing_names_the_build(wheel: dict[str, bytes]) -> None:
    for name, content in wheel.items():
        if kind_of(name) != "OpenBLAS":
            assert os.fsencode(ROOT) not in content, name
            assert b"scipy_openblas64/lib" not in content, name
        if content.startswith(b"\x7fELF") and kind_of(name) != "OpenBLAS":
            assert b".symtab" not in content, name


def test_the_extension_exports_its_entry_alone(wheel: dict[str, bytes], tmp_path: Path) -> None:
    # Else a C++ library that was linked into it is mixed with that of another module.
    nm = shutil.which("nm", path=os.defpath)
    if nm is None or not sys.platform.startswith("linux"):
        pytest.skip("nm tells it, on Linux")
    (name,) = (name for name in wheel if re.fullmatch(KINDS["extension"], name))
    (tmp_path / "_core.so").write_bytes(wheel[name])
    command = [nm, "-D", "--defined-only", str(tmp_path / "_core.so")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[2] for line in shown.splitlines()] == ["PyInit__core"]


def test_the_metadata_say_what_is_true(wheel: dict[str, bytes]) -> None:
    about = metadata(wheel, "METADATA")
    assert about["Name"] == "descramble-fast"
    assert about["Version"] == df.__version__
    assert about["Requires-Python"] == ">=3.10"
    assert about["License-Expression"] == "BSD-3-Clause"
    classifiers = about.get_all("Classifier", [])
    for minor in range(10, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    assert not [c for c in classifiers if "Free Threading" in c]  # see README
    required = [r for r in about.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert {re.match(r"[\w-]+", r)[0] for r in required} == {  # type: ignore[index]
        "array-api-compat",
        "numpy",
        "safetensors",
    }


def test_the_tag_is_of_one_interpreter_and_platform(wheel: dict[str, bytes]) -> None:
    about = metadata(wheel, "WHEEL")
    assert about["Root-Is-Purelib"] == "false"
    tags = about.get_all("Tag", [])
    assert {t.rpartition("-")[0] for t in tags} <= {f"cp3{m}-cp3{m}" for m in range(10, 20)}
    if path := os.environ.get("DESCRAMBLE_FAST_WHEEL"):
        python, abi, platforms = Path(path).stem.split("-")[-3:]
        assert {f"{python}-{abi}-{p}" for p in platforms.split(".")} == set(tags)


def test_licences_of_all_that_is_in_it_are_there(wheel: dict[str, bytes]) -> None:
    texts = {n.partition("/licenses/")[2]: b.decode() for n, b in wheel.items() if "/licen" in n}
    assert texts["LICENSE"] == (ROOT / "LICENSE").read_text()
    for part in (
        "The OpenBLAS Project",
        "LAPACK",
        "libgfortran",
        "GCC RUNTIME LIBRARY EXCEPTION",
        "GNU GENERAL PUBLIC LICENSE",
    ):
        assert part.lower() in texts["OpenBLAS/LICENSE.txt"].lower()


def test_the_source_package_holds_what_git_holds_but_for_ci_and_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("scikit_build_core.build")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a git repository, whose files are compared")
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as archive:
        packed = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(
        [*git, "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    kept = {f for f in listed.stdout.split("\0") if f and (ROOT / f).is_file()}
    left_out = {f for f in kept if f.startswith((".ci/", ".github/", "bench/results/"))}
    assert packed == kept - left_out | {"PKG-INFO"}
