// SPDX-License-Identifier: MIT

/**
 * @file
 * Pick, move, publish. See evict.h.
 */

#include <errno.h>
#include <string.h>

#include "content.h"
#include "evict.h"
#include "guard.h"
#include "ring.h"

/* Pages looked at in one go when few of them can be taken: keeps the thread responsive. */
#define USW_SWEEP_PAGES 16384u
#define USW_SCAN_REGIONS 64u
/* Pages that have just left are often asked for again: they are not compressed ahead. */
#define USW_STANDBY_YOUNG 256u
/*
 * How much of a mapping one scan looks at, at most, and of how many pages to begin with for each that
 * is wanted: to look at a present page whose struct page is in no cache takes 50 ns.
 */
#define USW_SCAN_BYTES (16ull << 20)
#define USW_SCAN_SHARE 4u
/* Mappings are looked over together that have no more than this between them: guards, mostly. */
#define USW_SCAN_GAP_BYTES (64ull << 10)
/* How long it is believed that the kernel refuses a mapping. */
#define USW_REFUSAL_NS 1000000000u
/* A lap after which the mappings are read again is so many times as long as that takes. */
#define USW_LOOK_SHARE 16u

/** Pages picked for one command, in address order. */
struct usw_batch {
	enum usw_command_op op;
	uint32_t wanted;
	uint32_t run_count;
	uint32_t page_count;
	bool unshared;          /* its pages have been taken over: what is refused now is pinned */
	uint64_t mapping_start; /* of the mapping that is looked at: MOVE takes from one at a time */
	struct usw_run runs[USW_BATCH_RUNS_MAX];
	uint64_t address[USW_BATCH_PAGES_MAX];
	usw_page_word *word[USW_BATCH_PAGES_MAX];
	uint64_t before[USW_BATCH_PAGES_MAX];
};

static bool batch_is_full(const struct usw_batch *batch)
{
	return batch->page_count >= batch->wanted || batch->run_count == USW_BATCH_RUNS_MAX;
}

/**
 * Add a page; it goes on the last run if it follows it in the same mapping: the kernel refuses a
 * run that crosses the border of two as a whole. Caller has checked that it fits.
 */
static void batch_add(struct usw_batch *batch, uint64_t address)
{
	struct usw_run *last = batch->run_count ? &batch->runs[batch->run_count - 1] : NULL;

	usw_assert(batch->page_count < USW_BATCH_PAGES_MAX);
	if (last && address != batch->mapping_start &&
	    last->address + (uint64_t)last->page_count * USW_PAGE_BYTES == address)
		last->page_count++;
	else
		batch->runs[batch->run_count++] =
			(struct usw_run){.address = address, .page_count = 1};
	batch->address[batch->page_count++] = address;
}

static bool is_evictable(struct usw_target *target)
{
	return atomic_load(&target->state) == USW_TARGET_LIVE && atomic_load(&target->has_hands) &&
	       !atomic_load(&target->broken);
}

// --- Picking ------------------------------------------------------------------------------------

/** Whether a page of [start, end) may not leave for the moment, or as long as a thread lives. */
static bool has_to_stay(struct usw_target *target, uint64_t start, uint64_t end)
{
	return usw_ending_has(&target->ending, start, end) ||
	       usw_leaving_has(&target->leaving, start, end);
}

/** Whether a page is in memory, as far as the page map says, and not on its way. */
static bool is_here(const struct usw_target *target, uint64_t address)
{
	usw_page_word *word = usw_pagemap_find(&target->pagemap, address);
	uint64_t now = word ? atomic_load_explicit(word, memory_order_acquire) : 0;

	return usw_page_state(now) == USW_PAGE_NONE || usw_page_state(now) == USW_PAGE_RESIDENT;
}

/** Whether a page may leave that was picked before, whatever has become of its age since. */
static bool may_go(struct usw_target *target, uint64_t address)
{
	return is_here(target, address) && !has_to_stay(target, address, address + USW_PAGE_BYTES);
}

