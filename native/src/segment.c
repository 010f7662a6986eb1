// SPDX-License-Identifier: MIT

/**
 * @file
 * The log of objects. See segment.h.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "segment.h"

/*
 * Of how many slots of RAM one may be warm: under random access to a tight budget a segment is
 * emptied for each that is opened, and giving its RAM back and taking it again was six tenths of the
 * reclaim thread's time.
 */
#define USW_WARM_SHARE 64u
/* One for each segment, beside those that are warm. */
#define USW_RAM_SLOTS(capacity) ((capacity) + USW_WARM_MAX)

/*
 * Whole pages go to a segment of their own where there are as many of them as this to each that
 * compresses. Others stay with their neighbours: a walk reads what lies side by side with one request.
 */
#define USW_WHOLE_RUN 8u

#define USW_GROUP_ENTRIES 16u
#define USW_CHUNKS_PER_PAGE 5u
#define USW_CHUNKS_PAGE_FULL ((1u << USW_CHUNKS_PER_PAGE) - 1)

/** Entries side by side, so that finding one touches two or three lines of the cache. */
struct group {
	_Atomic uint32_t offset_bytes;              /* of the first */
	_Atomic uint32_t owners[USW_GROUP_ENTRIES]; /* 0: dead */
	_Atomic uint16_t forms[USW_GROUP_ENTRIES];  /* length - 1, 12 | codec 3; also of the dead */
};

struct chunk {
	struct group groups[USW_CHUNK_ENTRIES / USW_GROUP_ENTRIES];
};

_Static_assert(sizeof(struct chunk) * USW_CHUNKS_PER_PAGE <= USW_PAGE_BYTES, "chunks fit a page");

static uint16_t make_form(uint32_t length_bytes, enum usw_codec codec)
{
	return (uint16_t)((length_bytes - 1) << 3 | (uint32_t)codec);
}

static uint32_t form_length_bytes(uint16_t form)
{
	return (form >> 3) + 1u;
}

static enum usw_codec form_codec(uint16_t form)
{
	return (enum usw_codec)(form & 7);
}

static struct usw_segment *header(const struct usw_segments *segments, uint32_t segment)
{
	return usw_segments_header(segments, segment);
}

static uint64_t where_is(const struct usw_segment *h)
{
	return atomic_load_explicit(&h->where, memory_order_relaxed);
}

/** Closed, in this tier, and nobody is at work on it. */
static bool is_settled(const struct usw_segment *h, uint32_t tier)
{
	return atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_CLOSED &&
	       !h->is_moving && usw_where_tier(where_is(h)) == tier;
}

static struct chunk *chunk_at(const struct usw_segments *segments, uint32_t chunk)
{
	uint32_t page = (chunk - 1) / USW_CHUNKS_PER_PAGE;
	uint32_t slot = (chunk - 1) % USW_CHUNKS_PER_PAGE;

	return (struct chunk *)(segments->tables.base + (uint64_t)page * USW_PAGE_BYTES) + slot;
}

/** The group with the entry of an index, which is number index % USW_GROUP_ENTRIES; or NULL. */
static struct group *find_group(const struct usw_segments *segments, uint32_t segment,
				uint32_t index)
{
	uint32_t chunk =
		atomic_load_explicit(&header(segments, segment)->chunks[index / USW_CHUNK_ENTRIES],
				     memory_order_acquire);

	if (!chunk)
		return NULL;
	return &chunk_at(segments, chunk)->groups[index % USW_CHUNK_ENTRIES / USW_GROUP_ENTRIES];
}

static uint64_t page_ceil(uint64_t bytes)
{
	return (bytes + USW_PAGE_BYTES - 1) & ~(uint64_t)(USW_PAGE_BYTES - 1);
}

