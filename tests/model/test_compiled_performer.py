"""A whole Performer compiles, forward and backward, without a graph break, and equals itself uncompiled.

In a process of its own: jaxtyping's hook wraps every function under test, and a compiler cannot see through it.
"""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
    import sys
    import torch
    from protformer import features
    from protformer.attention import FavorAttention
    from protformer.features import AdaptiveFeatures
    from protformer.model import Encoder

    torch.set_num_threads(1)
    # in float64, but for the rotations: then quotients of small differences in signed maps agree as well
    map_class, options, causal, backend = {case}
    chosen = getattr(features, map_class)


    def packs(*lengths, seed):
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        return torch.randn(sum(lengths), 16, generator=generator, dtype=torch.float64), offsets


    def make():
        torch.manual_seed(0)
        return Encoder(
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention=lambda **shape: FavorAttention(
                **shape, features=lambda **s: chosen(num_features=16, **s, **options), causal=causal
            ),
        ).double().train()


    def step(encoder, forward, x, cu_seqlens):
        x = x.clone().requires_grad_()
        out = forward(x, cu_seqlens)
        out.square().sum().backward()
        moving = [m.moving for m in encoder.modules() if isinstance(m, AdaptiveFeatures) and m.moving is not None]
        for average in moving:  # as the training loop does after each optimiser step
            average.update_()
        grads = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
        encoder.zero_grad()
        return [out.detach(), x.grad, *grads, *(average.average.clone() for average in moving)]


    eager, compiled = make(), make()
    forward = torch.compile(compiled, fullgraph=True, dynamic=True, backend=backend)
    # packs of other lengths and other numbers of segments, which need no new graph
    for number, lengths in enumerate([(5, 9, 3), (20,), (4, 4, 4, 4, 1), (7, 1, 30)]):
        inputs = packs(*lengths, seed=number)
        expected, got = step(eager, eager, *inputs), step(compiled, forward, *inputs)
        assert len(expected) == len(got) > 20
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    explained = torch._dynamo.utils.counters
    assert not explained["graph_break"], explained["graph_break"]
    print("graphs", explained["stats"]["unique_graphs"])
"""
CASES = {
    "positive": ("PositiveFeatures", {}, False),
    "positive causal": ("PositiveFeatures", {}, True),
    "optimal of each segment": ("OptimalPositiveFeatures", {"centred": True}, False),
    "dense of each segment": ("DenseFeatures", {"centred": True, "per_head": True}, False),
    "optimal moving": ("OptimalPositiveFeatures", {"centred": True, "statistics": "moving"}, False),
    "optimal moving causal": ("OptimalPositiveFeatures", {"statistics": "moving"}, True),
    "cosine": ("CosineFeatures", {}, False),
}


@pytest.mark.slow
# (inductor takes most of a minute a case and sees the same graph)
@pytest.mark.parametrize(("name", "backend"), [*((name, "aot_eager") for name in CASES), ("positive", "inductor")])
def test_a_performer_compiles_and_equals_itself(name, backend, tmp_path):
    if backend == "inductor" and not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("inductor writes C++ for a CPU, and there is no C++ compiler here")
    program = textwrap.dedent(PROGRAM).replace("{case}", repr((*CASES[name], backend)))
    environment = {
        **os.environ,
        "PROTFORMER_SHAPE_CHECKS": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    # one graph, or two where the first pack's shapes were taken for constants
    assert int(done.stdout.split()[-1]) <= 2
