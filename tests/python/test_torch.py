"""Tensors of torch, where it is installed: every type, strides, gradients, selectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import two_pass, worst

import descramble_fast as df

torch = pytest.importorskip("torch")


def samples(rows: int = 20, n: int = 4) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(rows, n)) + 2.0


def test_the_first_array_decides() -> None:
    x = samples()
    first_numpy = df.Covariance(4).update(x).update(torch.from_numpy(x))
    first_torch = df.Covariance(4).update(torch.from_numpy(x)).update(x)
    assert isinstance(first_numpy.mean, np.ndarray)
    assert isinstance(first_torch.mean, torch.Tensor)
    assert isinstance(df.Covariance(4).merge(first_torch).mean, torch.Tensor)
    joint = df.Covariance.combine([first_numpy, first_torch], [1, 1])
    assert isinstance(joint.second_moment(), np.ndarray)
    d = df.descramble(first_torch)
    assert isinstance(d.matrix, torch.Tensor)
    assert isinstance(d.transform(x), np.ndarray)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T,
        lambda x: x[::2, 1:],
        lambda x: x[:, 3].expand(4, -1).T,
        lambda x: x.unflatten(0, (4, 5)).transpose(0, 1),
        lambda x: x[:0],
        lambda x: x[0],
    ],
)
def test_strided_tensors_of_every_type(dtype: Any, view: Callable[[Any], Any]) -> None:
    x = view(torch.from_numpy(samples(20, 6)).to(dtype))
    cov = df.Covariance(x.shape[-1]).update(x)
    assert cov.input_dtypes == (str(dtype).removeprefix("torch."),)
    rows = x.to(torch.float64).reshape(-1, x.shape[-1]).numpy()
    assert cov.count == len(rows)
    if len(rows):
        _, second, covariance = two_pass(rows)
        bound = 1e-12 if dtype == torch.float64 else 1e-6  # narrow products are summed in float32
        assert np.abs(cov.covariance().numpy() - covariance).max() <= bound * covariance.max()
        assert worst(cov.second_moment(), second) <= bound


def test_narrow_tensors_give_float32_eigenpairs() -> None:
    a = torch.eye(5, dtype=torch.bfloat16)
    w = df.eigh(a)
    assert w.eigenvalues.dtype == w.eigenvectors.dtype == torch.float32
    assert df.eigh(a.to(torch.float64)).eigenvalues.dtype == torch.float64


def test_masks_and_weights_may_be_tensors() -> None:
    x = samples()
    mask, weights = x[:, 0] > 2, np.abs(x[:, 1])
    expected = df.Covariance(4).update(x, mask=mask, weights=weights).covariance()
    got = df.Covariance(4).update(
        x, mask=torch.from_numpy(mask), weights=torch.from_numpy(weights).requires_grad_()
    )
    assert got.covariance().tobytes() == expected.tobytes()
    half = df.Covariance(4).update(torch.from_numpy(x), weights=torch.ones(20).bfloat16())
    assert half.weight == 20
    with pytest.raises(TypeError, match="mask"):
        df.Covariance(4).update(x, mask=torch.from_numpy(mask).to(torch.uint8))


def test_a_tensor_without_storage_is_refused() -> None:
    for tensor in (torch.zeros(3, 4, device="meta"), torch.eye(4).to_sparse()):
        with pytest.raises((TypeError, ValueError, df.BackendError)):
            df.Covariance(4).update(tensor)


def test_a_lazily_negated_tensor_counts_with_its_sign() -> None:
    x = torch.from_numpy(samples())
    negated = torch.complex(torch.zeros_like(x), x).conj().imag  # -x, by a bit on the view
    assert (negated == -x).all()
    try:
        mean = df.Covariance(4).update(negated).mean
    except (TypeError, ValueError, RuntimeError, BufferError):
        return  # a clear error is as good
    assert torch.allclose(mean, -x.mean(dim=0))


def test_results_own_their_memory() -> None:
    x = samples()
    d = df.descramble(torch.from_numpy(x))
    P = d.matrix.clone()
    z = d.transform(x)
    matrix, w = d.matrix, df.eigh(x[:4])
    vectors = w.eigenvectors.copy()
    del d
    for _ in range(20):
        np.ones((4, 4))  # what freed memory would be overwritten by
    assert (matrix == P).all()
    assert (w.eigenvectors == vectors).all()
    assert z.flags.writeable


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_and_strided_tensors_are_widened(dtype: Any) -> None:
    op = df.operators.difference(6, 1, "path")
    x = torch.arange(48, dtype=torch.float64).reshape(12, 4).to(dtype).T[:, ::2]
    got = op.apply(x)
    assert got.dtype == torch.float64
    assert (got == op.apply(x.to(torch.float64).contiguous())).all()


def test_float16_subnormals_survive_flushing() -> None:
    x = np.array([[1e-5], [2e-5], [3e-5]], dtype=np.float16)
    expected = float(x.astype(np.float64).mean())
    torch.set_flush_denormal(True)
    try:
        assert abs(df.Covariance.from_samples(x).mean[0] - expected) <= 1e-20
    finally:
        torch.set_flush_denormal(False)
