// SPDX-License-Identifier: MIT

/**
 * @file
 * What a target does to its own address space: fork, mremap, madvise, munmap.
 *
 * Events are read by the target's fault thread, in the order in which they happened, and applied
 * before any fault is answered. Their order against faults is not fixed by the kernel: a fault
 * may be read before the event that explains it; it then fails with EAGAIN and is tried again.
 */

#ifndef USW_EVENT_H
#define USW_EVENT_H

#include <linux/userfaultfd.h>

#include "session.h"

/**
 * Apply the events among `count` messages. Takes map_lock, so it waits for a batch in flight. The
 * caller has set events_pending and raised the epoch; this clears events_pending, unless something
 * waits: then `told_count` of the target is not 0 until usw_event_settle() has found that it waits
 * no more. The target's fault thread, as the rest.
 */
void usw_event_apply(struct usw_target *target, const struct uffd_msg *messages, int count);

/** Before events are read: if nothing is announced any more, do what has waited for it. */
void usw_event_settle(struct usw_target *target);

/** Nothing more is going to be read: do what has waited. */
void usw_event_conclude(struct usw_target *target);

#endif /* USW_EVENT_H */
