// SPDX-License-Identifier: MIT

/**
 * @file
 * A space: a sparse memfd mapped once at its full reserved size.
 *
 * All data-plane state lives in spaces and is named by offset, never by pointer, so that another
 * process could map the same memfds and carry on. The mapping never moves or shrinks: reading a
 * stale offset gives zeros or somebody else's bytes, never a fault, which is what lets readers on
 * the fault path go without locks (what they read is proved by a hash).
 *
 * Only pages that were written cost memory; usw_space_punch() gives them back. No locks: callers
 * own disjoint ranges.
 */

#ifndef USW_SPACE_H
#define USW_SPACE_H

#include "base.h"

struct usw_space {
	int fd;
	char *base;
	uint64_t reserved_bytes;
};

/** Reserve a space. Costs address space only. */
int usw_space_create(struct usw_space *space, const char *name, uint64_t reserved_bytes);
void usw_space_destroy(struct usw_space *space);

/**
 * Have a mapping of a memfd filled with pages of 4 KiB, also on a machine that makes memfds of huge
 * pages (transparent_hugepage/shmem_enabled), where each page of a sparse one would hold 2 MiB.
 */
void usw_space_keep_small(void *base, uint64_t length_bytes);

/** Give the memory of a page-aligned range back; it reads as zeros from now on. */
void usw_space_punch(struct usw_space *space, uint64_t offset, uint64_t length_bytes);

/** Bytes of memory the space holds now, as the kernel counts them. One system call. */
uint64_t usw_space_held_bytes(const struct usw_space *space);

#endif /* USW_SPACE_H */
