"""Statistics of the inputs: moments of segments, and the moving average that causal attention needs."""

import pytest
import torch
from torch import Tensor

from protformer.features import (
    AdaptiveFeatures,
    DenseFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    projection_generator,
)
from protformer.features.moments import Moments, MovingMoments, segment_moments


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def rows(count: int, seed: int = 0, heads: int = 2, dim: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, heads, dim, generator=generator, dtype=torch.float64) * 2.0 + 0.5


def moments(x: Tensor) -> Moments:
    """Plain means over rows, `[1, heads, dim]`."""
    x = x.double()
    return Moments(x.mean(dim=0, keepdim=True), x.square().mean(dim=0, keepdim=True))


def assert_moments(got: Moments, expected: Moments, rtol: float = 1e-6) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=1e-7)


def moving(momentum: float = 0.9) -> MovingMoments:
    return MovingMoments(num_heads=2, head_dim=3, momentum=momentum)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[5], [1, 0, 7, 3, 0], [4095, 4096, 4097, 1], [9000]])
def test_segment_moments_are_plain_means(lengths, dtype):
    x = rows(sum(lengths)).to(dtype)
    mean, square = segment_moments(x, offsets(lengths))
    assert mean.dtype == square.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert mean.shape == square.shape == (len(lengths), 2, 3)
    for i, part in enumerate(x.split(lengths)):
        if lengths[i] == 0:
            assert torch.count_nonzero(mean[i]) == torch.count_nonzero(square[i]) == 0
            continue
        # (sums of thousands in fp32; not in the type of the inputs, where 9,000 ones are 256)
        assert_moments(Moments(mean[i], square[i]), Moments(*(m[0] for m in moments(part))), rtol=1e-5)


