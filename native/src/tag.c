// SPDX-License-Identifier: MIT

/**
 * @file
 * One page of tags for each segment of whole pages. See tag.h.
 */

#include "tag.h"

#define USW_TAG_WORDS (USW_SEAL_TAG_BYTES / sizeof(uint64_t))

_Static_assert(USW_WHOLE_OBJECTS *USW_SEAL_TAG_BYTES <= USW_PAGE_BYTES, "tags fit a page");

int usw_tags_create(struct usw_tags *tags, uint32_t segments)
{
	return usw_space_create(&tags->space, "uffdswap-tags", (uint64_t)segments * USW_PAGE_BYTES);
}

void usw_tags_destroy(struct usw_tags *tags)
{
	usw_space_destroy(&tags->space);
}

void usw_tags_take(struct usw_tags *tags, uint32_t segment)
{
	usw_assert((uint64_t)segment * USW_PAGE_BYTES < tags->space.reserved_bytes);
	atomic_fetch_add_explicit(&tags->held_bytes, USW_PAGE_BYTES, memory_order_relaxed);
}

void usw_tags_give(struct usw_tags *tags, uint32_t segment)
{
	usw_space_punch(&tags->space, (uint64_t)segment * USW_PAGE_BYTES, USW_PAGE_BYTES);
	atomic_fetch_sub_explicit(&tags->held_bytes, USW_PAGE_BYTES, memory_order_relaxed);
}

/** The words of a tag. Readers that are late race with those that put the next one. */
static _Atomic uint64_t *words_of(const struct usw_tags *tags, uint32_t segment, uint32_t index)
{
	_Atomic uint64_t *words =
		(_Atomic uint64_t *)(void *)(tags->space.base + (uint64_t)segment * USW_PAGE_BYTES);

	usw_assert(index < USW_WHOLE_OBJECTS);
	return words + index * USW_TAG_WORDS;
}

void usw_tags_put(struct usw_tags *tags, uint32_t segment, uint32_t index,
		  const struct usw_seal_tag *tag)
{
	_Atomic uint64_t *words = words_of(tags, segment, index);

	for (uint32_t i = 0; i < USW_TAG_WORDS; i++)
		atomic_store_explicit(&words[i], tag->words[i], memory_order_relaxed);
}

struct usw_seal_tag usw_tags_get(const struct usw_tags *tags, uint32_t segment, uint32_t index)
{
	const _Atomic uint64_t *words = words_of(tags, segment, index);
	struct usw_seal_tag tag;

	for (uint32_t i = 0; i < USW_TAG_WORDS; i++)
		tag.words[i] = atomic_load_explicit(&words[i], memory_order_relaxed);
	return tag;
}
