// Keys and values in pages, and one sequence's view of them.
#pragma once

#include <cstddef>

#include "simd.h"

namespace tokenbus {

// One layer's attention; window and softcap are 0 where they are off.
struct AttentionShape {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t page_size;
    int32_t window;
    float scale;
    float softcap;
};

// Sequences with one query each, members [first_member, first_member + num_members) of the batch's
// list, whose block tables agree in [first_page, end_page). A run that follows another starts where
// that one ends, and its sequences all belong to it; each keeps a key of its own after the last.
struct Run {
    int32_t first_member;
    int32_t num_members;
    int32_t first_page;
    int32_t end_page;
};

// The batch of a pass, as engine/interfaces.py describes it.
struct Batch {
    int32_t num_tokens;
    int32_t num_seqs;
    int32_t table_stride;
    int32_t num_threads;
    const int64_t* positions;
    const int64_t* slots;
    const int32_t* block_table;
    const int32_t* context_lens;
    const int32_t* query_starts;  // [num_seqs + 1]
    const Run* runs;              // [num_runs], a run before those that follow it
    const int32_t* members;
    int32_t num_runs;

    int query_len(int seq) const { return query_starts[seq + 1] - query_starts[seq]; }
};

// Pages [P, Hkv, S, D] of one layer, keys or values.
template <class T>
struct Pages {
    T* values;
    AttentionShape shape;

    T* row(int64_t page, int kv_head, int offset) const {
        size_t head = size_t(page) * shape.num_kv_heads + kv_head;
        return values + (head * shape.page_size + offset) * shape.head_dim;
    }
    T* slot(int64_t slot, int kv_head) const {
        return row(slot / shape.page_size, kv_head, int(slot % shape.page_size));
    }
};

// The first key that a query at `position` sees.
inline int first_visible(const AttentionShape& shape, int position) {
    int first = position + 1 - shape.window;
    return shape.window == 0 || first < 0 ? 0 : first;
}

TOKENBUS_INLINE vf scaled(vf score, const AttentionShape& shape) {
    score = score * shape.scale;
    if (shape.softcap == 0.0f) return score;
    return tanh(score / shape.softcap) * shape.softcap;
}

}  // namespace tokenbus