int usw_segments_create(struct usw_segments *segments, uint32_t capacity)
{
	uint64_t table_pages = ((uint64_t)capacity * USW_SEGMENT_CHUNKS + USW_CHUNKS_PER_PAGE - 1) /
			       USW_CHUNKS_PER_PAGE;

	*segments = (struct usw_segments){
		.capacity = capacity,
		.high_water = 1,
		.slot_high_water = 1,
		.worth_share = USW_WORTH_SHARE,
		.whole_run = USW_WHOLE_RUN,
	};
	segments->chunks_used = calloc(table_pages, 1);
	segments->free_slots = calloc(USW_RAM_SLOTS(capacity), sizeof(*segments->free_slots));
	int ret = segments->chunks_used && segments->free_slots ? 0 : -ENOMEM;
	if (!ret)
		ret = usw_space_create(&segments->data, "uffdswap-segments",
				       usw_ram_slot_offset(USW_RAM_SLOTS(capacity)));
	if (!ret)
		ret = usw_space_create(&segments->tables, "uffdswap-objects",
				       table_pages * USW_PAGE_BYTES);
	if (!ret)
		ret = usw_space_create(&segments->headers, "uffdswap-segment-table",
				       page_ceil((uint64_t)capacity * sizeof(struct usw_segment)));
	if (ret)
		usw_segments_destroy(segments);
	return ret;
}

void usw_segments_destroy(struct usw_segments *segments)
{
	usw_space_destroy(&segments->data);
	usw_space_destroy(&segments->tables);
	usw_space_destroy(&segments->headers);
	free(segments->chunks_used);
	free(segments->free_slots);
	segments->chunks_used = NULL;
	segments->free_slots = NULL;
}

/** The lowest free chunk, so that tables stay dense. There are enough for every segment. */
static uint32_t take_chunk(struct usw_segments *segments)
{
	uint32_t page = segments->chunk_hint;

	while (segments->chunks_used[page] == USW_CHUNKS_PAGE_FULL)
		page++;
	segments->chunk_hint = page;
	usw_assert((uint64_t)page * USW_PAGE_BYTES < segments->tables.reserved_bytes);
	if (segments->chunks_used[page] == 0)
		segments->table_bytes += USW_PAGE_BYTES;

	uint32_t slot = (uint32_t)__builtin_ctz(~segments->chunks_used[page]);
	segments->chunks_used[page] |= (uint8_t)(1u << slot);
	return page * USW_CHUNKS_PER_PAGE + slot + 1;
}

/** Takes a chunk back; its owners are all 0. */
static void give_chunk(struct usw_segments *segments, uint32_t chunk)
{
	uint32_t page = (chunk - 1) / USW_CHUNKS_PER_PAGE;
	uint8_t bit = (uint8_t)(1u << (chunk - 1) % USW_CHUNKS_PER_PAGE);

	usw_assert(segments->chunks_used[page] & bit);
	segments->chunks_used[page] &= (uint8_t)~bit;
	if (page < segments->chunk_hint)
		segments->chunk_hint = page;
	if (segments->chunks_used[page])
		return;
	usw_space_punch(&segments->tables, (uint64_t)page * USW_PAGE_BYTES, USW_PAGE_BYTES);
	segments->table_bytes -= USW_PAGE_BYTES;
}

/** How many slots may be warm: where there is little, their RAM is better given back. */
static uint32_t warm_max(const struct usw_segments *segments)
{
	return (uint32_t)usw_min(segments->used_segments / USW_WARM_SHARE, USW_WARM_MAX);
}

static struct usw_warm_slot take_warm(struct usw_segments *segments)
{
	struct usw_warm_slot warm = segments->warm[--segments->warm_count];

	segments->warm_bytes -= warm.held_bytes;
	return warm;
}

/** Give back the RAM of those that are too many. */
static void cool(struct usw_segments *segments)
{
	while (segments->warm_count > warm_max(segments)) {
		struct usw_warm_slot warm = take_warm(segments);

		usw_space_punch(&segments->data, usw_ram_slot_offset(warm.slot), warm.held_bytes);
		segments->used_bytes -= warm.held_bytes;
		usw_segments_give_ram_slot(segments, warm.slot);
	}
}

