// SPDX-License-Identifier: MIT

/**
 * @file
 * XXH3 for processors with AVX2, which GCC compiles this file for. See hash.h.
 */

#ifndef __clang__ /* which has no such pragma: the same hash, by what every processor has */
#pragma GCC target("avx2")
#endif

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "hash.h"

uint64_t usw_hash_avx2(const void *page, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, USW_PAGE_BYTES, seed);
}
