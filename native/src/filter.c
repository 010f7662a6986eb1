// SPDX-License-Identifier: MIT

/**
 * @file
 * Filters of a page. See filter.h.
 *
 * The vector form rests on one observation. Number the bytes of a block of 2^n bytes by n bits:
 * interleaving its lower with its upper half moves the top bit of each number to the bottom, a
 * rotation. Gathering bytes by significance turns (word, byte in word) into (byte in word, word),
 * which is a rotation too, so both directions are the same step, done a different number of times.
 */

#include <string.h>

#include "filter.h"

#define WORDS (USW_PAGE_BYTES / sizeof(uint64_t))
#define LANE_BYTES (USW_PAGE_BYTES / 4)

static void xor_forward(const void *page, void *out)
{
	const uint64_t *from = page;
	uint64_t *to = out;

	to[0] = from[0];
	for (size_t i = 1; i < WORDS; i++)
		to[i] = from[i] ^ from[i - 1];
}

static void xor_undo(void *page)
{
	uint64_t *words = page;
	uint64_t before = 0;

	for (size_t i = 0; i < WORDS; i++)
		words[i] = before ^= words[i];
}

// --- Portable -----------------------------------------------------------------------------------

/** Units of `unit` bytes: number k of each group of `ways`, for each k. */
static void gather(const unsigned char *from, unsigned char *to, size_t bytes, size_t ways,
		   size_t unit)
{
	size_t groups = bytes / unit / ways;

	for (size_t way = 0; way < ways; way++)
		for (size_t group = 0; group < groups; group++)
			memcpy(to + (way * groups + group) * unit,
			       from + (group * ways + way) * unit, unit);
}

void usw_filter_apply_portable(enum usw_filter filter, const void *page, void *out)
{
	_Alignas(16) unsigned char between[USW_PAGE_BYTES];

	switch (filter) {
	case USW_FILTER_SHUFFLE8:
		gather(page, out, USW_PAGE_BYTES, 8, 1);
		return;
	case USW_FILTER_SHUFFLE4:
		gather(page, out, USW_PAGE_BYTES, 4, 1);
		return;
	case USW_FILTER_LANES16:
		gather(page, between, USW_PAGE_BYTES, 4, 2);
		gather(between, out, LANE_BYTES, 2, 1);
		memcpy((char *)out + LANE_BYTES, between + LANE_BYTES, USW_PAGE_BYTES - LANE_BYTES);
		return;
	case USW_FILTER_XOR_SHUFFLE8:
		xor_forward(page, between);
		gather(between, out, USW_PAGE_BYTES, 8, 1);
		return;
	case USW_FILTER_NONE:
	case USW_FILTER_COUNT:
		break;
	}
	memcpy(out, page, USW_PAGE_BYTES);
}

void usw_filter_undo_portable(enum usw_filter filter, const void *filtered, void *page)
{
	_Alignas(16) unsigned char between[USW_PAGE_BYTES];

	// Gathering by n what was gathered into n rows of m is undone by gathering by m.
	switch (filter) {
	case USW_FILTER_SHUFFLE8:
	case USW_FILTER_XOR_SHUFFLE8:
		gather(filtered, page, USW_PAGE_BYTES, USW_PAGE_BYTES / 8, 1);
		if (filter == USW_FILTER_XOR_SHUFFLE8)
			xor_undo(page);
		return;
	case USW_FILTER_SHUFFLE4:
		gather(filtered, page, USW_PAGE_BYTES, USW_PAGE_BYTES / 4, 1);
		return;
	case USW_FILTER_LANES16:
		gather(filtered, between, LANE_BYTES, LANE_BYTES / 2, 1);
		memcpy(between + LANE_BYTES, (const char *)filtered + LANE_BYTES,
		       USW_PAGE_BYTES - LANE_BYTES);
		gather(between, page, USW_PAGE_BYTES, WORDS, 2);
		return;
	case USW_FILTER_NONE:
	case USW_FILTER_COUNT:
		break;
	}
	memcpy(page, filtered, USW_PAGE_BYTES);
}

// --- Vectors ------------------------------------------------------------------------------------

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define USW_FILTER_VECTORS
#endif
#endif

#ifdef USW_FILTER_VECTORS

typedef uint8_t v8 __attribute__((vector_size(16)));
typedef uint16_t v16 __attribute__((vector_size(16)));

static inline void zip8(v8 a, v8 b, v8 *out)
{
	out[0] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
					 23);
	out[1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
					 15, 31);
}

