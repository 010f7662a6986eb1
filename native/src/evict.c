// SPDX-License-Identifier: MIT

/**
 * @file
 * Mark, move, publish. See evict.h.
 */

#include <errno.h>

#include "content.h"
#include "drain.h"
#include "eligible.h"
#include "evict.h"
#include "pick.h"
#include "ring.h"

/* A lap after which the mappings are read again is so many times as long as that takes. */
#define USW_LOOK_SHARE 16u
/* After so many copies in RAM it is asked whether they pay: if one in three was still good. */
#define USW_COPIES_SEEN 256u
#define USW_COPIES_GOOD_SHARE 3u

/** Whether all of a batch is on the list: what leaves from elsewhere would read as zeros. */
static bool is_registered(const struct usw_target *target, const struct usw_batch *batch)
{
	for (uint32_t i = 0; i < batch->run_count; i++) {
		const struct usw_run *run = &batch->runs[i];

		if (!usw_ranges_cover(&target->registered, run->address,
				      run->address + (uint64_t)run->page_count * USW_PAGE_BYTES))
			return false;
	}
	return true;
}

/** The first pages of a batch are not on their way out. */
static void unmark(struct usw_batch *batch, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		usw_page_transition(batch->word[i],
				    (batch->before[i] & ~(uint64_t)7) | USW_PAGE_EVICTING,
				    batch->before[i]);
}

/** Say in the page map that the pages are on their way out. False: no memory for a node. */
static bool mark_evicting(struct usw_target *target, struct usw_batch *batch)
{
	for (uint32_t i = 0; i < batch->page_count; i++) {
		batch->word[i] = usw_pagemap_make(&target->pagemap, batch->address[i]);
		if (!batch->word[i]) {
			unmark(batch, i);
			return false;
		}
		batch->before[i] = atomic_load_explicit(batch->word[i], memory_order_acquire);
		usw_page_transition(batch->word[i], batch->before[i],
				    (batch->before[i] & ~(uint64_t)7) | USW_PAGE_EVICTING);
	}
	return true;
}

/**
 * The ID of a page that was stored before and is equal, with a reference for this one; or none.
 *
 * A slot can be written to by its target at any time. What is in a slot of another one becomes an
 * object first, which nobody can write to: so no target can change what was compared for another.
 */
static uint32_t find_equal(struct usw_target *target, const char *page, uint64_t hash)
{
	struct usw_session *session = target->session;
	uint32_t id = usw_equal_find(&session->equal, &target->equal_run, hash);

	if (id == USW_VSWAP_NONE)
		return USW_VSWAP_NONE;
	uint64_t word = usw_vswap_word(&session->vswap, id);
	uint32_t number = usw_place_group(usw_word_place(word));
	bool is_foreign = usw_word_backend(word) == USW_BACKEND_MEMORY &&
			  number != target->standby.number;
	if ((is_foreign &&
	     usw_standby_compress(session, number, usw_place_index(usw_word_place(word)), id)) ||
	    !usw_equal_is(&session->equal, id, page)) {
		usw_vswap_put(&session->vswap, id);
		return USW_VSWAP_NONE;
	}
	usw_count(&session->reclaim.counters, evicted_equal, 1);
	return id;
}

/** Give one page that left its ID: that of its kept copy or of an equal page, else a new one. */
static int settle_content(struct usw_target *target, uint32_t kept_id, uint32_t slot,
			  uint32_t *ret_id)
{
	struct usw_session *session = target->session;
	struct usw_counters *counters = &session->reclaim.counters;
	const char *page = usw_standby_page(&session->standbys, target->standby.number, slot);
	uint64_t word;

	if (usw_codec_is_repeated(page, &word)) {
		if (kept_id && usw_content_is(session, kept_id, page, 0)) {
			usw_count(counters, evicted_clean, 1);
			*ret_id = kept_id;
			return 0;
		}
		if (word == 0)
			usw_count(counters, evicted_zero, 1);
		else
			usw_count(counters, evicted_same, 1);
		return usw_vswap_alloc(&session->vswap, word ? USW_BACKEND_SAME : USW_BACKEND_ZERO,
				       0, word, ret_id);
	}

	uint64_t hash = usw_codec_hash(page, session->hash_seed);
	if (kept_id && usw_content_is(session, kept_id, page, hash)) {
		usw_count(counters, evicted_clean, 1);
		*ret_id = kept_id;
		return 0;
	}
	*ret_id = find_equal(target, page, hash);
	if (*ret_id)
		return 0;
	int ret = usw_vswap_alloc(&session->vswap, USW_BACKEND_MEMORY,
				  usw_place(target->standby.number, slot), hash, ret_id);
	if (ret)
		return ret;
	target->standby.owner[slot] = *ret_id;
	usw_equal_note(&session->equal, *ret_id, hash);
	return 0;
}

