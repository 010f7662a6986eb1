// SPDX-License-Identifier: MIT

/**
 * @file
 * The reclaim thread: keeps residency under the limit, and everything that happens in its shadow.
 *
 * It registers growing memory near the limit, evicts ahead of need, drains standby into segments,
 * compacts, frees what retired targets held. The watch thread tells it how much is resident (see
 * watch.h). It owns descriptors, segments and standby queues; it
 * takes one target's map_lock at a time.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "compact.h"
#include "control.h"
#include "demote.h"
#include "drain.h"
#include "eligible.h"
#include "evict.h"
#include "futex.h"
#include "priority.h"
#include "session.h"
#include "turn.h"
#include "uffd.h"
#include "watch.h"

/* How long it sleeps when nobody wakes it: ends that no descriptor tells of are looked for. */
#define USW_INTERVAL_NS 50000000u
/* The same while all programs sleep. */
#define USW_INTERVAL_ASLEEP_NS 500000000u
/* The same while a target is about to be freed: hands is gone in less. */
#define USW_INTERVAL_ENDING_NS 1000000u
#define USW_STRESS_INTERVAL_NS 500000u
/* While it works it brings the accounts up to date this often. */
#define USW_ACCOUNT_NS 500000u
/* The longest pause between two looks at a target whose mappings change all the time. */
#define USW_SCAN_PAUSE_NS 1000000u
/* A limit that has stood at its floor for so long will not rise by itself. */
#define USW_FLOOR_NS 3000000000u
/* Who is still in an address space after this is not hands. */
#define USW_ENDING_NS 500000000u
/* Time without a fault after which the thread sleeps. */
#define USW_SPIN_NS 100000u
#define USW_BATCH_PAGES 256u
/* Pages compressed between two looks at how much is resident. */
#define USW_DRAIN_PAGES 64u
/* Standby pages kept as a cache of what just left, per target. */
#define USW_STANDBY_KEEP 512u
#define USW_PROBE_NS 50000000u
/* Longer than the shim itself waits: on a busy machine a forked child may come late. */
#define USW_ALONE_NS 11000000000u
#define USW_STUCK_NS 300000000u
#define USW_ROOM_NS 1000000000u
#define USW_BARREN_NS 30000000u
/* Where nothing has been to give for so long, a sweep is followed by a pause of so many times its own. */
#define USW_BARREN_REST 9u
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
/* A page of the highest heat is passed over this often before it goes; and once all are too young. */
#define USW_SWEEPS_MAX (USW_PAGE_LAPS_MAX + 3u)
#define USW_OVERDRAFT_BYTES (8u << 20)
/* With so little resident, what leaves next to make room is what was just let in. */
#define USW_LITTLE_PAGES ((int64_t)(USW_FLOOR_PAGES + USW_OVERDRAFT_BYTES / USW_PAGE_BYTES))
/* With less in RAM than this, packing would take more than it gives. */
#define USW_PACK_BYTES (16u << 20)

void usw_reclaim_kick(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	// Raised also while it works: it compares with what it was before it looked for work.
	atomic_fetch_add(&reclaim->kick, 1);
	if (!atomic_load(&reclaim->sleeping))
		return;
	usw_futex_wake(&reclaim->kick, 1);
}

// --- Accounts -----------------------------------------------------------------------------------

/** The agent's own anonymous memory. The spaces are shared memory and counted by themselves. */
static uint64_t own_anonymous_bytes(void)
{
	unsigned long long size, resident, shared;
	FILE *stream = fopen("/proc/self/statm", "re");

	if (!stream)
		return 0;
	int fields = fscanf(stream, "%llu %llu %llu", &size, &resident, &shared);
	fclose(stream);
	return fields == 3 && resident > shared ? (resident - shared) * USW_PAGE_BYTES : 0;
}

