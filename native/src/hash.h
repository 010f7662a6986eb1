// SPDX-License-Identifier: MIT

/**
 * @file
 * The hash of a page: XXH3, 64 bits, with a seed. The same whatever the processor has.
 *
 * Libraries of xxHash are built for every processor of their architecture: 200 ns for a page, where
 * the same code takes 65 with AVX2.
 */

#ifndef USW_HASH_H
#define USW_HASH_H

#include <xxhash.h>

#include "base.h"

/** The same as XXH3_64bits_withSeed() of a page. Only where the processor has AVX2. */
uint64_t usw_hash_avx2(const void *page, uint64_t seed);

/** The hash of a page, on any processor. */
static inline uint64_t usw_hash(const void *page, uint64_t seed)
{
	return __builtin_cpu_supports("avx2") ? usw_hash_avx2(page, seed)
					      : XXH3_64bits_withSeed(page, USW_PAGE_BYTES, seed);
}

#endif /* USW_HASH_H */
