"""The kernels compile for a GPU on a machine without one (what the interpreter cannot tell)."""

from typing import Any

import pytest
import torch

from protformer.attention import triton as kernels

triton = pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="in the interpreter nothing is compiled"),
]
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


def scalar(value: float) -> str:
    return {bool: "i1", int: "i32", float: "fp32"}[type(value)]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path) -> dict[str, Any]:
    """A launch compiles the kernel for sm_90 and leaves it here by its name, without running it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime import jit

    from protformer.attention.triton import launch

    found: dict[str, Any] = {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        constants = {parameter.name for parameter in self.params if parameter.is_constexpr}
        signature = {
            name: "constexpr"
            if name in constants
            else (POINTERS[given[name].dtype] if isinstance(given[name], torch.Tensor) else scalar(given[name]))
            for name in self.arg_names
        }
        values = {(i,): given[name] for i, name in enumerate(self.arg_names) if name in constants}
        source = ASTSource(fn=self, signature=signature, constexprs=values)
        found[self.__name__] = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit.JITFunction, "run", compile_only)
    monkeypatch.setattr(launch, "_processors", lambda device: 132)
    return found


@pytest.mark.parametrize("causal", [False, True])
def test_all_kernels_compile(causal, compiled):
    total, heads, dim, features = 4096, 8, 64, 256
    query, key, value, gradient = (torch.zeros(total, heads, dim, dtype=torch.bfloat16) for _ in range(4))
    cu_seqlens = torch.tensor([0, 1000, total], dtype=torch.int32)
    projection = torch.zeros(1, features, dim)
    options: dict[str, Any] = {
        "family": "exponential", "epsilon": 1e-3, "norm_weight": 1.0, "causal": causal, "adaptation": None,
    }  # fmt: skip
    kernels.forward(query, key, value, cu_seqlens, projection, **options)
    kernels.backward(gradient, torch.zeros(heads, total), query, key, value, cu_seqlens, projection, **options)
    expected = {"work_list_kernel", "state_kernel", "combine_kernel"} | (
        {"causal_kernel", "causal_query_gradient_kernel", "causal_key_gradient_kernel"}
        if causal
        else {"query_kernel", "query_gradient_kernel", "key_gradient_kernel"}
    )
    assert set(compiled) >= expected - ({"work_list_kernel"} if causal else set())
    for name, kernel in compiled.items():
        assert kernel.asm["cubin"], name
        if name not in ("work_list_kernel", "combine_kernel"):
            assert "wgmma" in kernel.asm["ptx"], f"{name} does not use the matrix units"
