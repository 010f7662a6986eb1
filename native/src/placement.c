// SPDX-License-Identifier: MIT

/**
 * @file
 * What goes down and what comes back, when. See tier.h.
 */

#include "deadslot.h"
#include "move.h"
#include "tier.h"

/* How often the segments are counted, and what is free on disks is asked for. */
#define USW_SWEEP_NS 20000000u
/* A segment of which this share was read one by one is wanted as a whole. */
#define USW_PROMOTE_SHARE 4u

void usw_tiers_count(struct usw_tiers *tiers)
{
	uint64_t segments[16] = {0}, pages[16] = {0}, stored_bytes[16] = {0};
	uint64_t live_bytes = 0, read_bytes = 0;

	for (uint32_t i = 1; i < tiers->segments->high_water; i++) {
		struct usw_segment *h = usw_segments_header(tiers->segments, i);
		uint32_t number = usw_where_tier(atomic_load(&h->where));

		if (atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_FREE ||
		    number == USW_TIER_RAM)
			continue;
		segments[number]++;
		stored_bytes[number] += usw_disk_length(h);
		pages[number] += atomic_load_explicit(&h->live_count, memory_order_relaxed);
		uint64_t live = atomic_load_explicit(&h->live_bytes, memory_order_relaxed);
		live_bytes += live;
		if (usw_segments_is_read(tiers->segments, i, tiers->read_faults))
			read_bytes += live;
	}
	tiers->segments->disk_live_bytes = live_bytes;
	tiers->read_bytes = read_bytes;
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];

		if (atomic_load(&tier->state) == USW_TIER_NONE)
			continue;
		atomic_store(&tier->free_bytes,
			     usw_disk_free_bytes(tier->disk, usw_moves_unwritten(tiers, i)));
		atomic_store(&tier->segments, segments[i]);
		atomic_store(&tier->pages, pages[i]);
		atomic_store(&tier->stored_bytes, stored_bytes[i]);
	}
}

enum wish { STAYS, WANTED, LEAVES, NEEDED };

/**
 * A segment should come back if it is read again and again, one object at a time; it must if its
 * tier is to go, if it was asked for as a whole, or if so much of it is garbage that it is to be
 * emptied into another.
 */
static enum wish wish_of(struct usw_tiers *tiers, const struct usw_segment *h, uint64_t now_ns)
{
	uint32_t number = usw_where_tier(atomic_load_explicit(&h->where, memory_order_relaxed));
	const struct usw_tier *tier = &tiers->at[number];

	if (atomic_load_explicit(&h->state, memory_order_relaxed) != USW_SEGMENT_CLOSED ||
	    atomic_load_explicit(&h->live_count, memory_order_relaxed) == 0 ||
	    number == USW_TIER_RAM || h->is_moving || !usw_tier_may_read(tier, now_ns))
		return STAYS;
	if (usw_segment_has_garbage(h) ||
	    atomic_load_explicit(&h->is_recalled, memory_order_relaxed))
		return NEEDED;
	if (atomic_load(&tiers->at[number].state) == USW_TIER_LEAVING)
		return LEAVES;
	return atomic_load_explicit(&h->refaults, memory_order_relaxed) >
			       h->object_count / USW_PROMOTE_SHARE
		       ? WANTED
		       : STAYS;
}

/**
 * Bring segments back, in the order in which they lie in the table. One that is needed comes even
 * without room, alone, since it makes room by being emptied; one that leaves does too, but for when
 * RAM is tight, since it makes others go down elsewhere or pages leave.
 */
static void promote_some(struct usw_tiers *tiers, const struct usw_tiers_plan *plan,
			 uint64_t taken_bytes)
{
	uint32_t end = tiers->segments->high_water;
	uint64_t now_ns = usw_now_ns();

	for (uint32_t looked = 1; looked < end; looked++) {
		if (tiers->waiting_segment < 1 || tiers->waiting_segment >= end)
			tiers->waiting_segment = 1;
		uint32_t segment = tiers->waiting_segment;
		struct usw_segment *h = usw_segments_header(tiers->segments, segment);

		enum wish wish = wish_of(tiers, h, now_ns);
		bool has_room = taken_bytes + USW_SEGMENT_BYTES <= plan->promote_bytes;
		bool is_urgent = wish == NEEDED || (wish == LEAVES && !plan->is_tight);

		if (wish != STAYS && (has_room || (is_urgent && !taken_bytes))) {
			if (!usw_move_begin_promotion(tiers, segment))
				return;
			taken_bytes += USW_SEGMENT_BYTES;
		}
		tiers->waiting_segment++;
	}
}

/** Send segments down: those that are parked first, then the coldest. */
static void demote_some(struct usw_tiers *tiers, const struct usw_tiers_plan *plan)
{
	for (;;) {
		bool is_enough = plan->demote_bytes <= usw_moves_under_way(tiers).given;
		uint32_t segment = 0;

		if (plan->demote_parked)
			segment = usw_segments_parked(tiers->segments);
		if (!segment && !is_enough)
			segment = usw_segments_coldest(tiers->segments, USW_TIER_RAM);
		if (!segment || !usw_move_begin_demotion(tiers, segment))
			return;
	}
}

bool usw_tiers_step(struct usw_tiers *tiers, const struct usw_tiers_plan *plan)
{
	if (!atomic_load(&tiers->count))
		return false;
	usw_moves_settle(tiers);
	usw_tiers_close_leaving(tiers);
	// Also when the last one has gone, for nobody counts after that.
	if (usw_now_ns() - tiers->swept_ns > USW_SWEEP_NS || !atomic_load(&tiers->count)) {
		tiers->swept_ns = usw_now_ns();
		usw_tiers_count(tiers);
		usw_deadslots_give(tiers);
	}
	demote_some(tiers, plan);
	if (tiers->segments->disk_segments)
		promote_some(tiers, plan, usw_moves_under_way(tiers).taken);
	return usw_moves_under_way(tiers).is_hopeful;
}
