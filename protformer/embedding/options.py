"""What a run of `protformer embed` was asked for: outputs, policies, arithmetic. Plain values, kept in the manifest."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from protformer.data.alphabet import TOKENS
from protformer.errors import ProtformerError
from protformer.model.inference import BATCH_TOKENS, Precision

OnInvalid = Literal["x", "skip", "error"]
OnDuplicate = Literal["suffix", "keep-first", "error"]
OnLong = Literal["full", "window", "truncate", "error"]
Pool = Literal["mean", "max", "cls"]
StoredType = Literal["fp32", "fp16"]
POOLS: tuple[str, ...] = get_args(Pool)


class Output(NamedTuple):
    """One thing that is stored of each protein."""

    name: str  # "mean", "residues", "logits"; with several layers "mean_layer6"
    kind: str  # "mean", "max", "cls", "residues" or "logits"
    layer: int  # 0 to the number of layers
    width: int  # numbers of a vector

    @property
    def per_residue(self) -> bool:
        return self.kind in ("residues", "logits")


@dataclass(frozen=True, kw_only=True)
class Policies:
    """What becomes of records that are not plain. Each is applied and said in the record's row.

    Args:
        on_invalid: letters outside the alphabet become X ("x"), or the record is left out ("skip"), or the run ends
            ("error"). `J` is X, and one final `*` dropped, under each of them.
        aligned: "-" and "." are an alignment's gaps, and go.
        on_duplicate: an id that came before gets _2, _3, ... in its key ("suffix"), or only the first record of an id
            is embedded ("keep-first"), or the run ends ("error").
        on_long: a sequence of more than `max_length` residues is computed whole ("full"), in windows of `max_length`
            that overlap by `overlap` ("window"), cut to `max_length` ("truncate"), or the run ends ("error").
    """

    on_invalid: OnInvalid = "x"
    aligned: bool = False
    on_duplicate: OnDuplicate = "suffix"
    on_long: OnLong = "full"
    max_length: int | None = None
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.on_long != "full" and self.max_length is None:
            raise ProtformerError(f"--on-long {self.on_long} needs --max-length: what is long?")
        if self.on_long == "full" and self.max_length is not None:
            raise ProtformerError("--max-length says what is long: add --on-long window, truncate or error.")
        if self.max_length is not None and self.max_length < 1:
            raise ProtformerError(f"--max-length must be at least 1, not {self.max_length}.")
        if self.overlap and self.on_long != "window":
            raise ProtformerError("--overlap is of windows: add --on-long window.")
        if self.overlap < 0 or (self.max_length is not None and self.overlap >= self.max_length):
            raise ProtformerError(f"--overlap must be at least 0 and below --max-length, not {self.overlap}.")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that the numbers in the output depend on, beside the model and the input.

    Args:
        per_residue: store `[residues, hidden]`.
        pool: one vector for each of these: mean and max over residues, specials never counted; cls, the row of
            `<cls>`. None: mean, or nothing where `per_residue`.
        layers: 0 is the embedding, k follows block k, -1 the last one (after the final norm).
        logits: store the language model's logits `[residues, 33]`.
        dtype: of what is stored.
        precision: of the arithmetic; "bf16" is autocast, with norms, residual stream and pooling in fp32.
        batch_tokens: budget of a batch, `<cls>` and `<eos>` counted.
        compile: through torch.compile.
    """

    per_residue: bool = False
    pool: tuple[str, ...] | None = None
    layers: tuple[int, ...] = (-1,)
    logits: bool = False
    dtype: StoredType = "fp32"
    precision: Precision = "fp32"
    batch_tokens: int = BATCH_TOKENS["cpu"]
    compile: bool = False
    policies: Policies = field(default_factory=Policies)

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ValueError(f"batch_tokens must be at least 1, not {self.batch_tokens}")
        if not self.layers:
            raise ProtformerError("--layers is empty: name one, for instance -1, the last.")
        for name in self.pool or ():
            if name not in POOLS:
                raise ProtformerError(f"--pool {name!r} is not known: there are {', '.join(POOLS)}.")

    def outputs(self, *, hidden_size: int, num_layers: int) -> tuple[Output, ...]:
        """What is stored, layers counted from 0. ProtformerError: the model has no such layer."""
        layers = []
        for layer in self.layers:
            found = layer + num_layers + 1 if layer < 0 else layer
            if not 0 <= found <= num_layers:
                raise ProtformerError(
                    f"--layers {layer}: the model has {num_layers} layers, so 0 (its input) to {num_layers},"
                    f" or -1 to {-num_layers - 1} from the end."
                )
            if found not in layers:
                layers.append(found)
        pool = self.pool if self.pool is not None else () if self.per_residue else ("mean",)
        kinds = (*dict.fromkeys(pool), *(("residues",) if self.per_residue else ()))
        made = [
            Output(kind if len(layers) == 1 else f"{kind}_layer{layer}", kind, layer, hidden_size)
            for layer in layers
            for kind in kinds
        ]
        if self.logits:
            made.append(Output("logits", "logits", num_layers, len(TOKENS)))
        if not made:
            raise ProtformerError("Nothing is to be stored: name a --pool, --per-residue or --logits.")
        return tuple(made)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