static void raise_peak(_Atomic uint64_t *peak, uint64_t value)
{
	if (value > atomic_load_explicit(peak, memory_order_relaxed))
		atomic_store_explicit(peak, value, memory_order_relaxed);
}

/** What the session holds in RAM outside its targets. */
static uint64_t account_ram(struct usw_session *session)
{
	uint64_t metadata = usw_vswap_held_bytes(&session->vswap) +
			    usw_nodes_held_bytes(&session->nodes) +
			    usw_segments_metadata_bytes(&session->segments) +
			    usw_equal_held_bytes(&session->equal);
	uint64_t standby_touched = 0;
	uint64_t standby_pages = 0;

	for (struct usw_target *target = session->targets; target; target = target->next) {
		standby_touched += target->standby.touched;
		standby_pages += usw_standby_count(&target->standby);
	}
	uint64_t ram = session->own_bytes + metadata + session->segments.used_bytes +
		       standby_touched * USW_PAGE_BYTES;
	atomic_store(&session->metadata_bytes, metadata);
	atomic_store(&session->standby_pages, standby_pages);
	atomic_store(&session->ram_stored_bytes, session->segments.used_bytes);
	atomic_store(&session->ram_segments, session->segments.used_segments);
	atomic_store(&session->compacted_segments, session->segments.compacted_segments);
	atomic_store(&session->ram_bytes, ram);
	raise_peak(&session->ram_peak_bytes, ram);
	return ram;
}

/** Room the thread keeps ahead of need. */
static int64_t reserve_pages(const struct usw_session *session)
{
	int64_t reserve = atomic_load(&session->limit_pages) / 32;

	return reserve < 32 ? 32 : reserve > 1024 ? 1024 : reserve;
}

/** Work out how many pages may be resident now: the smaller of both limits. */
static void set_limit(struct usw_session *session, uint64_t ram_bytes)
{
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	uint64_t limit = atomic_load(&session->resident_limit_bytes);

	if (memory != UINT64_MAX)
		limit = usw_min(limit, memory > ram_bytes ? memory - ram_bytes : 0);
	limit = limit == UINT64_MAX ? INT64_MAX / 2
				    : usw_max(limit / USW_PAGE_BYTES, USW_FLOOR_PAGES);
	atomic_store(&session->limit_pages, (int64_t)limit);
	atomic_store(&session->low_pages, reserve_pages(session) / 2);

	uint64_t resident = (uint64_t)usw_max(0, (uint64_t)atomic_load(&session->resident_base)) *
			    USW_PAGE_BYTES;
	atomic_store(&session->keep_copies,
		     memory == UINT64_MAX || ram_bytes + resident < memory - memory / 8);
}

static unsigned long long mib(uint64_t bytes)
{
	return (unsigned long long)bytes >> 20;
}

/**
 * At the floor, which is there so that nothing comes to a standstill, a program crawls and nobody
 * knows why: it is said once, when it has lasted.
 */
static void warn_at_floor(struct usw_session *session, uint64_t now_ns)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	uint64_t memory = atomic_load(&session->memory_limit_bytes);

	bool at_floor = memory != UINT64_MAX &&
			atomic_load(&session->limit_pages) <= USW_FLOOR_PAGES &&
			!atomic_load(&session->waits_for_room) &&
			now_ns - reclaim->faulted_ns <= USW_FLOOR_NS;

	if (!usw_lasts(&reclaim->floor_since_ns, at_floor, USW_FLOOR_NS) || reclaim->warned_floor)
		return;
	reclaim->warned_floor = true;
	usw_session_report(
		session, USW_EVENT_WARNING, 0, 0,
		"the budget of %llu MiB leaves next to nothing for pages in memory, and the "
		"program crawls: what has left and uffdswap itself take %llu MiB; give "
		"--memory more",
		mib(memory), mib(atomic_load(&session->ram_bytes)));
}

