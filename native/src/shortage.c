// SPDX-License-Identifier: MIT

/**
 * @file
 * Squeezing, waiting, and giving up. See shortage.h.
 */

#include "shortage.h"
#include "account.h"
#include "demote.h"
#include "evict.h"
#include "housekeep.h"
#include "move.h"

#define USW_STUCK_NS 300000000u
#define USW_ROOM_NS 1000000000u
#define USW_BARREN_NS 30000000u
/* A limit that sweeps have left full for so long, but for moments, will stay so. */
#define USW_CRAMMED_NS (USW_FAULTED_NS + UINT64_C(2000000000))
#define USW_MOMENT_NS 500000000u
/* While sweeps give nothing the program runs on: what it lets in meanwhile leaves within some laps. */
#define USW_UNMANAGED_NS 2000000000u
#define USW_OVERDRAFT_BYTES (8u << 20)
/* With so little resident, what leaves next to make room is what was just let in. */
#define USW_LITTLE_PAGES ((int64_t)(USW_FLOOR_PAGES + USW_OVERDRAFT_BYTES / USW_PAGE_BYTES))
/* Packed in one go where nothing else makes room: about a millisecond. */
#define USW_SQUEEZE_OBJECTS 64u

bool usw_shortage_is_barren(const struct usw_reclaim *reclaim)
{
	return reclaim->barren_since_ns && usw_now_ns() - reclaim->barren_since_ns > USW_BARREN_NS;
}

static void drop_copies(struct usw_session *session)
{
	for (struct usw_target *target = session->targets; target; target = target->next) {
		uint64_t cursor = 0;

		if (atomic_load(&target->state) == USW_TARGET_LIVE)
			while (usw_evict_drop_copies(target, &cursor, 4096))
				;
	}
}

static unsigned long long resident_mib(const struct usw_session *session)
{
	return usw_account_mib((uint64_t)atomic_load(&session->resident_base) * USW_PAGE_BYTES);
}

/** Whether so much is within a budget, but for an overdraft. No budget is the largest there is. */
static bool is_within(uint64_t memory, uint64_t bytes)
{
	return bytes <= USW_OVERDRAFT_BYTES || bytes - USW_OVERDRAFT_BYTES <= memory;
}

/** Whether the budget is kept, but for an overdraft, by what is held without so much of it. */
static bool is_kept_without(const struct usw_session *session, uint64_t bytes)
{
	uint64_t ram = atomic_load(&session->ram_bytes);
	uint64_t resident = (uint64_t)atomic_load(&session->resident_base) * USW_PAGE_BYTES;

	return is_within(atomic_load(&session->memory_limit_bytes),
			 ram - usw_min(ram, bytes) + resident);
}

static bool is_kept(const struct usw_session *session)
{
	return is_kept_without(session, 0);
}

/** True if the program would fit if all that has left were on a disk. */
static bool would_tier_help(const struct usw_session *session)
{
	return is_kept_without(session, session->segments.used_bytes);
}

static void out_of_memory(struct usw_session *session)
{
	bool has_disk = atomic_load(&session->tiers.count);
	bool helps = would_tier_help(session);

	if (atomic_exchange(&session->out_of_memory, true))
		return;
	usw_session_report(
		session, USW_EVENT_OUT_OF_MEMORY, 0, 0,
		"the budget of %llu MiB cannot hold this program%s: %llu MiB are resident and "
		"cannot leave, %llu MiB are needed for what has left; give --memory more%s",
		usw_account_mib(atomic_load(&session->memory_limit_bytes)),
		helps && has_disk ? ", and every disk tier is full" : "", resident_mib(session),
		usw_account_mib(atomic_load(&session->ram_bytes)),
		!helps     ? ""
		: has_disk ? ", or another --disk"
			   : ", or a --disk");
	usw_session_kill_all(session, "out of memory");
}

static bool shall_wait(const struct usw_session *session)
{
	switch ((enum usw_on_full)session->config.on_full) {
	case USW_ON_FULL_AUTO:
		return atomic_load(&session->tiers.count) && would_tier_help(session);
	case USW_ON_FULL_WAIT:
		return true;
	case USW_ON_FULL_KILL:
		break;
	}
	return false;
}

