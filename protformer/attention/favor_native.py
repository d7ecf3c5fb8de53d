"""The Performer as compiled code for CPUs with AVX-512 or, in bf16, AMX (`protformer.attention.native`).

What that code leaves undone, segments with logits out of its range, the chunks of PyTorch operations do.
"""

from torch import Tensor

from protformer.attention import favor_chunked, native
from protformer.attention.favor_settings import Answer, Inputs, Settings


def forward(inputs: Inputs, settings: Settings) -> Answer:
    done = native.forward(inputs, settings)
    if done is None:
        return favor_chunked.forward(inputs, settings)
    answer, undone = done
    if undone:
        favor_chunked.forward_segments(answer, inputs, settings, frozenset(undone))
    return answer


def backward(grad_out: Tensor, answer: Answer, inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    done = native.backward(grad_out, answer, inputs, settings)
    if done is None:
        return favor_chunked.backward(grad_out, answer, inputs, settings)
    grads, undone = done
    if undone:
        favor_chunked.backward_segments(grads, grad_out, answer, inputs, settings, frozenset(undone))
    return grads
