// SPDX-License-Identifier: MIT

/**
 * @file
 * A clock sweep over what is present. See pick.h.
 */

#include "pick.h"
#include "eligible.h"
#include "guard.h"

/* Pages looked at in one go when few of them can be taken: keeps the thread responsive. */
#define USW_SWEEP_PAGES 16384u
#define USW_SCAN_REGIONS 64u
/*
 * How much of a mapping one scan looks at, at most, and of how many pages to begin with for each that
 * is wanted: to look at a present page whose struct page is in no cache takes 50 ns.
 */
#define USW_SCAN_BYTES (16ull << 20)
#define USW_SCAN_SHARE 4u
/* Mappings are looked over together that have no more than this between them: guards, mostly. */
#define USW_SCAN_GAP_BYTES (64ull << 10)

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

bool usw_pick_may_go(struct usw_target *target, uint64_t address)
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
		if (mine > 0 && usw_eligible_may_leave(target, mapping, own, mine) &&
		    !pick_from(target, batch, own, mine, &target->cursor))
			return false;
		target->cursor = mapping.end;
	}
	target->cursor = end;
	return true;
}

bool usw_pick(struct usw_target *target, struct usw_batch *batch, bool *ret_wrapped)
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

void usw_pick_again(struct usw_target *target, struct usw_batch *batch, uint64_t address)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	uint32_t i = usw_ranges_find(mappings, address);

	batch->mapping_start = i < mappings->count ? mappings->at[i].start : address;
	batch_add(batch, address);
}
