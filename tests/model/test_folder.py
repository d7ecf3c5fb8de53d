"""The model folder: what is read is what was written, and what cannot be read is told in a sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from protformer.attention import FavorAttention
from protformer.errors import ProtformerError
from protformer.model import build_model, find_model_folder, initialise_from, load_model, parameter_count, save_model

TOKENS = ("<cls>", "<pad>", "<eos>")
POSITIVE = {
    "name": "PositiveFeatures",
    "num_features": 8,
    "per_head": False,
    "orthogonal_rows": True,
    "kernel": "softmax",
    "centred": False,
    "statistics": "segment",
    "momentum": 0.99,
}
PERFORMER = {"name": "FavorAttention", "causal": False, "features": POSITIVE}
EXACT = {"name": "ExactAttention", "causal": False}
LINFORMER = {"name": "LinformerAttention", "causal": False, "rank": 8, "share_key_value": False}
HEADS = {
    "language": {"name": "LanguageModelHead"},
    "sequence": {"name": "SequenceHead", "outputs": 4, "pooling": "attention", "dropout": 0.1},
    "residue": {"name": "ResidueHead", "outputs": 3, "dropout": 0.0},
}


def config(attention=PERFORMER, head="language", **trunk):
    return {
        "trunk": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "dropout": 0.1,
            "rotary_base": 10_000.0,
            "feature_seed": 5,
            "attention": attention,
            "vocabulary_size": 33,
            "token_dropout": True,
            **trunk,
        },
        "head": HEADS[head],
    }


def make(seed: int = 0, **options):
    torch.manual_seed(seed)
    return build_model(config(**options)).eval()


def projections(model) -> list[torch.Tensor]:
    attentions = model.trunk.encoder.attentions
    return [a.features.projection.clone() for a in attentions if isinstance(a, FavorAttention)]


def outputs(model) -> torch.Tensor:
    cu = torch.tensor([0, 5, 11], dtype=torch.int32)
    tokens = torch.arange(4, 15)
    with torch.no_grad():
        return model.read(model(tokens, cu), cu)


def edit(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def one_sentence(error: pytest.ExceptionInfo[ProtformerError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("attention", [PERFORMER, EXACT], ids=["performer", "exact"])
def test_round_trip_is_exact(tmp_path, attention, head):
    model = make(attention=attention, head=head)
    model.trunk.encoder.redraw_(3)
    save_model(model, tmp_path / "model", tokens=TOKENS, metadata={"task": "a task", "labels": ["x", "y"]})
    loaded, configuration = load_model(tmp_path / "model")
    assert torch.equal(outputs(loaded), outputs(model))
    assert not loaded.training
    assert loaded.config() == model.config() == config(attention=attention, head=head)
    assert loaded.trunk.encoder.draw == 3
    assert configuration["tokens"] == list(TOKENS)
    assert configuration["metadata"] == {"task": "a task", "labels": ["x", "y"]}
    # written again it is the same file to the byte
    save_model(loaded, tmp_path / "again", tokens=TOKENS, metadata=configuration["metadata"])
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_the_folder_of_a_run_is_found(tmp_path):
    save_model(make(), tmp_path / "run" / "model", tokens=TOKENS)
    folder = tmp_path / "run" / "model"
    assert find_model_folder(tmp_path / "run") == folder == find_model_folder(folder)


def test_another_alphabet_is_refused_where_the_reader_names_its_own(tmp_path):
    save_model(make(), tmp_path, tokens=TOKENS)
    load_model(tmp_path)
    load_model(tmp_path, tokens=TOKENS)
    with pytest.raises(ProtformerError, match=r"config\.json lists another alphabet"):
        load_model(tmp_path, tokens=TOKENS[::-1])


def test_saving_replaces_an_older_folder_whole(tmp_path):
    folder = tmp_path / "model"
    save_model(make(), folder, tokens=TOKENS)
    (folder / "notes.txt").write_text("of the older model")
    newer = make(seed=1, attention=EXACT)
    save_model(newer, folder, tokens=TOKENS)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(outputs(load_model(folder)[0]), outputs(newer))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing temporary stays


def test_saving_that_fails_leaves_the_older_folder(tmp_path):
    folder = tmp_path / "model"
    older = make()
    save_model(older, folder, tokens=TOKENS)
    with pytest.raises(TypeError):
        save_model(make(seed=1), folder, tokens=TOKENS, metadata={"not": object()})
    assert torch.equal(outputs(load_model(folder)[0]), outputs(older))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_over_something_that_is_no_model_folder_is_refused(tmp_path):
    precious = tmp_path / "results"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(ProtformerError, match="no model folder") as error:
        save_model(make(), precious, tokens=TOKENS)
    one_sentence(error)
    assert (precious / "thesis.txt").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("a file")
    with pytest.raises(ProtformerError, match="no model folder"):
        save_model(make(), file, tokens=TOKENS)
    (tmp_path / "empty").mkdir()
    save_model(make(), tmp_path / "empty", tokens=TOKENS)
    load_model(tmp_path / "empty")


def test_attention_is_exchanged_and_weights_stay(tmp_path):
    model = make(attention=EXACT)
    save_model(model, tmp_path / "exact", tokens=TOKENS)
    performer, _ = load_model(tmp_path / "exact", attention=PERFORMER)
    assert performer.config()["trunk"]["attention"] == PERFORMER
    assert all(projection.abs().sum() > 0 for projection in projections(performer))
    assert not torch.equal(outputs(performer), outputs(model))
    save_model(performer, tmp_path / "performer", tokens=TOKENS)
    back, _ = load_model(tmp_path / "performer", attention=EXACT)
    assert torch.equal(outputs(back), outputs(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    # another map of another size over a Performer
    relu = {"name": "GeneralizedFeatures", "num_features": 6, "activation": "relu", "epsilon": 1e-3}
    again, _ = load_model(tmp_path / "performer", attention={**PERFORMER, "features": relu})
    assert [projection.shape for projection in projections(again)] == [(1, 6, 8)] * 2


BROKEN = {
    "another format": lambda f: edit(f, format=99),
    "another library": lambda f: edit(f, library="else"),
    "no JSON": lambda f: (f / "config.json").write_text("{"),
    "JSON of another kind": lambda f: (f / "config.json").write_text("[1]"),
    "no text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "no model": lambda f: edit(f, model={}),
    "model of another kind": lambda f: edit(f, model="a model"),
    "unknown attention": lambda f: edit(f, model=config(attention={"name": "os.system"})),
    "attention of another kind": lambda f: edit(f, model=config(attention=["ExactAttention"])),
    "a class that is no attention": lambda f: edit(f, model=config(attention={"name": "factory_from_config"})),
    "unknown features": lambda f: edit(f, model=config(attention={**PERFORMER, "features": {"name": "Evil"}})),
    "unknown argument": lambda f: edit(f, model=config(colour="red")),
    "unknown head": lambda f: edit(f, model={**config(), "head": {"name": "Evil"}}),
    "no heads": lambda f: edit(f, model=config(num_heads=0)),
    "a negative size": lambda f: edit(f, model=config(hidden_size=-16)),
    "a size that is no number": lambda f: edit(f, model=config(hidden_size="wide")),
    "another size": lambda f: edit(f, model=config(hidden_size=32)),
    "fewer layers": lambda f: edit(f, model=config(num_layers=1)),
    "a draw that is no number": lambda f: edit(f, draw="second"),
    "weights cut short": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-7]),
    "weights that are empty": lambda f: (f / "model.safetensors").write_bytes(b""),
    "weights that are a pickle": lambda f: torch.save({"a": torch.zeros(1)}, f / "model.safetensors"),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "no folder": lambda f: shutil.rmtree(f),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_cannot_be_read_is_told_in_a_sentence(tmp_path, name):
    folder = tmp_path / "model"
    save_model(make(), folder, tokens=TOKENS)
    BROKEN[name](folder)
    with pytest.raises(ProtformerError) as error:
        load_model(folder)
    assert str(folder) in one_sentence(error)


def test_initialise_from_copies_the_trunk_and_the_head_where_it_is_the_same(tmp_path):
    source = make(attention=EXACT)
    save_model(source, tmp_path / "model", tokens=TOKENS)
    model = make(seed=1)
    before = projections(model)
    assert initialise_from(model, tmp_path / "model") == ["trunk", "head"]
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert len(before) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, projections(model), strict=True))
    classifier = make(seed=2, head="sequence")
    head = {name: tensor.clone() for name, tensor in classifier.head.state_dict().items()}
    assert initialise_from(classifier, tmp_path / "model") == ["trunk"]
    assert torch.equal(classifier.trunk.embedding.weight, source.trunk.embedding.weight)
    assert all(torch.equal(classifier.head.state_dict()[name], tensor) for name, tensor in head.items())


@pytest.mark.parametrize(("length", "anew"), [(60, 2 * 2 * 8 * 10), (40, 0)])
def test_what_an_attention_learned_is_kept_for_another_length(tmp_path, length, anew):
    source = make(attention={**LINFORMER, "length": 50})
    save_model(source, tmp_path / "model", tokens=TOKENS)
    model = make(seed=1, attention={**LINFORMER, "length": length})
    own = [t.clone() for name, t in model.trunk.named_parameters() if "key_projection" in name]
    told = initialise_from(model, tmp_path / "model")
    assert told[0] == (f"trunk ({anew} weights that its attention learns begin anew)" if anew else "trunk")
    theirs = [t for name, t in source.trunk.named_parameters() if "key_projection" in name]
    after = [t for name, t in model.trunk.named_parameters() if "key_projection" in name]
    assert len(after) == 2
    for a, b, before in zip(after, theirs, own, strict=True):
        assert torch.equal(a[:, :50], b[:, :length])
        assert torch.equal(a[:, 50:], before[:, 50:])
    exact = make(seed=2, attention=EXACT)
    save_model(exact, tmp_path / "exact", tokens=TOKENS)
    assert initialise_from(model, tmp_path / "exact")[0].startswith("trunk (1,920 weights" if anew else "trunk (1,280")


@pytest.mark.parametrize(
    "trunk",
    [{"hidden_size": 32}, {"num_layers": 3}, {"num_heads": 4}, {"intermediate_size": 48}, {"vocabulary_size": 40}],
    ids=lambda trunk: next(iter(trunk)),
)
def test_initialise_from_refuses_another_shape(tmp_path, trunk):
    save_model(make(), tmp_path / "model", tokens=TOKENS)
    with pytest.raises(ProtformerError, match=next(iter(trunk))) as error:
        initialise_from(make(**trunk), tmp_path / "model")
    one_sentence(error)


def test_parameters_are_counted_once(tmp_path):
    model = make()
    save_model(model, tmp_path / "model", tokens=TOKENS)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    buffers = sum(tensor.numel() for _, tensor in model.named_buffers())
    assert parameter_count(model) == sum(tensor.numel() for tensor in stored.values()) - buffers