/**
 * The word of a page that did not go. One that is pinned will not go the next time either, and each
 * attempt costs three commands to hands: it stays as long as the hottest page.
 */
static uint64_t word_of_refused(struct usw_session *session, const struct usw_batch *batch,
				uint32_t i, const struct usw_answer *answer, uint32_t stamp)
{
	if (!batch->unshared || answer->error != -EBUSY)
		return batch->before[i];
	session->reclaim.pinned_tries++;
	return usw_page_make(USW_PAGE_RESIDENT, usw_page_heat(batch->before[i]),
			     usw_page_id(batch->before[i]), stamp) |
	       USW_PAGE_LAPS_MAX << 3;
}

/**
 * The copy that a page leaves to, if it is still right; 0: none. One on a disk is not for a page that
 * was missed soon after it had left: its next place is in RAM, while something else can go down for it.
 */
static uint32_t copy_of(struct usw_session *session, uint64_t before)
{
	uint32_t id = usw_page_id(before);
	struct usw_disk_place place;

	return id && usw_page_heat(before) && usw_content_is_on_disk(session, id, &place) &&
			       place.object.codec != USW_CODEC_STORED &&
			       usw_tiers_have_room(&session->tiers)
		       ? USW_VSWAP_NONE
		       : id;
}

/** A page has left that had a copy, which is still good or not. One on a disk costs nothing. */
static void note_copy(struct usw_session *session, uint32_t kept_id, bool is_good)
{
	struct usw_reclaim *reclaim = &session->reclaim;
	struct usw_disk_place place;

	if (usw_content_is_on_disk(session, kept_id, &place))
		return;

	reclaim->copies_good += is_good;
	if (++reclaim->copies_seen < USW_COPIES_SEEN)
		return;
	atomic_store_explicit(&session->copies_pay,
			      reclaim->copies_good >= USW_COPIES_SEEN / USW_COPIES_GOOD_SHARE,
			      memory_order_relaxed);
	reclaim->copies_seen = reclaim->copies_good = 0;
}

/** Publish what hands did: a moved page becomes EVICTED, any other is what it was. */
static uint32_t publish(struct usw_target *target, struct usw_batch *batch,
			const struct usw_answer *answer, uint32_t first_slot)
{
	struct usw_session *session = target->session;
	uint32_t stamp = usw_session_stamp(session);
	uint32_t evicted = 0;

	for (uint32_t i = 0; i < batch->page_count; i++) {
		uint64_t marked = (batch->before[i] & ~(uint64_t)7) | USW_PAGE_EVICTING;
		uint32_t kept_id = usw_page_id(batch->before[i]);
		uint32_t copy_id, id;

		if (!usw_answer_has(answer, i)) {
			usw_page_transition(batch->word[i], marked,
					    word_of_refused(session, batch, i, answer, stamp));
			continue;
		}
		copy_id = copy_of(session, batch->before[i]);
		if (settle_content(target, copy_id, first_slot + i, &id)) {
			// Four billion IDs are in use. The content is safe in its slot, but nothing
			// can name it any more.
			usw_target_kill(target, "out of virtual swap IDs");
			atomic_store(&target->broken, true);
			continue;
		}
		usw_page_transition(batch->word[i], marked,
				    usw_page_make(USW_PAGE_EVICTED, usw_page_heat(batch->before[i]),
						  id, stamp));
		if (kept_id)
			note_copy(session, kept_id, id == kept_id);
		if (kept_id && id != copy_id)
			usw_vswap_put(&session->vswap, kept_id);
		evicted++;
	}
	usw_session_charge(session, -(int64_t)evicted);
	usw_count(&session->reclaim.counters, evicted_pages, evicted);
	usw_count(&session->reclaim.counters, evict_refused, batch->page_count - evicted);
	return evicted;
}

