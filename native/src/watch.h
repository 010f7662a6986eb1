// SPDX-License-Identifier: MIT

/**
 * @file
 * The watch thread: how much is resident, and that growth near the limit waits.
 *
 * New mappings raise no event, and a core touches 2 GB of fresh memory a second. So this thread
 * asks the kernel for each target's residency (statm, 2 us) at an interval that follows the
 * headroom, and near the limit sends a registrar to what has grown. A registrar registers each
 * stretch of the address space in which only private anonymous memory is known to lie by one call,
 * which waits for the program's mmap lock (write).
 *
 * There are several, because that lock is not fair: who asks while its holder runs gets it at once,
 * who asks while its holder has lost its processor has to queue, and behind 64 threads in the
 * allocator on two processors that took 100 ms, in which those who did not queue grew by 360 MiB.
 * So while one waits, the next tries its luck at each look. What is registered here is believed in
 * later, by the reclaim thread: see usw_target_register().
 */

#ifndef USW_WATCH_H
#define USW_WATCH_H

#include "session.h"

/** Pages below the limit at which growing memory is registered, so that its growth waits. */
int64_t usw_watch_margin(const struct usw_session *session);

#endif /* USW_WATCH_H */
