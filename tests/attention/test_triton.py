"""The fused kernels equal the direct formula in float64, with its gradient: in Triton's interpreter, and on a GPU.

Whether kernels are interpreted is settled when Triton is first imported, for the whole process (Lightning imports it):
so the interpreted tests run in a process of their own. To run some of them alone:
    TRITON_INTERPRET=1 pytest tests/attention/test_triton.py -k splits
"""

import importlib.metadata
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from protformer.attention import triton as kernels

pytest.importorskip("triton", reason="Triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ACTIVATIONS = {
    "relu": torch.relu,
    "squared_relu": lambda logits: torch.relu(logits).square(),
    "elu": lambda logits: torch.nn.functional.elu(logits) + 1.0,
    "softplus": torch.nn.functional.softplus,
    "sigmoid": torch.sigmoid,
}
FAMILIES = ("exponential", "trigonometric", "cosine", *ACTIVATIONS)
EPSILON = 1e-3
LENGTHS = (1, 9, 4, 0, 2, 37)
# Rounding of a result to its type. (The interpreter cuts bf16 off where a GPU rounds.)
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Adaptation(NamedTuple):
    query_scale: Tensor | None = None
    key_scale: Tensor | None = None
    norm_scale: Tensor | None = None
    tilt: Tensor | None = None
    offset: Tensor | None = None


class Case(NamedTuple):
    """Inputs of one call, with a gradient of the output."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor
    cu_seqlens: Tensor
    projection: Tensor
    settings: dict[str, Any]

    def run(self) -> list[Tensor]:
        """Output and the gradients of query, key and value."""
        tensors = self.query, self.key, self.value, self.cu_seqlens, self.projection
        out, saved = kernels.forward(*tensors, **self.settings)
        assert saved.dtype == torch.float32
        assert saved.shape == (self.query.shape[1], self.query.shape[0])
        return [out, *kernels.backward(self.grad, saved, *tensors, **self.settings)]

    def expected(self, heads: slice = slice(None)) -> list[Tensor]:
        """The same in float64, of some heads."""
        q, k, v = leaves = [x[:, heads].double().requires_grad_() for x in (self.query, self.key, self.value)]
        projection = self.projection if len(self.projection) == 1 else self.projection[heads]
        out = direct(q, k, v, self.cu_seqlens, projection.double(), **self.settings)
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad[:, heads].double())]


def direct(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float,
    norm_weight: float,
    causal: bool,
    adaptation: Adaptation | None,
) -> Tensor:
    """The operator's definition, a weight for each pair of rows of a segment."""
    outs = []
    bounds = cu_seqlens.tolist()
    for segment, (a, b) in enumerate(itertools.pairwise(bounds)):
        if a == b:
            continue
        of = {name: _of_segment(x, segment) for name, x in (adaptation or Adaptation())._asdict().items()}
        x, y, v = (tensor[a:b].transpose(0, 1) for tensor in (query, key, value))
        x = x if of["query_scale"] is None else x * of["query_scale"].unsqueeze(1)
        y = y if of["key_scale"] is None else y * of["key_scale"].unsqueeze(1)
        log_query, log_key = x @ projection.transpose(1, 2), y @ projection.transpose(1, 2)
        if of["offset"] is not None:
            log_query, log_key = (logits + of["offset"].unsqueeze(1) for logits in (log_query, log_key))
        weight = -norm_weight * y.square().sum(2) / (2.0 * math.sqrt(query.shape[2]))
        weight = weight if of["norm_scale"] is None else weight * of["norm_scale"].unsqueeze(1)
        weight = weight if of["tilt"] is None else weight + (y * of["tilt"].unsqueeze(1)).sum(2)
        row_scale = torch.zeros_like(log_query[:, :, 0])
        if family == "exponential":
            # in float64 no product underflows here: logits differ by less than 300
            row_scale = log_query.amax(2).detach()
            key_scale = log_key.amax(2).detach()
            phi_query, phi_key = (log_query - row_scale[:, :, None]).exp(), (log_key - key_scale[:, :, None]).exp()
            weight = weight + key_scale
        elif family in ("trigonometric", "cosine"):
            phi_query, phi_key = log_query.cos(), log_key.cos()
            if family == "trigonometric":
                phi_query, phi_key = torch.cat([phi_query, log_query.sin()], 2), torch.cat([phi_key, log_key.sin()], 2)
        else:
            phi_query, phi_key = (ACTIVATIONS[family](logits) + epsilon for logits in (log_query, log_key))
        unseen = torch.ones(b - a, b - a, dtype=torch.bool, device=query.device).triu(1 if causal else b - a)
        weights = weight[:, None, :].masked_fill(unseen, -math.inf)
        weights = (weights - weights.amax(2, keepdim=True).detach()).exp() * (phi_query @ phi_key.transpose(1, 2))
        outs.append((weights / weights.sum(2, keepdim=True) @ v).transpose(0, 1))
    return torch.cat(outs) if outs else torch.zeros_like(value)


