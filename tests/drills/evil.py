"""Files that would do harm if they were trusted; run alone, it opens them and tells what came."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

import descramble_fast as df
from descramble_fast import run as runs
from descramble_fast._files import FileError, open_arrays
from descramble_fast.demo import files as demo

# Events of sys.addaudithook that reading data has no part in.
FORBIDDEN = ("exec", "import", "pickle.find_class", "os.system", "os.exec", "os.posix_spawn")
FORBIDDEN += ("os.fork", "os.spawn", "subprocess.Popen", "socket.", "ctypes.dlopen", "os.remove")
FORBIDDEN += ("os.rename", "os.mkdir", "os.chmod", "os.symlink", "shutil.", "urllib.", "marshal.")


def samples(seed: int, n: int = 4, rows: int = 30) -> NDArray[np.float32]:
    """Draw samples of n neurons."""
    rng = np.random.default_rng(abs(seed))
    return np.asarray(rng.normal(size=(rows, n)).cumsum(axis=1), dtype=np.float32)


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._how = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._how


def payloads(canary: Path) -> dict[str, bytes]:
    """Give pickles that would make a file, in the ways that pickles call functions."""
    touch, text = f"touch '{canary}'", f"open({str(canary)!r}, 'w')"
    found = {
        f"{name}, protocol {protocol}": pickle.dumps(Calls(*how), protocol)
        for protocol in range(6)
        for name, how in {
            "os.system": (os.system, touch),
            "eval": (eval, text),
            "exec": (exec, text),
            "open": (open, str(canary), "w"),
            "in a list": (list, (map, open, [str(canary)])),
        }.items()
        if name != "in a list"
    }
    found["INST"] = b"(S" + repr(touch).encode() + b"\nios\nsystem\n."
    found["OBJ"] = b"(cos\nsystem\nS" + repr(touch).encode() + b"\no."
    found["GLOBAL"] = b"c__builtin__\neval\n(S" + json.dumps(text).encode() + b"\ntR."
    found["BUILD"] = b"cos\nsystem\n(S" + repr(touch).encode() + b"\ntRN}b."
    found["torch"] = b"ctorch.serialization\nload\n(S" + repr(str(canary)).encode() + b"\ntR."
    found["numpy"] = b"cnumpy\nload\n(S" + repr(str(canary)).encode() + b"\nNI01\ntR."
    return found


def npy(shape: tuple[Any, ...], descr: str, content: bytes, version: int = 1) -> bytes:
    """Write a .npy file of which nothing is checked."""
    text = str({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + content


def zipped(name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """Write an archive of one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def state_dict(pickled: bytes) -> bytes:
    """Write what torch.save writes, with another pickle in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {
            "data.pkl": pickled,
            "version": b"3\n",
            "byteorder": b"little",
        }.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/data/0", bytes(64))
    return out.getvalue()


def evil_files(canary: Path, pickled: bytes, x: NDArray[np.float32]) -> dict[str, bytes]:
    """Give files around one pickle, by name; a folder's file has its folder before it."""
    words = {"format": "descramble_fast.covariance", "sources": f"[__import__('os')]{canary}"}
    header = f"({{'descr': '<f4', 'fortran_order': False, 'shape': open({str(canary)!r}, 'w')}})\n"
    array = {"zarr_format": 2, "shape": [4, 1], "chunks": [4, 1], "dtype": "|O", "order": "C"}
    array |= {"compressor": None, "fill_value": None, "filters": [{"id": "pickle", "protocol": 4}]}
    number = {**array, "dtype": "<f4", "fill_value": 0.0}
    return {
        "object.npy": npy((1, 1), "|O", pickled),
        "header.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode(),
        "stored.npz": zipped("a.npy", npy((1, 1), "|O", pickled)),
        "packed.npz": zipped("a.npy", npy((1, 1), "|O", pickled), zipfile.ZIP_DEFLATED),
        "bare.npz": zipped("a", pickled),
        "bare.npy": pickled,
        "bare.safetensors": pickled,
        "words.safetensors": safetensors.numpy.save({"a": x}, {"a": pickled.decode("latin1")}),
        "state.safetensors": safetensors.numpy.save({"a": x}, words),
        "bare.pt": pickled,
        "bare.pth": pickled + pickled,
        "state.pt": state_dict(pickled),
        "objects.zarr/.zarray": json.dumps(array).encode(),
        "objects.zarr/0.0": pickled,
        "numbers.zarr/.zarray": json.dumps(number).encode(),
        "numbers.zarr/0.0": pickled,
    }


