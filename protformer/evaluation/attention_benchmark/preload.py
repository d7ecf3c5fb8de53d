"""Imported by the server that the processes of `memory` are forked from: what they would import one by one."""

import contextlib

from protformer.evaluation.attention_benchmark import memory as memory
from protformer.evaluation.attention_benchmark.peers import PEER_MODULES, import_peer
from protformer.evaluation.cost import step as step

for module in PEER_MODULES:
    with contextlib.suppress(Exception):  # not installed, or broken: its contender says so
        import_peer(module)
