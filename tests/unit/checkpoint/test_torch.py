"""Tensors of torch in checkpoints, where torch is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncstep.checkpoint import read_checkpoint
from asyncstep.errors import InvalidTypeError

from .parts import encode_all, round_trip, save, state

torch = pytest.importorskip("torch")

DTYPES = [
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16", "complex64", "float8_e4m3fn", "float8_e5m2"),
]


def bits(tensor: Any) -> bytes:
    """The bytes of a tensor."""
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    """Tensors keep dtype, shape and every bit; 0-d and empty ones too."""
    tensor = torch.ones(shape).to(getattr(torch, dtype))
    back = round_trip(tensor)
    assert (back.dtype, back.shape, bits(back)) == (tensor.dtype, tensor.shape, bits(tensor))


def test_views_and_gradients_come_back() -> None:
    """A tensor that is not contiguous or is a lazy conjugate keeps its values, and requires_grad is kept."""
    base = torch.arange(12.0).reshape(3, 4)
    conjugate = torch.tensor([1 + 2j]).to(torch.complex64).conj()
    back = round_trip([base.t(), base.clone().requires_grad_(), conjugate])
    assert torch.equal(back[0], base.t())
    assert back[1].requires_grad
    assert torch.equal(back[2], conjugate.resolve_conj())


def test_tensors_come_back_from_the_disk(tmp_path: Path) -> None:
    """The state of a module is saved as it is, and what came back can be trained on."""
    module = torch.nn.Linear(3, 2)
    back = read_checkpoint(save(tmp_path, 1, model=dict(module.state_dict()))).variables["model"]
    module.load_state_dict(back)
    back["bias"] += 1
    assert torch.equal(back["bias"], module.state_dict()["bias"] + 1)


@pytest.mark.parametrize("kind", ["parameter", "sparse"])
def test_other_tensors_are_refused(kind: str) -> None:
    """A Parameter, and a sparse tensor, are errors that name the variable."""
    tensor = {
        "parameter": lambda: torch.nn.Parameter(torch.zeros(1)),
        "sparse": lambda: torch.eye(2).to_sparse(),
    }[kind]()
    with pytest.raises(InvalidTypeError, match="the variable 'bad' cannot be saved"):
        encode_all(state(bad=tensor))