/** A segment needs its slot of RAM no more. */
static void leave_slot(struct usw_segments *segments, struct usw_segment *h, uint32_t slot)
{
	segments->warm[segments->warm_count++] =
		(struct usw_warm_slot){.slot = slot, .held_bytes = h->held_bytes};
	segments->warm_bytes += h->held_bytes;
	h->held_bytes = 0;
	segments->used_segments--;
	cool(segments);
}

uint32_t usw_segments_take_ram_slot(struct usw_segments *segments)
{
	if (segments->free_slot_count)
		return segments->free_slots[--segments->free_slot_count];
	usw_assert(segments->slot_high_water < USW_RAM_SLOTS(segments->capacity));
	return segments->slot_high_water++;
}

void usw_segments_give_ram_slot(struct usw_segments *segments, uint32_t slot)
{
	segments->free_slots[segments->free_slot_count++] = slot;
}

static void link_free(struct usw_segments *segments, uint32_t segment)
{
	header(segments, segment)->next_free = segments->free_head;
	segments->free_head = segment;
}

/** A segment that is free, 0 if there is none. */
static uint32_t take_free(struct usw_segments *segments)
{
	uint32_t segment = segments->free_head;

	if (segment)
		segments->free_head = header(segments, segment)->next_free;
	else if (segments->high_water < segments->capacity)
		segment = segments->high_water++;
	return segment;
}

/** Slot 0: it has none. */
static void set_ram_slot(struct usw_segment *h, uint32_t slot)
{
	uint64_t generation = usw_where_generation(where_is(h));

	atomic_store_explicit(&h->where, usw_where(generation, USW_TIER_RAM, slot),
			      memory_order_release);
}

/** Give a segment a slot of RAM, and what that holds. */
static void enter_slot(struct usw_segments *segments, struct usw_segment *h)
{
	struct usw_warm_slot warm = {0};

	if (segments->warm_count)
		warm = take_warm(segments);
	else
		warm.slot = usw_segments_take_ram_slot(segments);
	h->held_bytes = warm.held_bytes;
	segments->used_segments++;
	set_ram_slot(h, warm.slot);
}

/** Open the next segment of a log. */
static int open_segment(struct usw_segments *segments, enum usw_log log)
{
	uint32_t segment = take_free(segments);

	if (!segment)
		return -ENOSPC;

	struct usw_segment *h = header(segments, segment);
	usw_assert(atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_FREE);
	usw_assert(usw_where_tier(where_is(h)) == USW_TIER_RAM && !h->is_moving);
	enter_slot(segments, h);
	h->append_bytes = 0;
	h->object_count = 0;
	atomic_store_explicit(&h->touched, segments->clock, memory_order_relaxed);
	atomic_store_explicit(&h->refaults, 0, memory_order_relaxed);
	h->is_parked = false;
	h->is_dense = log == USW_LOG_DENSE || log == USW_LOG_FRESH;
	atomic_store_explicit(&h->is_whole, log == USW_LOG_WHOLE, memory_order_relaxed);
	atomic_store_explicit(&h->is_recalled, false, memory_order_relaxed);
	atomic_store_explicit(&h->live_bytes, 0, memory_order_relaxed);
	atomic_store_explicit(&h->live_count, 0, memory_order_relaxed);
	atomic_store_explicit(&h->state, USW_SEGMENT_OPEN, memory_order_release);
	segments->open[log] = segment;
	return 0;
}

/** Nothing is appended to it any more: from now on it may be reaped and emptied. */
static void close_segment(struct usw_segments *segments, enum usw_log log)
{
	struct usw_segment *h = header(segments, segments->open[log]);

	atomic_store_explicit(&h->state, USW_SEGMENT_CLOSED, memory_order_release);
	if (atomic_load_explicit(&h->live_count, memory_order_acquire) == 0)
		atomic_store_explicit(&segments->some_empty, true, memory_order_relaxed);
	segments->open[log] = 0;
}

