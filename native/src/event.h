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
 * Take note, before events are read, of what is not going to be told any more. Fault thread.
 */
void usw_event_settle(struct usw_target *target);

/**
 * Apply the events among `count` messages. Fault thread; takes map_lock, so it waits for a batch
 * in flight. The caller has set events_pending and raised the epoch; this clears events_pending.
 */
void usw_event_apply(struct usw_target *target, const struct uffd_msg *messages, int count);

#endif /* USW_EVENT_H */