/** Bring the accounts up to date, if that is due. True: it was. */
static bool account_if_due(struct usw_session *session)
{
	uint64_t now_ns = usw_now_ns();

	if (now_ns - session->reclaim.accounted_ns < USW_ACCOUNT_NS)
		return false;
	session->reclaim.accounted_ns = now_ns;
	set_limit(session, account_ram(session));
	warn_at_floor(session, now_ns);
	usw_demote_step(session, false);
	return true;
}

// --- Targets that came or went ------------------------------------------------------------------

/** Whoever hears that a target is gone finds the accounts without it. */
static void account_freed(struct usw_session *session)
{
	usw_vswap_collect(&session->vswap);
	usw_segments_reap(&session->segments);
	if (atomic_load(&session->tiers.count))
		usw_tiers_count(&session->tiers);
	set_limit(session, account_ram(session));
}

/**
 * Whether nobody runs in a target's address space any more. Hands takes a moment to leave. A process
 * that was made by clone(2) with CLONE_VM may outlive the one whose memory it shares, though, and
 * would read zeros as soon as our descriptor is closed: it gets SIGBUS instead.
 */
static bool has_ended(struct usw_target *target)
{
	if (usw_uffd_is_dead(target->uffd))
		return true;
	if (!usw_lasts(&target->ends_since_ns, true, USW_ENDING_NS))
		return false;
	usw_target_poison_all(target);
	return true;
}

/** False: not yet, try again later. */
static bool free_target(struct usw_session *session, struct usw_target *target)
{
	if (!has_ended(target) || !usw_session_can_tell_end(session))
		return false;
	pthread_mutex_lock(&target->map_lock);
	usw_target_forget(target, 0, USW_ADDRESS_END);
	usw_pagemap_prune(&target->pagemap, 0, USW_ADDRESS_END);
	pthread_mutex_unlock(&target->map_lock);
	// Pages its forks share may still be in its standby.
	if (target->standby.space && usw_standby_drain(target, 0, UINT32_MAX))
		return false; // no room for them now

	uint32_t id = target->id;
	int pid = target->pid;
	pthread_mutex_lock(&session->targets_lock);
	if (atomic_load(&target->pins)) {
		pthread_mutex_unlock(&session->targets_lock);
		return false; // a late handshake looks at it
	}
	if (session->targets == target) {
		session->targets = target->next;
	} else {
		struct usw_target *before = session->targets;

		while (before->next != target)
			before = before->next;
		before->next = target->next;
	}
	usw_turn_leave(session, target);
	usw_target_destroy(target);
	pthread_mutex_unlock(&session->targets_lock);
	atomic_fetch_sub(&session->targets_now, 1);
	account_freed(session);
	usw_session_report(session, USW_EVENT_TARGET_GONE, id, pid, "gone");
	return true;
}

static void free_retired(struct usw_session *session)
{
	struct usw_target *next;

	session->reclaim.some_end = false;
	for (struct usw_target *target = session->targets; target; target = next) {
		next = target->next;
		if (atomic_load(&target->state) == USW_TARGET_RETIRED &&
		    atomic_load(&target->pins) == 0)
			session->reclaim.some_end |= !free_target(session, target);
	}
}

/**
 * A child whose library cannot join, as after setuid(2) or chroot(2), is served, but that no limit
 * holds for it would not show otherwise. Said once: it has no PID here, and others are like it.
 */
static void tell_alone(struct usw_session *session, struct usw_target *target)
{
	if (!usw_lasts(&target->alone_since_ns, true, USW_ALONE_NS) || session->reclaim.alone_told)
		return;
	session->reclaim.alone_told = true;
	usw_session_report(session, USW_EVENT_ALONE, target->id, 0,
			   "a forked child could not join; its memory does not count and cannot "
			   "leave (is it of another user, without /proc, short of descriptors or "
			   "address space, or forked by a bare clone(2)?)");
}

