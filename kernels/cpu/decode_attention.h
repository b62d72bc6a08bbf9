// Attention of one query token per sequence over pages that are read where they lie.
#pragma once

#include <algorithm>
#include <limits>

#include "pages.h"

namespace tokenbus {

// Queries of a group whose sums are held in registers at once.
constexpr int kGroupQueries = 4;
// Keys whose products are summed across lanes together.
constexpr int kKeyTile = 4;

// Values [c, c + width) of a row of `dim`, zero past its end.
template <class Kind>
TOKENBUS_INLINE auto row_chunk(const typename Kind::Value* row, int c, int dim) {
    constexpr int kWidth = kLanes * Kind::kStep;
    if (c + kWidth <= dim) return Kind::weights(row + c);
    typename Kind::Value rest[kWidth] = {};
    std::memcpy(rest, row + c, size_t(dim - c) * sizeof *row);
    return Kind::weights(rest);
}

// Sums over the lanes of four vectors.
TOKENBUS_INLINE void sum4(const vf (&x)[4], float* out) {
#if defined(__AVX512F__)
    auto a = (__m512)x[0], b = (__m512)x[1], c = (__m512)x[2], d = (__m512)x[3];
    auto ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    auto cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    auto all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    auto half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) out[i] = sum(x[i]);
#endif
}

// scores[g][key] = q[g] · keys[key] for keys of one page; rows of q and of keys `dim` apart.
template <class Kind, int NG>
inline void score_keys(const typename Kind::Value* q, const typename Kind::Value* keys,
                       const typename Kind::Value* next, int num_keys, int dim, float* scores,
                       size_t stride) {
    constexpr int kWidth = kLanes * Kind::kStep;
    for (int key = 0; key < num_keys; key += kKeyTile) {
        int num = std::min(kKeyTile, num_keys - key);
        vf acc[NG][kKeyTile] = {};
        for (int c = 0; c < dim; c += kWidth) {
            decltype(Kind::weights(q)) queries[NG];
            for (int g = 0; g < NG; g++) queries[g] = row_chunk<Kind>(q + g * dim, c, dim);
            for (int i = 0; i < kKeyTile; i++) {
                // Past the end the last key is scored again; its score is not stored.
                int row = key + (i < num ? i : num - 1);
                auto loaded = row_chunk<Kind>(keys + row * dim, c, dim);
                __builtin_prefetch(next + row * dim + c);
                for (int g = 0; g < NG; g++) acc[g][i] = Kind::dot(acc[g][i], loaded, queries[g]);
            }
        }
        for (int g = 0; g < NG; g++) {
            float sums[kKeyTile];
            sum4(acc[g], sums);
            for (int i = 0; i < num; i++) scores[g * stride + key + i] = sums[i];
        }
    }
}

// out[g] += weights[g][key] * values[key] over keys of one page, NV vectors of the head from c on.
template <class T, int NG, int NV>
inline void add_values(const float* weights, size_t stride, const T* values, const T* next,
                       int num_keys, int dim, int c, float* out) {
    vf acc[NG][NV];
    for (int g = 0; g < NG; g++)
        for (int j = 0; j < NV; j++) acc[g][j] = load(out + g * dim + c + j * kLanes);
    for (int key = 0; key < num_keys; key++) {
        const T* row = values + key * dim + c;
        for (int j = 0; j < NV; j++) {
            // A line of 64 bytes holds one vector of floats or two of bfloat16.
            if (j % (4 / sizeof(T)) == 0) __builtin_prefetch(next + key * dim + c + j * kLanes);
            vf value = load(row + j * kLanes);
            for (int g = 0; g < NG; g++) acc[g][j] += weights[g * stride + key] * value;
        }
    }
    for (int g = 0; g < NG; g++)
        for (int j = 0; j < NV; j++) store(out + g * dim + c + j * kLanes, acc[g][j]);
}

template <class T, int NG>
inline void add_page(const float* weights, size_t stride, const T* values, const T* next,
                     int num_keys, int dim, float* out) {
    int c = 0;
    for (; c + 4 * kLanes <= dim; c += 4 * kLanes)
        add_values<T, NG, 4>(weights, stride, values, next, num_keys, dim, c, out);
    for (; c + kLanes <= dim; c += kLanes)
        add_values<T, NG, 1>(weights, stride, values, next, num_keys, dim, c, out);
    for (; c < dim; c++)
        for (int g = 0; g < NG; g++)
            for (int key = 0; key < num_keys; key++)
                out[g * dim + c] += weights[g * stride + key] * to_float(values[key * dim + c]);
}