static void free_segment(struct usw_segments *segments, uint32_t segment)
{
	struct usw_segment *h = header(segments, segment);

	usw_assert(atomic_load_explicit(&h->live_count, memory_order_relaxed) == 0);
	usw_assert(atomic_load_explicit(&h->live_bytes, memory_order_relaxed) == 0);
	atomic_store_explicit(&h->state, USW_SEGMENT_FREE, memory_order_release);
	uint64_t where = where_is(h);
	set_ram_slot(h, 0);
	if (usw_where_tier(where) == USW_TIER_RAM) {
		leave_slot(segments, h, usw_where_slot(where));
	} else {
		segments->disk_segments--;
		segments->slot_is_free(segments->slot_context, where, segment);
	}
	for (uint32_t i = 0; i * USW_CHUNK_ENTRIES < h->object_count; i++)
		give_chunk(segments,
			   atomic_exchange_explicit(&h->chunks[i], 0, memory_order_relaxed));
	link_free(segments, segment);
}

/** Write the next entry of an open segment. Who sees the owner sees all of it. */
static void append_entry(struct usw_segments *segments, uint32_t segment, uint32_t owner_id,
			 uint16_t form)
{
	struct usw_segment *h = header(segments, segment);
	uint32_t index = h->object_count++;
	uint32_t at = index % USW_GROUP_ENTRIES;

	if (index % USW_CHUNK_ENTRIES == 0)
		atomic_store_explicit(&h->chunks[index / USW_CHUNK_ENTRIES], take_chunk(segments),
				      memory_order_release);
	struct group *group = find_group(segments, segment, index);
	if (at == 0)
		atomic_store_explicit(&group->offset_bytes, h->append_bytes, memory_order_relaxed);
	atomic_store_explicit(&group->forms[at], form, memory_order_relaxed);
	atomic_store_explicit(&group->owners[at], owner_id, memory_order_release);
}

static void count_live(struct usw_segments *segments, struct usw_segment *h, uint32_t stored)
{
	atomic_fetch_add_explicit(&h->live_bytes, stored, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->live_count, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&segments->live_bytes, stored, memory_order_relaxed);
	atomic_fetch_add_explicit(&segments->live_count, 1, memory_order_relaxed);
}

/** Where the bytes of a segment are. It is in RAM. */
static char *bytes_of(const struct usw_segments *segments, uint64_t where)
{
	return segments->data.base + usw_ram_slot_offset(usw_where_slot(where));
}

/** True for a whole page if most of what was appended before were such, too. */
static bool is_among_whole(struct usw_segments *segments, uint32_t stored_bytes)
{
	if (stored_bytes < USW_PAGE_BYTES) {
		segments->whole_run /= 2;
		return false;
	}
	segments->whole_run = (uint32_t)usw_min(segments->whole_run + 1, 2 * USW_WHOLE_RUN);
	return segments->whole_run >= USW_WHOLE_RUN;
}

/** Have room in a log: its segment is closed, and another opened, if it is full. */
static int make_room(struct usw_segments *segments, enum usw_log log, uint32_t stored_bytes)
{
	if (segments->open[log]) {
		struct usw_segment *h = header(segments, segments->open[log]);

		if (h->append_bytes + stored_bytes > USW_SEGMENT_BYTES ||
		    h->object_count == USW_SEGMENT_OBJECTS)
			close_segment(segments, log);
	}
	return segments->open[log] ? 0 : open_segment(segments, log);
}

