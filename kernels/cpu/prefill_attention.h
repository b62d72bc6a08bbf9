// Attention of many query tokens per sequence, blockwise, as two products over packed keys and
// values; softmax in one pass with running maxima.
#pragma once

#include <algorithm>
#include <limits>

#include "decode_attention.h"
#include "multiply.h"
#include "pages.h"
#include "transpose.h"

namespace tokenbus {

// Keys per block: four panels, so that the scores of a block of queries stay in L2.
constexpr int kBlockKeys = 4 * kHeadPanel;
// Rows (queries times heads of a group) per block: few enough for L2, many enough that reading a
// packed key pays.
constexpr int kBlockRows = 96;

// One sequence with several queries, and where its packed keys and values begin.
struct PrefillSpan {
    int32_t seq;
    int32_t first_token;
    int32_t num_queries;
    int32_t context_len;
    int32_t first_key;  // first packed key, where a panel begins
    size_t packed;      // in values, per KV head behind one another

    int num_packed() const {
        return (context_len - first_key + kHeadPanel - 1) / kHeadPanel * kHeadPanel;
    }
};

template <class Kind>
inline size_t key_depth(const AttentionShape& shape) {
    return padded<Kind>(shape.head_dim);
}

inline int value_panels(const AttentionShape& shape) {
    return (shape.head_dim + kHeadPanel - 1) / kHeadPanel;
}

// Packed values that one KV head of a span takes: keys, then values.
template <class Kind>
inline size_t packed_size(const PrefillSpan& span, const AttentionShape& shape) {
    size_t width = key_depth<Kind>(shape) + size_t(value_panels(shape)) * kHeadPanel;
    return size_t(span.num_packed()) * width;
}

// Lay one KV head of a span out for the products: keys as [panel][D][keys], values as
// [panel of D][keys][D], neighbours along the sum side by side.
template <class Kind>
void pack_head(const PrefillSpan& span, const Pages<typename Kind::Value>& keys,
               const Pages<typename Kind::Value>& values, const int32_t* table, int kv_head,
               typename Kind::Value* to) {
    using T = typename Kind::Value;
    constexpr int kStep = Kind::kStep;
    const AttentionShape& shape = keys.shape;
    const int dim = shape.head_dim, size = shape.page_size, num_packed = span.num_packed();
    const int num_keys = span.context_len - span.first_key;
    const size_t depth = key_depth<Kind>(shape);
    T* packed_values = to + size_t(num_packed) * depth;
    // Past the end the last token comes again; its weights there are zero.
    auto row = [&](const Pages<T>& pages, int idx) {
        const int key = span.first_key + std::min(idx, num_keys - 1);
        return pages.row(table[key / size], kv_head, key % size);
    };
    if (dim % kHeadPanel != 0) std::fill(packed_values, to + packed_size<Kind>(span, shape), T(0));
    for (int idx = 0; idx < num_packed; idx += kLanes) {
        const T* rows[kLanes];
        for (int lane = 0; lane < kLanes; lane++) {
            rows[lane] = row(keys, idx + lane);
            prefetch(row(keys, idx + lane + kKeysAhead), dim);
        }
        T* panel = to + size_t(idx / kHeadPanel) * kHeadPanel * depth;
        T* at = panel + idx % kHeadPanel * kStep;
        transpose_words(rows, dim / kStep, reinterpret_cast<char*>(at), kHeadPanel);
        if (depth == size_t(dim)) continue;
        T* last = at + (depth - kStep) * kHeadPanel;
        for (int lane = 0; lane < kLanes; lane++)
            for (int s = 0; s < kStep; s++) {
                const int d = int(depth) - kStep + s;
                last[lane * kStep + s] = d < dim ? rows[lane][d] : T(0);
            }
    }
    for (int idx = 0; idx < num_packed; idx += kStep) {
        for (int d = 0; d < dim; d += kHeadPanel) {
            const T* rows[kStep];
            for (int s = 0; s < kStep; s++) {
                rows[s] = row(values, idx + s) + d;
                if (d == 0) prefetch(row(values, idx + s + kKeysAhead), dim);
            }
            Kind::join(rows, std::min(kHeadPanel, dim - d),
                       packed_values + size_t(d) * num_packed + size_t(idx) * kHeadPanel);
        }
    }
}

// One thread's buffers for a block of rows.
template <class T>
struct BlockScratch {
    T* queries;     // [rows, depth]
    T* weights;     // [rows, kBlockKeys]
    float* scores;  // [panel, rows, kHeadPanel]
    float* sums;    // [panel of D, rows, kHeadPanel]
    float* tile;    // [tile rows, kHeadPanel]
    float* most;    // [rows], largest score so far
    float* total;   // [rows], sum of weights so far
};

// Turn a row's raw scores of one block into weights; returns what earlier sums shrink by.
template <class Kind>
float weigh_block(BlockScratch<typename Kind::Value>& scratch, int row, int num_rows, int low,
                  int high, int num_keys, const AttentionShape& shape) {
    constexpr float kNever = -std::numeric_limits<float>::infinity();
    auto out = scratch.weights + size_t(row) * kBlockKeys;
    vf most = splat(kNever);
    const vi lane_ids = [] {
        vi ids;
        for (int i = 0; i < kLanes; i++) ids[i] = i;
        return ids;
    }();
    auto chunk = [&](int i) {
        return scratch.scores + (size_t(i / kHeadPanel) * num_rows + row) * kHeadPanel +
               i % kHeadPanel;
    };
    for (int i = 0; i < num_keys; i += kLanes) {
        vf score = scaled(load(chunk(i)), shape);
        vi key = lane_ids + i;
        score = (key >= low) & (key < high) ? score : splat(kNever);
        store(chunk(i), score);
        most = max(most, score);
    }
    float before = scratch.most[row], now = std::max(before, largest(most));
    if (now == kNever) {
        for (int i = 0; i < num_keys; i += kLanes) store(out + i, vf{});
        return 1.0f;
    }
    vf total{};
    for (int i = 0; i < num_keys; i += kLanes) {
        vf score = load(chunk(i));
        vf weight = score == splat(kNever) ? vf{} : exp(score - now);
        store(out + i, weight);
        total += weight;
    }
    float shrink = before == kNever ? 0.0f : std::exp(before - now);
    scratch.most[row] = now;
    scratch.total[row] = scratch.total[row] * shrink + sum(total);
    return shrink;
}

// Attend queries [begin, begin + num_queries) of a span, for one KV head's group of heads.
// q, out: rows of tokens `q_stride`, `out_stride` values apart, at their first head of the group.
template <class Kind>
void attend_block(const PrefillSpan& span, const AttentionShape& shape, int begin, int num_queries,
                  const typename Kind::Value* q, size_t q_stride,
                  const typename Kind::Value* packed, BlockScratch<typename Kind::Value>& scratch,
                  typename Kind::Value* out, size_t out_stride) {
    using T = typename Kind::Value;
    int dim = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
    int num_rows = num_queries * group, panels = value_panels(shape);
    int num_packed = span.num_packed();
    size_t depth = key_depth<Kind>(shape);
    const T* values = packed + size_t(num_packed) * depth;
    for (int row = 0; row < num_rows; row++) {
        T* to = scratch.queries + row * depth;
        std::memcpy(to, q + (row / group) * q_stride + size_t(row % group) * dim, dim * sizeof(T));
        for (size_t d = dim; d < depth; d++) to[d] = T(0);
        scratch.most[row] = -std::numeric_limits<float>::infinity();
        scratch.total[row] = 0.0f;
    }
    std::fill(scratch.sums, scratch.sums + size_t(panels) * num_rows * kHeadPanel, 0.0f);
    int first_position = span.context_len - span.num_queries + begin;
    int end = first_position + num_queries - span.first_key;
    int start = (first_visible(shape, first_position) - span.first_key) / kHeadPanel * kHeadPanel;
    for (int block = start; block < end; block += kBlockKeys) {
        int num_keys = std::min(kBlockKeys, (end - block + kHeadPanel - 1) / kHeadPanel * kHeadPanel);
        for (int panel = 0; panel < num_keys / kHeadPanel; panel++) {
            for_tiles<kHeadVectors>(0, num_rows, [&](int row, int count) {
                multiply_tile<Kind, kHeadVectors>(
                    scratch.queries + row * depth, depth, count,
                    packed + size_t(block + panel * kHeadPanel) * depth, int(depth),
                    scratch.scores + (size_t(panel) * num_rows + row) * kHeadPanel);
            });
        }
        for (int row = 0; row < num_rows; row++) {
            int position = first_position + row / group;
            int low = first_visible(shape, position) - span.first_key - block;
            int high = position + 1 - span.first_key - block;
            float shrink = weigh_block<Kind>(scratch, row, num_rows, low, high, num_keys, shape);
            if (shrink == 1.0f) continue;
            for (int panel = 0; panel < panels; panel++) {
                float* sums = scratch.sums + (size_t(panel) * num_rows + row) * kHeadPanel;
                for (int j = 0; j < kHeadPanel; j += kLanes) store(sums + j, load(sums + j) * shrink);
            }
        }
        for (int panel = 0; panel < panels; panel++) {
            const T* from = values + (size_t(panel) * num_packed + block) * kHeadPanel;
            for_tiles<kHeadVectors>(0, num_rows, [&](int row, int count) {
                multiply_tile<Kind, kHeadVectors>(scratch.weights + size_t(row) * kBlockKeys,
                                                  kBlockKeys, count, from, num_keys, scratch.tile);
                float* sums = scratch.sums + (size_t(panel) * num_rows + row) * kHeadPanel;
                for (int i = 0; i < count * kHeadPanel; i += kLanes)
                    store(sums + i, load(sums + i) + load(scratch.tile + i));
            });
        }
    }
    for (int row = 0; row < num_rows; row++) {
        T* to = out + (row / group) * out_stride + size_t(row % group) * dim;
        float inverse = 1.0f / scratch.total[row];
        for (int d = 0; d < dim; d++) {
            const float* sums =
                scratch.sums + (size_t(d / kHeadPanel) * num_rows + row) * kHeadPanel;
            put(to + d, sums[d % kHeadPanel] * inverse);
        }
    }
}

}  // namespace tokenbus
