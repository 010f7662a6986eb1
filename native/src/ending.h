// SPDX-License-Identifier: MIT

/**
 * @file
 * Ending: pages that the kernel itself writes to when a thread ends.
 *
 * It clears the thread's ID for who waits in pthread_join(3), and marks the robust mutexes that the
 * thread held. To a thread that ends a fault is not reported any more: where such a page has left
 * the kernel gives up without a word, and somebody waits for ever. So the page with a thread's list
 * of robust mutexes stays in memory while the thread lives, and so do those of the mutexes that are
 * on it. The C library keeps the ID beside it, 16 bytes before. A thread that begins after a look
 * may lose its page to the batch: so another look follows, and what has left comes back. A mutex
 * that was locked since is known then only if its thread's list can be read (eviction.md).
 *
 * Owned by the reclaim thread, which looks before it picks and after.
 */

#ifndef USW_ENDING_H
#define USW_ENDING_H

#include "maps.h"

struct usw_ending_thread {
	int id;
	uint64_t head; /* of its list of robust mutexes; 0: not known yet */
};

struct usw_ending {
	struct usw_ranges pages;
	struct usw_ending_thread *threads; /* by id */
	uint32_t count;
	uint32_t capacity;
	uint64_t due_ns; /* not looked at again before */
};

void usw_ending_deinit(struct usw_ending *ending);

/**
 * Look which threads a process has, and what they hold: 6 us for one, 1.2 ms for 512, and a fifth
 * of the thread's work at most. False: it is not time yet, or cannot be found out, for want of a right
 * or of memory; then all stays as it was.
 */
bool usw_ending_look(struct usw_ending *ending, int pid);

/** Whether a page of [start, end) must stay. */
static inline bool usw_ending_has(const struct usw_ending *ending, uint64_t start, uint64_t end)
{
	uint32_t i = usw_ranges_find(&ending->pages, start);

	return i < ending->pages.count && ending->pages.at[i].start < end;
}

#endif /* USW_ENDING_H */