/** Ends that no pidfd tells: exec into something without a shim, children that never said hello. */
static void probe_ends(struct usw_session *session)
{
	uint64_t now_ns = usw_now_ns();

	if (now_ns - session->reclaim.probed_ns < USW_PROBE_NS)
		return;
	session->reclaim.probed_ns = now_ns;
	session->own_bytes = own_anonymous_bytes();
	for (struct usw_target *target = session->targets; target; target = target->next) {
		if (atomic_load(&target->state) != USW_TARGET_LIVE)
			continue;
		bool has_hands = atomic_load(&target->has_hands);
		if (has_hands ? usw_target_has_left(target) : usw_uffd_is_dead(target->uffd))
			usw_target_ask_retire(target);
		else if (!has_hands)
			tell_alone(session, target);
	}
}

// --- Near the limit -----------------------------------------------------------------------------

/** Near the limit adopt or register what is new of targets whose mappings have changed. */
static void follow_growth(struct usw_session *session)
{
	if (usw_session_room(session) > usw_watch_margin(session))
		return;
	for (struct usw_target *target = session->targets; target; target = target->next) {
		uint64_t start_ns = usw_now_ns();

		if (atomic_load(&target->data_pages) == target->scanned_data_pages &&
		    !atomic_load(&target->layout_changed))
			continue;
		if (start_ns < target->scan_due_ns)
			continue;
		// A target of many mappings changes faster than they can be read: about half of the
		// time goes into looking, so that the other half is left for evicting.
		usw_eligible_register_all(target);
		uint64_t end_ns = usw_now_ns();
		target->scan_due_ns = end_ns + usw_min(end_ns - start_ns, USW_SCAN_PAUSE_NS);
	}
}

/** Whether there has been nothing to give for long: memory is locked, mostly. */
static bool is_barren(const struct usw_reclaim *reclaim)
{
	return reclaim->barren_since_ns && usw_now_ns() - reclaim->barren_since_ns > USW_BARREN_NS;
}

/**
 * Sweep over the targets until `need` pages have left, or everything there is was passed over as
 * often as the hottest page may ask for. Returns the pages that left.
 */
static uint32_t sweep(struct usw_session *session, uint32_t need)
{
	// Once all has been passed over that often, a look in passing finds what has changed.
	uint32_t sweeps = is_barren(&session->reclaim) ? 1 : USW_SWEEPS_MAX;
	uint64_t barren = 0;
	uint32_t evicted = 0;

	while (evicted < need && barren < (atomic_load(&session->targets_now) + 1) * sweeps) {
		// Where one has given nothing the next is asked, whatever it owes.
		struct usw_target *target = barren ? usw_turn_next(session)
						   : usw_turn_debtor(session);
		enum usw_evict_result result = USW_EVICT_DONE;
		uint32_t before = evicted;

		if (!target)
			break;
		while (evicted == before && result == USW_EVICT_DONE) {
			uint32_t wanted = (uint32_t)usw_min(need - evicted, USW_BATCH_PAGES);

			result = usw_evict_some(target, wanted < 16 ? 16 : wanted,
						barren > 0 || session->reclaim.pressed, &evicted);
			if (account_if_due(session))
				follow_growth(session);
		}
		barren = evicted == before ? barren + 1 : 0;
		usw_turn_end(target, evicted != before, result == USW_EVICT_WRAPPED);
		while (usw_standby_count(&target->standby) > USW_STANDBY_KEEP &&
		       usw_standby_drain(target, USW_STANDBY_KEEP, USW_DRAIN_PAGES) == 0)
			if (account_if_due(session))
				follow_growth(session);
	}
	return evicted;
}

/** Keep the reserve. Returns false if there is nothing left to give. */
static bool keep_reserve(struct usw_session *session)
{
	int64_t reserve = reserve_pages(session);
	int64_t room = usw_session_room(session);

	if (room >= atomic_load(&session->low_pages)) {
		session->reclaim.pressed = false;
		return true;
	}
	if (session->reclaim.is_holding)
		return false; // what leaves would have to be kept where there is no room
	uint64_t start_ns = usw_now_ns();
	uint32_t evicted = sweep(session, (uint32_t)(reserve - room));
	session->reclaim.sweep_ns = usw_now_ns() - start_ns;
	session->reclaim.pressed = usw_session_room(session) <= 0;
	usw_fault_kick(session);
	return evicted > 0;
}

