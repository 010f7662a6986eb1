// SPDX-License-Identifier: MIT

/**
 * @file
 * Leaving: pages that the program has given back and that are still there.
 *
 * The kernel tells of MADV_DONTNEED before it takes the pages away, and lets the program's thread
 * go on to do that as soon as the event is read. Until then such a page looks like any other; taken
 * out now, its old content would come back at the next touch where the program must see zeros. So
 * what is present when the event is applied is left alone until it was seen to be gone: absent in a
 * scan, or asked for by a fault, since a page of a registered range comes back only through us.
 *
 * MADV_FREE raises the same event and leaves the pages where they are, to be used again. So a page
 * that is still there after USW_LEAVING_NS, and as many looks as USW_LEAVING_LOOKS (a machine that
 * was suspended has let time pass in which nobody ran), is taken to have stayed.
 *
 * Threads: the fault thread notes (under map_lock) and reports what came back; the reclaim thread
 * asks and settles (under map_lock). `lock` is over the lists and is held for a scan at most.
 */

#ifndef USW_LEAVING_H
#define USW_LEAVING_H

#include <pthread.h>

#include "maps.h"

/**
 * Far longer than a runnable thread is kept from going on, or waits for the lock of its mappings.
 */
#define USW_LEAVING_NS 500000000u
#define USW_LEAVING_LOOKS 20u

struct usw_leaving {
	pthread_mutex_t lock;
	_Atomic bool any;
	struct usw_ranges young; /* noted since turned_ns */
	struct usw_ranges old;   /* noted in the USW_LEAVING_NS before that */
	uint64_t turned_ns;
	uint32_t looks;  /* since then */
	uint64_t due_ns; /* not looked at again before */
};

void usw_leaving_init(struct usw_leaving *leaving);
void usw_leaving_deinit(struct usw_leaving *leaving);

/**
 * The event for [start, end) is being applied. `pagemap_fd` is the target's, or -1 if it is not
 * known yet: then all of it may be there. False: no memory.
 */
bool usw_leaving_note(struct usw_leaving *leaving, int pagemap_fd, uint64_t start, uint64_t end);

/** [start, end) was absent, and we have filled it; or it is mapped no more. */
void usw_leaving_returned(struct usw_leaving *leaving, uint64_t start, uint64_t end);

/** Look which pages are gone by now, if that is due. */
void usw_leaving_settle(struct usw_leaving *leaving, int pagemap_fd, uint64_t now_ns);

/** Whether a page of [start, end) may be about to go. */
bool usw_leaving_has(struct usw_leaving *leaving, uint64_t start, uint64_t end);

#endif /* USW_LEAVING_H */
