// SPDX-License-Identifier: MIT

/**
 * @file
 * Page map: where the content of every managed page of one target is right now.
 *
 * A radix tree over the page number, four levels of 512 like the processor's own, whose leaves hold
 * one 64-bit word a page. It costs nothing for memory that was never evicted, and a look-up is
 * four loads however many mappings the target has. Nodes are pages of one space shared by all
 * targets and are named by index.
 *
 *    63         40 39                 8 7   6 5    3 2   0
 *   +-------------+--------------------+-----+------+-----+
 *   | stamp       | virtual swap ID    |heat | laps |state|
 *   +-------------+--------------------+-----+------+-----+
 *
 *            evict                  hands moved it
 *   NONE ------------> EVICTING ----------------------> EVICTED
 *    ^  \                 |  ^                             |   \
 *    |   (hole filled:    |  | evict                fault  |    hash wrong
 *    |    stays NONE)     |  |                        in   v     v
 *    |      not moved     |  +------------------------ RESIDENT  POISONED
 *    |    back to before  v
 *    +--- unmap, remove: from any state but EVICTING; a guard: from EVICTED
 *
 * A RESIDENT word with an ID has a kept copy: if the page leaves again unchanged (same hash), the
 * ID still holds its content. `heat` is learned each time the page comes in and goes out with it;
 * it says how many `laps` of the sweep the page then stays, which are counted down. `stamp` is the
 * session's fault clock when the page came in, a lap was counted or it left.
 *
 * Threads: words change by atomic stores of whoever owns the transition: EVICTED -> RESIDENT,
 * POISONED or, for a guard, NONE is the target's fault thread, everything from and to EVICTING is
 * the reclaim thread. Layout (nodes appear and go, ranges are cleared or moved) changes under the
 * target's map_lock; the fault thread reads without it, because it is itself the only one that
 * removes nodes.
 */

#ifndef USW_PAGEMAP_H
#define USW_PAGEMAP_H

#include <pthread.h>

#include "space.h"

enum usw_page_state {
	USW_PAGE_NONE = 0,
	USW_PAGE_RESIDENT = 1,
	USW_PAGE_EVICTING = 2,
	USW_PAGE_EVICTED = 3,
	USW_PAGE_POISONED = 4,
};

#define USW_HEAT_MAX 3u
#define USW_PAGE_LAPS_MAX ((1u << USW_HEAT_MAX) - 1)
#define USW_STAMP_MASK 0xffffffu
#define USW_STAMP_SHIFT 4 /* a stamp is this many bits of the fault clock less */

/** The nodes of all page maps. The lock covers allocation only and is never held across a call. */
struct usw_nodes {
	struct usw_space space;
	uint32_t capacity;
	pthread_mutex_t lock;
	uint32_t high_water;
	uint32_t *free_stack; /* indices of free nodes, all zero inside */
	uint32_t free_count;
	uint32_t free_capacity;
	_Atomic uint64_t used_count;
};

struct usw_pagemap {
	struct usw_nodes *nodes;
	uint32_t root; /* node index; 0 until the first page is mapped */
};

typedef _Atomic uint64_t usw_page_word;

static inline enum usw_page_state usw_page_state(uint64_t word)
{
	return (enum usw_page_state)(word & 7);
}

/** How often the sweep is still to pass over it. */
static inline uint32_t usw_page_laps(uint64_t word)
{
	return (uint32_t)(word >> 3) & USW_PAGE_LAPS_MAX;
}

static inline uint32_t usw_page_heat(uint64_t word)
{
	return (uint32_t)(word >> 6) & USW_HEAT_MAX;
}

static inline uint32_t usw_page_id(uint64_t word)
{
	return (uint32_t)(word >> 8);
}

static inline uint32_t usw_page_stamp(uint64_t word)
{
	return (uint32_t)(word >> 40);
}

static inline uint64_t usw_page_make(enum usw_page_state state, uint32_t heat, uint32_t id,
				     uint32_t stamp)
{
	return (uint64_t)(stamp & USW_STAMP_MASK) << 40 | (uint64_t)id << 8 | (uint64_t)heat << 6 |
	       state;
}

/** A resident page with what its heat has earned it. */
static inline uint64_t usw_page_with_laps(uint64_t word)
{
	return word | (uint64_t)((1u << usw_page_heat(word)) - 1) << 3;
}

/** A resident page that the sweep passes over: it has a lap less, and comes last again. */
static inline uint64_t usw_page_pass(uint64_t word, uint32_t stamp)
{
	uint64_t rest = word & ~((uint64_t)USW_STAMP_MASK << 40);

	return (rest - (1u << 3)) | (uint64_t)(stamp & USW_STAMP_MASK) << 40;
}

/** A resident page whose kept copy is given up. */
static inline uint64_t usw_page_without_id(uint64_t word)
{
	return word & ~((uint64_t)UINT32_MAX << 8);
}

/** How long it takes until so many pages have come in, in stamps. */
static inline uint32_t usw_stamps_of(uint64_t pages)
{
	return (uint32_t)usw_min(pages >> USW_STAMP_SHIFT, (uint64_t)USW_STAMP_MASK);
}

/** How long ago its stamp was made, in stamps. */
static inline uint32_t usw_page_age(uint64_t word, uint32_t stamp)
{
	return (stamp - usw_page_stamp(word)) & USW_STAMP_MASK;
}

/** The one place where a page changes its state; asserts that it may. Release order. */
void usw_page_transition(usw_page_word *word, uint64_t before, uint64_t after);

int usw_nodes_create(struct usw_nodes *nodes, uint32_t capacity);
void usw_nodes_destroy(struct usw_nodes *nodes);
uint64_t usw_nodes_held_bytes(struct usw_nodes *nodes);

/** The word of a page, or NULL if its leaf does not exist: nothing is known of it (NONE). */
usw_page_word *usw_pagemap_find(const struct usw_pagemap *map, uint64_t address);

/** The word of a page, its leaf made if needed; NULL: no memory. Caller holds map_lock. */
usw_page_word *usw_pagemap_make(struct usw_pagemap *map, uint64_t address);

/**
 * Find the first page in [*address, end) whose word is not zero. Stores its address and returns
 * its word, or NULL. Skips what does not exist, so a sparse walk costs what is there.
 */
usw_page_word *usw_pagemap_next(const struct usw_pagemap *map, uint64_t *address, uint64_t end);

/**
 * Free the nodes under [start, end) that hold nothing but zeros. Caller holds map_lock and is the
 * fault thread, or the target is no longer served.
 */
void usw_pagemap_prune(struct usw_pagemap *map, uint64_t start, uint64_t end);

/** Words that are not zero, for tests and status. */
uint64_t usw_pagemap_count(const struct usw_pagemap *map);

#endif /* USW_PAGEMAP_H */
