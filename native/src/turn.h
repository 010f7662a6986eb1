// SPDX-License-Identifier: MIT

/**
 * @file
 * Turns: which target gives pages next.
 *
 * In proportion to what each has: a small program beside a large one is not to give as much. A
 * target of which nothing can be had is asked now and then, so that others do not pay for it.
 *
 * Threads: the reclaim thread, which alone takes targets off their list.
 */

#ifndef USW_TURN_H
#define USW_TURN_H

#include <stdbool.h>
#include <stdint.h>

struct usw_session;
struct usw_target;

struct usw_turns {
	struct usw_target *next;      /* NULL: the first */
	uint64_t largest_pages;       /* what the target owed that owed most, in the last round */
	uint64_t round_largest_pages; /* in this one, so far */
};

/** The next target, whatever it owes; NULL if there is none. */
struct usw_target *usw_turn_next(struct usw_session *session);

/** Whose turn it is by what each owes; NULL if there is no target. */
struct usw_target *usw_turn_debtor(struct usw_session *session);

/** A turn is over: pages have left, or the sweep has `wrapped`, or it gave up before. */
void usw_turn_end(struct usw_target *target, bool gave, bool wrapped);

/** A target is taken off the list. */
void usw_turn_leave(struct usw_session *session, const struct usw_target *target);

#endif /* USW_TURN_H */