def doors(path: Path, sizes: bool) -> Iterator[Callable[[], object]]:
    """Give the ways to load a file."""
    yield lambda: runs.find([path])
    if path.is_dir() and sizes:  # what Zarr lacks is zeros, as many as it says
        return
    yield lambda: [array.read() for array in open_arrays(path).arrays.values()]
    yield lambda: [weight.read() for weight in runs.open_weights(path).values()]
    yield lambda: runs.weight_layers(runs.open_weights(path))
    yield lambda: df.Covariance.load(path)
    yield lambda: runs.finished(path)
    yield lambda: demo.load_network(path)
    yield lambda: next(demo.open_samples(path).batches(8))


def load(path: Path, sizes: bool = False) -> str:
    """Load a file by every way; what was raised that is no refusal."""
    wrong = ""
    for number, door in enumerate(doors(path, sizes)):
        try:
            door()
        except (FileError, ValueError, OSError, MemoryError):
            pass
        except BaseException as error:
            wrong += f"way {number}: {type(error).__name__}: {error}"[:300]
    return wrong


def write(root: Path, files: dict[str, bytes]) -> list[Path]:
    paths = []
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
        paths.append(root / name.partition("/")[0])
    return list(dict.fromkeys(paths))


def open_all(trials: int) -> dict[str, Any]:
    """Open evil files while every event is watched."""
    rng, events, watched = random.Random(0), list[str](), [False]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watched[0] and event.startswith(FORBIDDEN):
            events.append(f"{event} {str(arguments)[:100]}")

    found: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        root, canary = Path(name), Path(name) / "canary"
        every = payloads(canary)
        kinds = evil_files(canary, b"", samples(0))
        for path in write(root, evil_files(canary, next(iter(every.values())), samples(0))):
            load(path)  # what is imported on first use is imported now
        canary.unlink(missing_ok=True)
        sys.addaudithook(hook)
        for trial in range(trials):
            label, pickled = rng.choice(list(every.items()))
            if trial >= len(every) and rng.random() < 0.5:
                broken = bytearray(pickled)
                for _ in range(rng.randint(1, 3)):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                pickled = bytes(broken)
            paths = write(root, evil_files(canary, pickled, samples(trial)))
            for path in paths:
                watched[0] = True
                wrong = load(path)
                watched[0] = False
                if events or canary.exists():
                    wrong += f" {events} canary {canary.exists()}"
                    events.clear()
                    canary.unlink(missing_ok=True)
                found.append((f"trial {trial}, {label}, {path.name}", wrong))
        watched[0] = True
        with contextlib.suppress(Exception):
            pickle.loads(every["open, protocol 4"])
        watched[0] = False
        control = canary.exists() and any("pickle.find_class" in event for event in events)
    return {"trials": found, "control": control, "kinds": len(kinds)}


# ---------------------------------------------------------------- sizes

LENGTHS = (0, 1, 2, 3, 255, 2**15, 2**20, 2**29, 2**30, 2**31, 2**32, 2**40, 2**53, 2**60, 2**62)
LENGTHS += (2**63 - 1, 2**63, 2**64, -1, -(2**31), -(2**63))


