// SPDX-License-Identifier: MIT

/**
 * @file
 * The tags of whole pages on disks, which stay in RAM.
 *
 * A page that does not compress and its tag are 16 bytes longer than a block of 4 KiB: two blocks to
 * be read, and two descriptors of a virtual disk's queue, where one would do. So whole pages lie by
 * themselves in segments of their own (segment.h), block by block, and their tags lie here: a page of
 * 256 tags for each such segment, four thousandths of what it holds, as long as it is on a disk.
 *
 * Nothing of this is needed where nothing is sealed.
 *
 * Threads: the owner of the segments takes and gives, the mover puts, anybody gets. Who gets a tag of
 * a segment that has moved meanwhile gets another, or zeros, and its seal does not open. Who looks
 * first whether it has moved does not touch what was given back, which would hold memory again.
 */

#ifndef USW_TAG_H
#define USW_TAG_H

#include "seal.h"
#include "segment.h"

struct usw_tags {
	struct usw_space space; /* a page for each segment */
	_Atomic uint64_t held_bytes;
};

/** Of all zeros before. */
int usw_tags_create(struct usw_tags *tags, uint32_t segments);
/** Of all zeros is fine. */
void usw_tags_destroy(struct usw_tags *tags);

/** A segment of whole pages is about to be sealed. Owner only. */
void usw_tags_take(struct usw_tags *tags, uint32_t segment);
/** It has left its disk, or has not got there. Owner only. */
void usw_tags_give(struct usw_tags *tags, uint32_t segment);

void usw_tags_put(struct usw_tags *tags, uint32_t segment, uint32_t index,
		  const struct usw_seal_tag *tag);
struct usw_seal_tag usw_tags_get(const struct usw_tags *tags, uint32_t segment, uint32_t index);

#endif /* USW_TAG_H */
