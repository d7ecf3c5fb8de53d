// What a library exports beside whether it can run here; EXPORTED is the including file's.

#pragma once

#include "engine.h"

// Whether the library and the door mean the same by a call.
EXPORTED int protformer_favor_call_size() { return sizeof(favor::Call); }

EXPORTED int protformer_favor_forward(const favor::Call* call) {
    return favor::serve<favor::Exponential, favor::Relu>(*call, false);
}

EXPORTED int protformer_favor_backward(const favor::Call* call) {
    return favor::serve<favor::Exponential, favor::Relu>(*call, true);
}
