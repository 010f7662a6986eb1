// SPDX-License-Identifier: MIT

/**
 * @file
 * Carrying out what the control plane asks for. See control.h and request.h.
 *
 * Posting is the control thread's. The first half below runs on the reclaim thread, which alone
 * removes targets and so walks their list without its lock; the restores run on fault threads,
 * each for its own targets, which nobody can free behind its back.
 */

#include <errno.h>
#include <string.h>

#include "control.h"
#include "diskfault.h"
#include "drain.h"
#include "evict.h"
#include "fault.h"
#include "park.h"

/* Pages evicted, and standby pages compressed, before the reclaim thread looks after the limit. */
#define USW_STEP_BATCHES 4
#define USW_STEP_BATCH_PAGES 128u
#define USW_STEP_STANDBY 512u
/* Pages brought in, and page words looked at, before a fault thread looks after faults. */
#define USW_STEP_RESTORE_PAGES 32u
#define USW_STEP_RESTORE_WORDS 4096u
/* A segment that was asked for is looked for again after this long. */
#define USW_RECALL_POLL_MS 1
/* A lap is one that each page stays less; after so many without a page there is nothing to have. */
#define USW_BARREN_LAPS (USW_PAGE_LAPS_MAX + 2u)
/* A program that goes on touching its memory is never empty: that is not waited for. */
#define USW_LAPS_MAX 64u
#define USW_IDLE_NS 1000000000u
#define USW_IDLE_PAUSE_US 200
/* Page words looked at under map_lock for one target's figures: 200 us. */
#define USW_TALLY_WORDS 3072u

// --- Posting (control thread) -------------------------------------------------------------------

/** Find a target and pin it, NULL if there is none. Any thread. */
static struct usw_target *pin_target(struct usw_session *session, uint32_t target_id)
{
	struct usw_target *target;

	pthread_mutex_lock(&session->targets_lock);
	for (target = session->targets; target; target = target->next)
		if (target->id == target_id && atomic_load(&target->state) == USW_TARGET_LIVE)
			break;
	if (target)
		atomic_fetch_add(&target->pins, 1);
	pthread_mutex_unlock(&session->targets_lock);
	return target;
}

static void unpin_target(struct usw_target *target)
{
	atomic_fetch_sub(&target->pins, 1);
}

static bool is_opposite(enum usw_request_kind kind, enum usw_request_kind other)
{
	return (kind == USW_REQUEST_RESTORE) != (other == USW_REQUEST_RESTORE);
}

/** What is asked now counts: end what would undo it. */
static void cancel_opposites(struct usw_session *session, enum usw_request_kind kind,
			     uint32_t target_id)
{
	for (uint32_t i = 0; i < USW_REQUESTS_MAX; i++) {
		struct usw_request *request = &session->requests.at[i];

		if (atomic_load(&request->state) == USW_REQUEST_POSTED &&
		    request->target_id == target_id && is_opposite(kind, request->kind))
			atomic_store(&request->cancelled, true);
	}
}

static void kick_fault_threads(struct usw_session *session)
{
	for (uint32_t i = 0; i < session->thread_count; i++)
		usw_fault_kick_one(&session->threads[i]);
}

static int post(struct usw_session *session, enum usw_request_kind kind, uint32_t target_id,
		uint64_t wanted_pages)
{
	struct usw_request *request = session->requests.at;
	bool restore = kind == USW_REQUEST_RESTORE;
	uint32_t i = restore ? USW_REQUESTS_EVICT : 0;
	uint32_t end = restore ? USW_REQUESTS_MAX : USW_REQUESTS_EVICT;

	if (target_id) {
		struct usw_target *target = pin_target(session, target_id);

		if (!target)
			return -ESRCH;
		unpin_target(target);
	}
	while (i < end && atomic_load(&request[i].state) != USW_REQUEST_FREE)
		i++;
	if (i == end)
		return -EBUSY;
	cancel_opposites(session, kind, target_id);
	request[i].kind = kind;
	atomic_store(&request[i].target_id, target_id);
	request[i].wanted_pages = wanted_pages;
	request[i].moved_pages = 0;
	request[i].result = 0;
	request[i].turn_id = UINT32_MAX;
	request[i].barren_laps = request[i].laps = 0;
	request[i].lap_gave = false;
	request[i].idle_since_ns = request[i].address = 0;
	atomic_store(&request[i].cancelled, false);
	atomic_fetch_add(&session->requests.posted_count, 1);
	atomic_store(&request[i].state, USW_REQUEST_POSTED);
	if (restore)
		kick_fault_threads(session);
	else
		usw_reclaim_kick(session);
	return (int)i + 1;
}

