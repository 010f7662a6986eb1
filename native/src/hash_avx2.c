// SPDX-License-Identifier: MIT

/**
 * @file
 * XXH3 for processors with AVX2, which this file is compiled for. See hash.h.
 */

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "hash.h"

uint64_t usw_hash_avx2(const void *page, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, USW_PAGE_BYTES, seed);
}
