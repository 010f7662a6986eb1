// SPDX-License-Identifier: MIT

/**
 * @file
 * The log of objects. See segment.h.
 */

#include <errno.h>
#include <string.h>

#include "segment.h"

/* Objects start at multiples of 8 bytes, so that 17 bits name any offset in a segment. */
#define USW_OBJECT_ALIGN 8u

static uint64_t make_entry(uint32_t owner_id, uint32_t offset_bytes, uint32_t length_bytes,
			   enum usw_codec codec)
{
	return (uint64_t)owner_id << 32 | (uint64_t)(offset_bytes / USW_OBJECT_ALIGN) << 15 |
	       (uint64_t)(length_bytes - 1) << 3 | (uint64_t)codec;
}

static uint32_t entry_owner(uint64_t entry)
{
	return (uint32_t)(entry >> 32);
}

static uint32_t entry_offset_bytes(uint64_t entry)
{
	return ((uint32_t)(entry >> 15) & 0x1ffff) * USW_OBJECT_ALIGN;
}

static uint32_t entry_length_bytes(uint64_t entry)
{
	return ((uint32_t)(entry >> 3) & 0xfff) + 1;
}

static enum usw_codec entry_codec(uint64_t entry)
{
	return (enum usw_codec)(entry & 7);
}

static uint32_t stored_bytes(uint32_t length_bytes)
{
	return (length_bytes + USW_OBJECT_ALIGN - 1) & ~(USW_OBJECT_ALIGN - 1);
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

static _Atomic uint64_t *table(const struct usw_segments *segments, uint32_t segment)
{
	return (_Atomic uint64_t *)(segments->tables.base + segment * USW_SEGMENT_TABLE_BYTES);
}

static uint64_t whole_pages(uint64_t bytes)
{
	return (bytes + USW_PAGE_BYTES - 1) & ~(uint64_t)(USW_PAGE_BYTES - 1);
}

int usw_segments_create(struct usw_segments *segments, uint32_t capacity)
{
	*segments = (struct usw_segments){.capacity = capacity, .high_water = 1};
	int ret = usw_space_create(&segments->data, "uffdswap-segments",
				   (uint64_t)capacity * USW_SEGMENT_BYTES);
	if (!ret)
		ret = usw_space_create(&segments->tables, "uffdswap-objects",
				       (uint64_t)capacity * USW_SEGMENT_TABLE_BYTES);
	if (!ret)
		ret = usw_space_create(
			&segments->headers, "uffdswap-segment-table",
			whole_pages((uint64_t)capacity * sizeof(struct usw_segment)));
	if (ret)
		usw_segments_destroy(segments);
	return ret;
}

void usw_segments_destroy(struct usw_segments *segments)
{
	usw_space_destroy(&segments->data);
	usw_space_destroy(&segments->tables);
	usw_space_destroy(&segments->headers);
}

static int open_segment(struct usw_segments *segments)
{
	uint32_t segment = segments->free_head;

	if (segment)
		segments->free_head = header(segments, segment)->next_free;
	else if (segments->high_water < segments->capacity)
		segment = segments->high_water++;
	else
		return -ENOSPC;

	struct usw_segment *h = header(segments, segment);
	usw_assert(atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_FREE);
	usw_assert(usw_where_tier(where_is(h)) == USW_TIER_RAM && !h->is_moving);
	h->append_bytes = 0;
	h->object_count = 0;
	atomic_store_explicit(&h->touched, segments->clock, memory_order_relaxed);
	atomic_store_explicit(&h->refaults, 0, memory_order_relaxed);
	h->is_parked = false;
	atomic_store_explicit(&h->is_recalled, false, memory_order_relaxed);
	atomic_store_explicit(&h->live_bytes, 0, memory_order_relaxed);
	atomic_store_explicit(&h->live_count, 0, memory_order_relaxed);
	atomic_store_explicit(&h->state, USW_SEGMENT_OPEN, memory_order_release);
	segments->open = segment;
	segments->used_segments++;
	return 0;
}

/** Nothing is appended to it any more: from now on it may be reaped and emptied. */
static void close_segment(struct usw_segments *segments)
{
	struct usw_segment *h = header(segments, segments->open);

	atomic_store_explicit(&h->state, USW_SEGMENT_CLOSED, memory_order_release);
	if (atomic_load_explicit(&h->live_count, memory_order_acquire) == 0)
		atomic_store_explicit(&segments->some_empty, true, memory_order_relaxed);
	segments->open = 0;
}

static void free_segment(struct usw_segments *segments, uint32_t segment)
{
	struct usw_segment *h = header(segments, segment);
	uint64_t data_bytes = whole_pages(h->append_bytes);
	uint64_t table_bytes = whole_pages(h->object_count * sizeof(uint64_t));

	usw_assert(atomic_load_explicit(&h->live_count, memory_order_relaxed) == 0);
	usw_assert(atomic_load_explicit(&h->live_bytes, memory_order_relaxed) == 0);
	atomic_store_explicit(&h->state, USW_SEGMENT_FREE, memory_order_release);
	uint64_t where = where_is(h);
	if (usw_where_tier(where) == USW_TIER_RAM) {
		usw_space_punch(&segments->data, (uint64_t)segment * USW_SEGMENT_BYTES, data_bytes);
		segments->used_bytes -= data_bytes;
		segments->used_segments--;
	} else {
		atomic_store_explicit(&h->where,
				      usw_where(usw_where_generation(where), USW_TIER_RAM, 0),
				      memory_order_release);
		segments->disk_segments--;
		segments->slot_is_free(segments->slot_context, where, h);
	}
	usw_space_punch(&segments->tables, (uint64_t)segment * USW_SEGMENT_TABLE_BYTES,
			table_bytes);
	segments->table_bytes -= table_bytes;
	h->next_free = segments->free_head;
	segments->free_head = segment;
}

int usw_segments_append(struct usw_segments *segments, uint32_t owner_id, const void *bytes,
			uint32_t length_bytes, enum usw_codec codec, uint64_t *ret_place)
{
	usw_assert(owner_id != 0 && length_bytes > 0 && length_bytes <= USW_PAGE_BYTES);

	uint32_t stored = stored_bytes(length_bytes);
	if (segments->open) {
		struct usw_segment *h = header(segments, segments->open);

		if (h->append_bytes + stored > USW_SEGMENT_BYTES ||
		    h->object_count == USW_SEGMENT_OBJECTS)
			close_segment(segments);
	}
	if (!segments->open) {
		int ret = open_segment(segments);

		if (ret)
			return ret;
	}

	uint32_t segment = segments->open;
	struct usw_segment *h = header(segments, segment);
	uint32_t index = h->object_count;
	uint32_t offset = h->append_bytes;
	memcpy(segments->data.base + (uint64_t)segment * USW_SEGMENT_BYTES + offset, bytes,
	       length_bytes);
	segments->used_bytes += whole_pages(offset + stored) - whole_pages(offset);
	segments->table_bytes +=
		whole_pages((index + 1) * sizeof(uint64_t)) - whole_pages(index * sizeof(uint64_t));
	h->append_bytes += stored;
	h->object_count++;
	atomic_fetch_add_explicit(&h->live_bytes, stored, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->live_count, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&segments->live_bytes, stored, memory_order_relaxed);
	atomic_fetch_add_explicit(&segments->live_count, 1, memory_order_relaxed);
	atomic_store_explicit(&table(segments, segment)[index],
			      make_entry(owner_id, offset, length_bytes, codec),
			      memory_order_release);
	*ret_place = (uint64_t)segment << 16 | index;
	return 0;
}

void usw_segments_release(struct usw_segments *segments, uint32_t segment, uint32_t index)
{
	struct usw_segment *h = header(segments, segment);
	usw_assert(index < USW_SEGMENT_OBJECTS);
	// Release: a reader that finds the entry dead must find the descriptor repointed, too.
	uint64_t entry =
		atomic_exchange_explicit(&table(segments, segment)[index], 0, memory_order_acq_rel);
	uint32_t stored = stored_bytes(entry_length_bytes(entry));

	usw_assert(entry_owner(entry) != 0);
	atomic_fetch_sub_explicit(&segments->live_bytes, stored, memory_order_relaxed);
	atomic_fetch_sub_explicit(&segments->live_count, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&h->live_bytes, stored, memory_order_relaxed);
	// Release order: the owner, who frees the segment when it sees zero, must see live_bytes too.
	if (atomic_fetch_sub_explicit(&h->live_count, 1, memory_order_acq_rel) == 1)
		atomic_store_explicit(&segments->some_empty, true, memory_order_release);
}

bool usw_segments_find(const struct usw_segments *segments, uint32_t segment, uint32_t index,
		       struct usw_object *ret)
{
	if (segment == 0 || segment >= segments->capacity || index >= USW_SEGMENT_OBJECTS)
		return false;

	uint64_t entry =
		atomic_load_explicit(&table(segments, segment)[index], memory_order_acquire);
	uint32_t offset = entry_offset_bytes(entry);
	uint32_t length = entry_length_bytes(entry);
	if (entry_owner(entry) == 0 || offset + length > USW_SEGMENT_BYTES)
		return false;
	*ret = (struct usw_object){
		.where = atomic_load_explicit(&header(segments, segment)->where,
					      memory_order_acquire),
		.owner_id = entry_owner(entry),
		.offset_bytes = offset,
		.bytes = segments->data.base + (uint64_t)segment * USW_SEGMENT_BYTES + offset,
		.length_bytes = length,
		.codec = entry_codec(entry),
	};
	return true;
}

uint64_t usw_segments_garbage_bytes(const struct usw_segments *segments)
{
	uint64_t live = atomic_load_explicit(&segments->live_bytes, memory_order_relaxed);

	live -= usw_min(live, segments->disk_live_bytes);
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

		if (is_settled(h, USW_TIER_RAM) && usw_segment_has_garbage(h) &&
		    live < best_live_bytes) {
			best = segment;
			best_live_bytes = live;
		}
	}
	return best;
}

