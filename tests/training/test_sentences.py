"""A command line that cannot be, or a job that fails, ends with one sentence that says what to write instead."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import CONF, ROOT, train_py, write_fasta  # noqa: F401
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from protformer.errors import ProtformerError
from protformer.training import entry
from protformer.training.command_line import Grounds, check_values, explain
from protformer.training.quoting import as_argument

DEFAULT_STEPS = OmegaConf.load(CONF / "trainer" / "auto.yaml").max_steps
# what is typed, and what the sentence holds
BAD = [
    (
        "attention=perfomer",
        ["attention=performer?", "exact, hybrid, linformer, performer, reformer, sparse and uniform"],
    ),
    ("attention=null", ["exact, hybrid, linformer, performer, reformer, sparse and uniform"]),
    ("method=performer", ["performer_favor_plus_plus or method=performer_relu or method=performer_softmax?"]),
    ("experiment=cost cost.lengths=4096", ["a list: write [4096]"]),
    ("method=Relu", ["Did you mean method=performer_relu?"]),
    ("atention=exakt", ["attention=exact?", "exact, hybrid, linformer, performer, reformer, sparse and uniform"]),
    ("logger=null", ["logger=none?"]),
    ("optimizer=sgd", ["adamw and paper"]),
    ("experiment=real_protein", ["experiment=real_proteins?"]),
    ("+attention=exact", ["attention=exact, without the +"]),
    ("data=5", ["demo, fasta, labelled and recall"]),
    ("trainer.max_step=3", ["trainer.max_steps=3?"]),
    ("+trainer.max_steps=3", ["trainer.max_steps=3, without the +"]),
    ("features.num_feature=4", ["features.num_features=4?"]),
    ("data.tarin=x", ["data.train=x?"]),
    ("max_steps=3", ["trainer.max_steps=3?"]),
    ("lr=1e-3", ["optimizer.lr=1e-3?"]),
    ("trainer.lr=1e-3", ["optimizer.lr=1e-3?"]),
    ("trainr.max_steps=3", ["trainer.max_steps=3?"]),
    ("sed=3", ["seed=3?"]),
    ("nonsense=3", ["attention, callbacks, data", "seed, init_from", "--help", "--cfg job"]),
    ("data.train.x=4", ["data.train is a single value"]),
    ("~seedd", ["no seedd"]),
    ("hydra.run.dirr=x", ["hydra.run.dir=x?"]),
    ("redraw=never redraw.every=10", ["redraw=never has no every", "redraw=every and redraw=geometric"]),
    ("features.activation=relu", ["features=positive has no activation", "features=relu"]),
    ("data.sequence_column=x", ["add data=labelled"]),
    ("trainer.limit_train_batches=4", ["write it with a plus: +trainer.limit_train_batches=4"]),
    ("trainer.logger=csv", ["write logger=csv"]),
    ("optimizer.optimizer.amsgrad=true", ["+optimizer.optimizer.amsgrad=true"]),
    ("data=fasta data.train=x data.more.viruses=v.fasta", ["+data.more.viruses=v.fasta"]),
    ("experiment=cost cost.lengths=4096", ["a list: write [4096]"]),
    ("trainer.max_steps=abc", ["trainer.max_steps=abc", "a number", f"is {DEFAULT_STEPS})"]),
    ("trainer.max_steps=1e3", ["write 1000"]),
    ("trainer.max_steps=true", ["a number"]),
    ("freeze=no", ["true or false"]),
    ("evaluate=false", ["untrained, floors, weights"]),
    ("model=small,tiny", ["add -m"]),
    ("data.train=a,b.fasta", ["add -m", "'data.train=[a,b.fasta]'", "'data.train=\"a,b.fasta\"'"]),
    ("data.train=a=b.fasta", ["'data.train=\"a=b.fasta\"'"]),
    ("'data.train=my file (1).fasta'", ["'data.train=\"my file (1).fasta\"'"]),
    ("data.train=my file.fasta", ["'data.train=my file.fasta'"]),
    ("'data.train=[a=b.fasta,c.fasta]'", ["'data.train=[\"a=b.fasta\",c.fasta]'"]),
    ("trainer max_steps=3", ['has no "="']),
    ("'data train=3'", ["no key"]),
    ("-m attention=performer,exat", ["attention=exact?"]),
    ("-m redraw=never,every redraw.every=10", ["redraw=never has no every"]),
]


def sentence_of(capsys) -> str:
    """What a run said on standard error: one line."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(said) == 1, said
    assert said[0].startswith("protformer: ")
    assert "Traceback" not in said[0]
    return said[0]


