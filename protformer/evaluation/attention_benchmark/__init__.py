"""Attention implementations side by side in one run: time, memory, and the share of the matrix-product rate.

cases       what is computed: lengths, heads, dim, type, direction
contenders  who computes it: ours, PyTorch's, the formula; `peers`: other packages, where installed; `baselines`
timing      who takes turns, how often, and who is left out
memory      the peak of one call, in a process of its own
yardsticks  the matrix products alone, timed in the same rounds
benchmark   the groups of a run; `crossover` and `packs`: its two other questions
rows, table what comes out; `plot`: its picture
"""

from protformer.evaluation.attention_benchmark.benchmark import Settings, run_benchmark
from protformer.evaluation.attention_benchmark.plot import plot_rows
from protformer.evaluation.attention_benchmark.rows import Row, check_rows_file, read_rows, write_rows
from protformer.evaluation.attention_benchmark.table import print_rows

__all__ = [
    "Row",
    "Settings",
    "check_rows_file",
    "plot_rows",
    "print_rows",
    "read_rows",
    "run_benchmark",
    "write_rows",
]
