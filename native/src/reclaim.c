// SPDX-License-Identifier: MIT

/**
 * @file
 * The reclaim thread: keeps residency under the limit, and everything that happens in its shadow.
 *
 * It registers growing memory near the limit, evicts ahead of need, and frees what retired targets
 * held; accounts, housekeeping and shortage are files of their own (account.h, housekeep.h,
 * shortage.h). The watch thread tells it how much is resident (watch.h). It owns descriptors, segments
 * and standby queues; it takes one target's map_lock at a time.
 */

#include "account.h"
#include "control.h"
#include "drain.h"
#include "eligible.h"
#include "evict.h"
#include "futex.h"
#include "housekeep.h"
#include "priority.h"
#include "session.h"
#include "shortage.h"
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
/* The longest pause between two looks at a target whose mappings change all the time. */
#define USW_SCAN_PAUSE_NS 1000000u
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
/* Where nothing has been to give for so long, a sweep is followed by a pause of so many times its own. */
#define USW_BARREN_REST 9u
/* A page of the highest heat is passed over this often before it goes; and once all are too young. */
#define USW_SWEEPS_MAX (USW_PAGE_LAPS_MAX + 3u)

void usw_reclaim_kick(struct usw_session *session)
{
	struct usw_reclaim *reclaim = &session->reclaim;

	// Raised also while it works: it compares with what it was before it looked for work.
	atomic_fetch_add(&reclaim->kick, 1);
	if (!atomic_load(&reclaim->sleeping))
		return;
	usw_futex_wake(&reclaim->kick, 1);
}

// --- Targets that came or went ------------------------------------------------------------------

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
	usw_account_freed(session);
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
	session->own_bytes = usw_account_own_bytes();
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

/**
 * Sweep over the targets until `need` pages have left, or everything there is was passed over as
 * often as the hottest page may ask for. Returns the pages that left.
 */
static uint32_t sweep(struct usw_session *session, uint32_t need)
{
	// Once all has been passed over that often, a look in passing finds what has changed.
	uint32_t sweeps = usw_shortage_is_barren(&session->reclaim) ? 1 : USW_SWEEPS_MAX;
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
			if (usw_account_if_due(session))
				follow_growth(session);
		}
		barren = evicted == before ? barren + 1 : 0;
		usw_turn_end(target, evicted != before, result == USW_EVICT_WRAPPED);
		while (usw_standby_count(&target->standby) > USW_STANDBY_KEEP &&
		       usw_standby_drain(target, USW_STANDBY_KEEP, USW_DRAIN_PAGES) == 0)
			if (usw_account_if_due(session))
				follow_growth(session);
	}
	return evicted;
}

/** Keep the reserve. Returns false if there is nothing left to give. */
static bool keep_reserve(struct usw_session *session)
{
	int64_t reserve = usw_account_reserve_pages(session);
	int64_t room = usw_session_room(session);

	if (room >= atomic_load(&session->low_pages)) {
		session->reclaim.pressed = session->reclaim.fell_short = false;
		return true;
	}
	if (session->reclaim.is_holding)
		return false; // what leaves would have to be kept where there is no room
	uint64_t start_ns = usw_now_ns();
	uint64_t tries_before = session->reclaim.pinned_tries;
	uint32_t evicted = sweep(session, (uint32_t)(reserve - room));
	session->reclaim.sweep_ns = usw_now_ns() - start_ns;
	// One that asks for little is satisfied by what was just let in, whatever is pinned. What is
	// locked is not even tried.
	session->reclaim.fell_short = evicted < (uint32_t)(reserve - room) ||
				      session->reclaim.pinned_tries - tries_before > evicted;
	session->reclaim.pressed = usw_session_room(session) <= 0;
	usw_fault_kick(session);
	return evicted > 0;
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
		usw_account_if_due(session);
	}
}

/**
 * While faults come fast there will be work in some microseconds: wait for it awake. That keeps
 * this processor from halting, and the scheduler from moving a program that was just woken away
 * from the warm processor on which its fault was answered. What is cold is packed meanwhile. True if
 * there is work.
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
		if (!usw_pack_one(&session->packer))
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
	bool barren = usw_shortage_is_barren(reclaim);

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
		usw_shortage_see_room(session);
		usw_account_if_due(session);
		probe_ends(session);
		follow_growth(session);
		usw_shortage_look(session, keep_reserve(session));
		if (session->config.stress_pages_per_second)
			stress(session);
		usw_housekeep(session);
		if (!usw_control_evict(session) && !reclaim->packing)
			sleep_until_needed(session, seen);
	}
	return NULL;
}