// --- In the shadow ------------------------------------------------------------------------------

static void drain_all(struct usw_session *session, uint32_t keep)
{
	for (struct usw_target *target = session->targets; target; target = target->next)
		if (target->standby.space)
			usw_standby_drain(target, keep, UINT32_MAX);
}

/** Give the memory of empty standby queues back. */
static void trim_all(struct usw_session *session)
{
	for (struct usw_target *target = session->targets; target; target = target->next)
		if (target->standby.space && usw_standby_count(&target->standby) == 0)
			usw_standby_trim(&target->standby);
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

/** True if it did something: there may be more. */
static bool compact_if_worth(struct usw_session *session, uint64_t garbage_share)
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
		session->reclaim.compacting = compact_if_worth(session, share);
	while (session->reclaim.compacting && usw_now_ns() < end_ns);
	session->reclaim.compacted_ns = usw_now_ns();
}

/** What is parked goes down as it is. */
static void pack(struct usw_session *session, bool tight)
{
	bool is_worth = tight && session->segments.used_bytes >= USW_PACK_BYTES;
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

static void housekeep(struct usw_session *session)
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
	if (tight && usw_session_room(session) <= reserve_pages(session)) {
		drain_all(session, USW_BATCH_PAGES);
		trim_all(session);
	}
}

// --- Nothing left to give -----------------------------------------------------------------------

static unsigned long long resident_mib(const struct usw_session *session)
{
	return (unsigned long long)usw_max(0, (uint64_t)atomic_load(&session->resident_base)) >> 8;
}

/** Whether so much is within a budget, but for an overdraft. No budget is the largest there is. */
static bool is_within(uint64_t memory, uint64_t bytes)
{
	return bytes <= USW_OVERDRAFT_BYTES || bytes - USW_OVERDRAFT_BYTES <= memory;
}

/** True if the program would fit if all that has left were on a disk. */
static bool would_tier_help(const struct usw_session *session)
{
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	uint64_t resident = (uint64_t)atomic_load(&session->resident_base) * USW_PAGE_BYTES;
	uint64_t ram = atomic_load(&session->ram_bytes);

	return is_within(memory, ram - usw_min(ram, session->segments.used_bytes) + resident);
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
		mib(atomic_load(&session->memory_limit_bytes)),
		helps && has_disk ? ", and every disk tier is full" : "", resident_mib(session),
		mib(atomic_load(&session->ram_bytes)),
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

/** Said once, and again when what was done about it was not enough. */
static void tell_full(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	atomic_store(&session->waits_for_room, true);
	if (reclaim->full_told && !reclaim->room_seen)
		return;
	reclaim->full_told = true;
	reclaim->room_seen = false;
	usw_session_report(
		session, USW_EVENT_FULL, 0, 0,
		"every tier is full, and the program has to wait for room: of a budget "
		"of %llu MiB, %llu MiB are resident and %llu MiB needed for what has left",
		mib(atomic_load(&session->memory_limit_bytes)), resident_mib(session),
		mib(atomic_load(&session->ram_bytes)));
}

/** True if what has left takes all of the budget, and no disk takes any of it. */
static bool is_cramped(struct usw_session *session)
{
	return atomic_load(&session->memory_limit_bytes) != UINT64_MAX &&
	       atomic_load(&session->limit_pages) <= USW_FLOOR_PAGES &&
	       !usw_tiers_have_room(&session->tiers);
}

/**
 * A new limit or tier has as long as the last one had to prove too little: what a look finds that
 * began before it is not said of what there is now.
 */
static void see_room(struct usw_session *session)
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
	see_room(session); // what ended the wait may have come in the middle of this look
	if (!reclaim->full_told ||
	    (!reclaim->room_seen && usw_now_ns() - reclaim->went_on_ns < USW_ROOM_NS))
		return;
	reclaim->full_told = reclaim->room_seen = false;
	usw_session_report(session, USW_EVENT_ROOM, 0, 0,
			   "there is room again: the program goes on");
}

