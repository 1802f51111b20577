"""In one process with torch, scikit-learn and SciPy, imported before or after."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PEERS = {
    "torch": """
import torch
@peers.append
def use_torch():
    a = torch.randn(300, 300, dtype=torch.float64)
    s = a @ a.T
    w, v = torch.linalg.eigh(s)
    assert torch.allclose(s @ v, v * w, atol=1e-9)
""",
    "scipy": """
import numpy as np, scipy.linalg
@peers.append
def use_scipy():
    a = np.random.default_rng(0).normal(size=(300, 300))
    s = a @ a.T
    w, v = scipy.linalg.eigh(s)
    assert np.allclose(s @ v, v * w, atol=1e-9)
""",
    "sklearn": """
import numpy as np, sklearn.cluster
@peers.append
def use_sklearn():
    x = np.concatenate([np.full((500, 4), i, float) for i in range(3)])
    found = sklearn.cluster.KMeans(3, n_init=1, random_state=0).fit(x)  # OpenMP
    assert found.inertia_ < 1e-20
""",
}

# Threads that use the processor while we compute are as many as we were told to use.
WORK = """
import os, sys, time
import numpy as np

def busy():
    ticks = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        ticks[task] = int(fields[11]) + int(fields[12])
    return ticks

x = np.random.default_rng(1).normal(size=(20_000, 200))
many = np.random.default_rng(2).normal(size=(500, 40, 40))
many += many.swapaxes(1, 2)

def ours():
    c = df.Covariance(200).update(x)
    df.eigh(many)
    return c, df.descramble(c)

threads = int(sys.argv[1])
df.set_num_threads(threads)
for _ in range(2):
    for peer in peers:
        peer()
    c, d = ours()
    np.testing.assert_allclose(c.covariance(1), np.cov(x.T), atol=1e-9)
    np.testing.assert_allclose(d.matrix @ d.matrix.T, np.eye(200), atol=1e-12)
time.sleep(0.5)  # other pools may spin on for a moment
before = busy()
began = time.process_time(), time.perf_counter()
while time.perf_counter() < began[1] + 1:
    ours()
used = (time.process_time() - began[0]) / (time.perf_counter() - began[1])
tick = 1 / os.sysconf("SC_CLK_TCK")
active = [t for t, n in busy().items() if (n - before.get(t, 0)) * tick > 0.1]
print("threads", len(active), "load", used)
assert len(active) <= threads, (active, before)
assert used <= threads + 0.2, used
for peer in peers:
    peer()
"""


def run(script: str, *arguments: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_all_give_right_answers_on_no_more_threads_than_asked_for(first: str, threads: int) -> None:
    peers = [code for name, code in PEERS.items() if importlib.util.find_spec(name)]
    if not peers:
        pytest.skip("none of them is installed")
    parts = ["import descramble_fast as df", *peers]
    if first == "theirs":
        parts.reverse()
    assert run("\n".join(["peers = []", *parts, WORK]), str(threads)).startswith("threads ")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_we_bring_no_openmp_runtime() -> None:
    # Two of them in one process are what makes others crash or crawl.
    script = """
import re, descramble_fast as df, numpy as np
df.eigh(np.eye(300))
libraries = set(re.findall(r"\\S*/(\\S+\\.so\\S*)", open("/proc/self/maps").read()))
assert any("descramble_fast" in name for name in libraries), libraries
print(sorted(name for name in libraries if re.search("omp|mkl", name)))
"""
    assert run(script).strip() == "[]"


def test_the_blas_of_others_keeps_its_threads() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    assert threadpoolctl
    script = """
import numpy as np, threadpoolctl
def blas():
    return {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}
np.eye(3) @ np.eye(3)
before = blas()
assert before
import descramble_fast as df
df.set_num_threads(1)
df.eigh(np.eye(600))
after = blas()
print({path: (n, after[path]) for path, n in before.items() if after[path] != n})
"""
    assert run(script).strip() == "{}"
