"""Proof that a file of embeddings is complete: it is what its manifest says, and each record of the input is in it.

Read again are the file, its manifest and the input; the model is not run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from protformer.data.fasta import expand_paths
from protformer.embedding.assemble import sha256, sidecar
from protformer.embedding.formats import FORMAT
from protformer.embedding.options import Output, Policies
from protformer.embedding.records import EMBEDDED, FAILED, Entry, Reader
from protformer.embedding.stored import StoredProtein, find_store, reading_store, records_of
from protformer.errors import ProtformerError

_NAMED = 20  # so many faults are named, all are counted


@dataclass
class Verdict:
    """`faults` is empty where everything is right."""

    path: Path
    manifest: dict[str, Any]
    proteins: int = 0
    records: int = 0
    failed: int = 0  # records that are known to have no embedding
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    def fault(self, sentence: str) -> None:
        self.fault_count += 1
        if len(self.faults) < _NAMED:
            self.faults.append(sentence)


def verify(path: Path | str, inputs: Sequence[str | Path] | None = None) -> Verdict:
    """Check a file against its manifest, and against its input where that is given.

    Raises ProtformerError where the file, its manifest or the input cannot be read.
    """
    path = find_store(path)
    manifest = read_manifest(path)
    verdict = Verdict(path, manifest)
    if manifest["sha256"] != sha256(path):
        verdict.fault("the file is not the one that was written: its SHA-256 differs from the manifest's")
    outputs = [Output(**output) for output in manifest["settings"]["outputs"]]
    reader = None if inputs is None else Reader(expand_paths(inputs), _policies(manifest))
    expected = iter(()) if reader is None else (entry for entry in reader if entry.status == EMBEDDED)
    without = {int(row["record"]) for row in records_of(path) if row["status"] == FAILED}  # as the run listed them
    with reading_store(path) as store:
        names = [output.name for output in outputs]
        if list(store.outputs) != names:
            verdict.fault(f"the file has the outputs {', '.join(store.outputs)}, the manifest {', '.join(names)}")
        wanted = (entry for entry in expected if entry.record not in without)
        for protein, entry in zip_longest(store.proteins, wanted):
            _compare(verdict, outputs, protein, entry, has_input=reader is not None)
    if verdict.proteins != manifest["counts"]["embedded"]:
        verdict.fault(
            f"the file has {verdict.proteins:,} proteins, the manifest says {manifest['counts']['embedded']:,}"
        )
    if reader is not None:
        verdict.records = reader.account.read.records
        verdict.failed = len(without)
        if reader.prefix != manifest["input_digest"]:
            verdict.fault("the input is not the one that was embedded: headers, letters or order differ somewhere")
        if verdict.records != manifest["counts"]["records"]:
            verdict.fault(
                f"the input has {verdict.records:,} records, the manifest says {manifest['counts']['records']:,}"
            )
    return verdict


def read_manifest(path: Path) -> dict[str, Any]:
    """ProtformerError: there is none, or it is not ours."""
    file = sidecar(path, "manifest.json")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProtformerError(
            f"{file} does not exist: {path} is unfinished, was made by something else, or was moved without it."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProtformerError(f"{file} cannot be read ({error}).") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ProtformerError(f"{file} was not written by `protformer embed`.")
    return manifest


def _policies(manifest: dict[str, Any]) -> Policies:
    return Policies(**manifest["settings"]["policies"])


def _compare(
    verdict: Verdict, outputs: list[Output], protein: StoredProtein | None, entry: Entry | None, *, has_input: bool
) -> None:
    if protein is None:
        assert entry is not None
        verdict.fault(f"missing: record {entry.record:,} ({entry.id or 'no id'}) of {entry.file}")
        return
    verdict.proteins += 1
    for output in outputs:
        vectors = protein.vectors.get(output.name)
        shape = (protein.residues, output.width) if output.per_residue else (output.width,)
        if vectors is None or vectors.shape != shape:
            found = None if vectors is None else vectors.shape
            verdict.fault(f"{protein.key}: {output.name} has the shape {found}, not {shape}")
        elif not np.isfinite(vectors).all():
            verdict.fault(f"{protein.key}: {output.name} has numbers that are not finite")
    if not has_input:
        return
    if entry is None:
        verdict.fault(f"{protein.key} is in the file and not in the input")
    elif protein.key != entry.key:
        verdict.fault(f"{protein.key} stands where record {entry.record:,} of the input, {entry.key}, should")
    elif protein.sequence_hash != entry.sequence_hash or protein.residues != len(entry.tokens):
        verdict.fault(f"{protein.key}: record {entry.record:,} of the input has another sequence than was embedded")
