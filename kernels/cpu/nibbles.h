// Weights of 4 bits: value * scale + low, with a scale and a low for every kGroupInputs inputs of
// an output, both in bfloat16: 5 bits a weight in all.
//
// A panel of them is a row of groups: the scales of its outputs, their lows, and for every two
// inputs and each vector of outputs kLanes bytes. Of the 2 * kLanes values that two inputs of a
// vector have, in the order in which a product takes them, byte i holds those at i and i + kLanes.
#pragma once

#include <algorithm>

#include "simd.h"

namespace tokenbus {

constexpr int kGroupInputs = 32;

// The whole numbers in the low and in the high halves of kLanes bytes.
TOKENBUS_INLINE void unpack(const uint8_t* x, vf* low, vf* high) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)x));
    *low = (vf)_mm512_permutexvar_ps(bytes, table);
    *high = (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
#else
    using bytes_of_lanes = uint8_t __attribute__((vector_size(kLanes)));
    bytes_of_lanes bytes;
    std::memcpy(&bytes, x, sizeof bytes);
    vi whole = __builtin_convertvector(__builtin_convertvector(bytes, vh), vi);
    *low = __builtin_convertvector(whole & 15, vf);
    *high = __builtin_convertvector(whole >> 4, vf);
#endif
}

// Each value twice, those of the first half of the lanes, then those of the second.
TOKENBUS_INLINE void twice(vf x, vf (&out)[2]) {
#if defined(__AVX512F__)
    const __m512i first = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    out[0] = (vf)_mm512_permutexvar_ps(first, (__m512)x);
    out[1] = (vf)_mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(8)), (__m512)x);
#else
    for (int i = 0; i < 2 * kLanes; i++) out[i / kLanes][i % kLanes] = x[i / 2];
#endif
}

// One group of a vector of outputs, and its weights as a kind multiplies them.
template <class Kind>
struct NibbleGroup;

template <>
struct NibbleGroup<Float> {
    static constexpr int kVectors = 2;  // that two inputs fill
    vf scale, low;

    TOKENBUS_INLINE NibbleGroup(const bf16* scales, const bf16* lows)
        : scale(load(scales)), low(load(lows)) {}

    TOKENBUS_INLINE void weights(const uint8_t* x, vf (&out)[kVectors]) const {
        vf first, second;
        unpack(x, &first, &second);
        out[0] = first * scale + low;
        out[1] = second * scale + low;
    }

    // Where output `lane` of input k, 0 or 1, stands among the 2 * kLanes values.
    static int place(int lane, int k) { return k * kLanes + lane; }
};

template <>
struct NibbleGroup<Bfloat> {
    static constexpr int kVectors = 1;
    vf scale[2], low[2];

    TOKENBUS_INLINE NibbleGroup(const bf16* scales, const bf16* lows) {
        twice(load(scales), scale);
        twice(load(lows), low);
    }

    TOKENBUS_INLINE void weights(const uint8_t* x, vu (&out)[kVectors]) const {
        vf first, second;
        unpack(x, &first, &second);
        first = first * scale[0] + low[0];
        second = second * scale[1] + low[1];
#if defined(__AVX512BF16__)
        out[0] = (vu)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
        bf16 wide[2 * kLanes];
        store(wide, first);
        store(wide + kLanes, second);
        out[0] = Bfloat::weights(wide);
#endif
    }

    static int place(int lane, int k) { return 2 * lane + k; }
};

// A panel of NR vectors of outputs.
template <int NR>
struct NibblePanel {
    const uint8_t* bytes;

    static constexpr size_t kScaleBytes = 2 * NR * kLanes * sizeof(bf16);

    static size_t size(int num_inputs) {
        size_t groups = size_t(num_inputs + kGroupInputs - 1) / kGroupInputs;
        return groups * kScaleBytes + size_t(num_inputs) / 2 * NR * kLanes;
    }
};

// Call f(k, weights of inputs k and k + 1) for an even number of inputs; weights: [NR][kVectors].
template <class Kind, int NR, class F>
TOKENBUS_INLINE void for_input_pairs(const NibblePanel<NR>& panel, int num_inputs, F f) {
    using Group = NibbleGroup<Kind>;
    const uint8_t* at = panel.bytes;
    for (int first = 0; first < num_inputs; first += kGroupInputs) {
        const bf16* scales = reinterpret_cast<const bf16*>(at);
        auto group_of = [&](int j) {
            return Group(scales + j * kLanes, scales + (NR + j) * kLanes);
        };
        static_assert(NR == 3, "one group for each vector of a linear's panel");
        const Group groups[NR] = {group_of(0), group_of(1), group_of(2)};
        at += NibblePanel<NR>::kScaleBytes;
        const int end = std::min(first + kGroupInputs, num_inputs);
        for (int k = first; k < end; k += 2, at += NR * kLanes) {
            using Vector = decltype(Kind::weights((const typename Kind::Value*)nullptr));
            Vector loaded[NR][Group::kVectors];
            for (int j = 0; j < NR; j++) groups[j].weights(at + j * kLanes, loaded[j]);
            f(k, loaded, at);
        }
    }
}

// Weights of 4 bits as they are handed over, row-major: steps [num_outputs, num_inputs / 2], of two
// inputs the first in the low half; scales and lows [num_outputs, groups].
struct NibbleMatrix {
    const uint8_t* steps;
    const bf16* scales;
    const bf16* lows;
    int num_outputs, num_inputs;
};

// Lay out outputs [first, first + NR * kLanes) as a panel.
template <class Kind, int NR>
inline void pack_nibbles(const NibbleMatrix& from, int first, uint8_t* to) {
    const int groups = (from.num_inputs + kGroupInputs - 1) / kGroupInputs;
    const int rows = std::min(NR * kLanes, from.num_outputs - first);
    std::memset(to, 0, NibblePanel<NR>::size(from.num_inputs));
    for (int group = 0; group < groups; group++) {
        bf16* scales = reinterpret_cast<bf16*>(to);
        bf16* lows = scales + NR * kLanes;
        to += NibblePanel<NR>::kScaleBytes;
        const int num = std::min(kGroupInputs, from.num_inputs - group * kGroupInputs);
        for (int row = 0; row < rows; row++) {
            const size_t output = first + row;
            scales[row] = from.scales[output * groups + group];
            lows[row] = from.lows[output * groups + group];
            const uint8_t* steps =
                from.steps + (output * from.num_inputs + size_t(group) * kGroupInputs) / 2;
            for (int i = 0; i < num; i++) {
                const int value = i % 2 ? steps[i / 2] >> 4 : steps[i / 2] & 15;
                const int place = NibbleGroup<Kind>::place(row % kLanes, i % 2);
                uint8_t* bytes = to + (size_t(i / 2) * NR + row / kLanes) * kLanes;
                bytes[place % kLanes] |= uint8_t(place < kLanes ? value : value << 4);
            }
        }
        to += size_t(num) / 2 * NR * kLanes;
    }
}

}  // namespace tokenbus
