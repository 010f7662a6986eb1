// SPDX-License-Identifier: MIT

/**
 * @file
 * Counters and histogram. See stats.h.
 */

#include "stats.h"

void usw_counters_add(struct usw_counters *sum, const struct usw_counters *block)
{
#define X(name, help) sum->name += atomic_load_explicit(&block->name, memory_order_relaxed);
	USW_COUNTERS(X)
#undef X
}

/* Sixteen buckets a power of two: the four bits below the highest choose one. */
static uint32_t bucket_of(uint64_t ns)
{
	if (ns < 64)
		ns = 64;

	uint32_t high = 63u - (uint32_t)__builtin_clzll(ns);
	uint32_t bucket = (high - 6) * 16 + ((uint32_t)(ns >> (high - 4)) & 15);

	return bucket < USW_HISTOGRAM_BUCKETS ? bucket : USW_HISTOGRAM_BUCKETS - 1;
}

static uint64_t bucket_end_ns(uint32_t bucket)
{
	uint32_t high = bucket / 16 + 6;

	return ((uint64_t)1 << high) + (((uint64_t)(bucket % 16) + 1) << (high - 4));
}

void usw_histogram_record(struct usw_histogram *histogram, uint64_t ns)
{
	_Atomic uint64_t *count = &histogram->count[bucket_of(ns)];

	atomic_store_explicit(count, atomic_load_explicit(count, memory_order_relaxed) + 1,
			      memory_order_relaxed);
	if (ns > atomic_load_explicit(&histogram->max_ns, memory_order_relaxed))
		atomic_store_explicit(&histogram->max_ns, ns, memory_order_relaxed);
}

void usw_histogram_add(struct usw_histogram *sum, const struct usw_histogram *block)
{
	for (uint32_t i = 0; i < USW_HISTOGRAM_BUCKETS; i++)
		sum->count[i] += atomic_load_explicit(&block->count[i], memory_order_relaxed);

	uint64_t max_ns = atomic_load_explicit(&block->max_ns, memory_order_relaxed);
	if (max_ns > sum->max_ns)
		sum->max_ns = max_ns;
}

uint64_t usw_histogram_quantile_ns(const struct usw_histogram *histogram, double share)
{
	uint64_t total = 0;
	uint64_t below = 0;

	for (uint32_t i = 0; i < USW_HISTOGRAM_BUCKETS; i++)
		total += histogram->count[i];
	if (!total)
		return 0;
	for (uint32_t i = 0; i < USW_HISTOGRAM_BUCKETS; i++) {
		below += histogram->count[i];
		if ((double)below >= share * (double)total)
			return usw_min(bucket_end_ns(i), histogram->max_ns);
	}
	return histogram->max_ns;
}
