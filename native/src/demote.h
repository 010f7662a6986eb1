// SPDX-License-Identifier: MIT

/**
 * @file
 * How much is kept compressed in RAM, and what goes to disk tiers or comes back.
 *
 * Only a budget (--memory) makes anything go down: what is stored in RAM then competes with what
 * is resident. Where the two meet is found by balance.h, half of the budget to begin with. Above that
 * the coldest segments go down, ahead of need and in the background, until a little below; segments
 * that are read again and again come back while there is room. All of it is decided here, and done by
 * tier.h.
 *
 * The owner of the segments (the reclaim thread) calls.
 */

#ifndef USW_DEMOTE_H
#define USW_DEMOTE_H

#include "session.h"

/**
 * Publish moves that are done and begin what is due. Never waits. `in_need`: nothing else is left
 * to give, so everything goes that can. True if moves are under way.
 */
bool usw_demote_step(struct usw_session *session, bool in_need);

/** RAM that segments coming back may take for good. Any thread. */
uint64_t usw_demote_ram_free_bytes(const struct usw_session *session);

#endif /* USW_DEMOTE_H */