/** True if the memory of a program cannot leave because its hands is gone: no disk helps then. */
static bool is_some_broken(const struct usw_session *session)
{
	for (struct usw_target *target = session->targets; target; target = target->next)
		if (atomic_load(&target->broken) && atomic_load(&target->state) == USW_TARGET_LIVE)
			return true;
	return false;
}

/** Said once, and again when what was done about it was not enough. */
static void tell_full(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	atomic_store(&session->waits_for_room, true);
	if (reclaim->full_told && !reclaim->room_seen)
		return;
	reclaim->full_told = true;
	reclaim->room_seen = false;
	if (is_some_broken(session)) {
		usw_session_report(
			session, USW_EVENT_WARNING, 0, 0,
			"the budget of %llu MiB is full of what cannot leave since a "
			"helper task is gone (%llu MiB are resident), and the program has to "
			"wait for room; give --memory more: uffdswap set",
			usw_account_mib(atomic_load(&session->memory_limit_bytes)),
			resident_mib(session));
		return;
	}
	usw_session_report(
		session, USW_EVENT_FULL, 0, 0,
		"every tier is full, and the program has to wait for room: of a budget "
		"of %llu MiB, %llu MiB are resident and %llu MiB needed for what has left",
		usw_account_mib(atomic_load(&session->memory_limit_bytes)), resident_mib(session),
		usw_account_mib(atomic_load(&session->ram_bytes)));
}

/** True if what has left takes all of the budget, and no disk takes any of it. */
static bool is_cramped(struct usw_session *session)
{
	return atomic_load(&session->memory_limit_bytes) != UINT64_MAX &&
	       atomic_load(&session->limit_pages) <= USW_FLOOR_PAGES &&
	       !usw_tiers_have_room(&session->tiers);
}

void usw_shortage_see_room(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	if (!atomic_load_explicit(&session->room_made, memory_order_relaxed))
		return;
	atomic_store(&session->room_made, false);
	reclaim->room_seen = reclaim->full_told;
	reclaim->stuck_since_ns = reclaim->cramped_since_ns = 0;
}

/**
 * That is said at once if somebody made room, else when it has lasted: programs come and go by a
 * page.
 */
static void end_wait(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	if (atomic_exchange(&session->waits_for_room, false))
		usw_fault_kick(session);
	// What ended the wait may have come in the middle of this look.
	usw_shortage_see_room(session);
	if (!reclaim->full_told ||
	    (!reclaim->room_seen && usw_now_ns() - reclaim->went_on_ns < USW_ROOM_NS))
		return;
	reclaim->full_told = reclaim->room_seen = false;
	usw_session_report(session, USW_EVENT_ROOM, 0, 0,
			   "there is room again: the program goes on");
}

/** Over the budget by more than an overdraft, with nothing evictable or the floor reached. */
static bool is_over_budget(const struct usw_session *session, bool gave)
{
	return !is_kept(session) &&
	       (!gave || atomic_load(&session->limit_pages) <= USW_FLOOR_PAGES);
}

/** Pack some objects here: the packer's own thread may not be getting a processor. False: none is left. */
static bool pack_some(struct usw_session *session)
{
	uint32_t count = 0;

	while (count < USW_SQUEEZE_OBJECTS && usw_pack_one(&session->packer))
		count++;
	return count > 0;
}

/** All that is left in order to get under the budget. True: a disk or packing makes room. */
static bool squeeze(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	// All that can be moved at once is on its way: the rest is a walk over all pages, and on a busy
	// machine the mover would wait for this thread.
	if (usw_moves_are_full(&session->tiers) && usw_demote_step(session, true))
		return true;
	if (!reclaim->is_holding) {
		usw_housekeep_drain(session, 0);
		usw_housekeep_trim(session);
		drop_copies(session);
		usw_vswap_collect(&session->vswap);
		usw_housekeep_compact(session, 20);
	}
	if (!usw_tiers_have_room(&session->tiers))
		usw_tiers_keep_leaving(&session->tiers);
	if (usw_demote_step(session, true))
		return true;
	// What is resident leaves while it can; then nothing is to come before all is packed.
	reclaim->packs_all = true;
	usw_pack_step(&session->packer, USW_PACK_ALL);
	bool hopeful = pack_some(session) || usw_pack_is_hopeful(&session->packer);
	reclaim->is_holding |= hopeful && usw_session_resident(session) <= USW_LITTLE_PAGES;
	return hopeful;
}

