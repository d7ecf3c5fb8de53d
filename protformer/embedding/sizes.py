"""How much disk a run needs, before it begins."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from protformer.embedding.options import Output
from protformer.embedding.records import Account
from protformer.errors import ProtformerError

# Bytes of a protein beside its numbers: names, attributes, the formats' own. Measured on 10,000 proteins, rounded up.
_OF_A_PROTEIN = {"hdf5": 1_600, "parquet": 150, "npz": 600, "safetensors": 150}
_OF_A_ROW = 350  # in a shard, and in the table of records


def output_bytes(outputs: Sequence[Output], item_bytes: int, format_name: str, account: Account) -> tuple[int, int]:
    """Estimated bytes of the delivered file, and of the shards that it is made from."""
    of_protein = sum(output.width * item_bytes for output in outputs if not output.per_residue)
    of_residue = sum(output.width * item_bytes for output in outputs if output.per_residue)
    rows = account.embeddable * _OF_A_ROW + 2 * account.row_bytes
    unique = account.embeddable - account.read.equal_sequences
    delivered = account.embeddable * (of_protein + _OF_A_PROTEIN[format_name]) + account.residues * of_residue + rows
    return delivered, unique * of_protein + account.computed * of_residue + rows


def check_disk(folder: Path, needed: int) -> None:
    """ProtformerError where the file system of `folder` has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ProtformerError(
            f"{folder} has {human(free)} free, and about {human(needed)} are needed: the shards and the file that is "
            "made from them. Free some, choose another output, or store less (--dtype fp16, fewer --layers)."
        )


def human(count: float | int) -> str:
    """`1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
