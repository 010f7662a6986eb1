// SPDX-License-Identifier: MIT

/**
 * @file
 * The mover: the one thread that waits for disks on behalf of whole segments.
 *
 * It seals and unseals, reads and writes, and gives space on disks back. What to move is asked of
 * it in usw_tiers.moves; it never changes the table of segments. Started with the first tier.
 */

#ifndef USW_MOVER_H
#define USW_MOVER_H

#include "tier.h"

/** The thread; its argument is the struct usw_tiers. */
void *usw_mover_main(void *argument);

/** There is something to do for it. Any thread. */
void usw_mover_wake(struct usw_tiers *tiers);

#endif /* USW_MOVER_H */