int usw_segments_append(struct usw_segments *segments, enum usw_log log, uint32_t owner_id,
			const void *bytes, uint32_t length_bytes, enum usw_codec codec,
			uint64_t *ret_place)
{
	usw_assert(owner_id != 0 && length_bytes > 0 && length_bytes <= USW_PAGE_BYTES);

	uint32_t stored = usw_stored_bytes(length_bytes);
	bool is_whole = is_among_whole(segments, stored) &&
			make_room(segments, USW_LOG_WHOLE, stored) == 0;
	int ret = is_whole ? 0 : make_room(segments, log, stored);

	if (ret)
		return ret;
	if (is_whole)
		log = USW_LOG_WHOLE;
	uint32_t segment = segments->open[log];
	struct usw_segment *h = header(segments, segment);
	uint32_t index = h->object_count;
	uint32_t offset = h->append_bytes;
	memcpy(bytes_of(segments, where_is(h)) + offset, bytes, length_bytes);
	uint32_t held_bytes = (uint32_t)page_ceil(offset + stored);
	if (held_bytes > h->held_bytes) {
		segments->used_bytes += held_bytes - h->held_bytes;
		h->held_bytes = held_bytes;
	}
	count_live(segments, h, stored);
	append_entry(segments, segment, owner_id, make_form(length_bytes, codec));
	h->append_bytes += stored;
	// Nothing may come for a long time that would find it full: until then it could not leave.
	if (h->append_bytes == USW_SEGMENT_BYTES)
		close_segment(segments, log);
	*ret_place = (uint64_t)segment << 16 | index;
	return 0;
}

/** Where the entry `at` of a group begins in its segment. */
static uint32_t offset_in(struct group *group, uint32_t at)
{
	uint32_t offset = atomic_load_explicit(&group->offset_bytes, memory_order_relaxed);

	for (uint32_t i = 0; i < at; i++)
		offset += usw_stored_bytes(form_length_bytes(
			atomic_load_explicit(&group->forms[i], memory_order_relaxed)));
	return offset;
}

bool usw_segments_has_vacancy(const struct usw_segments *segments, uint32_t segment)
{
	const struct usw_segment *h = header(segments, segment);

	return is_settled(h, USW_TIER_RAM) && !h->is_parked && !h->is_dense &&
	       !usw_segment_has_garbage(h) &&
	       atomic_load_explicit(&h->live_bytes, memory_order_relaxed) < h->append_bytes;
}

uint32_t usw_segments_dead_bytes(const struct usw_segments *segments, uint32_t segment,
				 uint32_t index)
{
	struct group *group = find_group(segments, segment, index);
	uint32_t at = index % USW_GROUP_ENTRIES;

	// Acquire: whoever let go of it has repointed the descriptor before.
	if (atomic_load_explicit(&group->owners[at], memory_order_acquire))
		return 0;
	return usw_stored_bytes(
		form_length_bytes(atomic_load_explicit(&group->forms[at], memory_order_relaxed)));
}

bool usw_segments_refill(struct usw_segments *segments, uint32_t segment, uint32_t index,
			 uint32_t owner_id, const void *bytes, uint32_t length_bytes,
			 enum usw_codec codec)
{
	uint32_t stored = usw_stored_bytes(length_bytes);
	struct usw_segment *h = header(segments, segment);

	if (!usw_segments_has_vacancy(segments, segment) || index >= h->object_count ||
	    usw_segments_dead_bytes(segments, segment, index) != stored)
		return false;
	struct group *group = find_group(segments, segment, index);
	uint32_t at = index % USW_GROUP_ENTRIES;
	uint64_t offset = offset_in(group, at);

	memcpy(bytes_of(segments, where_is(h)) + offset, bytes, length_bytes);
	count_live(segments, h, stored);
	atomic_store_explicit(&h->touched, segments->clock, memory_order_relaxed);
	atomic_store_explicit(&group->forms[at], make_form(length_bytes, codec),
			      memory_order_relaxed);
	atomic_store_explicit(&group->owners[at], owner_id, memory_order_release);
	return true;
}

