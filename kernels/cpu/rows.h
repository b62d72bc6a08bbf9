// What is done to one token's vector: norms, rotation, gates.
#pragma once

#include "simd.h"

namespace tokenbus {

enum Activation : int32_t { kSilu = 0, kGeluTanh = 1, kGelu = 2 };

template <class T>
TOKENBUS_INLINE float inverse_rms(const T* x, int size, float eps) {
    vf squares{};
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
        vf value = load(x + i);
        squares += value * value;
    }
    float total = sum(squares);
    for (; i < size; i++) total += to_float(x[i]) * to_float(x[i]);
    return 1.0f / std::sqrt(total / float(size) + eps);
}

// out = x / rms(x) * weight; out may be x.
template <class T, class Out>
inline void rms_norm(const T* x, const float* weight, int size, float eps, Out* out) {
    float scale = inverse_rms(x, size, eps);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < size; i++) put(out + i, to_float(x[i]) * scale * weight[i]);
}

// out = x, rounded to out's type.
template <class Out>
inline void round_row(const float* x, int size, Out* out) {
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) store(out + i, load(x + i));
    for (; i < size; i++) put(out + i, x[i]);
}

// hidden += branch * scale, the branch normalised before if it has a weight of its own.
inline void add_branch(float* hidden, float* branch, const float* weight, int size, float eps,
                       float scale) {
    if (weight != nullptr) rms_norm(branch, weight, size, eps, branch);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes)
        store(hidden + i, load(hidden + i) + load(branch + i) * scale);
    for (; i < size; i++) hidden[i] += branch[i] * scale;
}

// Rotate the first `size` values of a head; cos, sin: [size] of the token's position.
template <class T>
inline void rotate(T* x, const float* cos, const float* sin, int size) {
    int half = size / 2, i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        vf first = load(x + i), second = load(x + half + i);
        store(x + i, first * load(cos + i) - second * load(sin + i));
        store(x + half + i, second * load(cos + half + i) + first * load(sin + half + i));
    }
    for (; i < half; i++) {
        float first = to_float(x[i]), second = to_float(x[half + i]);
        put(x + i, first * cos[i] - second * sin[i]);
        put(x + half + i, second * cos[half + i] + first * sin[half + i]);
    }
}

TOKENBUS_INLINE vf activate(vf x, Activation kind) {
    if (kind == kSilu) return x / (1.0f + exp(-x));
    if (kind == kGeluTanh) {
        vf inner = 0.7978845608f * (x + 0.044715f * x * x * x);
        return 0.5f * x * (1.0f + tanh(inner));
    }
    vf out;
    for (int i = 0; i < kLanes; i++) out[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
    return out;
}

// out = activation(gate) * up; the inputs hold whole vectors past `size`.
template <class T>
inline void gate(const float* gates, const float* ups, int size, Activation kind, T* out) {
    int i = 0;
    for (; i + kLanes <= size; i += kLanes)
        store(out + i, activate(load(gates + i), kind) * load(ups + i));
    if (i == size) return;
    T rest[kLanes];
    store(rest, activate(load(gates + i), kind) * load(ups + i));
    for (int j = 0; i < size; i++, j++) out[i] = rest[j];
}

}  // namespace tokenbus
