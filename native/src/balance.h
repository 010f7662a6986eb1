// SPDX-License-Identifier: MIT

/**
 * @file
 * How much of a budget is for what is stored in RAM, the rest being for what is resident.
 *
 * A part of the budget that goes from one to the other saves faults there and costs some here. The
 * faults it would save if it were resident are seen: those answered from RAM whose page had left less
 * than that many pages ago. Those it would save if it were for what is stored are estimated: as large a
 * share of the faults on disks as it is of what is there and in use, which is right where they are
 * spread evenly and too little elsewhere; less what the pages that leave for it take there, which is
 * all of it if nothing compresses. Each counts with what it costs; a fault on a disk costs the
 * time for which the disk was waited for, by all who waited together. The share moves, a small step at
 * a time, to where both weigh the same: to the disk's side for uniform accesses, to the resident side
 * for a working set that nearly fits. Where next to nothing is on disks any more, nothing is seen of
 * what it costs to have more there: then what it was when there was more holds, less and less.
 *
 * The same figures say whether it pays to compress denser (pack.h), so that less goes down: not where
 * a page from a disk is waited for no longer than that takes, as in a walk that is read ahead of.
 *
 * The rule is that of the marginal gains of two caches in one memory (Thiebaut, Stone and Wolf,
 * "Improving disk cache hit-ratios through cache partitioning", 1992).
 *
 * The owner of the segments (the reclaim thread) calls.
 */

#ifndef USW_BALANCE_H
#define USW_BALANCE_H

#include "base.h"

/** The share of the budget is counted in so many parts. */
#define USW_BALANCE_PARTS 64u
/** What is resident and would be near if it had left: this part of the budget. */
#define USW_NEAR_SHARE 16u

struct usw_balance {
	uint32_t stored_parts; /* of USW_BALANCE_PARTS */
	double disk_gain; /* of a byte for what is stored, as last seen: waited ns, a ns of time */
	uint64_t looked_ns;
	uint64_t near_faults, disk_faults, disk_ns; /* as they were then */
	bool packing_pays;
	uint64_t judged_pages,
		judged_ns; /* from disks, and for which they were waited, at that time */
};

/** What has happened so far, and what there is. */
struct usw_balance_seen {
	uint64_t near_faults; /* answered from RAM, of pages that had left not long ago */
	uint64_t disk_faults; /* answered from disks */
	uint64_t disk_pages;  /* that came from disks, these and those ahead of faults */
	uint64_t disk_ns;    /* for which they have waited; of several at once, their share of it */
	uint64_t disk_bytes; /* on disks, of segments that are read */
	uint64_t live_bytes, live_objects; /* stored, wherever that is: what a page takes */
	uint64_t memory_bytes;
};

void usw_balance_init(struct usw_balance *balance, uint64_t now_ns);

/** Move the share, if there is enough to go by since it was last moved. */
void usw_balance_look(struct usw_balance *balance, const struct usw_balance_seen *seen,
		      uint64_t now_ns);

/** How much of a budget may be for what is stored. */
uint64_t usw_balance_stored_bytes(const struct usw_balance *balance, uint64_t memory_bytes);

#endif /* USW_BALANCE_H */