/** Whether the sweep takes a present page now; counts one of its laps if not. */
static bool take_page(struct usw_target *target, uint64_t address)
{
	usw_page_word *word = usw_pagemap_find(&target->pagemap, address);
	uint64_t now = word ? atomic_load_explicit(word, memory_order_acquire) : 0;
	uint32_t stamp = usw_session_stamp(target->session); // not before that of the word

	if (has_to_stay(target, address, address + USW_PAGE_BYTES))
		return false;
	switch (usw_page_state(now)) {
	case USW_PAGE_NONE:
		return true;
	case USW_PAGE_RESIDENT:
		if (usw_page_age(now, stamp) < target->age.threshold)
			return false;
		if (usw_page_laps(now) == 0)
			return true;
		// map_lock is held: nobody else changes a resident word.
		usw_page_transition(word, now, usw_page_pass(now, stamp));
		return false;
	case USW_PAGE_EVICTED: // just brought in, its word follows
	case USW_PAGE_EVICTING:
	case USW_PAGE_POISONED:
		return false;
	}
	return false;
}

/** Where the huge page ends that an address is in, or would be. */
static uint64_t huge_end(uint64_t address)
{
	return (address / USW_HUGE_BYTES + 1) * USW_HUGE_BYTES;
}

/** Huge pages side by side are one region: where the piece at `start` ends. */
static uint64_t piece_end(const struct page_region *region, uint64_t start)
{
	if (!(region->categories & PAGE_IS_HUGE))
		return region->end;
	return usw_min(region->end, huge_end(start));
}

/** A huge page goes whole if every page of it is one the sweep could take. */
static bool is_whole(struct usw_target *target, const struct page_region *region, uint64_t start)
{
	uint64_t end = piece_end(region, start);

	if (!(region->categories & PAGE_IS_HUGE) || end - start != USW_HUGE_BYTES ||
	    has_to_stay(target, start, end))
		return false;
	for (uint64_t address = start; address < end; address += USW_PAGE_BYTES)
		if (!is_here(target, address))
			return false;
	return true;
}

/** Pick from one region the kernel says is present; as pick_from(). */
static bool pick_from_region(struct usw_target *target, struct usw_batch *batch,
			     const struct page_region *region, uint64_t *cursor)
{
	uint32_t resident = usw_session_limit_stamps(target->session);
	uint64_t end;

	for (uint64_t start = region->start; start < region->end; start = end) {
		bool huge = is_whole(target, region, start);

		*cursor = start;
		if (huge && batch->page_count)
			return false; // a batch of its own, next time
		end = piece_end(region, start);
		for (uint64_t address = start; address < end; address += USW_PAGE_BYTES) {
			*cursor = address;
			if (!huge && batch_is_full(batch))
				return false;
			bool taken = huge || take_page(target, address);

			usw_age_note(&target->age, resident, taken);
			if (taken)
				batch_add(batch, address);
		}
		*cursor = end;
		if (huge) {
			batch->op = USW_OP_EVICT_HUGE;
			return false;
		}
	}
	return true;
}

/**
 * Pick from regions the kernel says are present. False: the batch is full or the rest must wait.
 */
static bool pick_from(struct usw_target *target, struct usw_batch *batch,
		      const struct page_region *regions, int count, uint64_t *cursor)
{
	for (int i = 0; i < count; i++)
		if (!pick_from_region(target, batch, &regions[i], cursor))
			return false;
	return true;
}

/** Leave a range out of what may be managed. False: no memory. */
static bool leave_out(struct usw_target *target, uint64_t start, uint64_t end)
{
	return usw_ranges_remove(&target->eligible.mappings, start, end) &&
	       usw_ranges_remove(&target->eligible.spans, start, end) &&
	       usw_ranges_remove(&target->eligible.stretches, start, end);
}

/** Tell the watch thread where the target may grow: the largest stretches, if there are many. */
static void publish_stretches(struct usw_target *target)
{
	const struct usw_ranges *all = &target->eligible.stretches;

	pthread_mutex_lock(&target->stretches_lock);
	target->stretch_count = 0;
	for (uint32_t i = 0; i < all->count; i++) {
		uint32_t at = target->stretch_count;

		while (at > 0 && target->stretches[at - 1].end - target->stretches[at - 1].start <
					 all->at[i].end - all->at[i].start)
			at--;
		if (at == USW_STRETCHES_MAX)
			continue;
		if (target->stretch_count < USW_STRETCHES_MAX)
			target->stretch_count++;
		memmove(&target->stretches[at + 1], &target->stretches[at],
			(target->stretch_count - 1 - at) * sizeof(target->stretches[0]));
		target->stretches[at] = all->at[i];
	}
	pthread_mutex_unlock(&target->stretches_lock);
}