void usw_segments_release(struct usw_segments *segments, uint32_t segment, uint32_t index)
{
	struct usw_segment *h = header(segments, segment);
	usw_assert(index < USW_SEGMENT_OBJECTS);
	struct group *group = find_group(segments, segment, index);
	uint32_t at = index % USW_GROUP_ENTRIES;
	usw_assert(group);
	// Its length stays: what comes after it is found by it.
	uint32_t stored = usw_stored_bytes(
		form_length_bytes(atomic_load_explicit(&group->forms[at], memory_order_relaxed)));
	// Release: a reader that finds the entry dead must find the descriptor repointed, too.
	uint32_t owner = atomic_exchange_explicit(&group->owners[at], 0, memory_order_acq_rel);

	usw_assert(owner != 0);
	atomic_fetch_sub_explicit(&segments->live_bytes, stored, memory_order_relaxed);
	atomic_fetch_sub_explicit(&segments->live_count, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&h->live_bytes, stored, memory_order_relaxed);
	// Release order: the owner, who frees the segment when it sees zero, must see live_bytes
	// too.
	if (atomic_fetch_sub_explicit(&h->live_count, 1, memory_order_acq_rel) == 1)
		atomic_store_explicit(&segments->some_empty, true, memory_order_release);
}

bool usw_segments_find(const struct usw_segments *segments, uint32_t segment, uint32_t index,
		       struct usw_object *ret)
{
	if (segment == 0 || segment >= segments->capacity || index >= USW_SEGMENT_OBJECTS)
		return false;

	struct group *group = find_group(segments, segment, index);
	if (!group)
		return false;
	uint32_t at = index % USW_GROUP_ENTRIES;
	uint32_t owner = atomic_load_explicit(&group->owners[at], memory_order_acquire);
	uint16_t form = atomic_load_explicit(&group->forms[at], memory_order_relaxed);
	uint32_t length = form_length_bytes(form);
	uint32_t offset = offset_in(group, at);
	// A table that is given to another segment meanwhile may hold anything.
	if (owner == 0 || offset > USW_SEGMENT_BYTES - length)
		return false;
	uint64_t where =
		atomic_load_explicit(&header(segments, segment)->where, memory_order_acquire);
	bool is_in_ram = usw_where_tier(where) == USW_TIER_RAM && usw_where_slot(where);
	// After `where`: whoever sees that sees what was so when it was published.
	bool is_whole =
		atomic_load_explicit(&header(segments, segment)->is_whole, memory_order_relaxed);
	if (is_whole && offset != index * USW_PAGE_BYTES)
		return false; // the segment's next life, and the table of the one before
	*ret = (struct usw_object){
		.where = where,
		.owner_id = owner,
		.offset_bytes = offset,
		.bytes = is_in_ram ? bytes_of(segments, where) + offset : NULL,
		.length_bytes = length,
		.codec = form_codec(form),
		.is_whole = is_whole,
	};
	return true;
}

uint64_t usw_segments_garbage_bytes(const struct usw_segments *segments)
{
	uint64_t live = atomic_load_explicit(&segments->live_bytes, memory_order_relaxed);

	live -= usw_min(live, segments->disk_live_bytes);
	live += segments->warm_bytes;
	return segments->used_bytes > live ? segments->used_bytes - live : 0;
}

void usw_segments_reap(struct usw_segments *segments)
{
	if (!atomic_load_explicit(&segments->some_empty, memory_order_relaxed))
		return;
	// Lowered before the walk: whoever empties a segment behind us raises it again.
	atomic_store(&segments->some_empty, false);
	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = header(segments, segment);

		// One on its way is asked about again when it has arrived.
		if (atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_CLOSED &&
		    !h->is_moving && atomic_load(&h->live_count) == 0)
			free_segment(segments, segment);
	}
}

uint32_t usw_segments_emptiest(const struct usw_segments *segments)
{
	uint32_t best = 0;
	uint32_t best_live_bytes = UINT32_MAX;

	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = header(segments, segment);
		uint32_t live = atomic_load_explicit(&h->live_bytes, memory_order_relaxed);

		if (is_settled(h, USW_TIER_RAM) && usw_segment_is_worth(h, segments->worth_share) &&
		    live < best_live_bytes) {
			best = segment;
			best_live_bytes = live;
		}
	}
	return best;
}

/** For how long nobody has read of it, in faults. Signed: a reader's clock may be ahead of ours. */
static int32_t age_of(const struct usw_segments *segments, const struct usw_segment *h)
{
	return (int32_t)(segments->clock - atomic_load_explicit(&h->touched, memory_order_relaxed));
}

