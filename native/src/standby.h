// SPDX-License-Identifier: MIT

/**
 * @file
 * Standby: pages that were evicted but are still in memory, one copy away.
 *
 * Hands copies evicted pages into the slots of its target's area memfd; they leave in the order in
 * which they came, when their queue is longer than it should be: compressed into an object, or
 * just forgotten if nobody refers to them any more. The queue is a ring over the slots; slots of
 * one run are contiguous. A slot remembers the ID it was filled for, nothing else: whether the ID
 * still resolves to the slot is the only truth about it.
 *
 * All standby mappings of a session lie in one reserved range of addresses, at places named by a
 * number, and a mapping given up is replaced by readable zeros. So a fault thread
 * that reads a slot late reads other bytes (and the hash says so), never a bad address.
 *
 * Owner: the reclaim thread. Readers: any thread, through usw_standby_page().
 */

#ifndef USW_STANDBY_H
#define USW_STANDBY_H

#include <pthread.h>

#include "vswap.h"

/** Targets with a standby at one time. */
#define USW_STANDBY_MAX 4096u

struct usw_standby_space {
	char *base;           /* USW_STANDBY_MAX places of USW_STANDBY_BYTES */
	uint8_t *taken;       /* which places are in use */
	pthread_mutex_t lock; /* over `taken` */
};

struct usw_standby {
	struct usw_standby_space *space;
	uint32_t number;   /* the "standby" of a place; USW_STANDBY_MAX: none */
	int fd;            /* the area memfd, borrowed from the target */
	uint32_t capacity; /* slots in use as a ring; at most USW_STANDBY_SLOTS */
	uint32_t head;     /* slots ever taken; slot = head % capacity */
	uint32_t tail;     /* slots ever given up */
	uint32_t touched;  /* slots whose memory may be held */
	uint32_t prepared; /* slots whose memory is there; hands need not ask for it */
	uint32_t offered;  /* slots ever looked at for compressing ahead */
	uint32_t owner[USW_STANDBY_SLOTS]; /* ID the slot was filled for; 0: nothing in it */
	uint8_t offer[USW_STANDBY_SLOTS];  /* what to ask for its object with; 0: none (ahead.h) */
};

int usw_standby_space_create(struct usw_standby_space *space);
void usw_standby_space_destroy(struct usw_standby_space *space);

/** Map a target's slots. The memfd has been checked: sealed, USW_AREA_MEMFD_BYTES long. */
int usw_standby_init(struct usw_standby *standby, struct usw_standby_space *space, int area_fd,
		     uint32_t capacity);
void usw_standby_deinit(struct usw_standby *standby);

static inline uint32_t usw_standby_count(const struct usw_standby *standby)
{
	return standby->head - standby->tail;
}

/**
 * Take `count` contiguous slots. Returns the first, or -ENOSPC: drain first. Slots skipped at the
 * end of the ring count as taken until they are drained.
 */
int usw_standby_take(struct usw_standby *standby, uint32_t count);

/** The bytes of a slot, for whoever holds a place with this number. */
static inline const char *usw_standby_page(const struct usw_standby_space *space, uint32_t number,
					   uint32_t slot)
{
	usw_assert(number < USW_STANDBY_MAX && slot < USW_STANDBY_SLOTS);
	return space->base + (uint64_t)number * USW_STANDBY_BYTES + (uint64_t)slot * USW_PAGE_BYTES;
}

/** Give the memory of an empty queue back. */
void usw_standby_trim(struct usw_standby *standby);

#endif /* USW_STANDBY_H */
