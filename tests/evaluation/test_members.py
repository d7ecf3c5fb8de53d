"""Members of an experiment: each its own process and folder; done is done, a failure is named and ends nothing."""

import json
import os
import signal
import threading
import time
import zipfile
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from protformer.errors import ProtformerError
from protformer.evaluation.members import OUTPUT, Member, failures, require_all, run_members
from protformer.surroundings import CHECKOUT
from protformer.training.quoting import as_override
from protformer.training.settings import JobSettings
from protformer.training.sweep import claimed

# What a training run leaves, in a second's fraction: it says how it was called, or fails where it is told to.
TRAIN = """
import json, sys
from pathlib import Path
arguments = sys.argv[1:]
folder = Path(next(a for a in arguments if a.startswith("hydra.run.dir=")).partition("=")[2].strip('"'))
if "method=slow" in arguments:
    import os, time
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)
if "method=broken" in arguments:
    print("a page of noise")
    sys.exit("protformer: the method is broken")
with (folder / "calls").open("a") as calls:
    calls.write("x")
(folder / "metrics.json").write_text(json.dumps({"sets": {}, "arguments": arguments}))
"""


@pytest.fixture
def settings(tmp_path, monkeypatch) -> JobSettings:
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setenv("PROTFORMER_ROOT", str(tmp_path))
    overrides = ["experiment=x", "seed=3", "mine.models=[a]", "method=exact", "job=elsewhere"]
    return JobSettings(config={}, run_dir=str(tmp_path / "run folder"), overrides=overrides)


def test_a_member_is_the_command_line_with_its_own_overrides(settings):
    [one] = run_members([Member("uniform 1", ("method=uniform",))], settings, own_key="mine")
    assert one.metrics is not None
    *arguments, folder = one.metrics["arguments"]
    assert arguments == ["experiment=x", "seed=3", "job=protformer.training.job.execute", "method=uniform"]
    assert folder.startswith("hydra.run.dir=")
    assert one.folder.parent == Path(settings.run_dir) / "members"


def test_choices_that_are_not_for_a_member(settings):
    settings.overrides += ["model=tiny", "model.num_heads=2", "data.train=x"]
    [one] = run_members([Member("a", (), without=("model", "method"))], settings, own_key="mine")
    assert one.metrics is not None
    assert one.metrics["arguments"][:-1] == [
        "experiment=x", "seed=3", "data.train=x", "job=protformer.training.job.execute",
    ]  # fmt: skip


def test_done_is_done_and_the_rest_is_run(settings):
    first, second = Member("a", ("method=a",)), Member("b", ("method=b",))
    run_members([first], settings, own_key="mine")
    ended = run_members([first, second], settings, own_key="mine")
    assert [len((one.folder / "calls").read_text()) for one in ended] == [1, 1]


def test_data_that_changed_since_a_member_ended_is_told(settings, tmp_path, caplog):
    data = tmp_path / "test.fasta"
    data.write_text(">a\nMKV\n")
    [one] = run_members([Member("a", ())], settings, own_key="mine")
    (one.folder / "config.yaml").write_text(f"data:\n  more: {{far: [{data}]}}\n")
    written = (one.folder / "metrics.json").stat().st_mtime
    for later in (-10, 10):
        os.utime(data, (written + later, written + later))
        with caplog.at_level("WARNING"):
            run_members([Member("a", ())], settings, own_key="mine")
        assert (f"written: {data}." in caplog.text) == (later > 0)


def test_an_interrupted_member_goes_on_from_its_last_checkpoint(settings):
    member = Member("a", ("method=a",))
    [one] = run_members([member], settings, own_key="mine")
    (one.folder / "metrics.json").unlink()
    last = one.folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    with zipfile.ZipFile(last, "w") as checkpoint:
        checkpoint.writestr("data", "")
    (one.folder / OUTPUT).write_text("the first 10 steps\n")
    [again] = run_members([member], settings, own_key="mine")
    assert again.metrics is not None
    assert again.metrics["arguments"][-1] == as_override("ckpt_path", str(last))
    assert "the first 10 steps" in (one.folder / OUTPUT).read_text()


def test_a_folder_of_another_command_line_is_refused(settings):
    member = Member("a", ("method=a",))
    run_members([member], settings, own_key="mine")
    settings.overrides.append("trainer.max_steps=9")
    with pytest.raises(ProtformerError, match=r"trainer\.max_steps=9.*hydra\.run\.dir"):
        run_members([member], settings, own_key="mine")