static inline void zip16(v8 a, v8 b, v8 *out)
{
	out[0] = (v8)__builtin_shufflevector((v16)a, (v16)b, 0, 8, 1, 9, 2, 10, 3, 11);
	out[1] = (v8)__builtin_shufflevector((v16)a, (v16)b, 4, 12, 5, 13, 6, 14, 7, 15);
}

/** Rotate a block of `count` vectors `steps` times; `unit` is 1 or 2 bytes. All are constants. */
static inline __attribute__((always_inline)) void rotate(v8 *block, size_t count, int steps,
							 size_t unit)
{
	v8 next[8];

#pragma GCC unroll 4
	for (int step = 0; step < steps; step++) {
#pragma GCC unroll 4
		for (size_t i = 0; i < count / 2; i++) {
			if (unit == 1)
				zip8(block[i], block[i + count / 2], next + 2 * i);
			else
				zip16(block[i], block[i + count / 2], next + 2 * i);
		}
#pragma GCC unroll 8
		for (size_t i = 0; i < count; i++)
			block[i] = next[i];
	}
}

/** Gather: vectors that lie together become one vector in each of `count` rows. */
static inline __attribute__((always_inline)) void
rows_apply(const char *from, char *to, size_t bytes, size_t count, int steps, size_t unit)
{
	for (size_t at = 0; at < bytes / count; at += sizeof(v8)) {
		v8 block[8];

		memcpy(block, from + at * count, count * sizeof(v8));
		rotate(block, count, steps, unit);
#pragma GCC unroll 8
		for (size_t i = 0; i < count; i++)
			memcpy(to + i * (bytes / count) + at, &block[i], sizeof(v8));
	}
}

static inline __attribute__((always_inline)) void
rows_undo(const char *from, char *to, size_t bytes, size_t count, int steps, size_t unit)
{
	for (size_t at = 0; at < bytes / count; at += sizeof(v8)) {
		v8 block[8];

#pragma GCC unroll 8
		for (size_t i = 0; i < count; i++)
			memcpy(&block[i], from + i * (bytes / count) + at, sizeof(v8));
		rotate(block, count, steps, unit);
		memcpy(to + at * count, block, count * sizeof(v8));
	}
}

void usw_filter_apply(enum usw_filter filter, const void *page, void *out)
{
	_Alignas(16) char between[USW_PAGE_BYTES];

	switch (filter) {
	case USW_FILTER_SHUFFLE8:
		rows_apply(page, out, USW_PAGE_BYTES, 8, 4, 1);
		return;
	case USW_FILTER_SHUFFLE4:
		rows_apply(page, out, USW_PAGE_BYTES, 4, 4, 1);
		return;
	case USW_FILTER_LANES16:
		rows_apply(page, between, USW_PAGE_BYTES, 4, 3, 2);
		rows_apply(between, out, LANE_BYTES, 2, 4, 1);
		memcpy((char *)out + LANE_BYTES, between + LANE_BYTES, USW_PAGE_BYTES - LANE_BYTES);
		return;
	case USW_FILTER_XOR_SHUFFLE8:
		xor_forward(page, between);
		rows_apply(between, out, USW_PAGE_BYTES, 8, 4, 1);
		return;
	case USW_FILTER_NONE:
	case USW_FILTER_COUNT:
		break;
	}
	memcpy(out, page, USW_PAGE_BYTES);
}

void usw_filter_undo(enum usw_filter filter, const void *filtered, void *page)
{
	_Alignas(16) char between[USW_PAGE_BYTES];

	switch (filter) {
	case USW_FILTER_SHUFFLE8:
	case USW_FILTER_XOR_SHUFFLE8:
		rows_undo(filtered, page, USW_PAGE_BYTES, 8, 3, 1);
		if (filter == USW_FILTER_XOR_SHUFFLE8)
			xor_undo(page);
		return;
	case USW_FILTER_SHUFFLE4:
		rows_undo(filtered, page, USW_PAGE_BYTES, 4, 2, 1);
		return;
	case USW_FILTER_LANES16:
		rows_undo(filtered, between, LANE_BYTES, 2, 1, 1);
		memcpy(between + LANE_BYTES, (const char *)filtered + LANE_BYTES,
		       USW_PAGE_BYTES - LANE_BYTES);
		rows_undo(between, page, USW_PAGE_BYTES, 4, 2, 2);
		return;
	case USW_FILTER_NONE:
	case USW_FILTER_COUNT:
		break;
	}
	memcpy(page, filtered, USW_PAGE_BYTES);
}

#else

void usw_filter_apply(enum usw_filter filter, const void *page, void *out)
{
	usw_filter_apply_portable(filter, page, out);
}

void usw_filter_undo(enum usw_filter filter, const void *filtered, void *page)
{
	usw_filter_undo_portable(filter, filtered, page);
}

#endif
