// One call: its work in pieces, and the passes over them.
//
// The arithmetic is another header's, which is included first: `amx/operands.h` for bf16 or `avx512/operands.h` for fp32.
// Both name alike what the engine asks of them (Element, Sizes, Head, Scratch, add_keys, answer_queries, ...); each is
// compiled into a library of its own.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "memory.h"
#include "team.h"
#include "vectors.h"

namespace favor {

// Rows begin to end of a segment. A segment's parts depend on its length alone, so results do not depend on the rest
// of the pack, nor on threads.
struct Piece {
    long begin, end;
    int segment, parts, slot;  // place in the wave's partial states
    int place;                 // place among the wave's long segments
    bool known;                // whether the state is the forward's
};

constexpr long WHOLE = 512;  // a segment up to this length is done by one worker; LONG in favor_settings.py
constexpr long MOST_PARTS = 64;
constexpr long NEAR = 1 << 20;  // bytes of causal states that a worker goes to and fro between: about half a cache

static inline long parts_of(long length) {
    const long fine = (length + WHOLE - 1) / WHOLE, coarse = (length + 8 * WHOLE - 1) / (8 * WHOLE);
    return std::min(MOST_PARTS, std::min(fine, std::max(8L, coarse)));
}

template <class Family>
class Engine {
  public:
    Engine(const Call& call, bool backward) : call_(call), backward_(backward) {
        sizes_ = make_sizes(call);
        norm_ = -0.5f * call.norm_weight / std::sqrt(static_cast<float>(call.dim));
    }

