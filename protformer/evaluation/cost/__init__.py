"""What attention costs, and what a training step with it costs, against length. `python train.py experiment=cost`.

methods    which attentions, by the names of every table
step       a whole training step of one sequence, timed in turns, with its memory
slopes     the exponent of time and memory in length
rows       flat rows, pictures
experiment all of it
"""

from protformer.evaluation.cost.experiment import run

__all__ = ["run"]
