// SPDX-License-Identifier: MIT

/**
 * @file
 * Moves of segments, as their owner sees them: begun, under way, published.
 *
 * The mover does the work in between (mover.h). Owner only.
 */

#ifndef USW_MOVE_H
#define USW_MOVE_H

#include "tier.h"

/** Bytes of RAM that moves under way will give or take. */
struct usw_traffic {
	uint64_t given, taken;
	bool is_hopeful; /* a move among them is not just a try after a failure */
	bool has_parked; /* one of those takes a parked segment down */
};

/** Send a segment to the best disk with room. False: there is none, or enough is under way. */
bool usw_move_begin_demotion(struct usw_tiers *tiers, uint32_t segment);

/** Bring a segment back to RAM. False: enough is under way. */
bool usw_move_begin_promotion(struct usw_tiers *tiers, uint32_t segment);

/** Publish what the mover has done. */
void usw_moves_settle(struct usw_tiers *tiers);

/** True if as many are under way as may be. */
bool usw_moves_are_full(struct usw_tiers *tiers);

struct usw_traffic usw_moves_under_way(const struct usw_tiers *tiers);

/** Bytes that are on their way to a tier. */
uint64_t usw_moves_unwritten(const struct usw_tiers *tiers, uint32_t number);

#endif /* USW_MOVE_H */