/**
 * Whether there is a hands to post to. Where it could not be started at all, or was killed with
 * nothing in flight, no page is lost: then the program goes on without it. Caller holds map_lock.
 */
static bool has_hands(struct usw_target *target)
{
	int ret = usw_ring_look(target);

	if (ret == 0 || ret == -EAGAIN)
		return ret == 0;
	atomic_store(&target->broken, true);
	if (usw_target_is_running(target))
		usw_session_report(target->session, USW_EVENT_WARNING, target->id, target->pid,
				   "process %d %s; its memory cannot leave", target->pid,
				   ret == -ESRCH ? "has lost its helper task (was it killed?)"
						 : "could not start its helper task (is there a "
						   "limit on tasks?)");
	return false;
}

/**
 * Run one command over the batch's pages. Caller holds map_lock. -ECANCELED: nothing happened; any
 * other error: the target is lost.
 */
static int run_command(struct usw_target *target, struct usw_batch *batch, enum usw_command_op op,
		       uint32_t epoch, bool prepare, struct usw_answer *answer)
{
	usw_ring_post(target, op, epoch, batch->runs, batch->run_count, prepare);
	int ret = usw_ring_wait(target, answer);
	if (ret && ret != -ECANCELED) {
		// Hands leaves when its program ends or has executed another, which is no loss;
		// anything else is.
		atomic_store(&target->broken, true);
		if (atomic_load(&target->state) == USW_TARGET_LIVE && usw_target_is_running(target))
			usw_target_kill(
				target,
				"its helper task is gone, and pages on their way out with it");
	}
	return ret;
}

/**
 * Evict the batch's pages. The caller holds map_lock, and read the epoch before it picked.
 * Returns how many left; -ENOSPC, -ENOMEM: no room, nothing happened; or as run_command().
 */
static int evict_batch(struct usw_target *target, struct usw_batch *batch, uint32_t epoch,
		       struct usw_answer *answer)
{
	// A mapping may be replaced between two looks at parts of it: the second has taken all of it
	// off the list.
	if (usw_unlikely(!is_registered(target, batch))) {
		answer->error = -ECANCELED;
		return 0;
	}
	int first_slot = usw_standby_take(&target->standby, batch->page_count);
	while (first_slot == -ENOSPC && usw_standby_count(&target->standby) > 0) {
		uint32_t count = usw_standby_count(&target->standby);
		int ret = usw_standby_drain(target, count > 64 ? count - 64 : 0, UINT32_MAX);

		if (ret)
			return ret;
		first_slot = usw_standby_take(&target->standby, batch->page_count);
	}
	if (first_slot < 0)
		return first_slot;
	for (uint32_t i = 0, slot = (uint32_t)first_slot; i < batch->run_count; i++) {
		batch->runs[i].slot = slot;
		slot += batch->runs[i].page_count;
	}
	if (!mark_evicting(target, batch))
		return -ENOMEM;
	// The fault thread may be in the middle of filling a hole it had found before the pages
	// were marked: its zeros would land where hands has just taken the content away. It sets
	// `filling`, then looks at the words; we have marked the words and look at `filling`.
	atomic_thread_fence(memory_order_seq_cst);
	usw_wait_while_odd(&target->filling);
	uint32_t behind_slot = (uint32_t)first_slot + batch->page_count;
	bool prepare = behind_slot > target->standby.prepared;
	int ret = run_command(target, batch, batch->op, epoch, prepare, answer);
	if (ret == -ECANCELED)
		unmark(batch, batch->page_count);
	if (ret)
		return ret;
	// Slots before it that have no memory yet are those of a batch that failed.
	if (prepare && answer->error == 0 && (uint32_t)first_slot <= target->standby.prepared)
		target->standby.prepared = behind_slot;
	if (answer->error == -ECANCELED || answer->error == -EAGAIN)
		usw_count(&target->session->reclaim.counters, evict_aborted, 1);
	return (int)publish(target, batch, answer, (uint32_t)first_slot);
}

