// SPDX-License-Identifier: MIT

/**
 * @file
 * Garbage, standby, and what is owed to targets. See housekeep.h.
 */

#include "housekeep.h"
#include "account.h"
#include "compact.h"
#include "demote.h"
#include "drain.h"
#include "evict.h"

/* Standby pages kept of each target where RAM is tight. */
#define USW_STANDBY_KEEP_TIGHT 256u
/*
 * Garbage is let be up to this share of what is stored: a fifth, or a sixteenth where RAM is tight,
 * or a sixty-fourth where new objects fill vacancies, so that little is made.
 */
#define USW_GARBAGE_SHARE 5u
#define USW_GARBAGE_SHARE_TIGHT 16u
#define USW_GARBAGE_SHARE_FILLED 64u
/* How long it is collected in one go where RAM is tight, and at the most. */
#define USW_COMPACT_NS 5000000u
/* Elsewhere one part in so many of the time goes into it: a look may come after 20 ms of evicting. */
#define USW_COMPACT_SHARE 10u
/* With less in RAM than this, packing would take more than it gives. */
#define USW_PACK_BYTES (16u << 20)

void usw_housekeep_drain(struct usw_session *session, uint32_t keep)
{
	for (struct usw_target *target = session->targets; target; target = target->next)
		if (target->standby.space)
			usw_standby_drain(target, keep, UINT32_MAX);
}

void usw_housekeep_trim(struct usw_session *session)
{
	for (struct usw_target *target = session->targets; target; target = target->next)
		if (target->standby.space && usw_standby_count(&target->standby) == 0)
			usw_standby_trim(&target->standby);
}

bool usw_housekeep_compact(struct usw_session *session, uint64_t garbage_share)
{
	uint64_t used = session->segments.used_bytes;

	usw_segments_reap(&session->segments);
	return used > 2 * USW_SEGMENT_BYTES &&
	       usw_segments_garbage_bytes(&session->segments) > used / garbage_share &&
	       usw_compact_one(&session->vswap) > 0;
}

/**
 * Keep garbage low. Where RAM is tight each byte of it costs the program several of memory that it
 * has: the page that must leave for it is stored, too. A budget that garbage has eaten up leaves
 * nothing resident, and everything that is touched makes more of it; so there it is kept lower than
 * it would pay otherwise, and it is collected as fast as it comes. Without a disk, whose coldest
 * segments must stay apart, new objects take the places of dead ones.
 */
static void compact(struct usw_session *session, bool tight)
{
	uint64_t now_ns = usw_now_ns();
	uint64_t since_ns = now_ns - session->reclaim.compacted_ns;
	uint64_t end_ns = now_ns + (tight ? USW_COMPACT_NS
					  : usw_min(USW_COMPACT_NS, since_ns / USW_COMPACT_SHARE));
	bool fills = tight && !atomic_load(&session->tiers.count);
	uint32_t share = fills   ? USW_GARBAGE_SHARE_FILLED
			 : tight ? USW_GARBAGE_SHARE_TIGHT
				 : USW_GARBAGE_SHARE;

	session->segments.worth_share = tight ? share : USW_WORTH_SHARE;
	session->vacancies.is_wanted = fills;
	do
		session->reclaim.compacting = usw_housekeep_compact(session, share);
	while (session->reclaim.compacting && usw_now_ns() < end_ns);
	session->reclaim.compacted_ns = usw_now_ns();
}

/** What is parked goes down as it is. */
static void pack(struct usw_session *session, bool tight)
{
	bool is_worth = tight && session->balance.packing_pays &&
			session->segments.used_bytes >= USW_PACK_BYTES;
	enum usw_pack_need need = session->reclaim.packs_all                ? USW_PACK_ALL
				  : is_worth && !session->parking.target_id ? USW_PACK_COLD
									    : USW_PACK_NOT;

	session->reclaim.packing = usw_pack_step(&session->packer, need);
}

/** Look after pages that programs are giving back. True while one may be about to go. */
static bool settle_leaving(struct usw_session *session)
{
	bool any = false;

	for (struct usw_target *target = session->targets; target; target = target->next) {
		if (!atomic_load(&target->leaving.any) ||
		    atomic_load(&target->state) != USW_TARGET_LIVE)
			continue;
		pthread_mutex_lock(&target->map_lock);
		usw_leaving_settle(&target->leaving, target->pagemap_fd, usw_now_ns());
		pthread_mutex_unlock(&target->map_lock);
		any |= atomic_load(&target->leaving.any);
	}
	return any;
}

static void settle_endings(struct usw_session *session)
{
	for (struct usw_target *target = session->targets; target; target = target->next)
		usw_evict_settle_ending(target);
}

/**
 * How many pages a standby queue keeps where RAM is tight. A queue that is never empty holds the
 * memory of all slots it went through, a thousand for each target: where that is more than may be
 * resident, it is worth more to what is.
 */
static uint32_t standby_keep(struct usw_session *session)
{
	uint64_t touched = 0;

	for (struct usw_target *target = session->targets; target; target = target->next)
		touched += target->standby.touched;
	return (int64_t)touched > atomic_load(&session->limit_pages) ? 0 : USW_STANDBY_KEEP_TIGHT;
}

void usw_housekeep(struct usw_session *session)
{
	bool tight = atomic_load(&session->memory_limit_bytes) != UINT64_MAX &&
		     !atomic_load(&session->keep_copies);

	usw_vswap_collect(&session->vswap);
	usw_equal_fit(&session->equal);
	session->reclaim.some_leave = settle_leaving(session);
	settle_endings(session);
	compact(session, tight);
	pack(session, tight);
	usw_demote_step(session, false);
	if (tight && usw_session_room(session) <= usw_account_reserve_pages(session)) {
		usw_housekeep_drain(session, standby_keep(session));
		usw_housekeep_trim(session);
	}
}