int usw_session_reclaim(struct usw_session *session, uint32_t target_id, uint64_t pages)
{
	return post(session, USW_REQUEST_RECLAIM, target_id, pages);
}

int usw_session_park(struct usw_session *session, uint32_t target_id)
{
	return post(session, USW_REQUEST_PARK, target_id, UINT64_MAX);
}

int usw_session_restore(struct usw_session *session, uint32_t target_id)
{
	return post(session, USW_REQUEST_RESTORE, target_id, UINT64_MAX);
}

/**
 * A restore whose target is gone is nobody's: no fault thread finds it any more, and none is in
 * the middle of it, for a target is let go of by its own fault thread.
 */
static bool is_abandoned(struct usw_session *session, struct usw_request *request)
{
	if (request->kind != USW_REQUEST_RESTORE)
		return false;
	struct usw_target *target = pin_target(session, request->target_id);
	if (target)
		unpin_target(target);
	return !target && atomic_load(&request->state) == USW_REQUEST_POSTED;
}

int usw_session_result(struct usw_session *session, int request_number, uint64_t *ret_pages)
{
	usw_assert(request_number > 0 && (uint32_t)request_number <= USW_REQUESTS_MAX);
	struct usw_request *request = &session->requests.at[request_number - 1];

	usw_assert(atomic_load(&request->state) != USW_REQUEST_FREE);
	if (is_abandoned(session, request)) {
		request->result = -ESRCH;
		atomic_fetch_sub(&session->requests.posted_count, 1);
		atomic_store(&request->state, USW_REQUEST_DONE);
	}
	if (atomic_load(&request->state) != USW_REQUEST_DONE)
		return 0;
	int result = request->result;
	*ret_pages = request->moved_pages;
	atomic_store(&request->state, USW_REQUEST_FREE);
	return result ? result : 1;
}

/** Hand a request back to the control thread. Its owner's last word about it. */
static void finish(struct usw_session *session, struct usw_request *request, int result)
{
	uint32_t number = (uint32_t)(request - session->requests.at) + 1;

	request->result = result;
	atomic_fetch_sub(&session->requests.posted_count, 1);
	atomic_store(&request->state, USW_REQUEST_DONE);
	usw_session_report(session, USW_EVENT_REQUEST_DONE, number, 0, "request");
}

// --- Reclaim and park (reclaim thread) ----------------------------------------------------------

/** The target a request names, or whose turn it is among all; NULL: none, or the lap is over. */
static struct usw_target *whose_turn(const struct usw_session *session,
				     const struct usw_request *request)
{
	for (struct usw_target *target = session->targets; target; target = target->next) {
		if (atomic_load(&target->state) != USW_TARGET_LIVE)
			continue;
		if (request->target_id ? target->id == request->target_id
				       : target->id <= request->turn_id)
			return target;
	}
	return NULL;
}

static void end_lap(struct usw_request *request)
{
	request->barren_laps = request->lap_gave ? 0 : request->barren_laps + 1;
	request->lap_gave = false;
	request->turn_id = UINT32_MAX;
	request->laps++;
}

static bool is_satisfied(const struct usw_request *request)
{
	return request->moved_pages >= request->wanted_pages ||
	       request->barren_laps >= USW_BARREN_LAPS || request->laps >= USW_LAPS_MAX ||
	       atomic_load(&request->cancelled);
}

/** Nothing can be taken from this target for the moment. True: it has been like that for long. */
static bool is_idle_for_long(struct usw_request *request)
{
	uint64_t now_ns = usw_now_ns();

	if (!request->idle_since_ns)
		request->idle_since_ns = now_ns;
	return now_ns - request->idle_since_ns > USW_IDLE_NS;
}

/** Everything that has left is to be as small, and as deep, as it can be. True: it goes on. */
static bool settle_parked(struct usw_request *request, struct usw_target *target)
{
	if (target->standby.space && usw_standby_drain(target, 0, UINT32_MAX) == 0)
		usw_standby_trim(&target->standby);
	if (atomic_load(&request->cancelled) || !usw_park_step(target))
		return false;
	usleep(USW_IDLE_PAUSE_US);
	return true;
}

