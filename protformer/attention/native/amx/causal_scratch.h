// What causal attention keeps beside what two-way attention does.

#pragma once

#include "backward.h"

namespace favor {

// Buffers of one worker that only causal attention needs; tiles, of one block unless said otherwise.
struct CausalScratch {
    bf16 *queries, *keys;                // [2][feature_steps] left operands: features
    bf16 *queries_paired, *keys_paired;  // [feature_tiles] right operands over tokens
    bf16* keys_over;                     // [feature_steps][2] right operand over features
    bf16* keys_turned;                   // [feature_tiles] left operand: features by tokens
    bf16* mixing;                        // [2] left operand: A, or its turn
    bf16* grad_mixing;                   // [2] left operand: B, or its turn
    bf16* rows;                          // [SUB][dim] values from their centre
    bf16* values_over;                   // [dim_steps][2] right operand over dims: values
    bf16* grads_paired;                  // [dim_tiles] right operand over tokens: G
    float *query_kept, *key_kept;        // [2][feature_tiles] features in fp32
    float* tiles;                        // [2][2] results
    float* state;                        // of the blocks before, or behind
    float* centre;                       // [dim]
    float* nothing;                      // [dim] zeros
    Operands operands;                   // of the state
};

}  // namespace favor
