// SPDX-License-Identifier: MIT

/**
 * @file
 * Shortage: nothing is left to give, or what has left takes all of the budget.
 *
 * A sweep may give nothing for a moment, so nothing is concluded from one. What lasts is told apart:
 * memory that cannot leave at all slows a program down; a budget that is not kept is squeezed for
 * what packing and disks can still take, and then the program waits for room, or ends. All of it runs
 * on the reclaim thread.
 */

#ifndef USW_SHORTAGE_H
#define USW_SHORTAGE_H

#include "session.h"

/** What to do after a sweep. `gave`: there was something to give, or no need to. */
void usw_shortage_look(struct usw_session *session, bool gave);

/**
 * A new limit or tier has as long as the last one had to prove too little: what a look finds that
 * began before it is not said of what there is now.
 */
void usw_shortage_see_room(struct usw_session *session);

/** Whether there has been nothing to give for long: memory is locked, mostly. */
bool usw_shortage_is_barren(const struct usw_reclaim *reclaim);

#endif /* USW_SHORTAGE_H */
