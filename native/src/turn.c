// SPDX-License-Identifier: MIT

/**
 * @file
 * Whose turn it is. See turn.h.
 */

#include "turn.h"
#include "session.h"

/* What nothing could be had from in so many laps counts for this share of what it has. */
#define USW_MUTE_LAPS (USW_PAGE_LAPS_MAX + 3u)
#define USW_MUTE_SHARE 64u

struct usw_target *usw_turn_next(struct usw_session *session)
{
	struct usw_turns *turns = &session->reclaim.turns;
	struct usw_target *turn = turns->next ? turns->next : session->targets;

	turns->next = turn ? turn->next : NULL;
	return turn;
}

/** What a target owes in a round: as many pages as are resident of it. */
static uint64_t dues(const struct usw_target *target)
{
	uint64_t pages = atomic_load_explicit(&target->anon_pages, memory_order_relaxed);

	if (atomic_load(&target->state) != USW_TARGET_LIVE)
		return 0;
	return target->barren_laps < USW_MUTE_LAPS ? pages : pages / USW_MUTE_SHARE;
}

/** Each has its turn when it owes as much as the largest does in one round. */
struct usw_target *usw_turn_debtor(struct usw_session *session)
{
	struct usw_turns *turns = &session->reclaim.turns;
	uint64_t visits = 3 * (atomic_load(&session->targets_now) + 1); // figures change meanwhile
	struct usw_target *target;

	do {
		if (!turns->next) {
			turns->largest_pages = turns->round_largest_pages;
			turns->round_largest_pages = 0;
		}
		target = usw_turn_next(session);
		if (!target)
			return NULL;
		uint64_t pages = dues(target);

		turns->round_largest_pages = usw_max(turns->round_largest_pages, pages);
		target->owed_pages += pages;
	} while (target->owed_pages < turns->largest_pages && visits--);
	target->owed_pages -= usw_min(target->owed_pages, turns->largest_pages);
	return target;
}

void usw_turn_end(struct usw_target *target, bool gave, bool wrapped)
{
	if (gave)
		target->barren_laps = 0;
	else
		target->barren_laps += wrapped;
}

void usw_turn_leave(struct usw_session *session, const struct usw_target *target)
{
	struct usw_turns *turns = &session->reclaim.turns;

	if (turns->next == target)
		turns->next = target->next;
}
