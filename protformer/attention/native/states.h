// The states of a segment's parts, `next` floats apart, as one in the first's place.

#pragma once

#include <cmath>

#include "vectors.h"

namespace favor {

// Of keys, each over e to its own largest log weight; returns the largest of all, which the sum is over.
static inline float combine_states(float* parts, std::size_t next, std::size_t floats, const float* largest,
                                   std::size_t next_largest, int count) {
    float most = largest[0];
    for (int part = 1; part < count; ++part) most = std::fmax(most, largest[part * next_largest]);
    for (int part = 0; part < count && count > 1; ++part) {
        const __m512 factor = _mm512_set1_ps(std::exp(largest[part * next_largest] - most));
        for (std::size_t i = 0; i < floats; i += LANES) {
            const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(parts + part * next + i), factor);
            _mm512_storeu_ps(parts + i, part ? _mm512_add_ps(_mm512_loadu_ps(parts + i), x) : x);
        }
    }
    return most;
}

// Of gradients, plainly.
static inline void add_states(float* parts, std::size_t next, std::size_t floats, int count) {
    for (int part = 1; part < count; ++part)
        for (std::size_t i = 0; i < floats; i += LANES)
            _mm512_storeu_ps(parts + i,
                             _mm512_add_ps(_mm512_loadu_ps(parts + i), _mm512_loadu_ps(parts + part * next + i)));
}

}  // namespace favor
