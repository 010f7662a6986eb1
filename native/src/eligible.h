// SPDX-License-Identifier: MIT

/**
 * @file
 * Which memory of a target may leave: what is eligible by its mappings, and registered.
 *
 * A range is registered when something is about to leave it, or near the limit, so that growth
 * raises faults and waits. What the kernel refuses is left out for a while. Everything here belongs
 * to the reclaim thread but for usw_eligible_look(), before a target has hands; `map_lock` is held by
 * the caller, or taken.
 */

#ifndef USW_ELIGIBLE_H
#define USW_ELIGIBLE_H

#include "session.h"

/**
 * Read the eligible mappings, without what is ours and what the kernel has refused before. 0 or
 * -errno. Caller holds map_lock.
 */
int usw_eligible_read(struct usw_target *target);

/**
 * Whether what is present of a mapping may leave: all of it is on the list, and the kernel confirms
 * both ends of what is to go. Registers what is not. Caller holds map_lock.
 */
bool usw_eligible_may_leave(struct usw_target *target, struct usw_range mapping,
			    const struct page_region *regions, int count);

/**
 * Register all eligible memory of a target: near the limit, so that growth raises faults and waits.
 * Costs some microseconds a mapping. Takes map_lock.
 */
void usw_eligible_register_all(struct usw_target *target);

/**
 * Learn where a target may grow, while its program waits for the handshake: later that may take
 * long. Called before the target has hands.
 */
void usw_eligible_look(struct usw_target *target);

#endif /* USW_ELIGIBLE_H */
