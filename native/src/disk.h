// SPDX-License-Identifier: MIT

/**
 * @file
 * A disk that segments can be written to: one open file, cut into slots of one segment each.
 *
 * The place is a folder (a nameless file in it, O_TMPFILE, so that nothing is left after any
 * crash), a file, or a block device. A slot is a segment and, behind each object, room for its
 * seal's tag: object i lies at its offset in RAM plus 16 i. Whole pages lie where they do in RAM,
 * each a block of the disk: their tags are elsewhere (tag.h). Slots have a fixed stride and holes
 * cost nothing, so a slot costs what was written to it; it is given back by punching a hole.
 *
 * Files are opened with O_DIRECT where the file system has it: what has left memory must not come
 * back as page cache. Offsets, lengths and buffers are then multiples of `align_bytes`.
 *
 * The slots have a lock of their own; any thread may call.
 */

#ifndef USW_DISK_H
#define USW_DISK_H

#include <pthread.h>

#include "seal.h"
#include "segment.h"
#include "uffdswap.h"

/** Bytes of a slot that can be written, and from one slot to the next. */
#define USW_SLOT_BYTES (USW_SEGMENT_BYTES + USW_SEGMENT_OBJECTS * USW_SEAL_TAG_BYTES)
/** More slots than there are segments are of no use. */
#define USW_DISK_SLOTS (1u << 18)
/** The largest alignment a disk may ask for; larger ones are read through the page cache. */
#define USW_DISK_ALIGN_MAX 4096u

struct usw_disk {
	char path[256]; /* as it was given */
	int fd;
	bool is_device;
	bool is_ours; /* a file that we created and remove at the end */
	bool is_direct;
	uint32_t align_bytes; /* a power of two */
	uint32_t slot_limit;
	uint64_t reach_bytes; /* how long the file was made; of who calls usw_disk_reach() */

	pthread_mutex_t lock; /* over what follows */
	uint64_t cap_bytes;   /* UINT64_MAX: none */
	uint64_t held_bytes;  /* of all slots taken */
	uint64_t peak_bytes;
	uint32_t used_slots;
	uint32_t hint; /* no word of `used` below has a free slot */
	uint64_t used[USW_DISK_SLOTS / 64];
};

/**
 * Open a place. `cap_bytes`: use at most so much; UINT64_MAX for all there is. On failure `error`
 * says in the user's words what is wrong with it.
 */
int usw_disk_open(struct usw_disk *disk, const char *path, uint64_t cap_bytes,
		  struct usw_error *error);
/** Closes it. What was written is gone, but on a device, where only encryption hides it. */
void usw_disk_close(struct usw_disk *disk);

/**
 * Take a slot for `length_bytes`, the lowest that is free. -ENOSPC: cap, device or slots are full.
 */
int usw_disk_take(struct usw_disk *disk, uint32_t length_bytes, uint32_t *ret_slot);

/**
 * A slot is about to be written. A write that makes a file longer has it to itself until it is
 * done, and reads wait (ext4_dio_write_checks() in fs/ext4/file.c); one into a hole only until it
 * has its blocks. So the file is made longer before, by 64 slots at a time. Where that fails the
 * write does it. One thread calls.
 */
void usw_disk_reach(struct usw_disk *disk, uint32_t slot);

/**
 * Give a slot and its space back. `length_bytes` as it was taken. One system call, slow on some.
 */
void usw_disk_give(struct usw_disk *disk, uint32_t slot, uint32_t length_bytes);

/** Bytes of all slots that are taken, and of those that are on their way back. */
uint64_t usw_disk_held_bytes(struct usw_disk *disk);

/**
 * Bytes that could still be taken: by the cap, and by what the file system has free. Of what is taken
 * `unwritten_bytes` are on their way: the file system does not know of them yet.
 */
uint64_t usw_disk_free_bytes(struct usw_disk *disk, uint64_t unwritten_bytes);

static inline uint64_t usw_disk_offset(uint32_t slot)
{
	return (uint64_t)slot * USW_SLOT_BYTES;
}

/** What follows an object in its slot. */
static inline uint32_t usw_disk_tag_bytes(bool is_whole)
{
	return is_whole ? 0 : USW_SEAL_TAG_BYTES;
}

/** Where object `index` lies in its slot. */
static inline uint32_t usw_disk_object_offset(const struct usw_object *object, uint32_t index)
{
	return object->offset_bytes + index * usw_disk_tag_bytes(object->is_whole);
}

/** What a segment takes in a slot. Owner only. */
static inline uint32_t usw_disk_length(const struct usw_segment *h)
{
	bool is_whole = atomic_load_explicit(&h->is_whole, memory_order_relaxed);
	uint32_t length = h->append_bytes + h->object_count * usw_disk_tag_bytes(is_whole);

	return (length + USW_DISK_ALIGN_MAX - 1) & ~(USW_DISK_ALIGN_MAX - 1);
}

#endif /* USW_DISK_H */
