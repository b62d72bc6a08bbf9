// What a decoder consists of, and the product of its rows with one panel of a linear.
#pragma once

#include <algorithm>

#include "multiply.h"
#include "pages.h"

namespace tokenbus {

// Norms are [H] or null; q_norm, k_norm: [norm_size], the head or all heads side by side.
struct Layer {
    Linear qkv;
    Linear o;
    Linear gate_up;  // panels of gate and up alternate, each half padded to whole panels
    Linear down;
    const float* pre_attention_norm;
    const float* post_attention_norm;
    const float* pre_mlp_norm;
    const float* post_mlp_norm;
    const float* q_norm;
    const float* k_norm;
    const float* cos;  // [positions, rot_dim], null without rotation
    const float* sin;
    void* k_pages;
    void* v_pages;
    AttentionShape shape;
    int32_t rot_dim;
    int32_t q_norm_size;
    int32_t k_norm_size;
};

struct Model {
    const Layer* layers;
    int32_t num_layers;
    int32_t hidden_size;
    int32_t inner_size;
    int32_t activation;
    float norm_eps;
    float residual_scale;
};

// Multiply rows by one panel: sink(row, first output, number of outputs, sums with bias).
template <class Kind, class Sink>
TOKENBUS_INLINE void linear_panel(const Linear& linear, const typename Kind::Value* x, size_t stride,
                                  int num_rows, int panel, typename Kind::Value* wide, Sink sink) {
    alignas(kCacheLine) float tile[kTileRows<kLinearVectors> * kPanel];
    // A single tile of rows widens as it multiplies, while the next weights are on their way.
    const bool widens = num_rows <= kTileRows<kLinearVectors>;
    const uint8_t* start = panel_start<Kind>(linear, panel);
    const auto* weight = widens ? nullptr : panel_of<Kind>(linear, panel, wide);
    int column = panel * kPanel, width = std::min(kPanel, linear.num_outputs - column);
    for_tiles<kLinearVectors>(0, num_rows, [&](int row, int count) {
        auto multiply = [&](auto from) {
            multiply_tile<Kind, kLinearVectors>(x + row * stride, stride, count, from,
                                                linear.num_inputs, tile);
        };
        if (widens && linear.format == kInt4) {
            multiply(NibblePanel<kLinearVectors>{start});
        } else if (widens && linear.format == kInt8) {
            multiply(reinterpret_cast<const int8_t*>(start));
        } else {
            multiply(widens ? reinterpret_cast<const typename Kind::Value*>(start) : weight);
        }
        for (int r = 0; r < count; r++) {
            float* sums = tile + r * kPanel;
            if (linear.scales != nullptr)
                for (int j = 0; j < kPanel; j += kLanes)
                    store(sums + j, load(sums + j) * load(linear.scales + column + j));
            if (linear.bias != nullptr)
                for (int j = 0; j < kPanel; j += kLanes)
                    store(sums + j, load(sums + j) + load(linear.bias + column + j));
            sink(row + r, column, width, sums);
        }
    });
}

template <class T>
TOKENBUS_INLINE void store_row(T* to, const float* from, int count) {
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    for (; i < count; i++) put(to + i, from[i]);
}

}  // namespace tokenbus
