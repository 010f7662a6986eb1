// SPDX-License-Identifier: MIT

/**
 * @file
 * Parking: what has left a target goes to the deepest tier, and comes back from there in whole
 * segments when it is restored.
 *
 * A park has evicted and compressed everything when this begins. Objects of several targets share
 * segments, so first segments with much garbage are emptied, then it is counted how much of each
 * segment is this target's, and those of which at least half is are sent down whatever the budget.
 * One park at a time; it is done in steps, between which faults and the limit are looked after.
 *
 * A restore asks for the segments of the pages that come next, a few ahead. Each is one sequential
 * read of a megabyte instead of hundreds of small ones; its pages are then served from RAM.
 */

#ifndef USW_PARK_H
#define USW_PARK_H

#include "content.h"
#include "session.h"

/**
 * One step for a target. True: it goes on. False: all that can go down is down, or there is nowhere
 * to go. Reclaim thread.
 */
bool usw_park_step(struct usw_target *target);

/** A park of this target is over, whatever it has reached. Reclaim thread. */
void usw_park_end(struct usw_session *session, uint32_t target_id);

/**
 * Ask for the segment in which the content of an evicted page lies, and for those of the pages
 * behind it. True: it is on its way, look again soon. False: read the page by itself. Fault thread
 * of the target.
 */
bool usw_park_recall(const struct usw_target *target, uint64_t address,
		     const struct usw_disk_place *place);

#endif /* USW_PARK_H */
