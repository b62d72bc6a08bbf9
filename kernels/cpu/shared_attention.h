// Attention of one query token each of several sequences over pages that all of them hold: every
// key and value is loaded once for all queries. Queries lie across the lanes, so keys are read
// where they lie and no sum goes across lanes.
#pragma once

#include <algorithm>
#include <limits>

#include "decode_attention.h"
#include "multiply.h"

namespace tokenbus {

// Query heads that are attended together at most: their sums stay in L2.
constexpr int kSharedRows = 4 * kPanel;
// Keys between two rescalings: with scores and weights of a panel of queries they fit L1.
constexpr int kSharedKeys = 64;

// out[r] += sum over steps of x[r] * w, or = unless `add`; w: [num_steps, NV * kLanes, kStep],
// out: [MR, NV * kLanes].
template <class Kind, int NV, int MR>
TOKENBUS_INLINE void multiply_columns(const typename Kind::Value* x, size_t row_stride,
                                      size_t step_stride, const typename Kind::Value* w,
                                      int num_steps, bool add, float* out) {
    constexpr int kLoad = kLanes * Kind::kStep;
    vf acc[MR][NV];
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++) acc[r][j] = add ? load(out + (r * NV + j) * kLanes) : vf{};
    for (int step = 0; step < num_steps; step++, x += step_stride, w += NV * kLoad) {
        decltype(Kind::weights(w)) loaded[NV];
        for (int j = 0; j < NV; j++) loaded[j] = Kind::weights(w + j * kLoad);
        for (int r = 0; r < MR; r++) {
            auto value = Kind::spread(x + r * row_stride);
            for (int j = 0; j < NV; j++) acc[r][j] = Kind::dot(acc[r][j], loaded[j], value);
        }
    }
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NV; j++) store(out + (r * NV + j) * kLanes, acc[r][j]);
}

// The same for any number of rows.
template <class Kind, int NV>
inline void multiply_all_columns(const typename Kind::Value* x, int num_rows, size_t row_stride,
                                 size_t step_stride, const typename Kind::Value* w, int num_steps,
                                 bool add, float* out) {
    constexpr int kTile = kTileRows<kLinearVectors>;
    int r = 0;
    for (; r + kTile <= num_rows; r += kTile)
        multiply_columns<Kind, NV, kTile>(x + r * row_stride, row_stride, step_stride, w,
                                          num_steps, add, out + r * NV * kLanes);
    for (; r < num_rows; r++)
        multiply_columns<Kind, NV, 1>(x + r * row_stride, row_stride, step_stride, w, num_steps,
                                      add, out + r * NV * kLanes);
}

// One thread's buffers; a panel is up to kPanel query heads, filled up to whole vectors.
template <class T>
struct SharedScratch {
    T* queries;     // panels of [D, rows], kStep neighbours along D side by side
    T* values;      // [keys, D], kStep neighbours along keys side by side
    T* weights;     // [keys, rows] of one panel, kStep neighbours along keys side by side
    float* scores;  // [keys, rows] of one panel
    float* sums;    // panels of [D, rows]
    float* most;    // [kSharedRows], largest score so far
    float* total;   // [kSharedRows], sum of weights so far
};

// Query heads of several sequences against the keys and values of one KV head.
template <class Kind>
class SharedQueries {
   public:
    using T = typename Kind::Value;
    static constexpr int kStep = Kind::kStep;

    // `query(row)` is where the query of a row begins, for rows below num_rows <= kSharedRows.
    template <class F>
    SharedQueries(const AttentionShape& shape, const SharedScratch<T>& scratch, int num_rows,
                  F query)
        : shape_(shape), scratch_(scratch), num_rows_(num_rows) {
        const int dim = shape.head_dim;
        for_panels([&](int first, int width) {
            T* to = scratch_.queries + size_t(first) * dim;
            for (int lane = 0; lane < width; lane++) {
                const int row = first + lane;
                const T* from = row < num_rows ? query(row) : nullptr;
                for (int d = 0; d < dim; d += kStep) {
                    T* at = to + size_t(d) * width + lane * kStep;
                    for (int s = 0; s < kStep; s++) at[s] = from == nullptr ? T(0) : from[d + s];
                }
            }
            std::fill_n(scratch_.sums + size_t(first) * dim, size_t(width) * dim, 0.0f);
        });
        std::fill_n(scratch_.most, kSharedRows, -std::numeric_limits<float>::infinity());
        std::fill_n(scratch_.total, kSharedRows, 0.0f);
    }

