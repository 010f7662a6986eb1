// SPDX-License-Identifier: MIT

/**
 * @file
 * The virtual swap space: virtual swap IDs and the 16-byte descriptors behind them.
 *
 * A descriptor is one word and one hash. The word says how many page maps refer to it and where
 * the content is; it changes only by compare-and-swap, so content moves between places while
 * faults read it. The hash is written once, before the ID is published, and never changes while
 * the ID lives.
 *
 *    63                                    24 23    20  19  18          3 2    0
 *   +----------------------------------------+--------+---+-------------+------+
 *   | place: segment 24 | index 16           | moves  | d | count       | type |
 *   |    or  standby 24 | slot 16            |        |   |             |      |
 *   +----------------------------------------+--------+---+-------------+------+
 *
 * Threads: one owner (the reclaim thread) allocates IDs and repoints them; any thread may get and
 * put references. A put that drops the last reference makes the descriptor free in the same
 * compare-and-swap and then tells the owner through a lock-free list, linked through the hashes.
 *
 * The optimistic read: a reader loads the word, then the content, which may be moved or freed
 * meanwhile. The hash tells; if it does not match, the reader loads the word again, and only a
 * word that has not changed, but for its count, means that the content is really wrong. `moves`
 * goes up at each repoint, or content that left and came back would look as if it had not moved. An
 * ID that is freed and given again may get the same word, since its objects may get the same place
 * (vacancy.h): so a reader holds a reference, or that of a page map's word which it compares
 * afterwards.
 *
 * `d` says that the content turned out to be damaged. Who has the page in memory beside it, as a
 * kept copy, is not to let it go for that copy; who has not may still ask for it, and be refused.
 *
 * A count that reaches its maximum (65,535 page maps) sticks there: the content then lives as long
 * as its session. It is never lost and never freed early.
 */

#ifndef USW_VSWAP_H
#define USW_VSWAP_H

#include "segment.h"
#include "space.h"

enum usw_backend {
	USW_BACKEND_FREE = 0,   /* no such ID */
	USW_BACKEND_ZERO = 1,   /* all zeros; no content anywhere */
	USW_BACKEND_SAME = 2,   /* one repeated word: the hash is that word */
	USW_BACKEND_MEMORY = 3, /* in a standby slot, as it is */
	USW_BACKEND_OBJECT = 4, /* an object in a segment */
};

#define USW_VSWAP_NONE 0u
#define USW_VSWAP_COUNT_MAX 0xffffu

#define USW_WORD_DAMAGED ((uint64_t)1 << 19)

struct usw_descriptor {
	_Atomic uint64_t word;
	_Atomic uint64_t hash;
};

_Static_assert(sizeof(struct usw_descriptor) == 16, "metadata is 16 bytes an ID");

struct usw_vswap {
	struct usw_space space;
	struct usw_segments *segments; /* told when an object loses its last reference */
	uint32_t capacity;             /* IDs 1 .. capacity - 1 */

	_Atomic uint32_t freed_head; /* IDs put to zero, waiting for the owner */
	_Atomic uint64_t live_count;

	/* Only the owner touches what follows. Rebuilt from the words by a successor. */
	uint64_t (*used)[4];  /* one bit an ID, 256 IDs a block (one page of descriptors) */
	uint16_t *block_used; /* bits set in a block */
	uint32_t block_count; /* blocks ever touched */
	uint32_t block_hint;  /* no block below has a free ID */
	uint64_t blocks_held; /* blocks with at least one ID: memory in use */
};

static inline enum usw_backend usw_word_backend(uint64_t word)
{
	return (enum usw_backend)(word & 7);
}

static inline uint32_t usw_word_count(uint64_t word)
{
	return (uint32_t)(word >> 3) & USW_VSWAP_COUNT_MAX;
}

static inline uint64_t usw_word_place(uint64_t word)
{
	return word >> 24;
}

/** True if content that was looked for between two loads of a word was never moved. */
static inline bool usw_word_is_unmoved(uint64_t before, uint64_t after)
{
	return ((before ^ after) & ~((uint64_t)USW_VSWAP_COUNT_MAX << 3 | USW_WORD_DAMAGED)) == 0;
}

/** (segment, index) or (standby, slot) as a 40-bit place. */
static inline uint64_t usw_place(uint32_t group, uint32_t index)
{
	return (uint64_t)group << 16 | index;
}

static inline uint32_t usw_place_group(uint64_t place)
{
	return (uint32_t)(place >> 16);
}

static inline uint32_t usw_place_index(uint64_t place)
{
	return (uint32_t)place & 0xffff;
}

int usw_vswap_create(struct usw_vswap *vswap, struct usw_segments *segments, uint32_t capacity);
void usw_vswap_destroy(struct usw_vswap *vswap);

/**
 * Allocate an ID with one reference. Owner only. -ENOSPC: all IDs are in use; -ENOMEM. The caller
 * publishes the ID with a release store in a page map.
 */
int usw_vswap_alloc(struct usw_vswap *vswap, enum usw_backend backend, uint64_t place,
		    uint64_t hash, uint32_t *ret_id);

/** Add a reference to an ID the caller's page map already refers to. Any thread. */
void usw_vswap_get(struct usw_vswap *vswap, uint32_t id);

/** The word of an ID that may be anybody's or nobody's by now: 0 if it is free. Owner only. */
uint64_t usw_vswap_peek(const struct usw_vswap *vswap, uint32_t id);

/**
 * Add a reference to an ID no page map of the caller refers to, if it is live, has this hash, and
 * has fewer than `count_max` references. Owner only: nobody else hands out IDs, so one that was
 * live and is live again cannot have been another in between. Any thread may put the last other
 * reference meanwhile: then the ID is free, and stays free, or it is the caller's.
 */
bool usw_vswap_get_equal(struct usw_vswap *vswap, uint32_t id, uint64_t hash, uint32_t count_max);

/** Drop a reference. Any thread. With the last one the content is released too. */
void usw_vswap_put(struct usw_vswap *vswap, uint32_t id);

/** Read a descriptor: the word with acquire order. */
static inline uint64_t usw_vswap_word(const struct usw_vswap *vswap, uint32_t id)
{
	const struct usw_descriptor *table = (const struct usw_descriptor *)vswap->space.base;

	usw_assert(id != USW_VSWAP_NONE && id < vswap->capacity);
	return atomic_load_explicit(&table[id].word, memory_order_acquire);
}

static inline uint64_t usw_vswap_hash(const struct usw_vswap *vswap, uint32_t id)
{
	const struct usw_descriptor *table = (const struct usw_descriptor *)vswap->space.base;

	return atomic_load_explicit(&table[id].hash, memory_order_relaxed);
}

/**
 * Say that the content is now elsewhere. Owner only. Succeeds if the ID still resolves to
 * (backend, place), whatever its count does meanwhile; false means that it was freed: the new
 * place is the caller's to release. The old place is the caller's to release on success.
 */
bool usw_vswap_repoint(struct usw_vswap *vswap, uint32_t id, enum usw_backend backend,
		       uint64_t place, enum usw_backend new_backend, uint64_t new_place);

/**
 * The content of an ID is damaged, wherever it is. Any thread that holds a reference, and the owner
 * for an ID that it has found in a segment.
 */
void usw_vswap_note_damaged(struct usw_vswap *vswap, uint32_t id);

/** Take freed IDs back into use. Owner only; cheap when there are none. */
void usw_vswap_collect(struct usw_vswap *vswap);

/** Bytes of descriptors held in memory. */
uint64_t usw_vswap_held_bytes(const struct usw_vswap *vswap);

#endif /* USW_VSWAP_H */
