// The family that both engines form alike: no stabiliser, logits as they are.

#pragma once

#include "vectors.h"

namespace favor {

struct Relu {
    static constexpr bool stabilised = false;
    static constexpr float PER_UNIT = 1;
    template <int N>
    static __attribute__((always_inline)) void form(__m512 (&x)[N], const __m512 (&)[N], __m512 epsilon) {
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i)  // (in this order NaN stays NaN)
            x[i] = _mm512_add_ps(_mm512_max_ps(_mm512_setzero_ps(), x[i]), epsilon);
    }
    static __m512 vjp(__m512 grad, __m512 feature, __m512 epsilon) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(feature, epsilon, _CMP_GT_OQ), grad);
    }
};

}  // namespace favor