/** The eligible mappings, without what is ours and what the kernel has refused before. */
static int rescan(struct usw_target *target)
{
	uint64_t begun_ns = usw_now_ns();
	int ret = usw_maps_read(target->maps_fd, &target->eligible);
	if (ret)
		return ret;

	target->looked_ns = usw_now_ns();
	target->look_ns = target->looked_ns - begun_ns;
	// A refusal is worth asking again now and then: mappings come and go.
	if (target->looked_ns - target->refused_ns > USW_REFUSAL_NS) {
		target->refused.count = 0;
		target->refused_ns = target->looked_ns;
	}
	bool fits = leave_out(target, target->area_start, target->area_start + USW_AREA_BYTES) &&
		    leave_out(target, target->token_page, target->token_page + USW_PAGE_BYTES);
	for (uint32_t i = 0; fits && i < target->refused.count; i++)
		fits = leave_out(target, target->refused.at[i].start, target->refused.at[i].end);
	if (!fits)
		return -ENOMEM;
	publish_stretches(target);
	target->eligible_stale = false;
	return 0;
}

/** What the kernel does not let us have is left out from now on. */
static void refuse(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (usw_ranges_add(&target->refused, start, end))
		leave_out(target, start, end);
}

/**
 * Whether pages may leave from a range: all of it is on the list of registered ranges. Registering
 * without an error is not enough: what was not mapped at that moment, or was cut short by a change,
 * is not on the list, and memory that comes in its place is not registered.
 */
static bool ensure_registered(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (usw_ranges_cover(&target->registered, start, end))
		return true;

	int ret = usw_target_register(target, start, end);
	if (ret == 0 && usw_ranges_cover(&target->registered, start, end))
		return true;
	if (ret == -ENOMEM || ret == -EAGAIN)
		return false;
	if (ret == -EBUSY)
		refuse(target, start, end); // under a userfaultfd of the program's own
	else
		target->eligible_stale = true;
	return false;
}

/**
 * Whether what is present of a mapping may leave: all of it is on the list, and the kernel confirms
 * both ends of what is to go.
 */
static bool may_leave(struct usw_target *target, struct usw_range mapping,
		      const struct page_region *regions, int count)
{
	if (!ensure_registered(target, mapping.start, mapping.end))
		return false;
	if (usw_target_owns(target, regions[0].start) &&
	    usw_target_owns(target, regions[count - 1].end - USW_PAGE_BYTES))
		return true;
	target->eligible_stale = true;
	return false;
}

/** What is not on the list of registered ranges of a span, from the first to the last mapping. */
static struct usw_range unregistered_part(const struct usw_target *target, struct usw_range span)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	struct usw_range part = {UINT64_MAX, 0};

	for (uint32_t i = usw_ranges_find(mappings, span.start);
	     i < mappings->count && mappings->at[i].start < span.end; i++) {
		if (usw_ranges_cover(&target->registered, mappings->at[i].start,
				     mappings->at[i].end))
			continue;
		part.start = usw_min(part.start, mappings->at[i].start);
		part.end = mappings->at[i].end;
	}
	return part;
}

/**
 * Register what is not yet registered of a span with one call, since each call waits for the
 * program's mmap lock; one by one if the kernel refuses a part. False: look again.
 */
static bool register_span(struct usw_target *target, struct usw_range span)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	struct usw_range left = unregistered_part(target, span);
	bool whole = true;

	int ret = left.start < left.end ? usw_target_register(target, left.start, left.end) : 0;
	if (ret == 0 || ret == -EAGAIN)
		return ret == 0;
	while (left.start < left.end) {
		uint32_t i = usw_ranges_find(mappings, left.start);

		if (i == mappings->count || mappings->at[i].start >= left.end)
			break;
		struct usw_range mapping = mappings->at[i];
		whole &= ensure_registered(target, mapping.start, mapping.end);
		left.start = mapping.end;
	}
	return whole;
}

void usw_evict_register_all(struct usw_target *target)
{
	pthread_mutex_lock(&target->map_lock);
	if (!is_evictable(target)) {
		pthread_mutex_unlock(&target->map_lock);
		return;
	}
	// Before the look: what changes behind it must count as a change the next time. Only here,
	// where all of it is registered; the sweep reads the mappings for itself.
	uint64_t data_pages = atomic_load(&target->data_pages);
	bool layout_changed = atomic_exchange(&target->layout_changed, false);
	if (!atomic_load(&target->events_pending) && !usw_target_arm(target) && !rescan(target)) {
		target->scanned_data_pages = data_pages;
		layout_changed = false;
		for (uint32_t i = 0; i < target->eligible.spans.count; i++)
			layout_changed |= !register_span(target, target->eligible.spans.at[i]);
	}
	if (layout_changed)
		atomic_store(&target->layout_changed, true);
	pthread_mutex_unlock(&target->map_lock);
}

