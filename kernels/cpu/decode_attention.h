// Attention of one query token over pages that are read where they lie.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "pages.h"
#include "workspace.h"

namespace tokenbus {

// Queries of a group whose sums are held in registers at once.
constexpr int kGroupQueries = 4;
// Keys between a fetch and its use: pages lie anywhere, so no processor guesses the next one.
constexpr int kKeysAhead = 48;
// Keys whose products are summed across lanes together.
constexpr int kKeyTile = 4;

constexpr int kLineFloats = kCacheLine / sizeof(float);

template <class T>
TOKENBUS_INLINE void prefetch(const T* from, size_t count) {
    for (size_t i = 0; i < count; i += kCacheLine / sizeof(T)) __builtin_prefetch(from + i);
}

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
                       int num_keys, int dim, int c, float* out, size_t out_stride) {
    vf acc[NG][NV];
    for (int g = 0; g < NG; g++)
        for (int j = 0; j < NV; j++) acc[g][j] = load(out + g * out_stride + c + j * kLanes);
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
        for (int j = 0; j < NV; j++) store(out + g * out_stride + c + j * kLanes, acc[g][j]);
}

template <class T, int NG>
inline void add_page(const float* weights, size_t stride, const T* values, const T* next,
                     int num_keys, int dim, float* out, size_t out_stride) {
    int c = 0;
    for (; c + 4 * kLanes <= dim; c += 4 * kLanes)
        add_values<T, NG, 4>(weights, stride, values, next, num_keys, dim, c, out, out_stride);
    for (; c + kLanes <= dim; c += kLanes)
        add_values<T, NG, 1>(weights, stride, values, next, num_keys, dim, c, out, out_stride);
    for (; c < dim; c++)
        for (int g = 0; g < NG; g++)
            for (int key = 0; key < num_keys; key++)
                out[g * out_stride + c] += weights[g * stride + key] * to_float(values[key * dim + c]);
}

// Turn raw scores of `count` keys into weights; leaves the largest score and the weights' sum.
inline void softmax(float* scores, int count, const AttentionShape& shape, float* most_score,
                    float* total_weight) {
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
    *most_score = top[0];
    *total_weight = sum(total);
}

// What query heads found in a part of their keys: per head the sum of values weighted by
// exp(score - most), [D], the largest score and the sum of weights. Heads begin on lines of the
// cache, since threads write neighbours at the same time.
struct Partial {
    float* sums;
    int dim;

    static size_t stride(int dim) {
        return (size_t(dim) + 2 + kLineFloats - 1) / kLineFloats * kLineFloats;
    }

    float& most() const { return sums[dim]; }
    float& total() const { return sums[dim + 1]; }
    Partial head(size_t idx) const { return {sums + idx * stride(dim), dim}; }
};

// Floats that `attend_part` needs for so many keys.
inline size_t score_scratch(int num_keys) {
    return size_t(kGroupQueries) * (size_t(num_keys) + kLanes);
}

// Attend NG queries of one KV head over keys [first, end); q: [NG, D].
template <class Kind, int NG>
void attend_queries(const typename Kind::Value* q, const Pages<typename Kind::Value>& keys,
                    const Pages<typename Kind::Value>& values, const int32_t* table, int first,
                    int end, int kv_head, float* scores, const Partial& out) {
    const AttentionShape& shape = keys.shape;
    int dim = shape.head_dim, size = shape.page_size, count = end - first;
    size_t stride = size_t(count + kLanes - 1) / kLanes * kLanes;
    const int last = (end - 1) / size, ahead = std::max(1, kKeysAhead / size);
    // Page by page: f(keys seen before, page, offset in it, keys in it, the page to fetch).
    auto for_pages = [&](auto fetched, auto f) {
        for (int key = first; key < end;) {
            const int page = key / size, num = std::min(size - key % size, end - key);
            f(key - first, table[page], key % size, num, fetched(page + ahead));
            key += num;
        }
    };
    // What comes after the last page of keys is the first one of values.
    auto next_values = [&](int page) {
        return values.row(table[std::min(page, last)], kv_head, 0);
    };
    auto next_keys = [&](int page) {
        if (page <= last) return keys.row(table[page], kv_head, 0);
        return next_values(first / size + page - last - 1);
    };
    for (int page = first / size; page < std::min(first / size + ahead, last + 1); page++)
        prefetch(keys.row(table[page], kv_head, 0), size_t(size) * dim);
    for_pages(next_keys, [&](int done, int page, int offset, int num, auto next) {
        score_keys<Kind, NG>(q, keys.row(page, kv_head, offset), next, num, dim, scores + done,
                             stride);
    });
    for (int g = 0; g < NG; g++) {
        const Partial found = out.head(g);
        softmax(scores + g * stride, count, shape, &found.most(), &found.total());
        std::fill_n(found.sums, dim, 0.0f);
    }
    for_pages(next_values, [&](int done, int page, int offset, int num, auto next) {
        add_page<typename Kind::Value, NG>(scores + done, stride,
                                           values.row(page, kv_head, offset), next, num, dim,
                                           out.sums, Partial::stride(dim));
    });
}

// Attend the query heads of one KV head over keys [first, end); q: [Hq / Hkv, D].
template <class Kind>
void attend_part(const typename Kind::Value* q, const Pages<typename Kind::Value>& keys,
                 const Pages<typename Kind::Value>& values, const int32_t* table, int first,
                 int end, int kv_head, float* scores, const Partial& out) {
    int group = keys.shape.num_heads / keys.shape.num_kv_heads, dim = keys.shape.head_dim;
    for (int g = 0; g < group; g += kGroupQueries) {
        auto from = q + g * dim;
        const Partial to = out.head(g);
        auto attend = [&](auto count) {
            attend_queries<Kind, decltype(count)::value>(from, keys, values, table, first, end,
                                                         kv_head, scores, to);
        };
        switch (std::min(group - g, kGroupQueries)) {
            case 1: attend(std::integral_constant<int, 1>{}); break;
            case 2: attend(std::integral_constant<int, 2>{}); break;
            case 3: attend(std::integral_constant<int, 3>{}); break;
            default: attend(std::integral_constant<int, kGroupQueries>{});
        }
    }
}

// Write what a head found in all of its keys; out: [D].
template <class T>
TOKENBUS_INLINE void finish_head(const Partial& found, T* out) {
    const float inverse = 1.0f / found.total();
    int d = 0;
    for (; d + kLanes <= found.dim; d += kLanes) store(out + d, load(found.sums + d) * inverse);
    for (; d < found.dim; d++) put(out + d, found.sums[d] * inverse);
}

// Add what a head found in other keys; both end on the larger of their maxima.
TOKENBUS_INLINE void merge_head(const Partial& into, const Partial& other) {
    const float most = std::max(into.most(), other.most());
    const float keep = std::exp(into.most() - most), add = std::exp(other.most() - most);
    int d = 0;
    for (; d + kLanes <= into.dim; d += kLanes)
        store(into.sums + d, load(into.sums + d) * keep + load(other.sums + d) * add);
    for (; d < into.dim; d++) into.sums[d] = into.sums[d] * keep + other.sums[d] * add;
    into.total() = into.total() * keep + other.total() * add;
    into.most() = most;
}

}  // namespace tokenbus
