// SPDX-License-Identifier: MIT

/**
 * @file
 * Picking: which pages of a target leave next.
 *
 * The sweep needs no access bits: a page's heat was learned from its refault distances and has
 * earned it laps; passing over it costs it one, and with none left it goes, unless it is young
 * (age.h). Pages go in contiguous runs and huge pages whole. Everything here runs on the reclaim
 * thread, with the target's map_lock held.
 */

#ifndef USW_PICK_H
#define USW_PICK_H

#include "session.h"

/** Pages picked for one command, in address order. */
struct usw_batch {
	enum usw_command_op op;
	uint32_t wanted;
	uint32_t run_count;
	uint32_t page_count;
	bool unshared;          /* its pages have been taken over: what is refused now is pinned */
	uint64_t mapping_start; /* of the mapping that is looked at: MOVE takes from one at a time */
	struct usw_run runs[USW_BATCH_RUNS_MAX];
	uint64_t address[USW_BATCH_PAGES_MAX];
	usw_page_word *word[USW_BATCH_PAGES_MAX];
	uint64_t before[USW_BATCH_PAGES_MAX];
};

/**
 * Fill the batch from the target's cursor on. Sets *ret_wrapped if the sweep came round. False: the
 * kernel does not say what is present, and would not if it were asked again at once.
 */
bool usw_pick(struct usw_target *target, struct usw_batch *batch, bool *ret_wrapped);

/** Whether a page may leave that was picked before, whatever has become of its age since. */
bool usw_pick_may_go(struct usw_target *target, uint64_t address);

/** Add a page that was picked before. Nobody else changes what is known of mappings. */
void usw_pick_again(struct usw_target *target, struct usw_batch *batch, uint64_t address);

#endif /* USW_PICK_H */
