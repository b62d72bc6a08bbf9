// Products of activations with packed weights: y = x W^T, sums in float.
//
// A packed matrix is a row of panels of kWidth outputs. A panel holds, for every kStep inputs, the
// kStep weights of each of its outputs side by side, so that one vector load feeds one product of
// kLanes outputs. Outputs past the last are zero.
#pragma once

#include <cstddef>

#include "nibbles.h"
#include "simd.h"
#include "workspace.h"

namespace tokenbus {

// Vectors in a panel of a linear. 3 leave registers for 8 rows, and few-row batches of small
// models get panels enough to share out evenly.
constexpr int kLinearVectors = 3;
// Vectors in a panel of attention: 64 lanes are a usual head and four pages of 16.
constexpr int kHeadVectors = 4;

constexpr int kPanel = kLinearVectors * kLanes;
constexpr int kHeadPanel = kHeadVectors * kLanes;

// Rows whose sums fit the registers beside a panel's vectors.
template <int NR>
constexpr int kTileRows = kLanes == 16 ? (NR == 3 ? 8 : 6) : (NR == 3 ? 4 : 3);

// Bytes that a row or two of products run ahead of the weights: memory is what they wait for.
constexpr int kPrefetchBytes = 4096;

// Weights are of the kind's own type, or of int8 and widened on the way.
template <class Kind, int NR, int MR, class W>
inline void multiply_rows(const typename Kind::Value* x, size_t stride, const W* w, int num_inputs,
                          float* out) {
    vf acc[MR][NR];
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NR; j++) acc[r][j] = vf{};
    constexpr int kLoad = kLanes * Kind::kStep;
    for (int k = 0; k < num_inputs; k += Kind::kStep, w += NR * kLoad) {
        decltype(Kind::weights(w)) loaded[NR];
        for (int j = 0; j < NR; j++) {
            loaded[j] = Kind::weights(w + j * kLoad);
            if (MR <= 4) __builtin_prefetch((const char*)(w + j * kLoad) + kPrefetchBytes);
        }
        for (int r = 0; r < MR; r++) {
            auto value = Kind::spread(x + r * stride + k);
            for (int j = 0; j < NR; j++) acc[r][j] = Kind::dot(acc[r][j], loaded[j], value);
        }
    }
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NR; j++) store(out + (r * NR + j) * kLanes, acc[r][j]);
}

// The same with weights of 4 bits.
template <class Kind, int NR, int MR>
inline void multiply_rows(const typename Kind::Value* x, size_t stride, NibblePanel<NR> w,
                          int num_inputs, float* out) {
    vf acc[MR][NR];
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NR; j++) acc[r][j] = vf{};
    for_input_pairs<Kind>(w, num_inputs, [&](int k, const auto& loaded, const uint8_t* at) {
        __builtin_prefetch(at + kPrefetchBytes);
        for (int r = 0; r < MR; r++) {
            for (int v = 0; v < NibbleGroup<Kind>::kVectors; v++) {
                auto value = Kind::spread(x + r * stride + k + v);
                for (int j = 0; j < NR; j++) acc[r][j] = Kind::dot(acc[r][j], loaded[j][v], value);
            }
        }
    });
    for (int r = 0; r < MR; r++)
        for (int j = 0; j < NR; j++) store(out + (r * NR + j) * kLanes, acc[r][j]);
}

// out: [num_rows, NR * kLanes]; num_rows <= kTileRows<NR>; x: rows `stride` values apart.
template <class Kind, int NR, class W>
inline void multiply_tile(const typename Kind::Value* x, size_t stride, int num_rows, W w,
                          int num_inputs, float* out) {
    switch (num_rows) {
        case 1: return multiply_rows<Kind, NR, 1>(x, stride, w, num_inputs, out);
        case 2: return multiply_rows<Kind, NR, 2>(x, stride, w, num_inputs, out);
        case 3: return multiply_rows<Kind, NR, 3>(x, stride, w, num_inputs, out);
    }
    if constexpr (kTileRows<NR> > 3) {
        if (num_rows == 4) return multiply_rows<Kind, NR, 4>(x, stride, w, num_inputs, out);
    }
    if constexpr (kTileRows<NR> > 4) {
        if (num_rows == 5) return multiply_rows<Kind, NR, 5>(x, stride, w, num_inputs, out);
        if (num_rows == 6) return multiply_rows<Kind, NR, 6>(x, stride, w, num_inputs, out);
    }
    if constexpr (kTileRows<NR> > 6) {
        if (num_rows == 7) return multiply_rows<Kind, NR, 7>(x, stride, w, num_inputs, out);
        if (num_rows == 8) return multiply_rows<Kind, NR, 8>(x, stride, w, num_inputs, out);
    }
}

