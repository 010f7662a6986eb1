// SPDX-License-Identifier: MIT

/**
 * @file
 * Random numbers for the workload: one word of state, one multiplication chain, no library call.
 *
 * The same seed gives the same pages and the same accesses on every machine, so that two runs that
 * are compared have done the same work. Nothing here needs to be hard to predict.
 */

#ifndef USW_BENCH_RANDOM_H
#define USW_BENCH_RANDOM_H

#include <stdint.h>

/** Spread every bit of a word over all of it (the finalizer of splitmix64). */
static inline uint64_t usw_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/** Next number of the sequence that `state` stands in. */
static inline uint64_t usw_random(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15;
	return usw_mix(*state);
}

/** Next number below `bound`. */
static inline uint64_t usw_random_below(uint64_t *state, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)usw_random(state) * bound) >> 64);
}

#endif /* USW_BENCH_RANDOM_H */