def diagnosed(typed: str) -> str:
    """The sentence for a command line, without Hydra's way there."""
    overrides = [argument for argument in shlex.split(typed) if argument != "-m"]
    found = explain(overrides, Grounds(CONF), sweep=overrides != shlex.split(typed))
    if found is not None:
        return found
    with pytest.raises(ProtformerError) as error:
        check_values(overrides, Grounds(CONF))
    return str(error.value)


@pytest.mark.parametrize(("typed", "expected"), BAD, ids=[typed for typed, _ in BAD])
def test_a_command_line_that_cannot_be(typed, expected):
    sentence = diagnosed(typed)
    for text in expected:
        assert text in sentence


# the whole way through Hydra: one of each kind
WHOLE = [
    ("attention=perfomer", ["attention=performer?"]),
    ("data.tarin=x", ["data.train=x?"]),
    ("data.train=a=b.fasta", ["'data.train=\"a=b.fasta\"'"]),
    ("-m attention=performer,exat", ["attention=exact?"]),
    ("data=fasta", ["data=fasta needs data.train", "data.train=FILE"]),
    ("data=labelled task=regression", ["data=labelled needs data.train"]),
    ("freeze=no", ["true or false"]),
    ("--config-name=trian", ["trian"]),
]


@pytest.mark.parametrize(("typed", "expected"), WHOLE, ids=[typed for typed, _ in WHOLE])
def test_one_sentence_and_no_job(train_py, capsys, monkeypatch, typed, expected):  # noqa: F811
    monkeypatch.setattr(entry, "train", lambda config: pytest.fail("the job began"))
    assert train_py(shlex.split(typed)) == 1
    sentence = sentence_of(capsys)
    for text in expected:
        assert text in sentence


def test_what_is_well_needs_no_sentence():
    line = ["data=fasta", "data.train=a/b.fasta.gz", "redraw=geometric", "redraw.every=3", "trainer.devices=auto"]
    line += ["+trainer.max_time=1", "trainer.limit_val_batches=0.5", "debug=default", "~callbacks.progress", "seed=3"]
    assert explain(line, Grounds(CONF), sweep=False) is None
    check_values(line, Grounds(CONF))


# refused by what is built: a job that begins
REFUSED = [
    ("features=trigonometric features.num_features=63", ["num_features must be even, not 63"]),
    ("trainer.max_steps=-1", ["optimizer.schedule=cosine needs an end", "trainer.max_epochs"]),
    ("trainer.precision=fp17", ["fp17", "bf16-mixed"]),
    ("redraw.every=0", ["redraw.every", "at least 1"]),
    ("+trainer.foo=3", ["trainer.foo: Trainer takes no foo"]),
    ("model.num_heads=3", ["num_heads 3"]),
    ("task=regression", ["needs labels", "data=labelled"]),
    ("freeze=true", ["init_from=FOLDER"]),
    ("init_from=nowhere", ["nowhere"]),
    ("ckpt_path=nowhere.ckpt", ["ckpt_path=nowhere.ckpt"]),
    ("evaluate.weights=bset", ["best or last"]),
    ("trainer.devices=0", ["how many devices"]),
    ("trainer=fsdp trainer.accelerator=cpu", ["trainer=ddp_cpu"]),
    ("data.train=nothing.fasta", ["nothing.fasta"]),
    ("logger=wandb logger.mode=onlin", ["online, offline"]),
    ("task.rate=2.0", ["rate"]),
    ("attention=linformer attention.length=10", ["at most 10 tokens", "of train, ", "of valid", "attention.length="]),
    ("attention=linformer data.concatenate=2000", ["data.concatenate=2000", "attention.length=2000"]),
    ("seed=-1", ["seed=-1", "from 0 to"]),
    (
        "optimizer.lr=1e30 optimizer.warmup_steps=0 trainer.gradient_clip_val=null trainer.max_steps=5",
        ["The loss of step", "is nan: training has diverged", "Lower optimizer.lr"],
    ),
]


