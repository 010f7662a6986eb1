// SPDX-License-Identifier: MIT

/**
 * @file
 * Eviction: have hands take out the pages that were picked (pick.h), make them virtual swap IDs.
 *
 * Everything here runs on the reclaim thread and takes the target's map_lock for the length of one
 * batch (some hundred microseconds).
 */

#ifndef USW_EVICT_H
#define USW_EVICT_H

#include "session.h"

/** How a batch ended. */
enum usw_evict_result {
	USW_EVICT_DONE,    /* some pages were looked at; *ret_evicted may still be 0 */
	USW_EVICT_NOTHING, /* not now: no hands, an event is pending, or there is nothing to look at */
	USW_EVICT_WRAPPED, /* as DONE, and the sweep has come round to its start */
};

/**
 * Evict up to about `wanted` pages of one target at the sweep's position. `unshare`: also take
 * over and evict pages shared since a fork. Adds the pages that left to *ret_evicted.
 */
enum usw_evict_result usw_evict_some(struct usw_target *target, uint32_t wanted, bool unshare,
				     uint32_t *ret_evicted);

/**
 * Bring back what must stay and has left: the page of a thread that began after the last look. One
 * at a time; to be called again. The reclaim thread calls.
 */
void usw_evict_settle_ending(struct usw_target *target);

/** Evict a few pages at a random place of the target, whatever their heat. For --stress. */
void usw_evict_random(struct usw_target *target, uint64_t random, uint32_t wanted,
		      uint32_t *ret_evicted);

/** Give up to `max_pages` kept copies of resident pages up, from `*cursor` on. */
uint32_t usw_evict_drop_copies(struct usw_target *target, uint64_t *cursor, uint32_t max_pages);

#endif /* USW_EVICT_H */