// Call f(first, count) for tiles of nearly equal size that cover [begin, end).
template <int NR, class F>
TOKENBUS_INLINE void for_tiles(int begin, int end, F f) {
    int num_rows = end - begin;
    int num_tiles = (num_rows + kTileRows<NR> - 1) / kTileRows<NR>;
    for (int tile = 0; tile < num_tiles; tile++) {
        int first = int(int64_t(num_rows) * tile / num_tiles);
        int last = int(int64_t(num_rows) * (tile + 1) / num_tiles);
        f(begin + first, last - first);
    }
}

// How a weight is kept: in the model's type, or rounded and widened as it is multiplied.
enum WeightFormat : int32_t { kPlain = 0, kInt8 = 1, kInt4 = 2 };

// One linear: weight packed in panels of kPanel, bias [num_outputs] or null, scales [num_outputs]
// for int8; bias and scales are filled up to whole panels.
struct Linear {
    const void* weight;
    const float* bias;
    const float* scales;
    int32_t num_inputs;
    int32_t num_outputs;
    int32_t format;
};

inline int num_panels(const Linear& linear) { return (linear.num_outputs + kPanel - 1) / kPanel; }

// Inputs as they lie in a panel: a whole number of steps.
template <class Kind>
inline size_t padded(int num_inputs) {
    return size_t((num_inputs + Kind::kStep - 1) / Kind::kStep * Kind::kStep);
}

// Bytes of one panel.
template <class Kind>
inline size_t panel_bytes(WeightFormat format, int num_inputs) {
    if (format == kInt4) return NibblePanel<kLinearVectors>::size(num_inputs);
    const size_t size = kPanel * padded<Kind>(num_inputs);
    return format == kInt8 ? size : size * sizeof(typename Kind::Value);
}

template <class Kind>
inline const uint8_t* panel_start(const Linear& linear, int panel) {
    return static_cast<const uint8_t*>(linear.weight) +
           panel * panel_bytes<Kind>(WeightFormat(linear.format), linear.num_inputs);
}

// A panel's weights in the kind's type. Rounded ones are widened into `wide`, [kPanel * inputs],
// once for all rows: read from memory they are half of bfloat16, and the copy does not leave L2.
template <class Kind>
inline const typename Kind::Value* panel_of(const Linear& linear, int panel,
                                            typename Kind::Value* wide) {
    const uint8_t* from = panel_start<Kind>(linear, panel);
    if (linear.format == kInt8) {
        const int8_t* narrow = reinterpret_cast<const int8_t*>(from);
        const size_t size = kPanel * padded<Kind>(linear.num_inputs);
        for (size_t i = 0; i < size; i += kLanes) {
            if (i % kCacheLine == 0) __builtin_prefetch(narrow + i + kPrefetchBytes);
            store(wide + i, load(narrow + i));
        }
        return wide;
    }
    if (linear.format == kInt4) {
        constexpr int kLoad = kLanes * Kind::kStep;
        auto keep = [&](int k, const auto& loaded, const uint8_t* at) {
            __builtin_prefetch(at + kPrefetchBytes);
            for (int v = 0; v < NibbleGroup<Kind>::kVectors; v++)
                for (int j = 0; j < kLinearVectors; j++)
                    std::memcpy(wide + size_t(k + v) * kPanel + j * kLoad, &loaded[j][v],
                                sizeof loaded[j][v]);
        };
        for_input_pairs<Kind>(NibblePanel<kLinearVectors>{from}, linear.num_inputs, keep);
        return wide;
    }
    return reinterpret_cast<const typename Kind::Value*>(from);
}

// Copy a row-major [num_outputs, num_inputs] matrix of T into panels of NR vectors.
template <class Kind, int NR, class T>
inline void pack_panels(const T* weight, size_t stride, int num_outputs, int num_inputs,
                        int first_panel, int last_panel, T* to) {
    constexpr int kWidth = NR * kLanes, kStep = Kind::kStep;
    size_t depth = padded<Kind>(num_inputs);
    for (int panel = first_panel; panel < last_panel; panel++) {
        auto out = to + size_t(panel) * kWidth * depth;
        for (int lane = 0; lane < kWidth; lane++) {
            int row = panel * kWidth + lane;
            for (size_t k = 0; k < depth; k++) {
                bool inside = row < num_outputs && k < size_t(num_inputs);
                out[(k / kStep * kWidth + lane) * kStep + k % kStep] =
                    inside ? weight[row * stride + k] : T(0);
            }
        }
    }
}

}  // namespace tokenbus
