"""What `training_step.py` times: models that turn a batch into a loss, and the same proteins packed and padded."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from protformer.data.alphabet import PAD
from protformer.data.batch import Batch, collate
from protformer.data.objectives import MaskedResidues
from protformer.errors import ProtformerError
from protformer.model import ProteinModel, build_model
from protformer.model.esm2 import to_hugging_face

SHAPES = {  # hidden size, layers, heads, feed-forward
    "tiny": (32, 2, 2, 64),
    "medium": (192, 4, 6, 768),
    "esm2_8m": (320, 6, 20, 1280),
}


class Padded(NamedTuple):
    """A rectangle `[sequences, longest]`, as Hugging Face's collators make it; labels are -100 off the targets."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class Ours(nn.Module):
    def __init__(self, model: ProteinModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.model(batch.tokens, batch.cu_seqlens)
        return cross_entropy(self.model.read(hidden, batch.cu_seqlens, batch.rows).float(), batch.targets)


class HuggingFace(nn.Module):
    def __init__(self, shape: str, attention: str) -> None:
        super().__init__()
        hidden, layers, heads, intermediate = SHAPES[shape]
        transformers = import_transformers()
        config = transformers.EsmConfig(
            vocab_size=33, mask_token_id=32, pad_token_id=PAD, hidden_size=hidden, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=intermediate, position_embedding_type="rotary",
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, token_dropout=False, layer_norm_eps=1e-5,
            emb_layer_norm_before=False, max_position_embeddings=1026, attn_implementation=attention,
        )  # fmt: skip
        self.model = transformers.EsmForMaskedLM(config)
        # Exact attention with the same weights: `agreement` shows that both compute the same loss.
        self.model.load_state_dict(to_hugging_face(our_model(shape, "exact").state_dict()), strict=False)

    def forward(self, batch: Padded) -> Tensor:
        return self.model(**batch._asdict()).loss


class LinearLayers(nn.Module):
    """The ceiling: q, k, v, out and feed-forward of every layer and the head at targets.

    No attention, norm, activation or residual: the matrix products that a step cannot avoid.
    """

    def __init__(self, shape: str) -> None:
        super().__init__()
        hidden, layers, _, intermediate = SHAPES[shape]
        self.embedding = nn.Embedding(33, hidden)
        self.mix = nn.ModuleList(nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(4)) for _ in range(layers))
        self.expand = nn.ModuleList(nn.Linear(hidden, intermediate) for _ in range(layers))
        self.contract = nn.ModuleList(nn.Linear(intermediate, hidden) for _ in range(layers))
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch.tokens)
        for (query, key, value, out), expand, contract in zip(self.mix, self.expand, self.contract, strict=True):  # pyright: ignore[reportGeneralTypeIssues]
            x = contract(expand(out(query(x) + key(x) + value(x))))
        return cross_entropy((self.dense(x[batch.rows]) @ self.embedding.weight.T).float(), batch.targets)


class Contender(NamedTuple):
    name: str
    batching: str
    batches: Sequence[Batch | Padded]
    build: Callable[..., nn.Module]
    arguments: tuple[Any, ...]
    file_rows_per_token: float = 1.0
    """Rows computed per real token if the whole file were batched so: a sample has fewer very long proteins."""


def import_transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ProtformerError("The peer is missing: pip install 'protformer[peers]'.") from error


def our_model(shape: str, attention: str, num_features: int = 64) -> ProteinModel:
    hidden, layers, heads, intermediate = SHAPES[shape]
    features = {"name": "PositiveFeatures", "num_features": num_features, "orthogonal_rows": True}
    chosen = {"performer": {"name": "FavorAttention", "features": features}, "exact": {"name": "ExactAttention"}}
    trunk = {
        "hidden_size": hidden, "num_layers": layers, "num_heads": heads, "intermediate_size": intermediate,
        "vocabulary_size": 33, "token_dropout": False, "attention": chosen[attention] | {"causal": False},
    }  # fmt: skip
    torch.manual_seed(0)
    return build_model({"trunk": trunk, "head": {"name": "LanguageModelHead"}})


def build_ours(shape: str, attention: str, num_features: int) -> nn.Module:
    return Ours(our_model(shape, attention, num_features))


# Batches


def consecutive(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Runs of `order` whose lengths add up to at most `budget`; a longer sequence goes alone."""
    ends, steps, start = np.cumsum(lengths[order]), [], 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
        steps.append(order[start:stop])
        start = stop
    return steps


def draw_sorted_batches(lengths: np.ndarray, budget: int, batches: int, seed: int) -> list[np.ndarray]:
    """One batch from each of `batches` equal strata of the whole file's batches by length."""
    steps = consecutive(np.argsort(lengths, kind="stable"), lengths, budget)
    generator = np.random.default_rng(seed)
    strata = np.array_split(np.arange(len(steps)), min(batches, len(steps)))
    return [steps[generator.choice(stratum)] for stratum in strata]


def padded_rows_per_token(steps: list[np.ndarray], lengths: np.ndarray) -> float:
    return sum(len(step) * int(lengths[step].max()) for step in steps) / sum(int(lengths[step].sum()) for step in steps)


def pack(objective: MaskedResidues, records: np.ndarray) -> Batch:
    examples = [objective.example(int(record), 0) for record in records]
    chosen = [int(record) for record in records]
    return collate(examples, chosen, objective.weight(records), per_sequence=False, empty=objective.empty)


def pad(batch: Batch) -> Padded:
    lengths = batch.cu_seqlens.diff().tolist()
    labels = torch.full_like(batch.tokens, -100)
    labels[batch.rows] = batch.targets
    ids, labels = (
        nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True, padding_value=padding)
        for x, padding in ((batch.tokens, PAD), (labels, -100))
    )
    return Padded(ids, (ids != PAD).long(), labels)


def rows_computed(batch: Batch | Padded) -> int:
    return batch.input_ids.numel() if isinstance(batch, Padded) else batch.tokens.numel()


def attention_cells(batch: Batch | Padded) -> int:
    """Sum of squared lengths: what exact attention computes."""
    if isinstance(batch, Padded):
        return batch.input_ids.shape[0] * batch.input_ids.shape[1] ** 2
    return int((batch.cu_seqlens.diff().long() ** 2).sum())


def first_sequence(batch: Batch | Padded) -> Batch | Padded:
    if isinstance(batch, Padded):
        return Padded(*(x[:1] for x in batch))
    end = int(batch.cu_seqlens[1])
    inside = batch.rows < end
    rows, targets = batch.rows[inside], batch.targets[inside]
    return batch._replace(tokens=batch.tokens[:end], cu_seqlens=batch.cu_seqlens[:2], rows=rows, targets=targets)
