// SPDX-License-Identifier: MIT

/**
 * @file
 * Segments: 1 MiB log-structured blocks of objects, the unit that lives in a tier.
 *
 * Objects are appended to the open segment. A place (segment, index) is resolved by the segment's
 * own table, so a segment can be slid together, re-encoded or moved to another tier without a
 * descriptor changing; only emptying one segment into another repoints descriptors, one
 * compare-and-swap each.
 *
 * Tables are made of chunks of 128 entries, five to a page, so that a segment pays for the objects
 * it has, few or many. An entry is 6 bytes: the ID of its owner, its length and its codec. Objects
 * lie one after the other, so only every 16th says where it begins, and the others are found by
 * adding up to 15 lengths. An entry whose owner is 0 is dead: garbage until its segment is emptied,
 * or until an object of the same stored size takes its place (vacancy.h).
 *
 * What is packed because it is cold (pack.h) is appended to a log of its own, and stays apart from
 * what has just left; what is packed as it leaves has another. So have whole pages, those that did
 * not compress, where there are many of them: on a disk each is a block (tag.h).
 *
 * In RAM a segment lies in a slot of the space, which it gives back when it goes to a disk: the next
 * that is opened has it, with the memory that it holds.
 *
 * Threads: one owner (the reclaim thread) appends, refills, empties and frees. Any thread releases
 * objects. Fault threads read without a lock: a segment that is emptied, freed or used again under
 * a reader, a slot of RAM that another has by then, or an entry that is refilled, gives it bytes
 * whose hash does not match (see vswap.h).
 */

#ifndef USW_SEGMENT_H
#define USW_SEGMENT_H

#include "codec.h"
#include "space.h"

#define USW_SEGMENT_BYTES (1u << 20)
/**
 * Objects of one segment: it is full of bytes before, unless they are below 512 bytes on average.
 */
#define USW_SEGMENT_OBJECTS 2048u
/** Objects of a segment of whole pages. */
#define USW_WHOLE_OBJECTS (USW_SEGMENT_BYTES / USW_PAGE_BYTES)
/**
 * Objects start at multiples of this, so that words in them do not straddle more than they must.
 */
#define USW_OBJECT_ALIGN 8u
#define USW_CHUNK_ENTRIES 128u
#define USW_SEGMENT_CHUNKS (USW_SEGMENT_OBJECTS / USW_CHUNK_ENTRIES)

/** Where objects are appended: each log has an open segment of its own. */
enum usw_log {
	USW_LOG_LOOSE, /* what is not packed */
	USW_LOG_FRESH, /* packed as their pages leave */
	USW_LOG_DENSE, /* cold and packed, or moved out of a segment of such */
	USW_LOG_WHOLE, /* whole pages, whichever of the others they were meant for */
	USW_LOGS,
};

enum usw_segment_state {
	USW_SEGMENT_FREE = 0,
	USW_SEGMENT_OPEN = 1,
	USW_SEGMENT_CLOSED = 2,
};

/** The number of the RAM tier. Disk tiers are numbered from 1 by tier.h. */
#define USW_TIER_RAM 0u

/** One line of the table of segments. */
struct usw_segment {
	_Atomic uint64_t where;      /* tier and slot, see usw_where(); written by the owner */
	_Atomic uint32_t state;      /* enum usw_segment_state; written by the owner */
	_Atomic uint32_t touched;    /* fault clock when an object was last read; a hint */
	_Atomic uint32_t refaults;   /* objects read one by one since it was last moved; a hint */
	bool is_moving;              /* on its way to another tier, or being packed; owner */
	bool is_dense;               /* of packed objects; owner */
	bool is_parked;              /* to go down whatever the budget; owner */
	_Atomic bool is_whole;       /* of whole pages; written by the owner */
	_Atomic bool is_recalled;    /* to come back whole; raised by fault threads */
	uint32_t append_bytes;       /* where the next object goes; owner */
	uint32_t held_bytes;         /* of RAM in its slot, whole pages; owner */
	uint32_t object_count;       /* entries used in its table; owner */
	_Atomic uint32_t live_bytes; /* of objects that are not dead, in units as stored */
	_Atomic uint32_t live_count;
	uint32_t next_free;                          /* free segments are linked; owner */
	_Atomic uint32_t chunks[USW_SEGMENT_CHUNKS]; /* of its table, 0 where there is none */
};