/** Over the budget by more than an overdraft, with nothing evictable or the floor reached. */
static bool is_over_budget(struct usw_session *session, bool gave)
{
	uint64_t memory = atomic_load(&session->memory_limit_bytes);
	uint64_t resident = (uint64_t)atomic_load(&session->resident_base) * USW_PAGE_BYTES;
	uint64_t total = atomic_load(&session->ram_bytes) + resident;

	if (is_within(memory, total))
		return false;
	return !gave || atomic_load(&session->limit_pages) <= USW_FLOOR_PAGES;
}

/** All that is left in order to get under the budget. True: a disk or packing makes room. */
static bool squeeze(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	if (!reclaim->is_holding) {
		drain_all(session, 0);
		trim_all(session);
		drop_copies(session);
		usw_vswap_collect(&session->vswap);
		compact_if_worth(session, 20);
	}
	if (!usw_tiers_have_room(&session->tiers))
		usw_tiers_keep_leaving(&session->tiers);
	if (usw_demote_step(session, true))
		return true;
	// What is resident leaves while it can; then nothing is to come before all is packed.
	reclaim->packs_all = true;
	usw_pack_step(&session->packer, USW_PACK_ALL);
	bool hopeful = usw_pack_is_hopeful(&session->packer);
	reclaim->is_holding |= hopeful && usw_session_resident(session) <= USW_LITTLE_PAGES;
	return hopeful;
}