@pytest.mark.parametrize(("typed", "expected"), REFUSED, ids=[typed for typed, _ in REFUSED])
def test_a_job_that_cannot_be(train_py, capsys, monkeypatch, tmp_path, typed, expected):  # noqa: F811
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fasta = write_fasta(tmp_path / "p.fasta")
    base = ["debug=default", "data=fasta", f"data.train={fasta}", f"data.valid={fasta}", "evaluate.untrained=false"]
    assert train_py([*base, "hydra.run.dir=out", *shlex.split(typed)]) == 1
    sentence = sentence_of(capsys)
    for text in expected:
        assert text in sentence
    assert "unexpected" not in sentence


def test_no_login_is_a_sentence(train_py, capsys, monkeypatch, tmp_path):  # noqa: F811
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    fasta = write_fasta(tmp_path / "p.fasta")
    line = ["debug=default", "logger=wandb", "logger.mode=online", "data=fasta", f"data.train={fasta}"]
    assert train_py([*line, f"data.valid={fasta}", "hydra.run.dir=out"]) == 1
    assert "wandb login" in sentence_of(capsys)


@pytest.mark.parametrize(
    "value",
    [
        "a=b.fasta",
        "my file (1).fasta",
        "a,b",
        "[x].fasta",
        "{x}.fasta",
        "it's.fasta",
        'say "hi".fasta',
        "a\\b\\",
        "${x}",
    ],
)
def test_what_is_shown_can_be_pasted(value):
    argument = as_argument("data.train", value)
    assert argument is not None
    # bash itself, not a model of it
    typed = subprocess.run(["bash", "-c", f"printf %s {argument}"], capture_output=True, text=True, check=True).stdout
    read = OverridesParser.create().parse_overrides([typed])[0]
    assert not read.is_sweep_override()
    assert OmegaConf.create({"value": read.value()}).value == value


def test_a_readable_value_is_shown_as_it_is():
    assert as_argument("data.train", "proteins/*.fasta.gz") == "'data.train=proteins/*.fasta.gz'"  # the shell's star
    assert as_argument("trainer.max_steps", ["a", "b=c"]) == "'trainer.max_steps=[a,\"b=c\"]'"


def test_a_sweep_goes_on_after_a_failure_and_names_it(train_py, capsys, monkeypatch):  # noqa: F811
    ran = []

    def train(config):
        ran.append(config.seed)
        if config.seed == 2:
            raise ProtformerError("The second cannot be.")
        if config.seed == 3:
            raise RuntimeError("two\nlines")

    monkeypatch.setattr(entry, "train", train)
    assert train_py(["-m", "seed=1,2,3,4", "hydra.sweep.dir=out"]) == 1
    assert ran == [1, 2, 3, 4]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "protformer: job 1 (seed=2): The second cannot be."
    assert said[1].startswith("protformer: job 2 (seed=3): RuntimeError: two lines (unexpected; ")
    assert said[2] == "protformer: 2 jobs of this sweep failed: 1 (seed=2); 2 (seed=3)."
    assert len(said) == 3
    assert train_py(["-m", "seed=1,4", "hydra.sweep.dir=out"]) == 0
    assert not capsys.readouterr().err


def test_a_value_of_a_wrong_type_stops_its_member_alone(train_py, capsys, monkeypatch):  # noqa: F811
    ran = []
    monkeypatch.setattr(entry, "train", lambda config: ran.append(config.trainer.max_steps))
    assert train_py(["-m", "trainer.max_steps=abc,3", "hydra.sweep.dir=out"]) == 1
    assert ran == [3]
    assert "job 0 (trainer.max_steps=abc): trainer.max_steps=abc" in capsys.readouterr().err


def test_an_unknown_error_leaves_its_traceback_in_the_run_folder(train_py, capsys, monkeypatch, tmp_path):  # noqa: F811
    def train(config):
        raise KeyError("heads")

    monkeypatch.setattr(entry, "train", train)
    assert train_py(["hydra.run.dir=out"]) == 1
    sentence = sentence_of(capsys)
    assert "KeyError: 'heads'" in sentence
    assert "HYDRA_FULL_ERROR=1" in sentence
    assert "out/traceback.txt" in sentence
    assert "in train" in (tmp_path / "out" / "traceback.txt").read_text()