def _of_segment(x: Tensor | None, segment: int) -> Tensor | None:
    return None if x is None else x[min(segment, len(x) - 1)].double()


def make(
    family: str = "exponential",
    *,
    causal: bool,
    lengths: tuple[int, ...] = LENGTHS,
    heads: int = 1,
    dim: int = 6,
    rows: int = 20,
    dtype: torch.dtype = torch.float32,
    norm: float = 2.0,
    mode: str = "random",
    per_head: bool = False,
    adapted: bool = False,
    device: str = "cpu",
) -> Case:
    """Inputs of that norm (queries and keys); "opposite" is k = -q."""
    generator = torch.Generator().manual_seed(sum(lengths) + dim)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    q, k, v, grad = normal(4, sum(lengths), heads, dim)
    q, k = (x / x.norm(dim=-1, keepdim=True) * norm for x in (q, k))
    k = -q if mode == "opposite" else k
    projection = (normal(heads if per_head else 1, rows, dim) * dim**-0.25).bfloat16().float()
    adaptation = None
    if adapted:
        segments = len(lengths)
        adaptation = Adaptation(
            query_scale=1.0 + 0.3 * normal(segments, heads, dim).float().to(device),
            key_scale=1.0 + 0.3 * normal(1, heads, dim).float().to(device),
            norm_scale=1.0 + 0.3 * normal(segments, 1).float().to(device),
            tilt=None if family in ACTIVATIONS else 0.3 * normal(segments, 1, dim).float().to(device),
            offset=0.3 * normal(1, heads, rows).float().to(device),
        )
    norm_weight = {"exponential": 1.0, "trigonometric": -0.5, "cosine": 0.5}.get(family, 0.0)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    q, k, v, grad = (x.to(device=device, dtype=dtype) for x in (q, k, v, grad))
    settings = {"family": family, "epsilon": EPSILON, "norm_weight": norm_weight, "causal": causal}
    settings["adaptation"] = adaptation
    return Case(q, k, v, grad, bounds.to(device), projection.to(device), settings)