bool usw_segments_is_read(const struct usw_segments *segments, uint32_t segment, uint32_t faults)
{
	const struct usw_segment *h = header(segments, segment);

	return atomic_load_explicit(&h->refaults, memory_order_relaxed) > 0 &&
	       age_of(segments, h) < (int32_t)faults;
}

uint32_t usw_segments_coldest(const struct usw_segments *segments, uint32_t tier)
{
	uint32_t best = 0;
	int64_t best_rank = 0;

	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = header(segments, segment);
		int64_t rank = age_of(segments, h);

		if (usw_segment_is_incompressible(h))
			rank += (int64_t)1 << 32;
		if (is_settled(h, tier) && (!best || rank > best_rank) &&
		    !usw_segment_has_garbage(h) &&
		    atomic_load_explicit(&h->live_count, memory_order_relaxed) > 0) {
			best = segment;
			best_rank = rank;
		}
	}
	return best;
}

uint32_t usw_segments_coldest_loose(const struct usw_segments *segments, uint32_t *ret_loose,
				    uint32_t *ret_all)
{
	uint32_t best = 0;
	int32_t best_age = 0;

	*ret_loose = *ret_all = 0;
	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		const struct usw_segment *h = header(segments, segment);
		int32_t age = age_of(segments, h);

		if (!is_settled(h, USW_TIER_RAM) ||
		    atomic_load_explicit(&h->live_count, memory_order_relaxed) == 0)
			continue;
		++*ret_all;
		if (h->is_dense || h->is_parked || usw_segment_is_incompressible(h))
			continue;
		++*ret_loose;
		if (!best || age > best_age) {
			best = segment;
			best_age = age;
		}
	}
	return best;
}

uint32_t usw_segments_parked(const struct usw_segments *segments)
{
	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		const struct usw_segment *h = header(segments, segment);

		if (h->is_parked && is_settled(h, USW_TIER_RAM) &&
		    atomic_load_explicit(&h->live_count, memory_order_relaxed) > 0)
			return segment;
	}
	return 0;
}

bool usw_segments_close_open(struct usw_segments *segments)
{
	bool had_open = false;

	for (enum usw_log log = 0; log < USW_LOGS; log++) {
		if (!segments->open[log])
			continue;
		close_segment(segments, log);
		had_open = true;
	}
	return had_open;
}

void usw_segments_publish(struct usw_segments *segments, uint32_t segment, uint64_t where)
{
	struct usw_segment *h = header(segments, segment);
	uint64_t before = where_is(h);
	bool was_in_ram = usw_where_tier(before) == USW_TIER_RAM;
	bool is_in_ram = usw_where_tier(where) == USW_TIER_RAM;

	usw_assert(usw_where_generation(where) > usw_where_generation(before));
	usw_assert(atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_CLOSED);
	atomic_store_explicit(&h->refaults, 0, memory_order_relaxed);
	h->is_parked = false;
	atomic_store_explicit(&h->is_recalled, false, memory_order_relaxed);
	// Everything written before is seen by whoever sees this; whoever sees what comes after
	// must see this.
	atomic_store(&h->where, where);
	atomic_thread_fence(memory_order_seq_cst);
	if (was_in_ram && !is_in_ram) {
		leave_slot(segments, h, usw_where_slot(before));
		segments->disk_segments++;
	} else if (!was_in_ram && is_in_ram) {
		h->held_bytes = (uint32_t)page_ceil(h->append_bytes);
		segments->used_bytes += h->held_bytes;
		segments->used_segments++;
		segments->disk_segments--;
	}
}

uint32_t usw_segments_owner(const struct usw_segments *segments, uint32_t segment, uint32_t index)
{
	const struct usw_segment *h = header(segments, segment);

	if (atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_FREE ||
	    index >= h->object_count)
		return 0;

	struct group *group = find_group(segments, segment, index);
	usw_assert(group);
	return atomic_load_explicit(&group->owners[index % USW_GROUP_ENTRIES],
				    memory_order_relaxed);
}