// Turn raw scores of `count` keys into weights; returns one over their sum.
inline float softmax(float* scores, int count, const AttentionShape& shape) {
    int padded = (count + kLanes - 1) / kLanes * kLanes;
    for (int i = count; i < padded; i++) scores[i] = 0.0f;
    vf most = splat(-std::numeric_limits<float>::infinity());
    for (int i = 0; i < padded; i += kLanes) store(scores + i, scaled(load(scores + i), shape));
    for (int i = count; i < padded; i++) scores[i] = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < padded; i += kLanes) most = max(most, load(scores + i));
    vf top = splat(largest(most)), total{};
    for (int i = 0; i < padded; i += kLanes) {
        vf weight = exp(load(scores + i) - top);
        store(scores + i, weight);
        total += weight;
    }
    return 1.0f / sum(total);
}

// Floats that `attend_one` needs for a context.
inline size_t decode_scratch(const AttentionShape& shape, int context_len) {
    return size_t(kGroupQueries) * (size_t(context_len) + kLanes + shape.head_dim);
}

// Attend NG queries of one KV head; q, out: [NG, D], scratch: decode_scratch floats.
template <class Kind, int NG>
void attend_queries(const typename Kind::Value* q, const Pages<typename Kind::Value>& keys,
                    const Pages<typename Kind::Value>& values, const int32_t* table,
                    int context_len, int kv_head, float* scratch, typename Kind::Value* out) {
    const AttentionShape& shape = keys.shape;
    int dim = shape.head_dim, size = shape.page_size;
    int first = first_visible(shape, context_len - 1), count = context_len - first;
    size_t stride = size_t(count + kLanes - 1) / kLanes * kLanes;
    float* sums = scratch + NG * stride;
    // Page by page: f(keys seen before, page, offset in it, keys in it, the page after).
    auto for_pages = [&](auto f) {
        for (int key = first; key < context_len;) {
            int page = key / size, offset = key % size;
            int num = std::min(size - offset, context_len - key);
            int next = key + num < context_len ? page + 1 : page;
            f(key - first, table[page], offset, num, table[next]);
            key += num;
        }
    };
    for_pages([&](int done, int page, int offset, int num, int next) {
        score_keys<Kind, NG>(q, keys.row(page, kv_head, offset), keys.row(next, kv_head, 0), num,
                             dim, scratch + done, stride);
    });
    float inverse[NG];
    for (int g = 0; g < NG; g++) inverse[g] = softmax(scratch + g * stride, count, shape);
    std::fill(sums, sums + NG * dim, 0.0f);
    for_pages([&](int done, int page, int offset, int num, int next) {
        add_page<typename Kind::Value, NG>(scratch + done, stride,
                                           values.row(page, kv_head, offset),
                                           values.row(next, kv_head, 0), num, dim, sums);
    });
    for (int g = 0; g < NG; g++)
        for (int d = 0; d < dim; d++) put(out + g * dim + d, sums[g * dim + d] * inverse[g]);
}

// Attend the query heads of one KV head of one sequence; q, out: [Hq / Hkv, D].
template <class Kind>
void attend_one(const typename Kind::Value* q, const Pages<typename Kind::Value>& keys,
                const Pages<typename Kind::Value>& values, const int32_t* table, int context_len,
                int kv_head, float* scratch, typename Kind::Value* out) {
    int group = keys.shape.num_heads / keys.shape.num_kv_heads, dim = keys.shape.head_dim;
    for (int g = 0; g < group;) {
        int left = group - g;
        auto from = q + g * dim;
        auto to = out + g * dim;
        if (left >= 4) {
            attend_queries<Kind, 4>(from, keys, values, table, context_len, kv_head, scratch, to);
        } else if (left == 3) {
            attend_queries<Kind, 3>(from, keys, values, table, context_len, kv_head, scratch, to);
        } else if (left == 2) {
            attend_queries<Kind, 2>(from, keys, values, table, context_len, kv_head, scratch, to);
        } else {
            attend_queries<Kind, 1>(from, keys, values, table, context_len, kv_head, scratch, to);
        }
        g += std::min(left, kGroupQueries);
    }
}

}  // namespace tokenbus