def test_the_same_line_in_another_order_is_the_same_and_floors_do_not_tell_lines_apart(settings):
    def line(*own: str) -> list[Member]:
        return [Member("a", own)]

    settings.overrides[:] = ["seed=3", "trainer.max_steps=9"]
    run_members(line("method=a", "evaluate.floors=false"), settings, own_key="mine")
    settings.overrides.reverse()
    [ended] = run_members(line("method=a"), settings, own_key="mine")
    assert ended.metrics is not None


def test_a_damaged_record_of_the_maker_is_named(settings):
    [ended] = run_members([Member("a", ())], settings, own_key="mine")
    (ended.folder / "member.json").write_text('["see')
    with pytest.raises(ProtformerError, match=r"member\.json is damaged"):
        run_members([Member("a", ())], settings, own_key="mine")


def test_the_others_go_on_beside_a_folder_that_another_process_holds(settings):
    with claimed(Path(settings.run_dir) / "members" / "a"):
        held, other = run_members([Member("a", ()), Member("b", ())], settings, own_key="mine")
    assert held.reason is not None
    assert held.reason.startswith("Another process")
    assert not (held.folder / "member.json").exists()
    assert other.metrics is not None


def test_a_member_that_cannot_be_is_refused_before_any_has_run(settings, tmp_path):
    (tmp_path / "conf").symlink_to(CHECKOUT / "conf")
    settings.overrides[:] = ["seed=3", "experiment=transfer", "mine.models=[a]"]
    members = [Member("a", ("method=exact",)), Member("b", ("method=exactt",))]
    with pytest.raises(ProtformerError, match=r"Member b cannot be: .*method=exactt.*exact"):
        run_members(members, settings, own_key="mine")
    assert not (Path(settings.run_dir) / "members").exists()
    [ended] = run_members(members[:1], settings, own_key="mine")
    assert ended.metrics is not None


def test_a_failure_is_named_and_the_others_go_on(settings):
    members = [Member("broken", ("method=broken",)), Member("a", ("method=a",))]
    ended = run_members(members, settings, own_key="mine")
    assert failures(ended) == ["broken did not end: the method is broken"]
    assert ended[1].metrics is not None
    assert json.loads((ended[0].folder / "member.json").read_text())[-1] == "method=broken"


def test_an_experiment_with_a_failed_member_fails_after_its_rows_are_written(settings, tmp_path):
    rows = tmp_path / "rows.json"
    ended = run_members([Member("broken", ("method=broken",)), Member("a", ())], settings, own_key="mine")
    with pytest.raises(ProtformerError, match=r"1 of 2 members failed: broken\. .*method is broken.*rows\.json"):
        require_all(ended, rows)
    require_all(ended[1:], rows)


def test_members_fail_in_sentences_though_hydra_hands_on_the_errors_of_the_experiment(settings, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    script = Path(settings.run_dir).parent / "train.py"
    script.write_text("import os\n" + TRAIN + "(folder / 'environment').write_text(' '.join(os.environ))")
    [one] = run_members([Member("a", ())], settings, own_key="mine")
    assert "HYDRA_FULL_ERROR" not in (one.folder / "environment").read_text().split()


def test_no_member_at_all_is_an_error(settings):
    with pytest.raises(ProtformerError, match="the method is broken"):
        run_members([Member("broken", ("method=broken",))], settings, own_key="mine")


def test_labels_never_share_a_folder(settings):
    ended = run_members([Member("a b", ()), Member("a_b", ()), Member("../c", ())], settings, own_key="mine")
    folders = {one.folder for one in ended}
    assert len(folders) == 3
    assert all(folder.resolve().parent == (Path(settings.run_dir) / "members").resolve() for folder in folders)


def test_a_member_ends_with_the_experiment_that_is_asked_to_end(settings):
    folder = Path(settings.run_dir) / "members" / "slow"

    def end_it() -> None:
        deadline = time.monotonic() + 20
        while not (folder / "pid").is_file() or not (folder / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    asking = threading.Thread(target=end_it)
    asking.start()
    with pytest.raises(SignalException):
        run_members([Member("slow", ("method=slow",))], settings, own_key="mine")
    asking.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_member_that_another_process_runs_is_left_to_it(settings):
    with (
        claimed(Path(settings.run_dir) / "members" / "a"),
        pytest.raises(ProtformerError, match="Another process is running this member"),
    ):
        run_members([Member("a", ())], settings, own_key="mine")