/** One batch for a request. False: nothing can be taken now. */
static bool evict_batch(struct usw_request *request, struct usw_target *target)
{
	uint64_t missing = request->wanted_pages - request->moved_pages;
	uint32_t wanted = (uint32_t)usw_min(missing, USW_STEP_BATCH_PAGES);
	uint32_t evicted = 0;

	usw_age_forget(&target->age); // whoever asks for pages wants those of just now, too
	// Shared pages last: taking them over frees nothing while the other side has them, too.
	enum usw_evict_result result =
		usw_evict_some(target, wanted < 16 ? 16 : wanted, request->laps > 0, &evicted);

	request->moved_pages += evicted;
	request->lap_gave |= evicted > 0;
	if (usw_standby_count(&target->standby) > USW_STEP_STANDBY)
		usw_standby_drain(target, USW_STEP_STANDBY, UINT32_MAX); // no room: it stays
	if (result == USW_EVICT_NOTHING)
		return false;
	request->idle_since_ns = 0;
	if (result == USW_EVICT_WRAPPED && request->target_id)
		end_lap(request);
	else if (result == USW_EVICT_WRAPPED)
		request->turn_id = target->id - 1; // IDs begin at 1
	return true;
}

/** One step of a reclaim or a park. True: the request goes on. */
static bool evict_step(struct usw_session *session, struct usw_request *request)
{
	struct usw_target *target = whose_turn(session, request);

	if (!target && request->target_id) {
		usw_park_end(session, request->target_id);
		finish(session, request, -ESRCH);
		return false;
	}
	if (!target)
		end_lap(request);
	for (int i = 0; target && i < USW_STEP_BATCHES && !is_satisfied(request); i++) {
		if (evict_batch(request, target)) {
			if (!request->target_id && request->turn_id < target->id)
				break; // the next one's turn
			continue;
		}
		if (!request->target_id)
			request->turn_id = target->id - 1;
		else if (is_idle_for_long(request))
			request->laps = USW_LAPS_MAX;
		else
			usleep(USW_IDLE_PAUSE_US);
		break;
	}
	if (!is_satisfied(request))
		return true;
	if (target && request->kind == USW_REQUEST_PARK && settle_parked(request, target))
		return true;
	usw_park_end(session, request->target_id);
	finish(session, request, 0);
	return false;
}

bool usw_control_evict(struct usw_session *session)
{
	bool more = false;

	if (!atomic_load(&session->requests.posted_count))
		return false;
	for (uint32_t i = 0; i < USW_REQUESTS_EVICT; i++)
		if (atomic_load(&session->requests.at[i].state) == USW_REQUEST_POSTED)
			more |= evict_step(session, &session->requests.at[i]);
	return more;
}

// --- Restore (fault threads) --------------------------------------------------------------------

/**
 * The live target of this thread whose restore an entry is; NULL: not one of ours. It stays as
 * long as this thread is here.
 */
static struct usw_target *own_target(struct usw_fault_thread *thread, struct usw_request *request)
{
	if (atomic_load(&request->state) != USW_REQUEST_POSTED)
		return NULL;
	struct usw_target *target = pin_target(thread->session, atomic_load(&request->target_id));
	if (!target)
		return NULL;
	// Before it is let go of: another thread's may be freed at once.
	bool is_own = target->thread == thread;

	unpin_target(target);
	return is_own && atomic_load(&request->state) == USW_REQUEST_POSTED ? target : NULL;
}

/** Room beyond the reserve: a page that comes in must not make another one leave. */
static bool has_spare_room(const struct usw_session *session)
{
	return usw_session_room(session) > 2 * atomic_load(&session->low_pages);
}

/** One step of a restore: when the next is due, in ms; -1: it is done. */
static int restore_step(struct usw_fault_thread *thread, struct usw_target *target,
			struct usw_request *request)
{
	uint64_t behind = request->moved_pages + USW_STEP_RESTORE_PAGES;
	uint32_t words = 0;

	while (request->moved_pages < behind && words++ < USW_STEP_RESTORE_WORDS) {
		usw_page_word *word =
			usw_pagemap_next(&target->pagemap, &request->address, USW_ADDRESS_END);

		if (!word || !has_spare_room(thread->session) || atomic_load(&request->cancelled)) {
			if (thread->disk && usw_diskfault_reads_ahead(thread->disk, target))
				return USW_RECALL_POLL_MS; // it is over when all are in
			finish(thread->session, request, 0);
			return -1;
		}
		int brought = usw_answer_unasked(thread, target, request->address);
		if (brought == -EINPROGRESS)
			return USW_RECALL_POLL_MS;
		if (brought < 0)
			return 0; // the event is read before the next step
		request->moved_pages += (uint32_t)brought;
		request->address += USW_PAGE_BYTES;
	}
	return 0;
}

