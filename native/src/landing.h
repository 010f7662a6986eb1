// SPDX-License-Identifier: MIT

/**
 * @file
 * What was read from a slot goes into its segment's place in RAM, object by object, opened.
 *
 * Nobody reads that place before it is published. No lock is held.
 */

#ifndef USW_LANDING_H
#define USW_LANDING_H

#include "tier.h"

/* Objects between two looks after the disk. */
#define USW_LOOK_OBJECTS 16u

/**
 * Open the objects of a move whose read is through. What cannot be opened becomes zeros, and is
 * noted in move->damaged. `look`, if there is one, is called every USW_LOOK_OBJECTS objects. 0, or
 * -errno if there is no memory; then nothing is held there. Who calls has the move and the sealer to
 * itself.
 */
int usw_land(struct usw_tiers *tiers, struct usw_sealer *sealer, struct usw_move *move,
	     void (*look)(struct usw_tiers *tiers));

#endif /* USW_LANDING_H */