void usw_evict_look(struct usw_target *target)
{
	target->eligible_stale = true;
	rescan(target);
}

/**
 * Where a scan ends that begins at `start`, in mapping number `i`. Small mappings that lie close are
 * looked over together.
 */
static uint64_t scan_end(const struct usw_target *target, uint32_t i, uint64_t start,
			 uint64_t bytes)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	uint64_t limit = huge_end(start + bytes);
	uint64_t end = usw_min(mappings->at[i].end, limit);

	for (i++; i < mappings->count && mappings->at[i].start < limit &&
		  mappings->at[i].start - end <= USW_SCAN_GAP_BYTES;
	     i++)
		end = usw_min(mappings->at[i].end, limit);
	return end;
}

/** What of the regions is in a mapping; how many pieces that are. */
static int clip(const struct page_region *regions, int count, struct usw_range mapping,
		struct page_region *ret)
{
	int kept = 0;

	for (int i = 0; i < count && regions[i].start < mapping.end; i++) {
		uint64_t start = usw_max(regions[i].start, mapping.start);
		uint64_t end = usw_min(regions[i].end, mapping.end);

		if (start < end)
			ret[kept++] = (struct page_region){start, end, regions[i].categories};
	}
	return kept;
}

/**
 * Pick from the mappings in [cursor, end), where the kernel says that the regions are present; the
 * cursor follows. False: the batch is full or the rest must wait.
 */
static bool pick_from_mappings(struct usw_target *target, struct usw_batch *batch,
			       const struct page_region *regions, int count, uint64_t end)
{
	struct page_region own[USW_SCAN_REGIONS];

	for (int at = 0; target->cursor < end;) {
		uint32_t i = usw_ranges_find(&target->eligible.mappings, target->cursor);

		if (i == target->eligible.mappings.count)
			break;
		struct usw_range mapping = target->eligible.mappings.at[i];
		while (at < count && regions[at].end <= mapping.start)
			at++;
		if (mapping.start >= end)
			break;
		int mine = clip(&regions[at], count - at, mapping, own);

		mine = usw_guards_take_out(target, own, mine);
		batch->mapping_start = mapping.start;
		if (mine > 0 && may_leave(target, mapping, own, mine) &&
		    !pick_from(target, batch, own, mine, &target->cursor))
			return false;
		target->cursor = mapping.end;
	}
	target->cursor = end;
	return true;
}

/**
 * Fill the batch from the cursor on. Sets *ret_wrapped if the sweep came round. False: the kernel
 * does not say what is present, and would not if it were asked again at once.
 */
static bool pick(struct usw_target *target, struct usw_batch *batch, bool *ret_wrapped)
{
	struct page_region regions[USW_SCAN_REGIONS];
	uint64_t scan_bytes = (uint64_t)batch->wanted * USW_SCAN_SHARE * USW_PAGE_BYTES;
	uint32_t swept = 0;

	while (swept < USW_SWEEP_PAGES && !batch_is_full(batch)) {
		uint32_t i = usw_ranges_find(&target->eligible.mappings, target->cursor);

		if (i == target->eligible.mappings.count) {
			target->cursor = 0;
			*ret_wrapped = true;
			return true;
		}
		uint64_t start = usw_max(target->cursor, target->eligible.mappings.at[i].start);
		uint64_t end = scan_end(target, i, start, scan_bytes);
		uint64_t walk_end = end;
		int count = usw_maps_present(target->pagemap_fd, start, end, regions,
					     USW_SCAN_REGIONS, &walk_end);

		scan_bytes = usw_min(2 * scan_bytes, USW_SCAN_BYTES);
		swept += (uint32_t)((walk_end - start) / USW_PAGE_BYTES) + 1;
		if (count < 0) {
			target->eligible_stale = true;
			return false;
		}
		target->cursor = start;
		if (!pick_from_mappings(target, batch, regions, count,
					walk_end > start ? walk_end : end))
			return true;
	}
	return true;
}

// --- One batch ----------------------------------------------------------------------------------