uint32_t usw_segments_coldest(const struct usw_segments *segments, uint32_t tier)
{
	uint32_t best = 0;
	int64_t best_rank = 0;

	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = header(segments, segment);
		// Signed: a reader's clock may be ahead of ours.
		int32_t age = (int32_t)(segments->clock -
					atomic_load_explicit(&h->touched, memory_order_relaxed));
		int64_t rank = age;

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

void usw_segments_close_open(struct usw_segments *segments)
{
	if (segments->open)
		close_segment(segments);
}

void usw_segments_publish(struct usw_segments *segments, uint32_t segment, uint64_t where)
{
	struct usw_segment *h = header(segments, segment);
	uint64_t data_bytes = whole_pages(h->append_bytes);
	bool was_in_ram = usw_where_tier(where_is(h)) == USW_TIER_RAM;
	bool is_in_ram = usw_where_tier(where) == USW_TIER_RAM;

	usw_assert(usw_where_generation(where) > usw_where_generation(where_is(h)));
	usw_assert(atomic_load_explicit(&h->state, memory_order_relaxed) == USW_SEGMENT_CLOSED);
	atomic_store_explicit(&h->refaults, 0, memory_order_relaxed);
	h->is_parked = false;
	atomic_store_explicit(&h->is_recalled, false, memory_order_relaxed);
	// Everything written before is seen by whoever sees this; whoever sees what comes after must
	// see this.
	atomic_store(&h->where, where);
	atomic_thread_fence(memory_order_seq_cst);
	if (was_in_ram && !is_in_ram) {
		usw_space_punch(&segments->data, (uint64_t)segment * USW_SEGMENT_BYTES, data_bytes);
		segments->used_bytes -= data_bytes;
		segments->used_segments--;
		segments->disk_segments++;
	} else if (!was_in_ram && is_in_ram) {
		segments->used_bytes += data_bytes;
		segments->used_segments++;
		segments->disk_segments--;
	}
}

uint32_t usw_segments_owner(const struct usw_segments *segments, uint32_t segment, uint32_t index)
{
	if (index >= header(segments, segment)->object_count)
		return 0;
	return entry_owner(
		atomic_load_explicit(&table(segments, segment)[index], memory_order_relaxed));
}

uint64_t usw_segments_held_bytes(const struct usw_segments *segments)
{
	return segments->used_bytes + segments->table_bytes +
	       whole_pages(segments->high_water * sizeof(struct usw_segment));
}

void usw_segments_check(const struct usw_segments *segments)
{
	uint64_t used = 0;
	uint64_t elsewhere = 0;
	uint64_t live_total = 0;

	for (uint32_t segment = 1; segment < segments->high_water; segment++) {
		struct usw_segment *h = header(segments, segment);
		uint32_t live_count = 0;
		uint32_t live_bytes = 0;

		if (h->state == USW_SEGMENT_FREE)
			continue;
		if (usw_where_tier(h->where) == USW_TIER_RAM)
			used++;
		else
			elsewhere++;
		for (uint32_t index = 0; index < h->object_count; index++) {
			uint64_t entry = table(segments, segment)[index];

			if (entry_owner(entry) == 0)
				continue;
			live_count++;
			live_bytes += stored_bytes(entry_length_bytes(entry));
			usw_assert(entry_offset_bytes(entry) + entry_length_bytes(entry) <=
				   h->append_bytes);
		}
		usw_assert(live_count == h->live_count && live_bytes == h->live_bytes);
		usw_assert((h->state == USW_SEGMENT_OPEN) == (segment == segments->open));
		live_total += live_bytes;
	}
	usw_assert(used == segments->used_segments && elsewhere == segments->disk_segments);
	usw_assert(live_total == segments->live_bytes);
}