def claims(rng: random.Random) -> tuple[str, dict[str, bytes]]:
    """Write a small file that claims a lot."""
    shape = tuple(rng.choice(LENGTHS) + rng.choice((0, 0, -1, 1)) for _ in range(rng.randint(1, 3)))
    descr = rng.choice(["<f4", "<f8", "<f2", ">f4", "<V1000000000", "<c16", "<U100000000"])
    content = bytes(rng.choice((0, 64, 4096)))
    one = npy(shape, descr, content, rng.choice((1, 2)))
    kind = rng.choice(["npy", "npz", "header", "safetensors", "tensors", "state", "zarr", "pt"])
    if kind == "npy":
        return f"npy {shape} {descr}", {"a.npy": one}
    if kind == "npz":
        packed = bytearray(zipped("a.npy", one, rng.choice((0, zipfile.ZIP_DEFLATED))))
        at, size = packed.find(b"PK\x01\x02"), rng.choice((0xFFFFFFF0, 0x7FFFFFFF, 1 << 20))
        packed[at + 24 : at + 28] = struct.pack("<I", size)  # its length unpacked
        return f"npz {shape} {descr} of {size}", {"a.npz": bytes(packed)}
    if kind == "header":
        length = rng.choice((1 << 20, 1 << 24, 0x0FFFFFFF))
        magic = b"\x93NUMPY\x02\x00" + struct.pack("<I", length)
        packed = zipped("a.npy", magic + bytes(min(length, 1 << 26)), zipfile.ZIP_DEFLATED)
        return f"npz header {length}", {"a.npz": packed}
    if kind == "safetensors":
        length = rng.choice(LENGTHS) & (2**64 - 1)
        return f"safetensors header {length}", {
            "a.safetensors": struct.pack("<Q", length) + content
        }
    if kind in ("tensors", "state"):
        names = (
            ("a",) if kind == "tensors" else ("count", "weight", "reference", "offset", "scatter")
        )
        end = rng.choice((len(content), rng.choice(LENGTHS)))
        header: dict[str, Any] = {
            name: {"dtype": "F64", "shape": shape, "data_offsets": [0, end]} for name in names
        }
        if kind == "state":
            header["__metadata__"] = {"format": "descramble_fast.covariance", "schema": "1"}
        text = json.dumps(header).encode()
        whole = struct.pack("<Q", len(text)) + text + content
        return f"{kind} {shape} {end}", {"a.safetensors": whole}
    if kind == "zarr":
        array = {"zarr_format": 2, "shape": shape, "chunks": [rng.choice(LENGTHS) for _ in shape]}
        array |= {
            "dtype": descr,
            "order": "C",
            "compressor": None,
            "filters": None,
            "fill_value": 0,
        }
        return f"zarr {array}", {"a.zarr/.zarray": json.dumps(array).encode()}
    # A tensor of many numbers that all lie in one place.
    out = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    )
    storage = rng.choice(["Float", "BFloat16", "Double"])
    out += (
        f"ctorch\n{storage}Storage\n".encode()
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQK\x00"
    )
    sizes = [max(1, length) for length in shape[:2]]
    for numbers in (sizes, [rng.choice((0, 0, 1, 2**40)) for _ in sizes]):
        out += b"(" + b"".join(f"L{number}L\n".encode() for number in numbers) + b"t"
    out += b"\x89ccollections\nOrderedDict\n)RtRs."
    return f"pt {sizes} {storage}", {"a.pt": state_dict(out)}


def peak() -> int:
    """Bytes that were in memory since `forget`, at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget() -> int:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def claim_all(trials: int) -> dict[str, Any]:
    """Open files that claim a lot, and measure the memory that this took."""
    rng, found, worst = random.Random(1), list[tuple[str, str]](), 0
    measured = os.access("/proc/self/clear_refs", os.W_OK)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for trial in range(-8, trials):  # the first ones import what is needed
        with tempfile.TemporaryDirectory() as name:
            label, files = claims(rng)
            allowed = (16 << 20) + 8 * sum(map(len, files.values()))
            for path in write(Path(name), files):
                before = forget() if measured else 0
                wrong = load(path, sizes=True)
                grown = peak() - before if measured else 0
                if trial >= 0:
                    worst = max(worst, grown)
                    wrong += f" took {grown >> 20} MB" * (grown > allowed)
                    found.append((f"trial {trial}, {label}", wrong))
    return {"trials": found, "worst": f"{worst / 1e6:.0f}" if measured else "not measured"}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for optional in ("torch", "zarr"):
        with contextlib.suppress(ModuleNotFoundError):
            __import__(optional)
    said = claim_all(int(sys.argv[2])) if sys.argv[1] == "--sizes" else open_all(int(sys.argv[1]))
    print(json.dumps(said))
