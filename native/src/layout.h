// SPDX-License-Identifier: MIT

/**
 * @file
 * What a target has done to its address space, followed in the page map, in the list of registered
 * ranges and in what is leaving.
 *
 * On the target's fault thread, under map_lock. A target whose change cannot be followed for want of
 * memory is killed: its pages would be somebody else's.
 */

#ifndef USW_LAYOUT_H
#define USW_LAYOUT_H

#include "session.h"

/** [start, end) is not mapped any more, or something else is. */
void usw_layout_unmap(struct usw_target *target, uint64_t start, uint64_t end);

/** What is in [start, end) is being given back by a madvise(2), which may not have got there yet. */
void usw_layout_remove(struct usw_target *target, uint64_t start, uint64_t end);

/** Memory has moved, over whatever was at `to`; nothing is left at `from`. */
void usw_layout_remap(struct usw_target *target, uint64_t from, uint64_t to, uint64_t length_bytes);

/** The child has a copy of all that the parent has: it refers to the same content, and is served. */
void usw_layout_fork(struct usw_target *parent, struct usw_target *child);

/** All that a child had told when its fork was followed is followed: what it has can be asked. */
void usw_layout_settle_fork(struct usw_target *child);

#endif /* USW_LAYOUT_H */