/** What emptying a segment has to bring, if RAM is not so tight that less must do: a quarter. */
#define USW_WORTH_SHARE 4u

/**
 * True if one part in `share` or more of it is garbage. Of what was appended: small objects end a
 * segment long before it is full.
 */
static inline bool usw_segment_is_worth(const struct usw_segment *segment, uint32_t share)
{
	return atomic_load_explicit(&segment->live_bytes, memory_order_relaxed) <
	       segment->append_bytes - segment->append_bytes / share;
}

/** True if so much of it is garbage that emptying it pays. */
static inline bool usw_segment_has_garbage(const struct usw_segment *segment)
{
	return usw_segment_is_worth(segment, USW_WORTH_SHARE);
}

/** True if keeping it compressed saves less than an eighth of what its pages would take. */
static inline bool usw_segment_is_incompressible(const struct usw_segment *segment)
{
	return segment->append_bytes / 7 >= segment->object_count * (USW_PAGE_BYTES / 8);
}

/**
 * Where a segment's bytes are: generation 40 | tier 4 | slot 20. The generation goes up at each
 * move and never repeats in a session, so a reader knows that nothing has moved behind it, and
 * what is written to a disk can be told from what lay there before.
 */
static inline uint64_t usw_where(uint64_t generation, uint32_t tier, uint32_t slot)
{
	usw_assert(generation < (uint64_t)1 << 40 && tier < 16 && slot < 1u << 20);
	return generation << 24 | (uint64_t)tier << 20 | slot;
}

static inline uint64_t usw_where_generation(uint64_t where)
{
	return where >> 24;
}

static inline uint32_t usw_where_tier(uint64_t where)
{
	return (uint32_t)(where >> 20) & 0xf;
}

static inline uint32_t usw_where_slot(uint64_t where)
{
	return (uint32_t)where & 0xfffff;
}

/** Slots of RAM that nothing lies in keep their memory for the next segment: so many at the most. */
#define USW_WARM_MAX 8u

struct usw_warm_slot {
	uint32_t slot;
	uint32_t held_bytes;
};

struct usw_segments {
	struct usw_space data;    /* slot s at s << 20; 0 is that of those without RAM */
	struct usw_space tables;  /* chunks of entries, numbered from 1 */
	struct usw_space headers; /* struct usw_segment */
	uint32_t capacity;        /* segments 1 .. capacity - 1 */

	_Atomic uint64_t live_bytes;
	_Atomic uint64_t live_count;
	_Atomic bool some_empty; /* a segment may have lost its last object since the last reap */

	/* Owner only. */
	uint32_t open[USW_LOGS]; /* the open segment of each log, 0 if none */
	uint32_t whole_run;      /* whole pages to each that compresses, of late */
	uint32_t free_head;
	uint32_t high_water;  /* segments ever used are below */
	uint32_t *free_slots; /* of RAM, without memory; rebuilt by a successor */
	uint32_t free_slot_count;
	uint32_t slot_high_water; /* slots ever used are below */
	struct usw_warm_slot warm[USW_WARM_MAX + 1];
	uint32_t warm_count;
	uint64_t warm_bytes;
	uint64_t used_segments;   /* open or closed, in RAM */
	uint64_t used_bytes;      /* held in RAM: appended, dead or not, and warm; whole pages */
	uint64_t disk_segments;   /* in any other tier */
	uint64_t disk_live_bytes; /* of live objects there, when they were last counted */
	uint64_t table_bytes;     /* pages with a chunk in use */
	uint8_t *chunks_used;     /* one bit a chunk, one byte a page; rebuilt by a successor */
	uint32_t chunk_hint;      /* no page below has a free chunk */
	uint64_t compacted_segments;
	uint32_t worth_share; /* emptying one pays from this share of garbage on: 4 is a quarter */
	uint32_t clock;       /* fault clock, as the owner last saw it */

	/** Told by the owner that nothing lives in a slot any more; NULL without disk tiers. */
	void (*slot_is_free)(void *context, uint64_t where, uint32_t segment);
	void *slot_context;
};

/** What an object takes in its segment. */
static inline uint32_t usw_stored_bytes(uint32_t length_bytes)
{
	return (length_bytes + USW_OBJECT_ALIGN - 1) & ~(USW_OBJECT_ALIGN - 1);
}