uint64_t usw_segments_metadata_bytes(const struct usw_segments *segments)
{
	return segments->table_bytes + page_ceil(segments->high_water * sizeof(struct usw_segment));
}

/** The chunks in use. */
static uint64_t count_chunks(const struct usw_segments *segments)
{
	uint64_t pages = segments->tables.reserved_bytes / USW_PAGE_BYTES;
	uint64_t used = 0;
	uint64_t used_pages = 0;

	for (uint64_t page = 0; page < pages; page++) {
		used += (uint64_t)__builtin_popcount(segments->chunks_used[page]);
		used_pages += segments->chunks_used[page] != 0;
	}
	usw_assert(used_pages * USW_PAGE_BYTES == segments->table_bytes);
	return used;
}

static void see_slot(uint8_t *seen, const struct usw_segments *segments, uint32_t slot)
{
	usw_assert(slot > 0 && slot < segments->slot_high_water && !seen[slot]);
	seen[slot] = 1;
}

/** Nobody shares a slot of RAM. Those of segments on their way up are in none of the places. */
static void check_slots(const struct usw_segments *segments)
{
	uint8_t *seen = calloc(segments->slot_high_water, 1);

	usw_assert(seen);
	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		const struct usw_segment *h = header(segments, segment);

		if (h->state != USW_SEGMENT_FREE && usw_where_tier(h->where) == USW_TIER_RAM)
			see_slot(seen, segments, usw_where_slot(h->where));
	}
	for (uint32_t i = 0; i < segments->warm_count; i++)
		see_slot(seen, segments, segments->warm[i].slot);
	for (uint32_t i = 0; i < segments->free_slot_count; i++)
		see_slot(seen, segments, segments->free_slots[i]);
	free(seen);
}

static bool is_open(const struct usw_segments *segments, uint32_t segment)
{
	for (enum usw_log log = 0; log < USW_LOGS; log++)
		if (segments->open[log] == segment)
			return true;
	return false;
}

void usw_segments_check(const struct usw_segments *segments)
{
	uint64_t used = 0;
	uint64_t elsewhere = 0;
	uint64_t live_total = 0;
	uint64_t chunks = 0;
	uint64_t held = 0;

	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = header(segments, segment);
		uint32_t live_count = 0;
		uint32_t live_bytes = 0;
		uint32_t offset = 0;

		held += h->held_bytes;
		if (h->state == USW_SEGMENT_FREE)
			continue;
		if (usw_where_tier(h->where) == USW_TIER_RAM)
			used++;
		else
			elsewhere++;
		for (uint32_t index = 0; index < h->object_count; index++) {
			struct group *group = find_group(segments, segment, index);
			uint32_t at = index % USW_GROUP_ENTRIES;
			uint32_t stored = usw_stored_bytes(form_length_bytes(group->forms[at]));

			usw_assert(offset_in(group, at) == offset);
			offset += stored;
			if (group->owners[at] == 0)
				continue;
			live_count++;
			live_bytes += stored;
		}
		usw_assert(offset == h->append_bytes);
		chunks += (h->object_count + USW_CHUNK_ENTRIES - 1) / USW_CHUNK_ENTRIES;
		usw_assert(live_count == h->live_count && live_bytes == h->live_bytes);
		usw_assert((h->state == USW_SEGMENT_OPEN) == is_open(segments, segment));
		usw_assert(!h->is_whole || offset == h->object_count * USW_PAGE_BYTES);
		live_total += live_bytes;
	}
	usw_assert(used == segments->used_segments && elsewhere == segments->disk_segments);
	usw_assert(live_total == segments->live_bytes);
	usw_assert(held + segments->warm_bytes == segments->used_bytes);
	usw_assert(segments->warm_count <= USW_WARM_MAX);
	usw_assert(chunks == count_chunks(segments));
	check_slots(segments);
}
