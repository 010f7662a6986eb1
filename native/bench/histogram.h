// SPDX-License-Identifier: MIT

/**
 * @file
 * Latencies of one thread, counted in buckets that are at most 1/32 wide.
 *
 * Small enough (15 KiB) to stay in the cache beside what is measured, exact enough for a quantile.
 * Each thread has one of its own and they are added up when all have stopped: no lock, no atomic.
 */

#ifndef USW_BENCH_HISTOGRAM_H
#define USW_BENCH_HISTOGRAM_H

#include <stdint.h>

#define USW_HISTOGRAM_BITS 5
#define USW_HISTOGRAM_BUCKETS ((64 - USW_HISTOGRAM_BITS) << USW_HISTOGRAM_BITS)

struct usw_histogram {
	uint64_t count;
	uint64_t max;
	uint64_t buckets[USW_HISTOGRAM_BUCKETS];
};

/** Numbers below 64 have a bucket each; above, the five bits after the leading one choose. */
static inline unsigned int usw_histogram_bucket(uint64_t value)
{
	unsigned int shift;

	if (value < (2u << USW_HISTOGRAM_BITS))
		return (unsigned int)value;
	shift = 63 - (unsigned int)__builtin_clzll(value) - USW_HISTOGRAM_BITS;
	return (shift << USW_HISTOGRAM_BITS) + (unsigned int)(value >> shift);
}

/** The middle of a bucket. */
static inline uint64_t usw_histogram_value(unsigned int bucket)
{
	unsigned int shift = bucket >> USW_HISTOGRAM_BITS;

	if (shift <= 1)
		return bucket;
	shift--;
	return (((uint64_t)bucket - (shift << USW_HISTOGRAM_BITS)) << shift) + (1ULL << shift) / 2;
}

static inline void usw_histogram_add(struct usw_histogram *histogram, uint64_t value)
{
	histogram->count++;
	histogram->buckets[usw_histogram_bucket(value)]++;
	if (value > histogram->max)
		histogram->max = value;
}

static inline void usw_histogram_merge(struct usw_histogram *into, const struct usw_histogram *from)
{
	into->count += from->count;
	if (from->max > into->max)
		into->max = from->max;
	for (unsigned int i = 0; i < USW_HISTOGRAM_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
}

/** The value that `share` of all values do not exceed, never above the largest one seen. */
static inline uint64_t usw_histogram_quantile(const struct usw_histogram *histogram, double share)
{
	uint64_t wanted = (uint64_t)(share * (double)histogram->count), seen = 0;

	for (unsigned int i = 0; i < USW_HISTOGRAM_BUCKETS; i++) {
		seen += histogram->buckets[i];
		if (seen > wanted) {
			uint64_t value = usw_histogram_value(i);

			return value < histogram->max ? value : histogram->max;
		}
	}
	return histogram->max;
}

#endif /* USW_BENCH_HISTOGRAM_H */
