/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Faults that a disk answers: what is asked for, and what becomes of it when it is there.
 *
 * The reads themselves are in diskfault.h. Everything here runs on one fault thread; no lock is
 * held.
 */

#ifndef USW_DISKANSWER_H
#define USW_DISKANSWER_H

#include "answer.h"
#include "diskfault.h"

/** Whether a page is on its way from a disk, to be brought in as soon as it is there. */
bool usw_diskanswer_is_coming(const struct usw_fault_thread *thread,
			      const struct usw_target *target, uint64_t page);

/**
 * Ask for the content of a fault, and go on with other faults until it is there. The caller starts
 * it, with others, by usw_diskfault_flush().
 */
enum usw_verdict usw_diskanswer_begin(struct usw_fault_thread *thread, struct usw_target *target,
				      const struct usw_fault *fault, uint32_t id,
				      const struct usw_disk_place *place);

/** Ask for a page ahead of its fault. False: as many as may be are under way. */
bool usw_diskanswer_read_ahead(struct usw_fault_thread *thread, struct usw_target *target,
			       uint64_t page, uint32_t id, const struct usw_disk_place *place);

/**
 * Read `count` pages of a walk into reserve, from `page` on: those it will ask for after what it is
 * going to get now.
 */
void usw_diskanswer_read_reserve(struct usw_fault_thread *thread, struct usw_target *target,
				 uint64_t page, uint64_t step, uint32_t count);

/**
 * Settle what was read, some of it at a time. Returns whether something must be looked at again
 * soon.
 */
bool usw_diskanswer_settle(struct usw_fault_thread *thread);

#endif /* USW_DISKANSWER_H */
