// Vectors of float and bfloat16 on whatever the compiler's target has: AVX-512 with or without
// bfloat16 products, AVX2, NEON. Written with the vector types of GCC and Clang.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace tokenbus {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

using vf = float __attribute__((vector_size(kLanes * 4)));
using vu = uint32_t __attribute__((vector_size(kLanes * 4)));
using vi = int32_t __attribute__((vector_size(kLanes * 4)));
using vb = int8_t __attribute__((vector_size(kLanes)));
using vs = int16_t __attribute__((vector_size(kLanes * 2)));
using vh = uint16_t __attribute__((vector_size(kLanes * 2)));

using bf16 = uint16_t;

#define TOKENBUS_INLINE inline __attribute__((always_inline))

TOKENBUS_INLINE vf splat(float x) { return x - vf{}; }

TOKENBUS_INLINE vf load(const float* x) {
    vf value;
    std::memcpy(&value, x, sizeof value);
    return value;
}

TOKENBUS_INLINE void store(float* to, vf value) { std::memcpy(to, &value, sizeof value); }

TOKENBUS_INLINE vf load(const bf16* x) {
    vh half;
    std::memcpy(&half, x, sizeof half);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}

// To nearest even; NaN stays NaN.
TOKENBUS_INLINE void store(bf16* to, vf value) {
#if defined(__AVX512BF16__)
    auto half = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &half, sizeof half);
#else
    vu bits = (vu)value;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu nan = (vu)(value != value);
    vh half = __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), vh);
    std::memcpy(to, &half, sizeof half);
#endif
}

TOKENBUS_INLINE vf load(const int8_t* x) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x)));
#else
    // By way of 16 bits: compilers take a wider step value by value.
    vb bytes;
    std::memcpy(&bytes, x, sizeof bytes);
    vs shorts = __builtin_convertvector(bytes, vs);
    return __builtin_convertvector(__builtin_convertvector(shorts, vi), vf);
#endif
}

TOKENBUS_INLINE float to_float(float x) { return x; }

TOKENBUS_INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

TOKENBUS_INLINE void put(float* to, float x) { *to = x; }

TOKENBUS_INLINE void put(bf16* to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    *to = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

TOKENBUS_INLINE float sum(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float total = 0;
    for (int i = 0; i < kLanes; i++) total += x[i];
    return total;
#endif
}

TOKENBUS_INLINE float largest(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float most = x[0];
    for (int i = 1; i < kLanes; i++) most = x[i] > most ? x[i] : most;
    return most;
#endif
}

TOKENBUS_INLINE vf max(vf a, vf b) { return a > b ? a : b; }

// e^x to 2e-7 relative; below -87, where float ends, about 1e-38.
TOKENBUS_INLINE vf exp(vf x) {
    x = x < splat(-87.0f) ? splat(-87.0f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vf whole = x * 1.44269504f + magic;
    vi exponent = (vi)whole << 23;
    whole -= magic;
    vf r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = splat(1.9875691e-4f);
    p = p * r + 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666665e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return (vf)((vi)p + exponent);
}

TOKENBUS_INLINE vf tanh(vf x) { return 1.0f - 2.0f / (exp(x * 2.0f) + 1.0f); }

// What a multiplication works in: values, and how many neighbours along the sum share a lane.
struct Float {
    using Value = float;
    static constexpr int kStep = 1;

    static TOKENBUS_INLINE vf weights(const float* w) { return load(w); }
    static TOKENBUS_INLINE vf weights(const int8_t* w) { return load(w); }
    static TOKENBUS_INLINE vf spread(const float* x) { return splat(*x); }
    static TOKENBUS_INLINE vf dot(vf acc, vf w, vf x) { return acc + w * x; }
    static TOKENBUS_INLINE void store_step(float* to, const vf (&step)[1]) { store(to, step[0]); }
    static TOKENBUS_INLINE void join(const float* const (&rows)[1], int size, float* to) {
        std::memcpy(to, rows[0], size * sizeof(float));
    }
};

struct Bfloat {
    using Value = bf16;
    static constexpr int kStep = 2;

    static TOKENBUS_INLINE vu weights(const bf16* w) {
        vu value;
        std::memcpy(&value, w, sizeof value);
        return value;
    }
    static TOKENBUS_INLINE vu weights(const int8_t* w) {
#if defined(__AVX512BF16__)
        return (vu)_mm512_cvtne2ps_pbh((__m512)load(w + kLanes), (__m512)load(w));
#else
        bf16 wide[2 * kLanes];
        store(wide, load(w));
        store(wide + kLanes, load(w + kLanes));
        return weights(wide);
#endif
    }
    static TOKENBUS_INLINE vu spread(const bf16* x) {
        uint32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return pair - vu{};
    }
    static TOKENBUS_INLINE vf dot(vf acc, vu w, vu x) {
#if defined(__AVX512BF16__)
        return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)w, (__m512bh)x);
#else
        acc += (vf)(w << 16) * (vf)(x << 16);
        return acc + (vf)(w & 0xffff0000u) * (vf)(x & 0xffff0000u);
#endif
    }
    // Round two neighbours along a sum for all lanes.
    static TOKENBUS_INLINE void store_step(bf16* to, const vf (&step)[2]) {
        const bf16* halves[2];
        bf16 rounded[2][kLanes];
        for (int s = 0; s < 2; s++) {
            store(rounded[s], step[s]);
            halves[s] = rounded[s];
        }
        join(halves, kLanes, to);
    }
    // Lay two rows side by side, value by value.
    static TOKENBUS_INLINE void join(const bf16* const (&rows)[2], int size, bf16* to) {
        int i = 0;
        for (; i + kLanes <= size; i += kLanes) {
            vh first, second;
            std::memcpy(&first, rows[0] + i, sizeof first);
            std::memcpy(&second, rows[1] + i, sizeof second);
            vu pairs = __builtin_convertvector(second, vu) << 16;
            pairs |= __builtin_convertvector(first, vu);
            std::memcpy(to + 2 * i, &pairs, sizeof pairs);
        }
        for (; i < size; i++) {
            to[2 * i] = rows[0][i];
            to[2 * i + 1] = rows[1][i];
        }
    }
};

}  // namespace tokenbus