/** The budget is not kept: make room, or wait for it, or give up. */
static void make_room(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	if (!usw_lasts(&reclaim->stuck_since_ns, !squeeze(session), USW_STUCK_NS) ||
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

static void warn_unmanaged(struct usw_session *session)
{
	int64_t over = -usw_session_room(session);

	if (session->reclaim.warned_unmanaged ||
	    over <= (int64_t)(USW_OVERDRAFT_BYTES / USW_PAGE_BYTES))
		return;
	session->reclaim.warned_unmanaged = true;
	usw_session_report(
		session, USW_EVENT_WARNING, 0, 0,
		"the limit is below what cannot leave (%llu MiB are resident); `uffdswap "
		"status --json` tells by kind what is not managed",
		resident_mib(session));
}

/** What to do when a sweep over everything gave nothing. */
static void nothing_to_give(struct usw_session *session, bool gave)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	bool barren = !gave && usw_session_room(session) <= 0;

	// Pages that may be on their way out by themselves cannot be taken for a moment, and then
	// they are gone or can be: no reason to give anything up.
	if (!gave && reclaim->some_leave) {
		reclaim->barren_since_ns = reclaim->stuck_since_ns = reclaim->cramped_since_ns = 0;
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
	if (stuck)
		warn_unmanaged(session);
}

// --- The thread ---------------------------------------------------------------------------------

/** xorshift64: Marsaglia, "Xorshift RNGs", 2003. Good enough to choose pages. */
static uint64_t next_random(struct usw_reclaim *reclaim)
{
	uint64_t x = reclaim->random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return reclaim->random = x;
}

/** --stress: evict at a steady rate, at random, whatever the limit. */
static void stress(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	const uint32_t pages = 16;
	uint64_t step_ns = (uint64_t)pages * 1000000000u / session->config.stress_pages_per_second;
	uint64_t now_ns = usw_now_ns();

	// Never more than a tenth of a second is made up for.
	if (now_ns - reclaim->stress_due_ns > 100000000u)
		reclaim->stress_due_ns = now_ns - 100000000u;
	while (reclaim->stress_due_ns < now_ns) {
		struct usw_target *target = usw_turn_next(session);
		uint32_t evicted = 0;

		if (target) {
			if (atomic_load(&target->data_pages) != target->scanned_data_pages)
				usw_eligible_register_all(target);
			usw_evict_random(target, next_random(reclaim), pages, &evicted);
			if (usw_standby_count(&target->standby) > USW_STANDBY_KEEP / 2)
				usw_standby_drain(target, USW_STANDBY_KEEP / 2, UINT32_MAX);
		}
		reclaim->stress_due_ns += step_ns;
		account_if_due(session);
	}
}

/**
 * While faults come fast there will be work in some microseconds: wait for it awake. That keeps
 * this processor from halting, and the scheduler from moving a program that was just woken away
 * from the warm processor on which its fault was answered. True if there is work.
 */
static bool spin_while_busy(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	for (;;) {
		uint64_t now_ns = usw_now_ns();
		uint32_t clock = atomic_load(&session->fault_clock);

		if (clock != reclaim->last_clock) {
			reclaim->last_clock = clock;
			reclaim->faulted_ns = now_ns;
		}
		if (now_ns - reclaim->faulted_ns > USW_SPIN_NS)
			return false;
		if (now_ns - reclaim->accounted_ns > USW_ACCOUNT_NS ||
		    usw_session_room(session) < atomic_load(&session->low_pages))
			return true;
		for (int i = 0; i < 50; i++)
			usw_cpu_relax();
		usw_priority_yield(); // also to what is compressed meanwhile
	}
}

/** How long to sleep at the most. */
static uint64_t interval_ns(const struct usw_session *session)
{
	if (session->config.stress_pages_per_second)
		return USW_STRESS_INTERVAL_NS;
	if (session->reclaim.some_end)
		return USW_INTERVAL_ENDING_NS;
	if (atomic_load(&session->watch.asleep) && !session->reclaim.compacting &&
	    !session->is_demoting)
		return USW_INTERVAL_ASLEEP_NS;
	return USW_INTERVAL_NS;
}

/** `seen` is the kick as it was before the thread looked for work: a later one ends the sleep. */
static void sleep_until_needed(struct usw_session *session, uint32_t seen)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	struct timespec timeout = {.tv_nsec = (long)interval_ns(session)};
	bool barren = is_barren(reclaim);

	if (barren)
		timeout.tv_nsec = (long)usw_min(USW_BARREN_REST * reclaim->sweep_ns,
						(uint64_t)timeout.tv_nsec);
	else if (spin_while_busy(session))
		return;
	atomic_store(&reclaim->sleeping, 1);
	if (!atomic_load(&session->stopping) &&
	    (barren || reclaim->is_holding ||
	     usw_session_room(session) >= atomic_load(&session->low_pages)))
		usw_futex_wait(&reclaim->kick, seen, &timeout);
	else if (!atomic_load(&session->stopping))
		usleep(100); // over the limit and nothing to give: others first
	atomic_store(&reclaim->sleeping, 0);
}

void *usw_reclaim_main(void *argument)
{
	struct usw_session *session = argument;
	struct usw_reclaim *reclaim = &session->reclaim;

	usw_priority_hurry(0);
	reclaim->random = session->hash_seed | 1;
	reclaim->stress_due_ns = usw_now_ns();
	while (!atomic_load_explicit(&session->stopping, memory_order_relaxed)) {
		uint32_t seen = atomic_load(&reclaim->kick);

		free_retired(session);
		see_room(session);
		account_if_due(session);
		probe_ends(session);
		follow_growth(session);
		nothing_to_give(session, keep_reserve(session));
		if (session->config.stress_pages_per_second)
			stress(session);
		housekeep(session);
		if (!usw_control_evict(session) && !reclaim->packing)
			sleep_until_needed(session, seen);
	}
	return NULL;
}