/** Keep only the pages that did not go, to try them again in another way. */
static void batch_keep_refused(struct usw_target *target, struct usw_batch *batch,
			       const struct usw_answer *answer)
{
	uint32_t count = batch->page_count;

	batch->run_count = 0;
	batch->page_count = 0;
	for (uint32_t i = 0; i < count; i++)
		if (!usw_answer_has(answer, i) && batch->run_count < USW_BATCH_RUNS_MAX)
			usw_pick_again(target, batch, batch->address[i]);
}

/**
 * Take over the pages that were refused as shared, then evict them. Populating may fault and so
 * needs the fault thread, which may need map_lock: the lock is given up meanwhile, nothing is
 * marked, and the epoch tells whether the plan is still good.
 */
static int evict_shared(struct usw_target *target, struct usw_batch *batch, uint32_t epoch,
			struct usw_answer *answer)
{
	batch_keep_refused(target, batch, answer);
	if (!batch->page_count)
		return 0;

	pthread_mutex_unlock(&target->map_lock);
	int ret = run_command(target, batch, USW_OP_UNSHARE, epoch, false, answer);
	pthread_mutex_lock(&target->map_lock);
	if (ret || !usw_target_is_evictable(target) || atomic_load(&target->events_pending) ||
	    atomic_load(&target->epoch) != epoch)
		return ret;

	// The fault thread may have answered faults meanwhile: look at every page again.
	uint32_t count = batch->page_count;
	batch->run_count = 0;
	batch->page_count = 0;
	batch->op = USW_OP_EVICT;
	batch->unshared = true;
	for (uint32_t i = 0; i < count; i++)
		if (usw_pick_may_go(target, batch->address[i]) &&
		    batch->run_count < USW_BATCH_RUNS_MAX)
			usw_pick_again(target, batch, batch->address[i]);
	if (!batch->page_count)
		return 0;
	ret = evict_batch(target, batch, epoch, answer);
	if (ret > 0)
		usw_count(&target->session->reclaim.counters, evicted_unshared, (uint32_t)ret);
	return ret;
}

/**
 * The sweep has come round. New mappings are waited for as long as the old ones give something, if to
 * look for them takes long.
 */
static void end_lap(struct usw_target *target)
{
	uint64_t since_ns = usw_now_ns() - target->looked_ns;

	target->eligible_stale |= !target->gave_in_lap ||
				  since_ns / USW_LOOK_SHARE >= target->look_ns;
	target->gave_in_lap = false;
	// Exclusive pages go first; what was passed over as shared has its turn in the next lap.
	target->unshare_lap = target->shared_in_lap;
	target->shared_in_lap = false;
}

/**
 * The next page that must stay and has left, after the one that was last found: that may not have come
 * back, and the others are not to wait for it. 0: there is none. Caller holds map_lock.
 */
static uint64_t find_strayed(const struct usw_target *target)
{
	uint64_t first = 0;

	for (uint32_t i = 0; i < target->ending.pages.count; i++) {
		const struct usw_range *range = &target->ending.pages.at[i];

		for (uint64_t page = range->start; page < range->end; page += USW_PAGE_BYTES) {
			usw_page_word *word = usw_pagemap_find(&target->pagemap, page);

			if (!word || usw_page_state(atomic_load(word)) != USW_PAGE_EVICTED)
				continue;
			if (page > target->strayed)
				return page;
			first = first ? first : page;
		}
	}
	return first;
}

/**
 * Bring back what has left and must stay; `looked` says that pages which left before are all known.
 * Caller holds map_lock.
 */
static void ask_strayed(struct usw_target *target, bool looked)
{
	if (!target->ending_owed || (!looked && !target->strayed) ||
	    atomic_load(&target->page_asked))
		return;
	target->strayed = find_strayed(target);
	if (target->strayed)
		usw_target_ask_page(target, target->strayed);
	else if (looked)
		target->ending_owed = false;
}