def errors(got: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Of each tensor its error relative to its size, both as norms."""
    assert all(x.isfinite().all() for x in got)
    pairs = zip(got, expected, strict=True)
    return [float((x.double() - y).norm() / y.norm().clamp_min(1e-9 * math.sqrt(y.numel()))) for x, y in pairs]


@pytest.mark.slow  # (the interpreter is)
def test_in_a_process_of_its_own():
    if INTERPRETED:
        pytest.skip("this is that process")
    triton, numpy = (tuple(map(int, importlib.metadata.version(x).split(".")[:2])) for x in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.7 does not run with NumPy 2.4")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "TestKernels", str(Path(__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_what_is_not_supported_is_said_in_words(monkeypatch):
    def why(dim: int = 8, rows: int = 8, dtype: torch.dtype = torch.float32, family: str = "exponential") -> str:
        return kernels.supported(torch.zeros(2, 1, dim, dtype=dtype), torch.zeros(1, rows, dim), family) or ""

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "129 dimensions" in why(dim=129)
    assert "513 features" in why(rows=513)
    assert "514 features" in why(rows=257, family="trigonometric")
    assert "float64" in why(dtype=torch.float64)
    assert "'unheard of'" in why(family="unheard of")
    assert "not on a CUDA device" in why()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why() == ""
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in why()


class TestKernels:
    """In the interpreter, with blocks of 16 rows and features and splits of 16 rows."""

    __test__ = INTERPRETED

    @pytest.fixture(autouse=True)
    def small_blocks(self, monkeypatch):
        from protformer.attention.triton import block_sizes, launch

        small = block_sizes.Blocks(16, 16, 1, 1)
        for kernel in block_sizes.KERNELS:
            monkeypatch.setitem(block_sizes.OVERRIDES, kernel, small)
        monkeypatch.setattr(launch, "_processors", lambda device: 1000)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_equals_the_direct_formula_with_its_gradient(self, family, causal):
        case = make(family, causal=causal, lengths=LENGTHS if family == "exponential" else (1, 0, 18), rows=12)
        assert max(errors(case.run(), case.expected())) < 1e-5

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("family", ["exponential", "trigonometric", "softplus"])
    def test_heads_and_segments_with_their_own_adaptation(self, family, causal):
        case = make(family, causal=causal, lengths=(3, 0, 17), heads=2, rows=11, per_head=True, adapted=True)
        assert max(errors(case.run(), case.expected())) < 1e-5

    @pytest.mark.parametrize("causal", [False, True])
    def test_an_adaptation_can_say_less(self, causal):
        case = make(causal=causal, lengths=(3, 6), dim=5, rows=11, adapted=True)
        for names in (("offset", "tilt"), ("query_scale", "key_scale", "norm_scale")):
            said = {name: getattr(case.settings["adaptation"], name) for name in names}
            less = case._replace(settings={**case.settings, "adaptation": Adaptation(**said)})
            assert max(errors(less.run(), less.expected())) < 1e-5

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize(
        ("dtype", "adapted"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)]
    )
    def test_half_precision_is_off_by_the_rounding_of_its_results(self, dtype, adapted, causal):
        case = make(causal=causal, lengths=(2, 17), dim=24, dtype=dtype, adapted=adapted)
        assert max(errors(case.run(), case.expected())) < 1.5 * ROUNDING[dtype]

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("mode", ["random", "opposite"])
    @pytest.mark.parametrize(("norm", "bound"), [(1e-3, 1e-6), (30.0, 2e-5)])
    def test_norms(self, norm, bound, mode, causal):
        case = make(causal=causal, lengths=(1, 17), dim=4, rows=12, norm=norm, mode=mode)
        out, grad_query, *others = errors(case.run(), case.expected())
        assert max(out, *others) < bound
        # dq is a difference of terms that are 1 / norm times as large
        assert grad_query < bound / min(norm, 1.0)

    @pytest.mark.parametrize("causal", [False, True])
    def test_bf16_keeps_the_gradient_of_tiny_queries(self, causal):
        case = make(causal=causal, lengths=(20,), dim=8, rows=16, norm=1e-3, dtype=torch.bfloat16)
        assert errors(case.run(), case.expected())[1] < 0.03  # 5 and more with one bf16 term, or with the rounded `out`

    @pytest.mark.parametrize("causal", [False, True])
    def test_huge_norms_are_finite(self, causal):
        case = make(causal=causal, lengths=(1, 17), dim=8, rows=12, norm=1e4, mode="opposite")
        got = case.run()
        assert all(x.isfinite().all() for x in got)
        torch.testing.assert_close(got[0][0], case.value[0])

    def test_faint_rows(self):
        # queries and keys prefer features that are e^150 apart: one scale a row would make the first rows 0 / 0
        for dtype, bound in ((torch.float32, 2e-4), (torch.bfloat16, 1.5 * ROUNDING[torch.bfloat16])):
            case = make(causal=True, lengths=(18,), dim=8, rows=12, norm=60.0, mode="opposite", dtype=dtype)
            got = case.run()
            torch.testing.assert_close(got[0][0], case.value[0], rtol=2 * ROUNDING[dtype], atol=0.0)
            assert max(errors(got, case.expected())) < bound

    @pytest.mark.parametrize("causal", [False, True])
    def test_packed_equals_alone(self, causal):
        case = make(causal=causal, lengths=(5, 0, 20), rows=8)
        got = case.run()
        for a, b in ((0, 5), (5, 25)):
            q, k, v, grad = (x[a:b] for x in (case.query, case.key, case.value, case.grad))
            bounds = torch.tensor([0, b - a], dtype=torch.int32)
            expected = Case(q, k, v, grad, bounds, case.projection, case.settings).run()
            for x, y in zip(got, expected, strict=True):
                torch.testing.assert_close(x[a:b], y, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("norm", [2.0, 30.0])
    def test_nothing_comes_back_from_the_future(self, norm):
        case = make(causal=True, lengths=(3, 21), norm=norm, rows=8, mode="opposite" if norm > 10.0 else "random")
        cut = 22  # three rows into the second block of the second segment
        out = case.run()[0]
        q, k, v = (torch.cat([x[:cut], -1.5 * x[cut:]]) for x in (case.query, case.key, case.value))
        grad = torch.cat([case.grad[:cut], 0.0 * case.grad[cut:]])
        other, *grads = case._replace(query=q, key=k, value=v, grad=grad).run()
        assert torch.equal(other[:cut], out[:cut])
        for x in grads:
            assert (x[cut:] == 0).all()
            assert (x[:cut] != 0).any()

    @pytest.mark.parametrize("causal", [False, True])
    def test_splits_and_groups_of_heads_change_nothing(self, causal, monkeypatch):
        from protformer.attention.triton import launch

        case = make(causal=causal, lengths=(18, 2), heads=2, rows=8, per_head=True, dtype=torch.float16)
        got = case.run()
        monkeypatch.setattr(launch, "STATE_BYTES", 1)  # each head for itself
        for x, y in zip(case.run(), got, strict=True):
            assert torch.equal(x, y)
        monkeypatch.setattr(launch, "_processors", lambda device: 1)
        monkeypatch.setattr(launch, "SPLITS_PER_PROCESSOR", 1)  # one split a segment
        for x, y in zip(case.run(), got, strict=True):
            torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("causal", [False, True])
    def test_slices_of_a_fused_projection(self, causal):
        case = make(causal=causal, lengths=(5,), heads=2, rows=8)
        fused = torch.stack(case[:3], dim=1)
        sliced = case._replace(query=fused[:, 0], key=fused[:, 1], value=fused[:, 2])
        for x, y in zip(sliced.run(), case.run(), strict=True):
            assert torch.equal(x, y)

    @pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
    def test_packs_of_nothing(self, lengths):
        for x in make(causal=True, lengths=lengths).run():
            assert x.shape == (0, 1, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device")
class TestOnAGpu:
    """At real shapes, against float64 on sampled heads."""

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize(("dim", "rows"), [(64, 256), (128, 512)])
    @pytest.mark.parametrize("packed", [False, True])
    def test_equals_the_direct_formula(self, packed, dim, rows, dtype, causal):
        lengths = (16384,)
        if packed:
            generator = torch.Generator().manual_seed(0)
            lengths = tuple(torch.randint(30, 600, (300,), generator=generator).tolist())
        shape = {"lengths": lengths, "heads": 4, "dim": dim, "rows": rows, "dtype": dtype, "norm": 6.0}
        case = make(causal=causal, device="cuda", **shape)  # pyright: ignore[reportArgumentType]
        self.check(case, dtype)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family(self, family, causal):
        shape = {"lengths": (3000, 1, 0, 77, 500), "heads": 2, "dim": 64, "rows": 96, "norm": 3.0, "per_head": True}
        case = make(family, causal=causal, adapted=True, device="cuda", **shape)  # pyright: ignore[reportArgumentType]
        self.check(case, torch.float32)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("norm", [1e-3, 30.0])
    def test_norms(self, norm, dtype, causal):
        # dim 8: at this norm k = -q makes faint rows; a segment of 700 rows has ordinary ones as well
        shape = {"lengths": (700, 90), "dim": 8, "rows": 256, "dtype": dtype, "norm": norm, "mode": "opposite"}
        case = make(causal=causal, device="cuda", **shape)  # pyright: ignore[reportArgumentType]
        out, grad_query, *others = errors(case.run(), case.expected())
        bound = max(ROUNDING[dtype], 5e-5)
        assert max(out, *others) < bound
        assert grad_query < max(bound, 1e-5 / norm)

    def test_nothing_comes_back_from_the_future(self):
        shape = {"lengths": (3000,), "heads": 2, "dim": 64, "rows": 256, "dtype": torch.bfloat16}
        case = make(causal=True, device="cuda", **shape)  # pyright: ignore[reportArgumentType]
        q, k, v = (torch.cat([x[:2000], -1.5 * x[2000:]]) for x in (case.query, case.key, case.value))
        other = case._replace(query=q, key=k, value=v).run()[0]
        assert torch.equal(other[:2000], case.run()[0][:2000])

    @staticmethod
    def check(case: Case, dtype: torch.dtype) -> None:
        bound = ROUNDING[dtype] if dtype != torch.float32 else 2e-5
        got = case.run()
        for head in (0, case.query.shape[1] - 1):
            heads = slice(head, head + 1)
            assert max(errors([x[:, heads] for x in got], case.expected(heads))) < bound
