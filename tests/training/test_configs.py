"""Every file of conf/ composes, and what this machine can run is built."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from command import CONF
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import nn

from protformer.attention import Attention, ExactAttention, FavorAttention, UniformAttention
from protformer.data.alphabet import TOKENS
from protformer.features import FeatureMap
from protformer.model import ProteinModel, parameter_count, save_model
from protformer.training.job import build_model, build_trainer
from protformer.training.redraw import RedrawSchedule
from protformer.training.settings import JobSettings
from protformer.training.tasks import Split, Task


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
ALL = [(group, choice) for group in GROUPS for choice in choices(group)]
NEEDS_GPU = ("gpu", "ddp", "fsdp")


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line, resolved as a job gets it."""
    config = compose("train", list(overrides), return_hydra_config=True)
    config.hydra.runtime.output_dir = "out"
    HydraConfig.instance().set_config(config)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    del plain["hydra"]
    # (missing values raise here)
    resolved = OmegaConf.to_container(OmegaConf.create(plain), resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return OmegaConf.create(resolved)


def test_each_group_has_choices():
    assert len(ALL) > 40
    for group in ("attention", "features", "redraw", "model", "task", "data", "optimizer", "trainer", "logger"):
        assert choices(group), group


@pytest.mark.parametrize(("group", "choice"), ALL, ids=[f"{group}-{choice}" for group, choice in ALL])
def test_every_choice_composes(group, choice):
    if group == "hydra":
        pytest.skip("conf/hydra is part of every composition")
    needs_file = group == "experiment" or choice in ("fasta", "labelled")
    composed(f"{group}={choice}", *(["data.train=x.fasta"] if needs_file else []))


@pytest.mark.parametrize("experiment", choices("experiment"))
@pytest.mark.parametrize("debug", choices("debug"))
def test_overlays_compose_together(experiment, debug):
    config = composed(f"experiment={experiment}", f"debug={debug}", "data.train=x.fasta", "trainer=cpu")
    assert config.trainer.accelerator == "cpu"
    assert config.trainer.max_steps <= 100  # the debug overlay has the last word before the command line


@pytest.mark.parametrize("group", ["attention", "features", "redraw", "task"])
def test_what_is_built_is_what_it_says(group):
    for choice in choices(group):
        config = composed(f"{group}={choice}")
        if group == "attention":
            built = instantiate(config.attention)(num_heads=2, head_dim=8)
            assert isinstance(built, Attention)
        elif group == "features":
            built = instantiate(config.features)(num_heads=2, head_dim=8)
            assert isinstance(built, FeatureMap)
        elif group == "redraw":
            schedule: Any = instantiate(config.redraw)
            assert isinstance(schedule, RedrawSchedule)
            assert schedule.draw_at(0) == 0
        else:
            assert isinstance(instantiate(config.task), Task)


@pytest.mark.parametrize("choice", choices("optimizer"))
def test_optimizers_configure(choice):
    optimisation = instantiate(composed(f"optimizer={choice}").optimizer)
    configured = optimisation.configure(nn.Linear(3, 2), 100)
    assert isinstance(configured["optimizer"], torch.optim.Optimizer)


@pytest.mark.parametrize("choice", choices("callbacks"))
def test_callbacks_are_built(choice, tmp_path):
    config = composed(f"callbacks={choice}")
    for name, callback in config.callbacks.items():
        extra = {} if name == "progress" else {"run_dir": str(tmp_path), "monitor": "perplexity_mask", "mode": "min"}
        built = instantiate(callback, **extra)
        assert isinstance(built, Callback)
        if isinstance(built, ModelCheckpoint):
            assert "=" not in built.format_checkpoint_name({"step": torch.tensor(3)})


@pytest.mark.parametrize("choice", choices("logger"))
def test_loggers_are_built(choice, tmp_path):
    built = instantiate(composed(f"logger={choice}").logger, _partial_=True, _convert_="all")(
        run_dir=str(tmp_path), run_name="name", run_group=None, overrides=["seed=1"], run_config={}
    )
    assert built is None if choice == "none" else isinstance(built, Logger)


@pytest.mark.parametrize("choice", choices("trainer"))
def test_trainers_are_built(choice, tmp_path):
    if choice in NEEDS_GPU and not torch.cuda.is_available():
        pytest.skip(f"trainer={choice} needs a CUDA GPU, and this machine has none")
    config = composed(f"trainer={choice}", "callbacks=default")
    config.trainer.strategy = "auto" if config.trainer.strategy == "ddp" else config.trainer.strategy
    config.trainer.devices = 1  # several processes are tested in test_distributed.py
    assert isinstance(build_trainer(config, None, [], tmp_path, "perplexity_mask"), Trainer)


def test_validation_at_a_share_of_the_epoch(tmp_path):
    trainer = build_trainer(composed("debug=overfit"), None, [], tmp_path, "perplexity_mask")
    assert trainer.val_check_interval == 1.0


def test_next_residue_from_a_bidirectional_model_is_causal(tmp_path):
    config, settings = composed("model=tiny"), JobSettings(config={}, run_dir="out")
    model = build_model(settings, config, instantiate(config.task), Split("train", _corpus()))
    save_model(model, tmp_path / "model", tokens=TOKENS)
    config = composed("task=next_residue", f"init_from={tmp_path}")
    model = build_model(settings, config, instantiate(config.task), Split("train", _corpus()))
    assert all(attention.causal for attention in model.trunk.encoder.attentions)


@pytest.mark.parametrize(
    ("override", "expected"),
    [("seed=3", FavorAttention), ("attention=uniform", UniformAttention), ("method=exact", ExactAttention)],
)
def test_weights_of_a_folder_go_under_the_attention_that_is_chosen(override, expected, tmp_path):
    config, settings = composed("model=tiny"), JobSettings(config={}, run_dir="out")
    model = build_model(settings, config, instantiate(config.task), Split("train", _corpus()))
    save_model(model, tmp_path / "model", tokens=TOKENS)
    config = composed(override, f"init_from={tmp_path}")
    settings = JobSettings(config={}, run_dir="out", overrides=[override])
    model = build_model(settings, config, instantiate(config.task), Split("train", _corpus()))
    assert {type(attention) for attention in model.trunk.encoder.attentions} == {expected}


@pytest.mark.parametrize(
    ("choice", "millions"),
    [
        ("tiny", 0.107), ("small", 0.8), ("medium", 1.8), ("comparison", 1.38),
        ("esm2_8m", 7.5), ("esm2_35m", 33.5), ("esm2_150m", 148), ("paper", 76),
    ],
)  # fmt: skip
@pytest.mark.parametrize("attention", choices("attention"))
def test_models_have_their_sizes(choice, millions, attention):
    config = composed(f"model={choice}", f"attention={attention}")
    settings = JobSettings(config={}, run_dir="out")
    task: Any = instantiate(config.task)
    with torch.device("meta"):  # shapes alone
        model = build_model(settings, config, task, Split("train", _corpus()))
    assert isinstance(model, ProteinModel)
    assert model.trunk.encoder.num_layers == config.model.num_layers
    # (what an attention adds to the block, as Linformer does, is beside the model's size)
    extra = sum(p.numel() for attention in model.trunk.encoder.attentions for p in attention.parameters())
    assert (extra > 0) == (attention == "linformer")
    assert (parameter_count(model) - extra) / 1e6 == pytest.approx(millions, rel=0.06)


def test_all_models_are_in_the_table_above():
    table = next(mark for mark in test_models_have_their_sizes.pytestmark if "millions" in mark.args[0])  # pyright: ignore
    assert sorted(choice for choice, _ in table.args[1]) == choices("model")


def _corpus() -> Any:
    from helpers import random_corpus

    return random_corpus(2)


@pytest.mark.parametrize(
    ("overrides", "start", "name"),
    [
        ([], None, "masked_residue performer positive tiny seed 0"),
        (["model=tiny"], "runs/a/model", "masked_residue tiny from a seed 0"),
        (["attention=performer"], "runs/a", "masked_residue performer positive from a seed 0"),
        (["method=performer_softmax"], "runs/a", "masked_residue performer positive from a seed 0"),
    ],
)
def test_a_run_is_named_after_what_it_starts_from(overrides, start, name):
    choices = {"task": "masked_residue", "attention": "performer", "features": "positive", "model": "tiny"}
    config = {"seed": 0, "attention": {"features": {}}, "init_from": start}
    assert JobSettings(config=config, run_dir="out", choices=choices, overrides=overrides).run_name == name


@pytest.mark.parametrize("redraw", choices("redraw"))
@pytest.mark.parametrize("experiment", ["compare_attention", "long_context", "long_recall", "transfer", "downstream"])
def test_every_schedule_fits_every_experiment(experiment, redraw):
    config = composed(f"experiment={experiment}", f"redraw={redraw}", "data.train=a.fasta")
    assert instantiate(config.redraw) is not None
