"""A protein encoder with the head of its task: what is trained, saved in a model folder and embedded with."""

from typing import Any

from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from protformer.model.encoder import ProteinEncoder
from protformer.model.heads import LanguageModelHead, ResidueHead, SequenceHead

Head = LanguageModelHead | SequenceHead | ResidueHead


class ProteinModel(nn.Module):
    """`trunk` gives hidden states, `head` reads them."""

    def __init__(self, *, trunk: ProteinEncoder, head: Head) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(
        self, tokens: Int[Tensor, "total"], cu_seqlens: Int32[Tensor, "segments_plus_one"]
    ) -> Float[Tensor, "total hidden"]:
        """Hidden states of the packed rows; `read` turns them into the task's outputs."""
        return self.trunk(tokens, cu_seqlens)

    def read(
        self,
        hidden: Float[Tensor, "total hidden"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
        rows: Int[Tensor, "rows"] | None = None,
    ) -> Float[Tensor, "outputs_rows outputs"]:
        """The head's logits: one row per segment for a `SequenceHead`, else one per row of the pack.

        `rows` restricts a per-row head to these rows of the pack: only targets need logits.
        """
        if isinstance(self.head, SequenceHead):
            return self.head(hidden, cu_seqlens)
        chosen = hidden if rows is None else hidden[rows]
        if isinstance(self.head, LanguageModelHead):
            return self.head(chosen, self.trunk.embedding.weight)
        return self.head(chosen)

    def config(self) -> dict[str, Any]:
        return {"trunk": self.trunk.config(), "head": self.head.config()}
