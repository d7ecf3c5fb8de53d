"""What the tests of the baseline attentions share: softmax under a mask written out, the laws of packs and of time."""

import itertools
from collections.abc import Callable

import torch
from performers import Inputs, Step, inputs, offsets, relative_errors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from protformer.attention import Attention

# With a segment of one row, of none, and one of many chunks.
LENGTHS = (1, 40, 0, 7, 130)
BOUNDS = [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 1.5e-2)]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def masked_softmax(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, seen: Callable[[int, int], Tensor]) -> Tensor:
    """softmax(q k^T / sqrt(dim)) v where `seen(segment, n)`, `[n, n]` or `[heads, n, n]`, is true; nothing else."""
    outs = []
    for segment, (a, b) in enumerate(itertools.pairwise(cu.tolist())):
        logits = torch.einsum("thd,shd->hts", q[a:b], k[a:b]) * q.shape[2] ** -0.5
        weights = logits.masked_fill(~seen(segment, b - a), -torch.inf).softmax(-1)
        outs.append(torch.einsum("hts,shd->thd", weights, v[a:b]))
    return torch.cat(outs)


def past(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def step(attend: Attend, given: Inputs, cu: Tensor) -> Step:
    leaves = [x.detach().requires_grad_() for x in given[:3]]
    out = attend(leaves[0], leaves[1], leaves[2], cu)
    return Step(out.detach(), *torch.autograd.grad(out, leaves, given.grad.to(out.dtype)))


def assert_equal(attend: Attend, reference: Attend, *, lengths=LENGTHS, dtype=torch.float64, bound=1e-10) -> None:
    """Output and gradients equal those of the reference, which works in float64 on the same rounded inputs."""
    given = inputs(sum(lengths), dim=16).to(dtype)
    got, expected = step(attend, given, offsets(*lengths)), step(reference, given.to(torch.float64), offsets(*lengths))
    assert got.out.dtype == dtype
    for error, x, y in zip(relative_errors(got, expected), got, expected, strict=True):
        # (a gradient that is zero is zero)
        assert error < bound or torch.equal(x.double(), y)


def assert_packed_equals_alone(attention: Attention, lengths=LENGTHS, rtol: float = 1e-9) -> None:
    given = inputs(sum(lengths), dim=16)
    together = step(attention, given, offsets(*lengths))
    order = [4, 0, 3, 1, 2]
    starts = offsets(*lengths).tolist()
    rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
    moved = step(attention, Inputs(*(x[rows] for x in given)), offsets(*(lengths[i] for i in order)))
    for one, other in zip(moved, together, strict=True):
        torch.testing.assert_close(one, other[rows], rtol=rtol, atol=rtol)
    for a, b in itertools.pairwise(starts):
        alone = step(attention, given.rows(a, b), offsets(b - a))
        for one, other in zip(alone, together, strict=True):
            torch.testing.assert_close(one, other[a:b], rtol=rtol, atol=rtol)


def assert_blind_to_the_future(attention: Attention, n: int = 40, now: int = 22) -> None:
    """No gradient from a row to later ones, and no output changes when all later rows do."""
    given, other = inputs(n, dim=16), inputs(n, dim=16, seed=1)
    later = torch.arange(n)[:, None, None] > now
    changed = Inputs(*(torch.where(later, y, x) for x, y in zip(given, other, strict=True)))
    outs = [attention(x.query, x.key, x.value, offsets(n)) for x in (given, changed)]
    torch.testing.assert_close(outs[0][: now + 1], outs[1][: now + 1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outs[0][now + 1 :], outs[1][now + 1 :])
    only_now = given._replace(grad=torch.where(torch.arange(n)[:, None, None] == now, given.grad, 0.0))
    for grad in step(attention, only_now, offsets(n))[1:]:
        assert torch.count_nonzero(grad[now + 1 :]) == 0


def assert_finite_at_any_norm(attention: Attention) -> None:
    for norm in (1e-3, 1e4):
        for dtype in (torch.float32, torch.bfloat16):
            made = step(attention, inputs(sum(LENGTHS), norm=norm, dim=16).to(dtype), offsets(*LENGTHS))
            assert all(bool(x.isfinite().all()) for x in made)


class LargestTensor(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation makes (views of it included)."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, Tensor):
                self.entries = max(self.entries, x.numel())
        return made


def largest_tensor(attention: Attention, n: int) -> int:
    given = inputs(n, heads=1, dim=4).to(torch.float32)
    with LargestTensor() as largest:
        step(attention, given, offsets(n))
    return largest.entries
