// A call as the door hands it over, and the threads that work on it.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>

#include "vectors.h"

namespace favor {

// As in __init__.py, field by field. Strides of what differs between segments or heads are 0 where it does not.
struct Call {
    const Element *query, *key, *value, *grad_out;  // [total, heads, dim]
    Element *out, *grad_query, *grad_key, *grad_value;
    float* row_numbers;  // [heads, total], a forward leaves them to its backward
    float* states;       // likewise, of segments of at least `shortest_kept` rows
    const std::int32_t* cu_seqlens;  // [segments + 1]
    const float* projection;         // [1 or heads, rows, dim]
    // [dim], [dim], one number, [dim], [rows]; or null
    const float *query_scale, *key_scale, *norm_scale, *tilt, *offset;
    void* parallel;      // GOMP_parallel, or null for one thread
    std::uint8_t* redo;  // [segments] set where features or denominators are out of range
    std::int64_t segments, total, shortest, shortest_kept;
    // to the next segment, the next head
    std::int64_t query_scale_strides[2], key_scale_strides[2], norm_scale_strides[2], tilt_strides[2], offset_strides[2];
    std::int32_t heads, dim, rows, projection_heads, family, threads, causal;
    float epsilon, norm_weight;
};

// The rows of one segment and head; those of tensors are Sizes::stride apart.
struct Sequence {
    const Element *query, *key, *value, *grad_out;
    Element *out, *grad_query, *grad_key, *grad_value;
    float *row_numbers, *spare;  // [length], [2 length]: the latter is a backward's own
    long length, left;  // rows of the segment, and from its first to the tensors' last

    // Fetches rows from `at` on of all that a pass reads and writes.
    void fetch(long at, long rows, std::size_t stride, std::size_t dim, bool backward) const {
        rows = std::min(rows, length - at);
        if (at < 0 || rows <= 0) return;
        for (const Element* x : {query, key, value}) fetch_rows(x + at * stride, stride, dim, rows, false);
        if (!backward) return fetch_rows<Element>(out + at * stride, stride, dim, rows, true);
        fetch_rows(grad_out + at * stride, stride, dim, rows, false);
    }
};

// Runs body(task, worker) for each task on up to `threads` workers of the caller's OpenMP pool.
template <class Body>
struct Team {
    const Body& body;
    const long tasks;
    std::atomic<long> next{0};
    std::atomic<int> workers{0};

    static void enter(void* self) {
        Team& team = *static_cast<Team*>(self);
        const int worker = team.workers.fetch_add(1);
        const Thread thread;
        for (long task; (task = team.next.fetch_add(1)) < team.tasks;) team.body(task, worker);
    }
};

template <class Body>
static void run(const Call& call, long tasks, const Body& body) {
    Team<Body> team{body, tasks};
    const long threads = std::min<long>(call.threads, tasks);
    if (threads > 1 && call.parallel)
        reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(call.parallel)(
            Team<Body>::enter, &team, static_cast<unsigned>(threads), 0);
    else if (tasks > 0)
        Team<Body>::enter(&team);
}

}  // namespace favor
