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
 * There are many, because that lock is not fair. Who asks for it while its holder runs may get it
 * at once; who asks while its holder has lost its processor has to queue, and is overtaken by those
 * who do not. The head of the queue, whoever that is, gets the lock in spite of them once it has
 * waited for 4 ms, or as soon as a real-time thread joins the queue. So one registrar behind 64
 * threads in the allocator waits for up to 400 ms, in which they grow by a gigabyte; one that is
 * joined by another whenever the session has grown some more waits for 3 ms. What is registered
 * here is believed in later, by the reclaim thread: see usw_target_register().
 */

#ifndef USW_WATCH_H
#define USW_WATCH_H

#include "session.h"

/** Pages below the limit at which growing memory is registered, so that its growth waits. */
int64_t usw_watch_margin(const struct usw_session *session);

#endif /* USW_WATCH_H */
