// SPDX-License-Identifier: MIT

/**
 * @file
 * To the deepest tier and back. See park.h.
 */

#include "park.h"
#include "compact.h"
#include "demote.h"
#include "move.h"

/* Page words looked at in one step: 200 us. */
#define USW_PARK_WORDS 4096u
/* What a restore asks for ahead of the page it is at. */
#define USW_RECALL_SEGMENTS 24u
#define USW_RECALL_WORDS 16384u
/* A restore that leaves the budget less than this reads page by page. */
#define USW_RECALL_ROOM_BYTES (48u << 20)

/** The segment an evicted page's object is in; 0: it is elsewhere. */
static uint32_t segment_of(const struct usw_session *session, uint64_t page_word)
{
	if (usw_page_state(page_word) != USW_PAGE_EVICTED)
		return 0;
	uint64_t word = usw_vswap_word(&session->vswap, usw_page_id(page_word));

	return usw_word_backend(word) == USW_BACKEND_OBJECT ? usw_place_group(usw_word_place(word))
							    : 0;
}

// --- Parking (reclaim thread) -------------------------------------------------------------------

static bool begin(struct usw_session *session, const struct usw_target *target)
{
	struct usw_parking *parking = &session->parking;

	uint32_t *shares = calloc(session->segments.capacity, sizeof(*shares));

	if (!shares)
		return false;
	*parking = (struct usw_parking){
		.target_id = target->id,
		.stage = USW_PARKING_EMPTY,
		.empties_left = session->segments.high_water,
		.shares = shares,
	};
	return true;
}

static void empty_one(struct usw_session *session)
{
	struct usw_parking *parking = &session->parking;

	if (usw_pack_is_hopeful(&session->packer))
		return; // what is being packed moves first
	if (parking->empties_left && usw_compact_one(&session->vswap) > 0) {
		parking->empties_left--;
		return;
	}
	bool had_open = usw_segments_close_open(&session->segments);
	// The one that was open may hold garbage, too, and must not take it along.
	if (had_open && parking->empties_left && usw_segments_emptiest(&session->segments)) {
		parking->empties_left--;
		return;
	}
	parking->stage = USW_PARKING_COUNT;
}

/** Those of which half is the target's are to go down. */
static void mark(struct usw_session *session)
{
	struct usw_segments *segments = &session->segments;

	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = usw_segments_header(segments, segment);
		uint32_t live = atomic_load_explicit(&h->live_count, memory_order_relaxed);

		if (atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_CLOSED &&
		    live && session->parking.shares[segment] >= live - live / 2)
			h->is_parked = true;
	}
}

static void count_some(struct usw_session *session, struct usw_target *target)
{
	struct usw_parking *parking = &session->parking;
	usw_page_word *word = NULL;

	pthread_mutex_lock(&target->map_lock);
	for (uint32_t i = 0; i < USW_PARK_WORDS; i++) {
		word = usw_pagemap_next(&target->pagemap, &parking->address, USW_ADDRESS_END);
		if (!word)
			break;
		parking->shares[segment_of(session, atomic_load(word))]++;
		parking->address += USW_PAGE_BYTES;
	}
	pthread_mutex_unlock(&target->map_lock);
	if (word)
		return;
	mark(session);
	parking->stage = USW_PARKING_DOWN;
}

/** True while something of what is parked is on its way down, or could be: others do not count. */
static bool send_down(struct usw_session *session)
{
	usw_demote_step(session, false);
	return usw_moves_under_way(&session->tiers).has_parked ||
	       (usw_segments_parked(&session->segments) && usw_tiers_have_room(&session->tiers));
}

bool usw_park_step(struct usw_target *target)
{
	struct usw_session *session = target->session;
	struct usw_parking *parking = &session->parking;

	if (!atomic_load(&session->tiers.count))
		return false;
	if (parking->target_id && parking->target_id != target->id)
		return true; // its turn comes
	if (!parking->target_id && !begin(session, target))
		return false;
	switch (parking->stage) {
	case USW_PARKING_EMPTY:
		empty_one(session);
		return true;
	case USW_PARKING_COUNT:
		count_some(session, target);
		return true;
	case USW_PARKING_DOWN:
		return send_down(session);
	}
	return false;
}

void usw_park_end(struct usw_session *session, uint32_t target_id)
{
	struct usw_parking *parking = &session->parking;
	uint32_t end = session->segments.high_water;

	if (!parking->target_id || parking->target_id != target_id)
		return;
	// What could not go down stays, and is like any other.
	for (uint32_t segment = 1; segment < end; segment++)
		usw_segments_header(&session->segments, segment)->is_parked = false;
	free(parking->shares);
	*parking = (struct usw_parking){0};
}

// --- Restoring (fault threads) ------------------------------------------------------------------

/** Ask for one segment. True: it is on a disk and may be read. */
static bool recall(const struct usw_session *session, uint32_t segment)
{
	struct usw_segment *h = usw_segments_header(&session->segments, segment);
	uint32_t tier = usw_where_tier(atomic_load(&h->where));

	if (tier == USW_TIER_RAM || !usw_tier_may_read(&session->tiers.at[tier], usw_now_ns()))
		return false;
	atomic_store_explicit(&h->is_recalled, true, memory_order_relaxed);
	return true;
}

bool usw_park_recall(const struct usw_target *target, uint64_t address,
		     const struct usw_disk_place *place)
{
	struct usw_session *session = target->session;
	struct usw_segment *h = usw_segments_header(&session->segments, place->segment);
	uint32_t last = place->segment;
	uint32_t asked = 1;

	if (usw_demote_ram_free_bytes(session) < USW_RECALL_ROOM_BYTES)
		return false;
	if (atomic_load_explicit(&h->is_recalled, memory_order_relaxed))
		return true;
	if (!recall(session, place->segment))
		return false;
	for (uint32_t i = 0; i < USW_RECALL_WORDS && asked < USW_RECALL_SEGMENTS; i++) {
		address += USW_PAGE_BYTES;
		usw_page_word *word = usw_pagemap_next(&target->pagemap, &address, USW_ADDRESS_END);
		uint32_t segment = word ? segment_of(session, atomic_load(word)) : 0;

		if (!word)
			break;
		if (segment && segment != last && recall(session, segment))
			asked++;
		last = segment ? segment : last;
	}
	usw_reclaim_kick(session);
	return true;
}