/** The budget is not kept: make room, or wait for it, or give up. */
static void make_room(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	bool helps = squeeze(session);

	// Standby of many targets may be over the budget by itself, and be so again at the next look,
	// which comes late where there is much to squeeze: what counts is what cannot be squeezed out.
	usw_account_freed(session);
	helps |= is_kept(session);
	if (!usw_lasts(&reclaim->stuck_since_ns, !helps, USW_STUCK_NS) ||
	    atomic_load(&session->room_made))
		return;
	if (!shall_wait(session)) {
		out_of_memory(session);
		return;
	}
	// Nothing leaves from now on, since there is no place for it, and so nothing comes in.
	reclaim->is_holding = true;
	tell_full(session);
}

static void warn_unmanaged(struct usw_session *session, bool stuck)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	int64_t over = -usw_session_room(session);
	bool unmanaged = stuck && over > (int64_t)(USW_OVERDRAFT_BYTES / USW_PAGE_BYTES);

	if (!usw_lasts(&reclaim->unmanaged_since_ns, unmanaged, USW_UNMANAGED_NS) ||
	    reclaim->warned_unmanaged)
		return;
	reclaim->warned_unmanaged = true;
	usw_session_report(
		session, USW_EVENT_WARNING, 0, 0,
		"the limit is below what cannot leave (%llu MiB are resident); `uffdswap "
		"status --json` tells by kind what is not managed",
		resident_mib(session));
}

/**
 * The limit may be full without being passed by much: what is pinned counts and stays, and only what
 * was just let in leaves again, as fast as it comes.
 */
static void warn_crammed(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	bool crammed = reclaim->fell_short && usw_session_room(session) <= 0 &&
		       !reclaim->floor_since_ns && usw_account_has_faulted(reclaim);
	uint64_t now_ns = usw_now_ns();

	if (crammed)
		reclaim->crammed_ns = now_ns;
	if (!usw_lasts(&reclaim->crammed_since_ns, now_ns - reclaim->crammed_ns < USW_MOMENT_NS,
		       USW_CRAMMED_NS) ||
	    reclaim->warned_unmanaged)
		return;
	reclaim->warned_unmanaged = true;
	usw_session_report(
		session, USW_EVENT_WARNING, 0, 0,
		"the limit of %llu MiB is full of what cannot leave, and the program crawls: raise "
		"it, or have less pinned (buffers of io_uring) or locked; `uffdswap status --json` "
		"tells what else is not managed",
		usw_account_mib((uint64_t)atomic_load(&session->limit_pages) * USW_PAGE_BYTES));
}

void usw_shortage_look(struct usw_session *session, bool gave)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	bool barren = !gave && usw_session_room(session) <= 0;

	// Pages that may be on their way out by themselves cannot be taken for a moment, and then
	// they are gone or can be: no reason to give anything up.
	if (!gave && reclaim->some_leave) {
		reclaim->barren_since_ns = reclaim->stuck_since_ns = reclaim->cramped_since_ns = 0;
		reclaim->crammed_since_ns = 0;
		return;
	}
	bool over = is_over_budget(session, gave);

	// A sweep may give nothing for a moment: an event is being applied, a child's hands is not
	// there yet. A limit below what cannot leave at all (stacks, locked and pinned memory)
	// slows the program down; it does not stop it for ever.
	bool stuck = usw_lasts(&reclaim->barren_since_ns, barren, USW_BARREN_NS);
	atomic_store(&session->let_pass, stuck && !over);

	bool cramped = is_cramped(session);
	bool shall = cramped && shall_wait(session);
	bool full = usw_lasts(&reclaim->cramped_since_ns, cramped, USW_STUCK_NS) && shall &&
		    !atomic_load(&session->room_made);
	if (full)
		tell_full(session);
	if (over || shall)
		reclaim->went_on_ns = usw_now_ns(); // not yet
	if (over) {
		make_room(session);
		return;
	}
	reclaim->stuck_since_ns = 0;
	reclaim->is_holding = reclaim->packs_all = false;
	if (!shall)
		end_wait(session);
	warn_unmanaged(session, stuck);
	warn_crammed(session);
}
