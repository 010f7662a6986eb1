/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Guards: pages a program has made inaccessible with MADV_GUARD_INSTALL (Linux 6.13), as glibc does
 * below a thread's stack from 2.42 on.
 *
 * A guard is a mark in the page table. No event tells of it, and UFFDIO_COPY puts a page in its
 * place without a word. So what nobody has touched is looked at right before it is copied to, once
 * a window, in half a microsecond; a page that a fault waits for is no guard, or its thread would
 * have got SIGSEGV.
 *
 * Installing one also takes away what was there, so that the page reads as zeros when the guard is
 * removed. What has left is forgotten as soon as somebody comes across a guard in its place: here,
 * or the sweep, which asks the fault thread to. A guard that is gone again by then was not seen, and
 * neither is one that another thread installs between the look and the copy.
 */

#ifndef USW_GUARD_H
#define USW_GUARD_H

#include "target.h"

/** Whether this kernel has guards: what a session of an older one need not look for. */
bool usw_guards_exist(void);

/**
 * Whether what guards a target may have can be seen. Not in a forked child without hands, which has
 * handed in no pagemap: there nothing is copied but what is asked for.
 */
bool usw_guards_are_seen(const struct usw_target *target);

/**
 * How many of `count` pages from `page` on come before the first guard; 0 also if none can be seen.
 * The fault thread calls.
 */
uint32_t usw_guards_before(const struct usw_target *target, uint64_t page, uint32_t count);

/** The same; where there is a guard, what has left of its page and around is forgotten. */
uint32_t usw_guards_clip(struct usw_target *target, uint64_t page, uint32_t count);

/**
 * Whether a page has become a guard while its fault waited: another thread may have gone on, and
 * somebody has given the page away. What had left of it is forgotten.
 */
bool usw_guards_meet(struct usw_target *target, uint64_t page);

/**
 * Forget what has left of pages that are guards now, from `start` on and as far as one scan of the
 * sweep reaches. The fault thread calls, without map_lock.
 */
void usw_guards_forget(struct usw_target *target, uint64_t start);

/**
 * Take the guards out of what a scan of the sweep has found, and have forgotten what has left in
 * their place. Returns how many regions are left. Reclaim thread.
 */
int usw_guards_take_out(struct usw_target *target, struct page_region *regions, int count);

#endif /* USW_GUARD_H */
