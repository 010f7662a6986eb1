// SPDX-License-Identifier: MIT

/**
 * @file
 * Counters and the latency histogram.
 *
 * Every thread of the data plane counts into a block of its own, so no cache line is written by
 * two; readers add the blocks up. The list below is the only place where a counter is named and
 * explained.
 */

#ifndef USW_STATS_H
#define USW_STATS_H

#include "base.h"

/* X(name, when it rises) */
#define USW_COUNTERS(X) \
	X(faults_total, "a fault message was answered for good") \
	X(faults_hole, "a touched page had never held anything: it was filled with zeros") \
	X(faults_standby, "the content was still in standby: copied, not decompressed") \
	X(faults_zero, "the content was a page of zeros, stored nowhere") \
	X(faults_same, "the content was one repeated word") \
	X(faults_ram, "the content was an object in a RAM segment") \
	X(faults_disk, "the content was an object in a disk segment") \
	X(faults_present, "the page was there already: another thread's fault brought it") \
	X(faults_deferred, "a fault had to wait for room, for an event or for an eviction") \
	X(faults_overflow, \
	  "the list of waiting faults was full; the thread was made to fault again") \
	X(prefetched_pages, "a page was brought in before it was asked for") \
	X(prefetch_proven, "a page brought in ahead was walked through, or is wanted by trials") \
	X(evicted_pages, "a page left its target") \
	X(evicted_unshared, "a page shared since a fork was taken over so that it could leave") \
	X(evicted_clean, "a page left unchanged and its kept copy was still good") \
	X(evicted_zero, "a page of zeros left") \
	X(evicted_same, "a page of one repeated word left") \
	X(evicted_equal, "a page left that was stored already: it shares what is stored") \
	X(evicted_compressed, "a page became a compressed object") \
	X(evicted_ahead, "a page's object was made by a thread that compresses ahead") \
	X(evicted_packed, "a page was compressed denser as it left") \
	X(evicted_incompressible, "a page became an object stored as it is") \
	X(evict_refused, "a page picked for eviction stayed: pinned, shared, locked or gone") \
	X(evict_aborted, "a batch was given up because the address space changed under it") \
	X(dropped_copies, "a kept copy was given up to make room") \
	X(verified_pages, "a page's hash was right on its way in") \
	X(poisoned_pages, "a page could not be proved right and was poisoned") \
	X(vanished_pages, "a page was gone from its place, and no event had told of it") \
	X(events_fork, "a target forked") \
	X(events_remap, "a target moved memory with mremap") \
	X(events_remove, "a target dropped memory with madvise") \
	X(events_unmap, "a target unmapped memory")

struct usw_counters {
#define X(name, help) _Atomic uint64_t name;
	USW_COUNTERS(X)
#undef X
};

/** Raise a counter of the calling thread's own block. */
#define usw_count(counters, name, amount) \
	atomic_store_explicit(&(counters)->name, \
			      atomic_load_explicit(&(counters)->name, memory_order_relaxed) + \
				      (amount), \
			      memory_order_relaxed)

/** Add one block to a sum. Any thread. */
void usw_counters_add(struct usw_counters *sum, const struct usw_counters *block);

/**
 * Latencies in nanoseconds in buckets of about 6 % width: 16 a power of two, from 64 ns to 275 s.
 * One writer; readers may be a few counts behind.
 */
#define USW_HISTOGRAM_BUCKETS 512u

struct usw_histogram {
	_Atomic uint64_t count[USW_HISTOGRAM_BUCKETS];
	_Atomic uint64_t max_ns;
};

void usw_histogram_record(struct usw_histogram *histogram, uint64_t ns);
void usw_histogram_add(struct usw_histogram *sum, const struct usw_histogram *block);

/** The upper bound of the bucket that holds the given share (0.5 is the median); 0 if empty. */
uint64_t usw_histogram_quantile_ns(const struct usw_histogram *histogram, double share);

#endif /* USW_STATS_H */