int usw_control_restore(struct usw_fault_thread *thread)
{
	struct usw_session *session = thread->session;
	int due_ms = -1;

	if (usw_likely(!atomic_load(&session->requests.posted_count)))
		return -1;
	for (uint32_t i = USW_REQUESTS_EVICT; i < USW_REQUESTS_MAX; i++) {
		struct usw_request *request = &session->requests.at[i];
		struct usw_target *target = own_target(thread, request);

		int next_ms = target ? restore_step(thread, target, request) : -1;

		if (next_ms >= 0)
			due_ms = due_ms < 0 || next_ms < due_ms ? next_ms : due_ms;
	}
	return due_ms;
}

// --- Figures (control thread) -------------------------------------------------------------------

/**
 * Count an object where it is; of what it costs, the share of one of those who refer to it. It may
 * move or die while we look: then it was in RAM.
 */
static void tally_object(const struct usw_session *session, uint64_t word,
			 struct usw_target_figures *figures)
{
	uint64_t place = usw_word_place(word);
	uint32_t count = usw_word_count(word);
	struct usw_object object = {0};

	figures->object_pages++;
	bool found = usw_segments_find(&session->segments, usw_place_group(place),
				       usw_place_index(place), &object);
	uint32_t share_bytes = (object.length_bytes + count / 2) / count;
	if (found && usw_where_tier(object.where) != USW_TIER_RAM) {
		figures->disk_pages++;
		figures->disk_stored_bytes += share_bytes;
	} else {
		figures->ram_pages++;
		figures->ram_stored_bytes += share_bytes;
	}
}

static void tally_page(const struct usw_session *session, uint32_t id,
		       struct usw_target_figures *figures)
{
	uint64_t word = usw_vswap_word(&session->vswap, id);

	figures->evicted_pages++;
	// The page may come back while we look, and its ID be free: then it was an evicted page.
	switch (usw_word_backend(word)) {
	case USW_BACKEND_ZERO:
		figures->zero_pages++;
		break;
	case USW_BACKEND_SAME:
		figures->same_pages++;
		break;
	case USW_BACKEND_MEMORY:
		figures->standby_pages++;
		break;
	case USW_BACKEND_OBJECT:
		tally_object(session, word, figures);
		break;
	case USW_BACKEND_FREE:
		figures->evicted_pages--;
		break;
	}
}

/** Count evicted pages from *address on. True: there are more. Takes map_lock for 200 us. */
static bool tally_some(struct usw_target *target, uint64_t *address,
		       struct usw_target_figures *figures)
{
	usw_page_word *word = NULL;

	pthread_mutex_lock(&target->map_lock);
	for (uint32_t i = 0; i < USW_TALLY_WORDS; i++) {
		word = usw_pagemap_next(&target->pagemap, address, USW_ADDRESS_END);
		if (!word)
			break;
		uint64_t now = atomic_load(word);
		if (usw_page_state(now) == USW_PAGE_EVICTED)
			tally_page(target->session, usw_page_id(now), figures);
		*address += USW_PAGE_BYTES;
	}
	pthread_mutex_unlock(&target->map_lock);
	return word != NULL;
}

/** The smallest live IDs above `after_id`, sorted. */
static int choose_ids(struct usw_session *session, uint32_t after_id, uint32_t *ids, int capacity)
{
	int count = 0;

	pthread_mutex_lock(&session->targets_lock);
	for (struct usw_target *target = session->targets; target; target = target->next) {
		int at = count;

		if (target->id <= after_id || atomic_load(&target->state) != USW_TARGET_LIVE)
			continue;
		while (at > 0 && ids[at - 1] > target->id)
			at--;
		if (at == capacity)
			continue;
		if (count < capacity)
			count++;
		memmove(&ids[at + 1], &ids[at], (size_t)(count - 1 - at) * sizeof(*ids));
		ids[at] = target->id;
	}
	pthread_mutex_unlock(&session->targets_lock);
	return count;
}

int usw_session_targets(struct usw_session *session, uint32_t after_id,
			struct usw_target_figures *ret, int capacity)
{
	_cleanup_free_ uint32_t *ids = calloc((size_t)capacity, sizeof(*ids));
	int count = ids ? choose_ids(session, after_id, ids, capacity) : 0;
	int filled = 0;

	for (int i = 0; i < count; i++) {
		struct usw_target *target = pin_target(session, ids[i]);
		struct usw_target_figures *figures = &ret[filled];
		uint64_t address = 0;

		if (!target)
			continue;
		*figures = (struct usw_target_figures){
			.id = target->id,
			.pid = atomic_load(&target->has_hands) ? target->pid : 0,
			.resident_bytes = atomic_load(&target->anon_pages) * USW_PAGE_BYTES,
			.faults = atomic_load(&target->faults),
			.refaults = atomic_load(&target->refaults),
		};
		while (tally_some(target, &address, figures))
			;
		unpin_target(target);
		filled++;
	}
	return filled;
}
