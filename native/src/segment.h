// SPDX-License-Identifier: MIT

/**
 * @file
 * Segments: 1 MiB log-structured blocks of objects, the unit that lives in a tier.
 *
 * Objects are appended to the open segment. A place (segment, index) is resolved by the segment's
 * own table of 8-byte entries, so a segment can be slid together, re-encoded or moved to another
 * tier without a descriptor changing; only emptying one segment into another repoints descriptors,
 * one compare-and-swap each.
 *
 * An entry:   owner ID 32 | offset / 8, 17 | length - 1, 12 | codec 3
 * An entry whose owner is 0 is dead: garbage until its segment is emptied.
 *
 * Threads: one owner (the reclaim thread) appends, empties and frees. Any thread releases objects.
 * Fault threads read without a lock: a segment that is emptied, freed or used again under a
 * reader gives it bytes whose hash does not match (see vswap.h).
 */

#ifndef USW_SEGMENT_H
#define USW_SEGMENT_H

#include "codec.h"
#include "space.h"

#define USW_SEGMENT_BYTES (1u << 20)
/** Objects of one segment. With 4,096 the table of a full segment is 32 KiB. */
#define USW_SEGMENT_OBJECTS 4096u
#define USW_SEGMENT_TABLE_BYTES (USW_SEGMENT_OBJECTS * sizeof(uint64_t))

enum usw_segment_state {
	USW_SEGMENT_FREE = 0,
	USW_SEGMENT_OPEN = 1,
	USW_SEGMENT_CLOSED = 2,
};

enum usw_tier {
	USW_TIER_RAM = 0,
};

/** One line of the table of segments. */
struct usw_segment {
	_Atomic uint32_t state;      /* enum usw_segment_state; written by the owner */
	uint32_t tier;               /* enum usw_tier */
	uint32_t append_bytes;       /* where the next object goes; owner */
	uint32_t object_count;       /* entries used in its table; owner */
	_Atomic uint32_t live_bytes; /* of objects that are not dead, in units as stored */
	_Atomic uint32_t live_count;
	uint32_t next_free; /* free segments are linked; owner */
	uint32_t unused;
};

struct usw_segments {
	struct usw_space data;    /* segment s at s << 20 */
	struct usw_space tables;  /* its entries at s * USW_SEGMENT_TABLE_BYTES */
	struct usw_space headers; /* struct usw_segment */
	uint32_t capacity;        /* segments 1 .. capacity - 1 */

	_Atomic uint64_t live_bytes;
	_Atomic uint64_t live_count;
	_Atomic bool some_empty; /* a segment may have lost its last object since the last reap */

	/* Owner only. */
	uint32_t open; /* the open segment, 0 if none */
	uint32_t free_head;
	uint32_t high_water;    /* segments ever used are below */
	uint64_t used_segments; /* open or closed */
	uint64_t used_bytes;    /* appended, dead or not, whole pages */
	uint64_t table_bytes;   /* entries appended, whole pages */
	uint64_t compacted_segments;
};

/** What a reader needs to find an object's bytes. */
struct usw_object {
	const void *bytes;
	uint32_t length_bytes;
	enum usw_codec codec;
};

int usw_segments_create(struct usw_segments *segments, uint32_t capacity);
void usw_segments_destroy(struct usw_segments *segments);

/** Append an object. Owner only. -ENOSPC: no segment is left. */
int usw_segments_append(struct usw_segments *segments, uint32_t owner_id, const void *bytes,
			uint32_t length_bytes, enum usw_codec codec, uint64_t *ret_place);

/** An object nobody refers to any more becomes garbage. Any thread. */
void usw_segments_release(struct usw_segments *segments, uint32_t segment, uint32_t index);

/**
 * Find an object. Any thread, no lock; false if the entry makes no sense, which (like bytes whose
 * hash is wrong) means that the place was given up meanwhile, or that it is corrupt.
 */
bool usw_segments_find(const struct usw_segments *segments, uint32_t segment, uint32_t index,
		       struct usw_object *ret);

/** Bytes that no live object needs: what emptying segments could give back. Owner only. */
uint64_t usw_segments_garbage_bytes(const struct usw_segments *segments);

/** Free the closed segments in which nothing lives. Owner only; cheap when there are none. */
void usw_segments_reap(struct usw_segments *segments);

/**
 * The closed segment with the fewest live bytes, if at least a quarter of it is garbage; else 0.
 * Owner only.
 */
uint32_t usw_segments_emptiest(const struct usw_segments *segments);

/** Walk the live entries of a segment: the owner ID of entry `index`, 0 if dead. Owner only. */
uint32_t usw_segments_owner(const struct usw_segments *segments, uint32_t segment, uint32_t index);

/** Bytes of RAM held: object bytes, tables and headers. Owner only. */
uint64_t usw_segments_held_bytes(const struct usw_segments *segments);

/** Assert what must be true of every segment. Slow; for tests. Owner only, nobody else active. */
void usw_segments_check(const struct usw_segments *segments);

#endif /* USW_SEGMENT_H */