/** A page that left from where no fault is reported would read as zeros. */
static void assert_registered(const struct usw_target *target, const struct usw_batch *batch)
{
	for (uint32_t i = 0; i < batch->run_count; i++) {
		const struct usw_run *run = &batch->runs[i];

		usw_assert(usw_ranges_cover(&target->registered, run->address,
					    run->address +
						    (uint64_t)run->page_count * USW_PAGE_BYTES));
	}
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

/** Put the object of a standby page into a segment. */
static int store_object(struct usw_session *session, uint32_t number, uint32_t slot, uint32_t id,
			const char *object, uint32_t length, enum usw_codec codec)
{
	uint64_t place;
	int ret = usw_vacancies_store(&session->vacancies, &session->segments, id, object, length,
				      codec, &place);
	if (ret)
		return ret;
	if (!usw_vswap_repoint(&session->vswap, id, USW_BACKEND_MEMORY, usw_place(number, slot),
			       USW_BACKEND_OBJECT, place)) {
		usw_segments_release(&session->segments, usw_place_group(place),
				     usw_place_index(place));
		return 0;
	}
	if (codec == USW_CODEC_STORED)
		usw_count(&session->reclaim.counters, evicted_incompressible, 1);
	else
		usw_count(&session->reclaim.counters, evicted_compressed, 1);
	return 0;
}

/** Compress one standby page into an object. */
static int compress_slot(struct usw_session *session, uint32_t number, uint32_t slot, uint32_t id)
{
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	const char *page = usw_standby_page(&session->standbys, number, slot);
	struct usw_codec_hint *hint = usw_codec_hints_of(&session->ahead.hints, number);
	uint32_t length = usw_codec_compress(hint, page, object, &codec);

	return store_object(session, number, slot, id, object, length, codec);
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
	     compress_slot(session, number, usw_place_index(usw_word_place(word)), id)) ||
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
static uint64_t word_of_refused(const struct usw_batch *batch, uint32_t i,
				const struct usw_answer *answer, uint32_t stamp)
{
	if (!batch->unshared || answer->error != -EBUSY)
		return batch->before[i];
	return usw_page_make(USW_PAGE_RESIDENT, usw_page_heat(batch->before[i]),
			     usw_page_id(batch->before[i]), stamp) |
	       USW_PAGE_LAPS_MAX << 3;
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
		uint32_t id;

		if (!usw_answer_has(answer, i)) {
			usw_page_transition(batch->word[i], marked,
					    word_of_refused(batch, i, answer, stamp));
			continue;
		}
		if (settle_content(target, kept_id, first_slot + i, &id)) {
			// Four billion IDs are in use. The content is safe in its slot, but nothing
			// can name it any more.
			usw_target_kill(target, "out of virtual swap IDs");
			atomic_store(&target->broken, true);
			continue;
		}
		usw_page_transition(batch->word[i], marked,
				    usw_page_make(USW_PAGE_EVICTED, usw_page_heat(batch->before[i]),
						  id, stamp));
		if (kept_id && id != kept_id)
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
	int first_slot = usw_standby_take(&target->standby, batch->page_count);

	assert_registered(target, batch);
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

/** Add a page that was picked before. Nobody else changes what is known of mappings. */
static void batch_add_again(struct usw_target *target, struct usw_batch *batch, uint64_t address)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	uint32_t i = usw_ranges_find(mappings, address);

	batch->mapping_start = i < mappings->count ? mappings->at[i].start : address;
	batch_add(batch, address);
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
			batch_add_again(target, batch, batch->address[i]);
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
	if (ret || !is_evictable(target) || atomic_load(&target->events_pending) ||
	    atomic_load(&target->epoch) != epoch)
		return ret;

	// The fault thread may have answered faults meanwhile: look at every page again.
	uint32_t count = batch->page_count;
	batch->run_count = 0;
	batch->page_count = 0;
	batch->op = USW_OP_EVICT;
	batch->unshared = true;
	for (uint32_t i = 0; i < count; i++)
		if (may_go(target, batch->address[i]) && batch->run_count < USW_BATCH_RUNS_MAX)
			batch_add_again(target, batch, batch->address[i]);
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

enum usw_evict_result usw_evict_some(struct usw_target *target, uint32_t wanted, bool unshare,
				     uint32_t *ret_evicted)
{
	static struct usw_batch batch; // reclaim thread only; 13 KB
	struct usw_answer answer;
	bool wrapped = false;

	usw_ending_look(&target->ending, target->pid); // takes long where there are many threads
	pthread_mutex_lock(&target->map_lock);
	uint32_t epoch = atomic_load(&target->epoch);
	// With the lock: who retires a target takes it, and hands does no command after that.
	if (!is_evictable(target) || !has_hands(target) || atomic_load(&target->events_pending) ||
	    usw_target_arm(target) || (target->eligible_stale && rescan(target))) {
		pthread_mutex_unlock(&target->map_lock);
		return USW_EVICT_NOTHING;
	}

	usw_leaving_settle(&target->leaving, target->pagemap_fd, usw_now_ns());
	batch = (struct usw_batch){.op = USW_OP_EVICT,
				   .wanted = (uint32_t)usw_min(wanted, USW_BATCH_PAGES_MAX)};
	bool looked = pick(target, &batch, &wrapped);
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

/** A page that must stay and has left; 0: there is none. Caller holds map_lock. */
static uint64_t find_strayed(const struct usw_target *target)
{
	for (uint32_t i = 0; i < target->ending.pages.count; i++) {
		const struct usw_range *range = &target->ending.pages.at[i];

		for (uint64_t page = range->start; page < range->end; page += USW_PAGE_BYTES) {
			usw_page_word *word = usw_pagemap_find(&target->pagemap, page);

			if (word && usw_page_state(atomic_load(word)) == USW_PAGE_EVICTED)
				return page;
		}
	}
	return 0;
}

void usw_evict_settle_ending(struct usw_target *target)
{
	if (!target->ending_owed || !is_evictable(target) || atomic_load(&target->page_asked) ||
	    !usw_ending_look(&target->ending, target->pid))
		return;
	pthread_mutex_lock(&target->map_lock);
	uint64_t page = find_strayed(target);
	pthread_mutex_unlock(&target->map_lock);
	target->ending_owed = page;
	if (page)
		usw_target_ask_page(target, page);
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

// --- What happens to evicted pages later --------------------------------------------------------

/** True if the ID still resolves to this slot. */
static bool is_slot_of(const struct usw_session *session, uint32_t id, uint32_t number,
		       uint32_t slot)
{
	uint64_t word = usw_vswap_peek(&session->vswap, id);

	return usw_word_backend(word) == USW_BACKEND_MEMORY &&
	       usw_word_place(word) == usw_place(number, slot);
}

/** Make a page that nobody has asked for again an object, if that has not been done ahead. */
static int make_object(struct usw_target *target, uint32_t slot, uint32_t id)
{
	struct usw_session *session = target->session;
	const struct usw_standby *standby = &target->standby;
	const char *bytes;
	const struct usw_ahead_entry *entry = usw_ahead_take(&session->ahead, standby->offer[slot],
							     standby->number, slot, &bytes);

	if (!entry)
		return compress_slot(session, standby->number, slot, id);
	usw_count(&session->reclaim.counters, evicted_ahead, entry->is_by_thread);
	return store_object(session, standby->number, slot, id, bytes, entry->length_bytes,
			    entry->codec);
}

/** Offer the pages that leave standby next to the threads that compress ahead. */
static void offer_next(struct usw_target *target)
{
	struct usw_standby *standby = &target->standby;
	struct usw_session *session = target->session;
	uint32_t count = usw_standby_count(standby);
	uint32_t old = count - (uint32_t)usw_min(count, USW_STANDBY_YOUNG);
	uint32_t end = standby->tail + (uint32_t)usw_min(old, USW_AHEAD_ENTRIES);

	if ((int32_t)(standby->tail - standby->offered) > 0)
		standby->offered = standby->tail;
	for (; (int32_t)(end - standby->offered) > 0; standby->offered++) {
		uint32_t slot = standby->offered % standby->capacity;
		uint32_t id = standby->owner[slot];

		if (id && is_slot_of(session, id, standby->number, slot))
			standby->offer[slot] =
				(uint8_t)usw_ahead_offer(&session->ahead, standby->number, slot);
	}
	usw_ahead_wake(&session->ahead);
}

int usw_standby_drain(struct usw_target *target, uint32_t keep, uint32_t max_pages)
{
	struct usw_standby *standby = &target->standby;
	struct usw_session *session = target->session;

	offer_next(target);
	while (usw_standby_count(standby) > keep && max_pages > 0) {
		uint32_t slot = standby->tail % standby->capacity;
		uint32_t id = standby->owner[slot];

		if (id && is_slot_of(session, id, standby->number, slot)) {
			int ret = make_object(target, slot, id);

			if (ret)
				return ret;
			max_pages--;
		}
		standby->owner[slot] = USW_VSWAP_NONE;
		standby->tail++;
	}
	offer_next(target);
	return 0;
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