/** What a reader needs to find an object's bytes. */
struct usw_object {
	const void *bytes; /* NULL if it is not in RAM */
	uint64_t where;
	uint32_t owner_id;
	uint32_t offset_bytes; /* in its segment */
	uint32_t length_bytes;
	enum usw_codec codec;
	bool is_whole; /* in a segment of whole pages */
};

int usw_segments_create(struct usw_segments *segments, uint32_t capacity);
void usw_segments_destroy(struct usw_segments *segments);

/**
 * Append an object to a log, or to that of whole pages if it is one of many. Owner only. -ENOSPC:
 * no segment is left.
 */
int usw_segments_append(struct usw_segments *segments, enum usw_log log, uint32_t owner_id,
			const void *bytes, uint32_t length_bytes, enum usw_codec codec,
			uint64_t *ret_place);

/**
 * Put an object where one of the same stored size was. False: the place is not vacant, or no place
 * any more, or its segment has no vacancies (usw_segments_has_vacancy()). Owner only.
 */
bool usw_segments_refill(struct usw_segments *segments, uint32_t segment, uint32_t index,
			 uint32_t owner_id, const void *bytes, uint32_t length_bytes,
			 enum usw_codec codec);

/** What the object of a dead entry took, as stored; 0 if it is alive. Owner only. */
uint32_t usw_segments_dead_bytes(const struct usw_segments *segments, uint32_t segment,
				 uint32_t index);

/**
 * True if there are dead entries to be filled: closed, in RAM to stay, not packed, and not so many
 * dead that it is soon emptied (USW_WORTH_SHARE). Owner only.
 */
bool usw_segments_has_vacancy(const struct usw_segments *segments, uint32_t segment);

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
 * The closed segment with the fewest live bytes, if emptying it pays (see worth_share); else 0.
 * Owner only.
 */
uint32_t usw_segments_emptiest(const struct usw_segments *segments);

/** Whether a segment on a disk has been read less than `faults` (to INT32_MAX) ago. Owner only. */
bool usw_segments_is_read(const struct usw_segments *segments, uint32_t segment, uint32_t faults);

/**
 * The closed segment of a tier that has not been read for the longest time and is not being moved;
 * 0 if there is none. Those whose objects did not compress come before all others: in RAM they gain
 * nothing. One that is to be emptied does not count. Owner only.
 */
uint32_t usw_segments_coldest(const struct usw_segments *segments, uint32_t tier);

/**
 * The coldest closed segment in RAM that is not packed and could be; 0 if there is none. Stores how
 * many there are of them, and of both kinds. Owner only.
 */
uint32_t usw_segments_coldest_loose(const struct usw_segments *segments, uint32_t *ret_loose,
				    uint32_t *ret_all);

/** A settled segment in RAM that is parked; 0 if there is none. Owner only. */
uint32_t usw_segments_parked(const struct usw_segments *segments);

/** Nothing is appended to the open segments any more. False: none was open. Owner only. */
bool usw_segments_close_open(struct usw_segments *segments);

static inline struct usw_segment *usw_segments_header(const struct usw_segments *segments,
						      uint32_t segment)
{
	usw_assert(segment > 0 && segment < segments->capacity);
	return (struct usw_segment *)segments->headers.base + segment;
}

/** Where a slot of RAM begins in the space. */
static inline uint64_t usw_ram_slot_offset(uint32_t slot)
{
	return (uint64_t)slot * USW_SEGMENT_BYTES;
}

/** A slot of RAM without memory, for a segment that comes up. Owner only. */
uint32_t usw_segments_take_ram_slot(struct usw_segments *segments);

/** It was not needed, and holds nothing. Owner only. */
void usw_segments_give_ram_slot(struct usw_segments *segments, uint32_t slot);

/**
 * Say where a segment is now, and account for it. One store is the whole move: no descriptor and
 * no entry changes. Its slot of RAM is for others only after it. Owner only.
 */
void usw_segments_publish(struct usw_segments *segments, uint32_t segment, uint64_t where);

/** Walk the live entries of a segment: the owner ID of entry `index`, 0 if dead. Owner only. */
uint32_t usw_segments_owner(const struct usw_segments *segments, uint32_t segment, uint32_t index);

/** Bytes of RAM held for tables and headers, beside the objects (`used_bytes`). Owner only. */
uint64_t usw_segments_metadata_bytes(const struct usw_segments *segments);

/** Assert what must be true of every segment. Slow; for tests. Owner only, nobody else active. */
void usw_segments_check(const struct usw_segments *segments);

#endif /* USW_SEGMENT_H */