def test_interruption_has_its_exit_code_and_says_how_to_resume(train_py, capsys, monkeypatch, tmp_path):  # noqa: F811
    def train(config):
        (tmp_path / "out" / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "out" / "checkpoints" / "last.ckpt").touch()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(entry, "train", train)
    assert train_py(["hydra.run.dir=out"]) == 130
    assert "ckpt_path=out/checkpoints/last.ckpt" in sentence_of(capsys)

    from omegaconf.errors import InterpolationResolutionError
    from pytorch_lightning.utilities.exceptions import SIGTERMException
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def terminated(config):
        raise SIGTERMException

    def asked_while_reading(config):  # (OmegaConf raises an error of its own about whatever a resolver meets)
        try:
            raise SignalException("Process 1 got signal: 15", sigval=signal.SIGTERM)
        except SignalException as error:
            raise InterpolationResolutionError("raised while resolving interpolation") from error

    monkeypatch.setattr(entry, "train", asked_while_reading)
    assert train_py(["hydra.run.dir=out"]) == 143
    assert "SIGTERM" in sentence_of(capsys)

    monkeypatch.setattr(entry, "train", terminated)
    assert train_py(["hydra.run.dir=out"]) == 143
    assert "SIGTERM" in sentence_of(capsys)


def test_a_set_without_m_is_said_to_be_one_run(train_py, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(entry, "train", lambda config: None)
    assert train_py(["experiment=compare_attention", "seed=4"]) == 0
    said = capsys.readouterr().err
    assert "One run of a set: with -m it is method=exact,uniform," in said
    assert "seed" not in said
    assert train_py(["experiment=compare_attention", "method=exact", "seed=4"]) == 0
    assert train_py(["-m", "experiment=compare_attention", "method=exact", "hydra.sweep.dir=set"]) == 0
    assert "One run" not in capsys.readouterr().err


def test_a_sweep_has_a_folder_of_its_own_by_time_and_task(train_py, monkeypatch, tmp_path):  # noqa: F811
    folders = []
    monkeypatch.setattr(entry, "train", lambda config: folders.append(Path(HydraConfig.get().runtime.output_dir)))
    HydraConfig.instance().cfg = None  # as in a new process; what `hydra:` resolves is not there yet
    assert train_py(["-m", "seed=1,2", "task=next_residue"]) == 0
    assert [folder.name for folder in folders] == ["0", "1"]
    (sweep,) = (tmp_path / "multirun").iterdir()
    assert {folder.parent for folder in folders} == {sweep}
    assert sweep.name.endswith("_next_residue")


def test_flags_after_overrides(train_py, capsys):  # noqa: F811
    assert train_py(["debug=default", "-m", "seed=1,2"]) == 2
    assert "python train.py -m KEY=VALUE" in capsys.readouterr().err


def test_the_traceback_is_shown_where_it_was_asked_for(train_py, monkeypatch):  # noqa: F811
    from command import load_train, logging_restored

    module = load_train()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "data=fasta", "hydra.run.dir=out"])
    with logging_restored(), pytest.raises(ProtformerError):
        module.in_sentences(module.main)


def test_help_names_every_choice(train_py, capsys):  # noqa: F811
    assert train_py(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 100
    for group in (ROOT / "conf").iterdir():
        if group.is_dir() and group.name not in ("hydra", "paths"):
            assert group.name in text
            for choice in group.glob("*.yaml"):
                assert choice.stem in text, choice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "expected"), [("attention=perfomer", "attention=performer?"), ("data=fasta", "data.train=FILE")]
)
def test_as_a_command(tmp_path, typed, expected):
    environment = {k: v for k, v in os.environ.items() if k not in ("HYDRA_FULL_ERROR", "HYDRA_MAIN_MODULE")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), typed], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
    shown = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), typed], cwd=tmp_path, capture_output=True, text=True,
        env={**environment, "HYDRA_FULL_ERROR": "1"},
    )  # fmt: skip
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