enum usw_evict_result usw_evict_some(struct usw_target *target, uint32_t wanted, bool unshare,
				     uint32_t *ret_evicted)
{
	static struct usw_batch batch; // reclaim thread only; 13 KB
	struct usw_answer answer;
	bool wrapped = false;

	// Without the lock: it takes long where there are many threads.
	bool knows_threads = usw_ending_look(&target->ending, target->pid);
	pthread_mutex_lock(&target->map_lock);
	uint32_t epoch = atomic_load(&target->epoch);
	// Now rather than in the end: there may be many batches until then.
	ask_strayed(target, knows_threads);
	// With the lock: who retires a target takes it, and hands does no command after that.
	if (!usw_target_is_evictable(target) || !has_hands(target) ||
	    atomic_load(&target->events_pending) || usw_target_arm(target) ||
	    (target->eligible_stale && usw_eligible_read(target))) {
		pthread_mutex_unlock(&target->map_lock);
		return USW_EVICT_NOTHING;
	}

	usw_leaving_settle(&target->leaving, target->pagemap_fd, usw_now_ns());
	batch = (struct usw_batch){.op = USW_OP_EVICT,
				   .wanted = (uint32_t)usw_min(wanted, USW_BATCH_PAGES_MAX)};
	bool looked = usw_pick(target, &batch, &wrapped);
	uint32_t before = *ret_evicted;
	int evicted = batch.page_count ? evict_batch(target, &batch, epoch, &answer) : 0;
	if (evicted >= 0) {
		bool shared = batch.page_count && answer.error == -EBUSY;

		*ret_evicted += (uint32_t)evicted;
		target->shared_in_lap |= shared;
		if (shared && (unshare || target->unshare_lap)) {
			evicted = evict_shared(target, &batch, epoch, &answer);
			*ret_evicted += evicted > 0 ? (uint32_t)evicted : 0;
		}
	}
	usw_age_end_batch(&target->age, batch.page_count, *ret_evicted - before);
	target->ending_owed |= *ret_evicted != before;
	target->gave_in_lap |= *ret_evicted != before;
	if (wrapped)
		usw_age_end_lap(&target->age);
	pthread_mutex_unlock(&target->map_lock);
	if (atomic_load(&target->deferred_waiting))
		usw_fault_kick(target->session);
	if (wrapped)
		end_lap(target);
	if (!looked && !batch.page_count)
		return USW_EVICT_NOTHING;
	return wrapped ? USW_EVICT_WRAPPED : USW_EVICT_DONE;
}

void usw_evict_settle_ending(struct usw_target *target)
{
	if (!target->ending_owed || !usw_target_is_evictable(target))
		return;
	bool looked = usw_ending_look(&target->ending, target->pid);
	pthread_mutex_lock(&target->map_lock);
	ask_strayed(target, looked);
	pthread_mutex_unlock(&target->map_lock);
}

void usw_evict_random(struct usw_target *target, uint64_t random, uint32_t wanted,
		      uint32_t *ret_evicted)
{
	uint64_t total = 0;

	usw_age_forget(&target->age);          // what has just come in, above all
	pthread_mutex_lock(&target->map_lock); // a child's handshake may just be reading them
	for (uint32_t i = 0; i < target->eligible.mappings.count; i++)
		total +=
			target->eligible.mappings.at[i].end - target->eligible.mappings.at[i].start;
	uint64_t offset = total ? random % total : 0;
	for (uint32_t i = 0; i < target->eligible.mappings.count; i++) {
		uint64_t length =
			target->eligible.mappings.at[i].end - target->eligible.mappings.at[i].start;

		if (offset < length) {
			target->cursor =
				usw_page_floor(target->eligible.mappings.at[i].start + offset);
			break;
		}
		offset -= length;
	}
	pthread_mutex_unlock(&target->map_lock);
	usw_evict_some(target, wanted, (random >> 60) == 0, ret_evicted);
}

uint32_t usw_evict_drop_copies(struct usw_target *target, uint64_t *cursor, uint32_t max_pages)
{
	uint32_t dropped = 0;
	usw_page_word *word;

	pthread_mutex_lock(&target->map_lock);
	while (dropped < max_pages &&
	       (word = usw_pagemap_next(&target->pagemap, cursor, USW_ADDRESS_END))) {
		uint64_t now = atomic_load_explicit(word, memory_order_acquire);

		if (usw_page_state(now) == USW_PAGE_RESIDENT && usw_page_id(now)) {
			usw_page_transition(word, now, usw_page_without_id(now));
			usw_vswap_put(&target->session->vswap, usw_page_id(now));
			dropped++;
		}
		*cursor += USW_PAGE_BYTES;
	}
	pthread_mutex_unlock(&target->map_lock);
	usw_count(&target->session->reclaim.counters, dropped_copies, dropped);
	return dropped;
}
