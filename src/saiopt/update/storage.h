/* Storing float32 values in bfloat16 and in codes of 8 and 4 bits: what low_bit does, for
 * a group of entries at a time. */
#ifndef SAIOPT_STORAGE_H
#define SAIOPT_STORAGE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pack and unpack take the first of two bytes for the lower one"
#endif

enum { GROUP = 32 };

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The hash of low_bit.noise_bits. */
INLINE uint32_t mix(uint32_t bits) {
    bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
    bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
    return bits ^ (bits >> 16);
}

/* The hash of low_bit.dither_bits, from an index times GOLDEN and the hash of a seed. */
#define GOLDEN 0x9E3779B1u
INLINE uint32_t dither_of(uint32_t spread, uint32_t hashed_seed) {
    uint32_t bits = spread ^ hashed_seed;
    return ((bits ^ (bits >> 16)) * 0x7FEB352Du) >> 16;
}

/* Adding half a spacing rounds to nearest even, adding noise rounds stochastically. */
INLINE uint16_t to_bfloat16(float value, uint32_t noise, int stochastic) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
    uint32_t added = stochastic ? noise : 0x7FFFu + ((bits >> 16) & 1u);
    uint32_t rounded = magnitude < 0x7F800000u ? bits + added : bits;
    return (uint16_t)((magnitude > 0x7F800000u ? bits | 0x400000u : rounded) >> 16);
}

INLINE void load(float *restrict values, const void *restrict stored, int64_t first,
                 int bfloat16) {
    if (bfloat16)
        for (int i = 0; i < GROUP; ++i)
            values[i] = float_of((uint32_t)((const uint16_t *)stored)[first + i] << 16);
    else
        memcpy(values, (const float *)stored + first, GROUP * sizeof(float));
}

INLINE void store(void *restrict stored, const float *restrict values,
                  const uint32_t *restrict noise, int64_t first, int bfloat16,
                  int stochastic) {
    if (bfloat16)
        for (int i = 0; i < GROUP; ++i)
            ((uint16_t *)stored)[first + i] =
                to_bfloat16(values[i], noise[i] & 0xFFFFu, stochastic);
    else
        memcpy((float *)stored + first, values, GROUP * sizeof(float));
}

/* Codes of 4 bits are two in a byte, the even entry in its lower half. A word of 16 bits
 * spreads them over its two bytes, so that no loop has a stride. */
INLINE void unpack(int32_t *restrict codes, const void *restrict stored, int64_t first,
                   int by_two) {
    const uint8_t *bytes = (const uint8_t *)stored + (by_two ? first / 2 : first);
    uint16_t words[GROUP / 2];
    uint8_t halves[GROUP];
    if (!by_two) {
        for (int i = 0; i < GROUP; ++i)
            codes[i] = (int8_t)bytes[i];
        return;
    }
    for (int i = 0; i < GROUP / 2; ++i)
        words[i] = (uint16_t)((bytes[i] | bytes[i] << 4) & 0x0F0F);
    memcpy(halves, words, GROUP);
    for (int i = 0; i < GROUP; ++i)
        codes[i] = (halves[i] ^ 8) - 8;
}

INLINE void pack(void *restrict stored, const int32_t *restrict codes, int64_t first,
                 int by_two) {
    uint8_t *bytes = (uint8_t *)stored + (by_two ? first / 2 : first);
    uint16_t words[GROUP / 2];
    uint8_t halves[GROUP];
    for (int i = 0; i < GROUP; ++i)
        halves[i] = (uint8_t)codes[i];
    if (!by_two) {
        memcpy(bytes, halves, GROUP);
        return;
    }
    memcpy(words, halves, GROUP);
    for (int i = 0; i < GROUP / 2; ++i)
        bytes[i] = (uint8_t)((words[i] & 15) | (words[i] >> 4 & 0xF0));
}

/* Return the bits of the bfloat16 scale that maps the largest magnitude to the largest
 * code: rounded up, so that no code overflows; NaN where an entry is not finite. */
INLINE uint32_t scale_bits(uint32_t largest, float max_code) {
    uint32_t bits = bits_of(float_of(largest) / max_code) + 0xFFFFu;
    bits &= 0xFFFF0000u;
    bits = bits < 0x00800000u ? 0x00800000u : bits;
    return largest < 0x7F800000u ? bits : 0x7FC00000u;
}

/* Read codes; those whose scale has its sign set were made with the noise of 16 bits that
 * is taken off here. Levels are in 2^-16 of a code, so that all of it is integers. */
INLINE void decode(float *restrict values, const int32_t *restrict codes, uint16_t scale,
                   const uint32_t *restrict noise, int32_t max_code, int stochastic) {
    float unit = float_of((uint32_t)(scale & 0x7FFF) << 16);
    int32_t dithered = scale >> 15 && (scale & 0x7FFF) <= 0x7F80 ? -1 : 0;
    for (int i = 0; i < GROUP; ++i) {
        int32_t code = codes[i], is_none = -(code == -max_code - 1) & dithered;
        int32_t off = stochastic ? 0x8000 - (int32_t)noise[i] : 0;
        int32_t level = (code & ~is_none) * 0x10000 + (off & dithered & -(code != 0));
        values[i] = (float)level * 0x1p-16f * unit;
    }
}

/* Write the codes of a group and return their scale, with its sign set where they are
 * dithered. */
INLINE uint16_t encode(int32_t *restrict codes, const float *restrict values,
                       const uint32_t *restrict noise, float max_code,
                       int stochastic) {
    uint32_t largest = 0;
    for (int i = 0; i < GROUP; ++i) {
        /* As integers, magnitudes are in order, and infinities and NaN come last. */
        uint32_t magnitude = bits_of(values[i]) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    uint32_t bits = scale_bits(largest, max_code);
    float inverse = largest < 0x7F800000u ? 1.0f / float_of(bits) : 0.0f;
    for (int i = 0; i < GROUP && !stochastic; ++i) {
        float code = fabsf(values[i]) * inverse + 0.5f;
        int32_t rounded = (int32_t)(code < max_code ? code : max_code);
        codes[i] = values[i] < 0 ? -rounded : rounded;
    }
    float limit = max_code * 0x1p16f;
    for (int i = 0; i < GROUP && stochastic; ++i) {
        float level = values[i] * inverse * 0x1p16f;
        level = level < limit ? level : limit;
        level = level > -limit ? level : -limit;
        int32_t code = ((int32_t)level + (int32_t)noise[i]) >> 16;
        code = code == 0 ? -(int32_t)max_code - 1 : code;
        codes[i] = bits_of(values[i]) << 1 == 0 ? 0 : code;
    }
    if (largest >= 0x7F800000u) {
        memset(codes, 0, GROUP * sizeof *codes);
        return (uint16_t)(bits >> 16);
    }
    return (uint16_t)(bits >> 16 | (stochastic ? 0x8000u : 0));
}

#endif