    // Fresh memory in few large pages: 16 MB in small ones cost as much time to map as all the arithmetic takes.
    void advise(Element* x) const {
        constexpr std::uintptr_t huge = std::uintptr_t{2} << 20;
        const auto begin = (reinterpret_cast<std::uintptr_t>(x) + huge - 1) / huge * huge;
        const auto end = (reinterpret_cast<std::uintptr_t>(x) + sizeof(Element) * sizes_.stride * call_.total) / huge * huge;
        if (x && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    }

    // 0, or 1 where the projection cannot be taken as it is, or 2 without memory.
    int serve() {
        for (Element* x : {call_.out, call_.grad_query, call_.grad_key, call_.grad_value}) advise(x);
        thread_local Memory memory;
        long segment = 0;
        for (bool begun = false; !begun || segment < call_.segments; begun = true) {
            segment = next_wave(segment);
            group_heads();
            Layout sizing(nullptr);
            lay_out(sizing);
            char* base = memory.get(sizing.size());
            if (!base) return 2;
            Layout layout(base);
            lay_out(layout);
            if (!pack()) return 1;
            if (call_.causal)
                serve_sequences();
            else
                serve_wave();
        }
        memory.done();
        return 0;
    }

  private:
    // Gathers whole segments, and long ones while their partial states are few.
    long next_wave(long segment) {
        whole_.clear();
        parts_.clear();
        fresh_.clear();
        kept_.clear();
        for (; segment < call_.segments; ++segment) {
            const long begin = call_.cu_seqlens[segment], end = call_.cu_seqlens[segment + 1], length = end - begin;
            if (length < std::max<long>(call_.shortest, 1)) continue;
            const int index = static_cast<int>(segment);
            if (length <= WHOLE || call_.causal) {
                whole_.push_back({begin, end, index, 1, 0, 0, false});
                continue;
            }
            const long parts = parts_of(length);
            if (!parts_.empty() && static_cast<long>(parts_.size()) + parts > MOST_PARTS) break;
            const long size = ((length + parts - 1) / parts + BLOCK - 1) / BLOCK * BLOCK;
            const int count = static_cast<int>((length + size - 1) / size);
            const bool keeps = length >= call_.shortest_kept, known = keeps && backward_;
            const int place = static_cast<int>(kept_.size());
            for (long at = begin; at < end; at += size) {
                if (!known) fresh_.push_back(parts_.size());
                const int slot = static_cast<int>(parts_.size());
                parts_.push_back({at, std::min(at + size, end), index, count, slot, place, known});
            }
            const std::size_t floats = call_.heads * sizes_.kept_floats();
            kept_.push_back(keeps ? call_.states + states_++ * floats : nullptr);
        }
        return segment;
    }

    // Heads are shared out only where pieces are too few for the threads.
    int groups(std::size_t tasks) const {
        if (call_.threads == 1 || tasks == 0) return 1;
        const long wanted = (2L * call_.threads + static_cast<long>(tasks) - 1) / static_cast<long>(tasks);
        return static_cast<int>(std::min<long>(call_.heads, wanted));
    }

    void lay_out(Layout& layout) {
        heads_.assign(call_.projection_heads, {});
        for (Projection& head : heads_) head = take_projection(sizes_, layout);
        const bool spare = call_.causal && backward_;
        spare_ = spare ? layout.take<float>(2 * std::size_t(call_.heads) * call_.total) : nullptr;
        partial_ = layout.take<float>(parts_.size() * call_.heads * sizes_.state_floats());
        largest_ = layout.take<float>(parts_.size() * call_.heads);
        operands_.clear();
        for (float* kept : kept_)
            for (int head = 0; head < call_.heads; ++head)
                operands_.push_back(
                    take_operands(sizes_, backward_, layout, kept ? kept + head * sizes_.kept_floats() : nullptr));
        workers_.assign(call_.threads, {});
        for (Worker& worker : workers_) {
            worker.scratch = take_scratch(sizes_, backward_, states_at_once_, layout);
            if (whole_.empty() || call_.causal) continue;
            worker.state = layout.take<float>(call_.heads * sizes_.state_floats());
            worker.largest = layout.take<float>(call_.heads);
            for (int head = 0; head < call_.heads; ++head)
                worker.operands.push_back(take_operands(sizes_, backward_, layout, nullptr));
        }
    }

    bool pack() {
        bool exact = true;
        for (std::size_t i = 0; i < heads_.size(); ++i)
            exact &= pack_projection<Family>(sizes_, call_.projection + i * sizes_.rows * sizes_.dim, heads_[i]);
        return exact;
    }

    void serve_wave() {
        const std::size_t floats = sizes_.state_floats();
        const int heads = call_.heads, sharing = groups(fresh_.size() + whole_.size());
        const auto first_head = [=](int group, int of) { return group * heads / of; };
        const long early = static_cast<long>(fresh_.size() * sharing);
        run(call_, early + static_cast<long>(whole_.size()) * sharing, [&](long task, int worker) {
            const int group = static_cast<int>(task % sharing);
            const int begin = first_head(group, sharing), end = first_head(group + 1, sharing);
            Worker& mine = workers_[worker];
            if (task < early) {
                const Piece& piece = parts_[fresh_[task / sharing]];
                float* largest = largest_ + piece.slot * heads;
                key_pass(piece, begin, end, partial_ + piece.slot * heads * floats, largest, mine.scratch);
                return;
            }
            const Piece& piece = whole_[(task - early) / sharing];
            key_pass(piece, begin, end, mine.state, mine.largest, mine.scratch);
            for (int h = begin; h < end; ++h)
                finish_state(sizes_, mine.state + h * floats, 0, mine.largest + h, 0, 1, mine.operands[h].state);
            if (!backward_) {
                query_pass(piece, begin, end, mine.operands.data(), mine.scratch);
                return;
            }
            grad_query_pass(piece, begin, end, mine.operands.data(), mine.state, mine.scratch);
            for (int h = begin; h < end; ++h)
                finish_grad_state(sizes_, mine.state + h * floats, 0, 1, mine.operands[h].state.centre,
                                  mine.operands[h].grads);
            grad_key_pass(piece, begin, end, mine.operands.data(), mine.scratch);
        });
        if (parts_.empty()) return;
        const int splitting = groups(parts_.size());
        const auto each_part = [&](const auto& pass) {
            run(call_, static_cast<long>(parts_.size()) * splitting, [&](long task, int worker) {
                const Piece& piece = parts_[task / splitting];
                const int group = static_cast<int>(task % splitting);
                pass(piece, first_head(group, splitting), first_head(group + 1, splitting),
                     operands_.data() + static_cast<std::size_t>(piece.place) * heads, workers_[worker].scratch);
            });
        };
        // (the first part of each long segment stands for it)
        std::vector<const Piece*> firsts;
        for (const Piece& piece : parts_)
            if (static_cast<std::size_t>(piece.place) == firsts.size()) firsts.push_back(&piece);
        const auto each_segment = [&](const auto& finish) {
            run(call_, static_cast<long>(firsts.size()) * heads, [&](long task, int) {
                const Piece& piece = *firsts[task / heads];
                finish(piece, static_cast<std::size_t>(piece.slot) * heads + task % heads, operands_[task]);
            });
        };
        each_segment([&](const Piece& piece, std::size_t at, const Operands& operands) {
            if (piece.known) return reopen_state(sizes_, operands.state);
            finish_state(sizes_, partial_ + at * floats, heads * floats, largest_ + at, heads, piece.parts,
                         operands.state);
        });
        each_part([&](const Piece& piece, int begin, int end, const Operands* operands, Scratch& scratch) {
            if (backward_)
                grad_query_pass(piece, begin, end, operands, partial_ + piece.slot * heads * floats, scratch);
            else
                query_pass(piece, begin, end, operands, scratch);
        });
        if (!backward_) return;
        each_segment([&](const Piece& piece, std::size_t at, const Operands& operands) {
            finish_grad_state(sizes_, partial_ + at * floats, heads * floats, piece.parts, operands.state.centre,
                              operands.grads);
        });
        each_part([&](const Piece& piece, int begin, int end, const Operands* operands, Scratch& scratch) {
            grad_key_pass(piece, begin, end, operands, scratch);
        });
    }

    // What a row sees is made in its order: a task is a segment, or a group of its heads where it is a large share of
    // all work. Heads of a group go side by side, as many as have their states near.
    void group_heads() {
        groups_.clear();
        states_at_once_ = 0;
        if (!call_.causal) return;
        const long near = std::max<long>(1, NEAR / static_cast<long>(sizeof(float) * sizes_.state_floats()));
        long rows = 0;
        for (const Piece& piece : whole_) rows += piece.end - piece.begin;
        for (const Piece& piece : whole_) {
            const long share = 2L * call_.threads * (piece.end - piece.begin);
            const long fair = call_.threads > 1 ? (share + rows - 1) / rows : 1;
            const long groups = std::min<long>(call_.heads, std::max(fair, (call_.heads + near - 1) / near));
            for (long group = 0; group < groups; ++group) {
                const int begin = static_cast<int>(group * call_.heads / groups);
                const int end = static_cast<int>((group + 1) * call_.heads / groups);
                groups_.push_back({&piece, begin, end});
                states_at_once_ = std::max(states_at_once_, end - begin);
            }
        }
    }

    void serve_sequences() {
        run(call_, static_cast<long>(groups_.size()), [&](long task, int worker) {
            const Piece& piece = *groups_[task].piece;
            std::vector<Head> heads;
            std::vector<Sequence> sequences;
            for (int h = groups_[task].begin; h < groups_[task].end; ++h) {
                const auto first = [&](auto* x) { return x ? rows(x, piece.begin, h) : nullptr; };
                heads.push_back(head_of(piece, h));
                sequences.push_back({first(call_.query), first(call_.key), first(call_.value), first(call_.grad_out),
                                     first(call_.out), first(call_.grad_query), first(call_.grad_key),
                                     first(call_.grad_value), number(call_.row_numbers, piece.begin, h),
                                     spare_ ? spare_ + 2 * (h * call_.total + piece.begin) : nullptr,
                                     piece.end - piece.begin, call_.total - piece.begin});
            }
            if (!serve_causal<Family>(sizes_, heads, sequences, call_.epsilon, backward_, workers_[worker].scratch))
                __atomic_store_n(call_.redo + piece.segment, 1, __ATOMIC_RELAXED);
        });
    }

    Head head_of(const Piece& piece, int head) const {
        const Projection& projection = heads_[heads_.size() > 1 ? head : 0];
        const auto entry = [&](const float* x, const std::int64_t (&strides)[2]) {
            return x ? x + piece.segment * strides[0] + head * strides[1] : nullptr;
        };
        const float* scale = entry(call_.norm_scale, call_.norm_scale_strides);
        return make_head(projection, scale ? norm_ * *scale : norm_, entry(call_.tilt, call_.tilt_strides),
                         entry(call_.offset, call_.offset_strides), entry(call_.query_scale, call_.query_scale_strides),
                         entry(call_.key_scale, call_.key_scale_strides));
    }

    // body(head, its constants, rows from, rows to) chunk by chunk, heads in turn, and the next chunk's rows on their
    // way.
    template <class Body>
    void walk(const Piece& piece, int begin, int end, Ahead ahead, Scratch& scratch, long step, const Body& body) {
        scratch.ahead = ahead;
        for (long chunk = piece.begin; chunk < piece.end; chunk += BLOCK) {
            const long stop = std::min(chunk + BLOCK, piece.end), after = std::min(stop + BLOCK, piece.end);
            for (int h = begin; h < end; ++h) {
                const long from = stop + (after - stop) * (h - begin) / (end - begin);
                const long to = stop + (after - stop) * (h + 1 - begin) / (end - begin);
                scratch.ahead.begin(from * sizes_.stride + static_cast<std::size_t>(begin) * sizes_.dim,
                                    static_cast<std::size_t>(end - begin) * sizes_.dim, sizes_.stride, to - from);
                const Head head = head_of(piece, h);
                set_head(sizes_, head, scratch);
                for (long row = chunk; row < stop; row += step)
                    body(h, head, row, static_cast<int>(std::min(step, stop - row)));
                while (scratch.ahead.left > 0) scratch.ahead.fetch();
            }
        }
    }

    template <class T>
    T* rows(T* x, long row, int head) const {
        return x + row * sizes_.stride + head * sizes_.dim;
    }
    // a place in [heads, total], if there is such a tensor
    float* number(float* x, long row, int head) const { return x ? x + head * call_.total + row : nullptr; }

    static Ahead ahead(std::initializer_list<const Element*> read, std::initializer_list<const Element*> written) {
        Ahead result{};
        std::copy(read.begin(), read.end(), result.read);
        std::copy(written.begin(), written.end(), result.written);
        return result;
    }

    void report(const Piece& piece, const FeatureRange& range, float most) {
        if (range.left(most)) __atomic_store_n(call_.redo + piece.segment, 1, __ATOMIC_RELAXED);
    }

    void key_pass(const Piece& piece, int begin, int end, float* states, float* largest, Scratch& scratch) {
        FeatureRange range;
        if (!Family::stabilised) std::fill(largest + begin, largest + end, 0.0f);
        walk(piece, begin, end, ahead({call_.key, call_.value}, {}), scratch, BLOCK,
             [&](int h, const Head& head, long row, int count) {
                 add_keys<Family>(sizes_, head, rows(call_.key, row, h), rows(call_.value, row, h), count,
                                  call_.epsilon, states + h * sizes_.state_floats(), largest[h], row == piece.begin,
                                  number(call_.row_numbers, row, h), scratch, range);
             });
        report(piece, range, KEY_MOST);
    }

    void query_pass(const Piece& piece, int begin, int end, const Operands* operands, Scratch& scratch) {
        FeatureRange range;
        walk(piece, begin, end, ahead({call_.query}, {call_.out}), scratch, SUB,
             [&](int h, const Head& head, long row, int count) {
                 answer_queries<Family>(sizes_, head, rows(call_.query, row, h), count, call_.epsilon,
                                        operands[h].state, rows(call_.out, row, h),
                                        number(call_.row_numbers, row, h), scratch, range);
             });
        report(piece, range, QUERY_MOST);
    }

    void grad_query_pass(const Piece& piece, int begin, int end, const Operands* operands, float* states,
                         Scratch& scratch) {
        FeatureRange range;
        walk(piece, begin, end, ahead({call_.query, call_.grad_out, READS_OUTPUT ? call_.out : nullptr}, {call_.grad_query}), scratch, BLOCK,
             [&](int h, const Head& head, long row, int count) {
                 grade_queries<Family>(sizes_, head, rows(call_.query, row, h), rows(call_.grad_out, row, h), count,
                                       call_.epsilon, operands[h].state, rows(call_.out, row, h),
                                       number(call_.row_numbers, row, h), rows(call_.grad_query, row, h),
                                       states + h * sizes_.state_floats(), row == piece.begin, scratch, range);
             });
        report(piece, range, QUERY_MOST);
    }

    void grad_key_pass(const Piece& piece, int begin, int end, const Operands* operands, Scratch& scratch) {
        FeatureRange range;
        walk(piece, begin, end, ahead({call_.key, call_.value}, {call_.grad_key, call_.grad_value}), scratch, SUB,
             [&](int h, const Head& head, long row, int count) {
                 grade_keys<Family>(sizes_, head, rows(call_.key, row, h), rows(call_.value, row, h), count,
                                    call_.epsilon, number(call_.row_numbers, row, h), *operands[h].state.largest, operands[h].grads,
                                    rows(call_.grad_key, row, h), rows(call_.grad_value, row, h), scratch, range);
             });
        report(piece, range, KEY_MOST);
    }

    struct Group {
        const Piece* piece;
        int begin, end;  // heads
    };

    struct Worker {
        Scratch scratch;
        float *state, *largest;
        std::vector<Operands> operands;
    };

    const Call& call_;
    const bool backward_;
    Sizes sizes_{};
    float norm_;
    std::vector<Piece> whole_, parts_;
    std::vector<std::size_t> fresh_;  // parts without a state yet
    std::vector<float*> kept_;        // [long segments] where their states are kept, or null
    std::size_t states_ = 0;          // kept so far
    std::vector<Group> groups_;       // causal: the tasks
    int states_at_once_ = 0;          // causal: the most heads side by side
    std::vector<Projection> heads_;
    std::vector<Operands> operands_;  // [long segments][heads]
    std::vector<Worker> workers_;
    float *partial_ = nullptr, *largest_ = nullptr, *spare_ = nullptr;
};

template <class... Families>
static int serve(const Call& call, bool backward) {
    int result = 0, family = 0;
    ((family++ == call.family ? void(result = Engine<Families>(call, backward).serve()) : void()), ...);
    return result;
}

}  // namespace favor
