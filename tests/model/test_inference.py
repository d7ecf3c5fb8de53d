"""Where a model runs, and packs that do not fit into the memory."""

import pytest
import torch

from protformer.errors import ProtformerError
from protformer.model.inference import choose_device, within_memory

CPU = torch.device("cpu")


def test_a_gpu_that_is_not_there_is_named():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ProtformerError, match="no GPU"):
            choose_device("cuda")


def test_a_pack_that_does_not_fit_is_halved_and_every_item_answered_in_order():
    tried: list[int] = []

    def run(pack):
        tried.append(sum(pack))
        if sum(pack) > 10:
            raise torch.OutOfMemoryError
        return [str(length) for length in pack]

    retries: list[None] = []
    made = within_memory(
        run, [4, 5, 3, 20], device=CPU, alone=lambda x: f"{x} alone", on_retry=lambda: retries.append(None)
    )
    assert made == ["4", "5", "3", "20 alone"]
    assert tried == [32, 9, 23, 3, 20]
    assert len(retries) == 3


def test_what_a_model_cannot_take_is_answered_in_its_place_and_never_run():
    def run(pack):
        assert max(pack) <= 10
        return [str(length) for length in pack]

    for pack, expected in (([4, 11, 5], ["4", "11 refused", "5"]), ([12], ["12 refused"]), ([1], ["1"])):
        made = within_memory(run, pack, device=CPU, alone=str, refused=lambda x: f"{x} refused" if x > 10 else None)
        assert made == expected


def test_an_error_that_is_not_of_memory_ends_it():
    def run(pack):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        within_memory(run, [1, 2], device=CPU, alone=lambda x: x)