    // Attend keys [first, end) of the pages in `table`; they are visible to all queries.
    void attend(const Pages<T>& keys, const Pages<T>& values, const int32_t* table, int first,
                int end, int kv_head) {
        for (int key = first; key < end; key += kSharedKeys) {
            const int num_keys = std::min(kSharedKeys, end - key);
            lay_values(values, table, key, num_keys, kv_head);
            for (int next = key + num_keys; next < std::min(key + 2 * kSharedKeys, end); next++) {
                const int page = table[next / shape_.page_size], offset = next % shape_.page_size;
                prefetch(keys.row(page, kv_head, offset), shape_.head_dim);
                prefetch(values.row(page, kv_head, offset), shape_.head_dim);
            }
            for_panels([&](int row, int width) {
                auto attend_panel = [&](auto vectors) {
                    constexpr int NV = decltype(vectors)::value;
                    score<NV>(row, keys, table, key, num_keys, kv_head);
                    weigh<NV>(row, num_keys);
                    multiply_all_columns<Kind, NV>(
                        scratch_.values, shape_.head_dim, kStep, size_t(shape_.head_dim) * kStep,
                        scratch_.weights, (num_keys + kStep - 1) / kStep, true,
                        scratch_.sums + size_t(row) * shape_.head_dim);
                };
                switch (width / kLanes) {
                    case 1: attend_panel(std::integral_constant<int, 1>{}); break;
                    case 2: attend_panel(std::integral_constant<int, 2>{}); break;
                    default: attend_panel(std::integral_constant<int, kLinearVectors>{});
                }
            });
        }
    }

    // Leave what a row found so far.
    void leave(int row, const Partial& to) const {
        const int dim = shape_.head_dim, panel = row / kPanel * kPanel;
        const int width = panel_width(panel);
        const float* from = scratch_.sums + size_t(panel) * dim + row - panel;
        for (int d = 0; d < dim; d++) to.sums[d] = from[size_t(d) * width];
        to.most() = scratch_.most[row];
        to.total() = scratch_.total[row];
    }

   private:
    int panel_width(int first) const {
        return std::min(kPanel, (num_rows_ - first + kLanes - 1) / kLanes * kLanes);
    }

    template <class F>
    void for_panels(F f) const {
        for (int first = 0; first < num_rows_; first += kPanel) f(first, panel_width(first));
    }

    void lay_values(const Pages<T>& values, const int32_t* table, int first, int num_keys,
                    int kv_head) {
        const int dim = shape_.head_dim, size = shape_.page_size;
        for (int key = 0; key < num_keys; key += kStep) {
            const T* rows[kStep];
            for (int s = 0; s < kStep; s++) {
                // Past the end the last value meets a weight of zero.
                const int at = first + std::min(key + s, num_keys - 1);
                rows[s] = values.row(table[at / size], kv_head, at % size);
            }
            Kind::join(rows, dim, scratch_.values + size_t(key) * dim);
        }
    }

    template <int NV>
    void score(int row, const Pages<T>& keys, const int32_t* table, int first, int num_keys,
               int kv_head) {
        const int dim = shape_.head_dim, size = shape_.page_size;
        for (int key = 0; key < num_keys;) {
            const int page = (first + key) / size, offset = (first + key) % size;
            const int num = std::min(size - offset, num_keys - key);
            multiply_all_columns<Kind, NV>(keys.row(table[page], kv_head, offset), num, dim, kStep,
                                           scratch_.queries + size_t(row) * dim, dim / kStep, false,
                                           scratch_.scores + key * NV * kLanes);
            key += num;
        }
    }

    // Turn the scores of a panel into weights, and shrink its earlier sums.
    template <int NV>
    void weigh(int row, int num_keys) {
        constexpr int kWidth = NV * kLanes;
        for (int j = 0; j < kWidth; j += kLanes) {
            float* scores = scratch_.scores + j;
            const vf before = load(scratch_.most + row + j);
            vf now = before, added{};
            for (int key = 0; key < num_keys; key++) {
                vf score = scaled(load(scores + key * kWidth), shape_);
                store(scores + key * kWidth, score);
                now = max(now, score);
            }
            for (int key = 0; key < num_keys; key += kStep) {
                vf weights[kStep];
                for (int s = 0; s < kStep; s++) {
                    const bool inside = key + s < num_keys;
                    weights[s] = inside ? exp(load(scores + (key + s) * kWidth) - now) : vf{};
                    added += weights[s];
                }
                Kind::store_step(scratch_.weights + key * kWidth + j * kStep, weights);
            }
            const vf shrink = exp(before - now);
            store(scratch_.most + row + j, now);
            store(scratch_.total + row + j, load(scratch_.total + row + j) * shrink + added);
            if (sum(shrink) == kLanes) continue;
            for (int d = 0; d < shape_.head_dim; d++) {
                float* to = scratch_.sums + size_t(row) * shape_.head_dim + d * kWidth + j;
                store(to, load(to) * shrink);
            }
        }
    }

    const AttentionShape& shape_;
    SharedScratch<T> scratch_;
    int num_rows_;
};

}  // namespace tokenbus
