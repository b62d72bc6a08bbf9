// Rows of a head turned so that one vector holds the same place of kLanes rows.
#pragma once

#include "simd.h"

namespace tokenbus {

// to[word * stride + lane] = word of rows[lane]; words of 4 bytes: a float or two bfloat16.
template <class T>
inline void transpose_words(const T* const (&rows)[kLanes], int num_words, char* to,
                            size_t stride) {
    constexpr int kWord = 4;
    auto word_of = [&](int lane, int word) {
        return reinterpret_cast<const char*>(rows[lane]) + word * kWord;
    };
    int word = 0;
#if defined(__AVX512F__)
    for (; word + kLanes <= num_words; word += kLanes) {
        __m512i a[16], b[16];
        for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(word_of(i, word));
        // Pairs of words, then of pairs, then quarters of vectors change places.
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {
            a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
            a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
            a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
            a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
        }
        for (int half = 0; half < 16; half += 8) {
            for (int i = half; i < half + 4; i++) {
                b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
                b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
            }
        }
        for (int i = 0; i < 8; i++) {
            char* at = to + (size_t(word) + i) * stride * kWord;
            _mm512_storeu_si512(at, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
            _mm512_storeu_si512(at + 8 * stride * kWord,
                                _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
        }
    }
#endif
    for (; word < num_words; word++)
        for (int lane = 0; lane < kLanes; lane++)
            std::memcpy(to + (word * stride + lane) * kWord, word_of(lane, word), kWord);
}

}  // namespace tokenbus