def test_segment_moments_give_no_gradient_and_leave_rows_outside_alone():
    x = rows(7).requires_grad_()
    assert not any(m.requires_grad for m in segment_moments(x, offsets([3, 4])))
    spoiled = x.detach().clone()
    spoiled[3:] = torch.nan
    assert torch.equal(segment_moments(spoiled, offsets([3, 4])).mean[0], segment_moments(x, offsets([3, 4])).mean[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_segment_moments_opcheck(dtype):
    torch.library.opcheck(
        torch.ops.protformer.segment_moments.default,
        (rows(7).to(dtype), offsets([3, 0, 4])),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_the_average_follows_its_inputs():
    average, momentum = moving(0.9), 0.9
    steps = [(rows(20, seed), rows(20, seed + 50) * 3.0) for seed in range(12)]
    weights = torch.tensor([momentum ** (len(steps) - 1 - i) for i in range(len(steps))], dtype=torch.float64)
    weights = weights / weights.sum()  # the bias correction: they sum to 1 from the first step on
    for query, key in steps:
        average.observe(query.float(), key.float())
        average.update_()
    for side in (0, 1):
        each = [moments(step[side]) for step in steps]
        expected = Moments(
            *(torch.einsum("s, sohd -> ohd", weights, torch.stack([m[i] for m in each])) for i in (0, 1))
        )
        assert_moments(average.read()[side], expected, rtol=1e-5)
    assert float(average.updates) == len(steps)
    # long after a change of the inputs nothing is left of what was before
    query, key = rows(20, 7) - 5.0, rows(20, 8) + 5.0
    for _ in range(200):
        average.observe(query.float(), key.float())
        average.update_()
    assert_moments(average.read()[0], moments(query), rtol=1e-4)
    assert_moments(average.read()[1], moments(key), rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.9999])
def test_the_first_average_is_that_of_the_first_step(momentum):
    average = moving(momentum)
    query, key = rows(30, 1), rows(30, 2)
    average.observe(query.float(), key.float())
    average.update_()
    # (1 - 0.9999^1 loses digits in fp32)
    assert_moments(average.read()[0], moments(query), rtol=1e-6 / (1.0 - momentum))
    assert_moments(average.read()[1], moments(key), rtol=1e-6 / (1.0 - momentum))


def test_nothing_is_known_before_the_first_update_and_nothing_is_lost_by_one_without_inputs():
    average = moving()
    for m in (*average.read()[0], *average.read()[1]):
        assert torch.count_nonzero(m) == 0
    average.update_()
    assert float(average.updates) == 0.0
    average.observe(rows(5).float(), rows(5, 1).float())
    average.update_()
    before = average.read()
    average.update_()
    average.observe(rows(0).float(), rows(0).float())  # an empty pack
    average.update_()
    for side in (0, 1):
        for one, other in zip(before[side], average.read()[side], strict=True):
            assert torch.equal(one, other)


def test_observing_twice_changes_nothing():
    # activation checkpointing runs every forward a second time
    once, twice = moving(), moving()
    for seed in range(3):
        query, key = rows(10 + seed, seed).float(), rows(10 + seed, seed + 9).float()
        once.observe(query, key)
        for _ in range(2):
            twice.observe(query, key)
        once.update_()
        twice.update_()
    for side in (0, 1):
        assert_moments(once.read()[side], twice.read()[side])


def test_micro_batches_count_by_their_tokens():
    whole, parts = moving(), moving()
    query, key = rows(24, 1).float(), rows(24, 2).float()
    whole.observe(query, key)
    for a, b in ((0, 3), (3, 19), (19, 24)):
        parts.observe(query[a:b], key[a:b])
        # within a step nothing moves
        assert torch.count_nonzero(parts.average) == 0
    whole.update_()
    parts.update_()
    for side in (0, 1):
        assert_moments(parts.read()[side], whole.read()[side])


def test_state_dict_round_trip():
    one, other = moving(), moving()
    one.observe(rows(5).float(), rows(5, 1).float())
    one.update_()
    one.observe(rows(5, 2).float(), rows(5, 3).float())  # a step that was not finished
    assert set(one.state_dict()) == {"average", "updates"}
    other.load_state_dict(one.state_dict())
    for side in (0, 1):
        for ours, theirs in zip(one.read()[side], other.read()[side], strict=True):
            assert torch.equal(ours, theirs)
    assert float(other.count) == 0.0


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueError, match="momentum"):
        moving(momentum)


def adaptive(**options) -> AdaptiveFeatures:
    feature_map = OptimalPositiveFeatures(num_heads=2, head_dim=3, num_features=8, centred=True, **options)
    feature_map.redraw_(projection_generator(0, 0, 0))
    return feature_map


def test_only_training_moves_the_average_and_only_at_an_update():
    feature_map = adaptive(statistics="moving")
    assert feature_map.moving is not None
    query, key, cu = rows(9, 1).float(), rows(9, 2).float(), offsets([4, 5])
    feature_map.eval()
    feature_map.adapt(query, key, cu)
    assert float(feature_map.moving.count) == 0.0
    feature_map.train()
    before = feature_map.adapt(query, key, cu)
    again = feature_map.adapt(query, key, cu)
    assert before.offset is not None
    for one, other in zip(before, again, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    assert float(feature_map.moving.count) == 18.0
    feature_map.moving.update_()
    after = feature_map.eval().adapt(query, key, cu)
    assert after.offset is not None
    assert not torch.allclose(before.offset, after.offset)


def test_an_average_of_one_pack_is_the_moments_of_a_segment():
    moving_map, segment_map = adaptive(statistics="moving"), adaptive()
    assert moving_map.moving is not None
    query, key, cu = rows(9, 1).float(), rows(9, 2).float(), offsets([9])
    moving_map.adapt(query, key, cu)
    moving_map.moving.update_()
    for one, other in zip(moving_map.adapt(query, key, cu), segment_map.adapt(query, key, cu), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_before_any_update_an_adaptive_map_is_the_plain_one():
    feature_map = adaptive(statistics="moving").eval()
    plain = PositiveFeatures(num_heads=2, head_dim=3, num_features=8)
    plain.redraw_(projection_generator(0, 0, 0))
    x = rows(6).float()
    for ours, theirs in zip(feature_map(x, x), plain(x, x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("map_class", [PositiveFeatures, OptimalPositiveFeatures, DenseFeatures])
def test_statistics_are_constants_to_autograd(map_class):
    feature_map = map_class(num_heads=2, head_dim=3, num_features=8, centred=True).double()
    feature_map.redraw_(projection_generator(0, 0, 0))
    query, key = rows(6, 1).requires_grad_(), rows(6, 2).requires_grad_()
    assert not any(x is not None and x.requires_grad for x in feature_map.adapt(query, key, offsets([6])))


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e-3, 30.0, 1e4, 1e8])
@pytest.mark.parametrize("map_class", [PositiveFeatures, OptimalPositiveFeatures, DenseFeatures])
def test_an_adaptation_is_finite_whatever_the_inputs(map_class, size):
    feature_map = map_class(num_heads=2, head_dim=3, num_features=8, centred=True)
    feature_map.redraw_(projection_generator(0, 0, 0))
    query, key = rows(6, 1).float() * size, rows(6, 2).float()
    for pair in ((query, key), (key, query), (query, query), (query[:1].expand(6, -1, -1), key)):
        for x in feature_map.adapt(*pair, offsets([1, 0, 5])):
            assert x is None or x.isfinite().all()
