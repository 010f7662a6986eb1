// SPDX-License-Identifier: MIT

/**
 * @file
 * The queue of evicted, uncompressed pages. See standby.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "standby.h"

#define USW_STANDBY_SPACE_BYTES ((uint64_t)USW_STANDBY_MAX * USW_STANDBY_BYTES)

/** Readable zeros that cost nothing, at a fixed place. */
static void *map_zeros(void *at, uint64_t length_bytes)
{
	return mmap(at, length_bytes, PROT_READ,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0), -1, 0);
}

int usw_standby_space_create(struct usw_standby_space *space)
{
	void *base = map_zeros(NULL, USW_STANDBY_SPACE_BYTES);
	if (base == MAP_FAILED)
		return -errno;

	uint8_t *taken = calloc(USW_STANDBY_MAX, 1);
	if (!taken) {
		munmap(base, USW_STANDBY_SPACE_BYTES);
		return -ENOMEM;
	}
	*space = (struct usw_standby_space){.base = base, .taken = taken};
	pthread_mutex_init(&space->lock, NULL);
	return 0;
}

void usw_standby_space_destroy(struct usw_standby_space *space)
{
	if (!space->base)
		return;
	munmap(space->base, USW_STANDBY_SPACE_BYTES);
	free(space->taken);
	pthread_mutex_destroy(&space->lock);
	*space = (struct usw_standby_space){0};
}

static uint32_t take_number(struct usw_standby_space *space)
{
	uint32_t number;

	pthread_mutex_lock(&space->lock);
	for (number = 0; number < USW_STANDBY_MAX && space->taken[number]; number++)
		;
	if (number < USW_STANDBY_MAX)
		space->taken[number] = 1;
	pthread_mutex_unlock(&space->lock);
	return number;
}

static void give_number(struct usw_standby_space *space, uint32_t number)
{
	pthread_mutex_lock(&space->lock);
	space->taken[number] = 0;
	pthread_mutex_unlock(&space->lock);
}

int usw_standby_init(struct usw_standby *standby, struct usw_standby_space *space, int area_fd,
		     uint32_t capacity)
{
	usw_assert(capacity >= USW_BATCH_PAGES_MAX && capacity <= USW_STANDBY_SLOTS);
	usw_assert((capacity & (capacity - 1)) == 0); // head and tail wrap

	uint32_t number = take_number(space);
	if (number == USW_STANDBY_MAX)
		return -EMFILE;

	void *at = space->base + (uint64_t)number * USW_STANDBY_BYTES;
	if (mmap(at, USW_STANDBY_BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, area_fd,
		 USW_RING_BYTES) == MAP_FAILED) {
		int error = errno;

		give_number(space, number);
		return -error;
	}
	usw_space_keep_small(at, USW_STANDBY_BYTES);
	memset(standby, 0, sizeof(*standby));
	standby->space = space;
	standby->number = number;
	standby->fd = area_fd;
	standby->capacity = capacity;
	return 0;
}

void usw_standby_deinit(struct usw_standby *standby)
{
	if (!standby->space)
		return;
	void *at = standby->space->base + (uint64_t)standby->number * USW_STANDBY_BYTES;
	usw_assert(map_zeros(at, USW_STANDBY_BYTES) != MAP_FAILED);
	give_number(standby->space, standby->number);
	standby->space = NULL;
}

int usw_standby_take(struct usw_standby *standby, uint32_t count)
{
	uint32_t slot = standby->head % standby->capacity;
	uint32_t skip = slot + count > standby->capacity ? standby->capacity - slot : 0;

	usw_assert(count > 0 && count <= USW_BATCH_PAGES_MAX);
	if (usw_standby_count(standby) + skip + count > standby->capacity)
		return -ENOSPC;
	for (uint32_t i = 0; i < skip + count; i++) {
		standby->owner[(standby->head + i) % standby->capacity] = USW_VSWAP_NONE;
		standby->offer[(standby->head + i) % standby->capacity] = 0;
	}
	standby->head += skip + count;
	slot = skip ? 0 : slot;
	if (slot + count > standby->touched)
		standby->touched = slot + count;
	return (int)slot;
}

void usw_standby_trim(struct usw_standby *standby)
{
	usw_assert(usw_standby_count(standby) == 0);
	if (!standby->touched)
		return;
	// The ring restarts at slot 0, so that few slots serve a target that evicts little.
	if (fallocate(standby->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, USW_RING_BYTES,
		      (off_t)standby->touched * USW_PAGE_BYTES) == 0)
		standby->touched = 0;
	standby->prepared = 0;
	standby->head = standby->tail = standby->offered = 0;
}
