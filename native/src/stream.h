// SPDX-License-Identifier: MIT

/**
 * @file
 * Streams: which pages a thread is going to touch next, learned from where it has faulted.
 *
 * A thread may walk several arrays at once, so a stream is found by its thread and by being near,
 * not by its thread alone. Within a stream the stride is whatever most of the last faults agree
 * on (a majority vote, as in Maruf and Chowdhury, "Effectively Prefetching Remote Memory with
 * Leap", 2020). While it holds, the window brought in behind a fault doubles; the first page after
 * the window is left out, and a fault there proves that all of the window was walked through. A
 * fault anywhere else says that it was not, and the window shrinks.
 *
 * Pure bookkeeping, no memory is touched. The owner is the target's fault thread; no lock.
 */

#ifndef USW_STREAM_H
#define USW_STREAM_H

#include "base.h"

#define USW_STREAMS_MAX 16u
/** Pages brought in ahead of one fault, at most: about 100 us of work, within which none waits. */
#define USW_STREAM_WINDOW_MAX 32u

struct usw_stream {
	uint32_t thread_id; /* 0: unused */
	uint32_t window;    /* pages brought in behind the last fault */
	uint64_t page;      /* number of the page last faulted on */
	int64_t stride;     /* pages; 0: none yet */
	int32_t votes;      /* how many more faults agreed with the stride than did not */
	uint32_t used;      /* clock of the last fault, for replacement */
};

struct usw_streams {
	struct usw_stream at[USW_STREAMS_MAX];
	uint32_t clock;
};

/** What to bring in with a page: `window` pages at page + stride, page + 2 * stride, ... */
struct usw_forecast {
	int64_t stride;
	uint32_t window;
	uint32_t proven; /* pages of the window before that were walked through */
};

/** Learn from a fault on page number `page` and forecast what comes next. */
struct usw_forecast usw_streams_note(struct usw_streams *streams, uint32_t thread_id,
				     uint64_t page);

#endif /* USW_STREAM_H */
