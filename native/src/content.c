// SPDX-License-Identifier: MIT

/**
 * @file
 * The optimistic read. See content.h.
 */

#include <errno.h>
#include <string.h>

#include "content.h"

/** Where the segment is that a word names; 0 for other backends. */
static uint64_t where_of(const struct usw_session *session, uint64_t word)
{
	uint32_t segment = usw_place_group(usw_word_place(word));

	if (usw_word_backend(word) != USW_BACKEND_OBJECT || segment == 0 ||
	    segment >= session->segments.capacity)
		return 0;
	return atomic_load_explicit(&usw_segments_header(&session->segments, segment)->where,
				    memory_order_acquire);
}

bool usw_content_is_unmoved(const struct usw_session *session, uint32_t id, uint64_t word,
			    uint64_t where)
{
	// What was read must not be newer than what is looked at now.
	atomic_thread_fence(memory_order_seq_cst);
	uint64_t again = usw_vswap_word(&session->vswap, id);

	return usw_word_is_unmoved(word, again) && where_of(session, again) == where;
}

/** One try, from the place a word names. False: nothing sensible is there. */
USW_OPTIMISTIC
static bool read_place(const struct usw_session *session, uint64_t word, void *page)
{
	uint32_t group = usw_place_group(usw_word_place(word));
	uint32_t index = usw_place_index(usw_word_place(word));
	struct usw_object object;

	if (usw_word_backend(word) == USW_BACKEND_MEMORY) {
		if (group >= USW_STANDBY_MAX || index >= USW_STANDBY_SLOTS)
			return false;
		memcpy(page, usw_standby_page(&session->standbys, group, index), USW_PAGE_BYTES);
		return true;
	}
	return usw_segments_find(&session->segments, group, index, &object) && object.bytes &&
	       usw_codec_decompress(object.codec, object.bytes, object.length_bytes, page) == 0;
}

static bool find_on_disk(const struct usw_session *session, uint64_t word,
			 struct usw_disk_place *ret)
{
	ret->word = word;
	ret->segment = usw_place_group(usw_word_place(word));
	ret->index = usw_place_index(usw_word_place(word));
	return usw_segments_find(&session->segments, ret->segment, ret->index, &ret->object) &&
	       usw_where_tier(ret->object.where) != USW_TIER_RAM;
}

bool usw_content_is_on_disk(const struct usw_session *session, uint32_t id,
			    struct usw_disk_place *ret_place)
{
	uint64_t word = usw_vswap_word(&session->vswap, id);

	return usw_word_backend(word) == USW_BACKEND_OBJECT &&
	       find_on_disk(session, word, ret_place);
}

bool usw_content_is_packed(const struct usw_session *session, uint32_t id)
{
	uint64_t word = usw_vswap_word(&session->vswap, id);
	struct usw_object object;

	return usw_word_backend(word) == USW_BACKEND_OBJECT &&
	       usw_segments_find(&session->segments, usw_place_group(usw_word_place(word)),
				 usw_place_index(usw_word_place(word)), &object) &&
	       object.codec == USW_CODEC_DENSE;
}

void usw_content_touch(const struct usw_session *session, uint32_t segment)
{
	struct usw_segment *h = usw_segments_header(&session->segments, segment);
	uint32_t clock = atomic_load_explicit(&session->fault_clock, memory_order_relaxed);

	atomic_store_explicit(&h->touched, clock, memory_order_relaxed);
}

USW_OPTIMISTIC
void usw_content_prefetch(const struct usw_session *session, uint32_t id)
{
	uint64_t word = usw_vswap_word(&session->vswap, id);
	struct usw_object object;

	if (usw_word_backend(word) != USW_BACKEND_OBJECT ||
	    !usw_segments_find(&session->segments, usw_place_group(usw_word_place(word)),
			       usw_place_index(usw_word_place(word)), &object) ||
	    usw_where_tier(object.where) != USW_TIER_RAM)
		return;
	for (uint32_t at = 0; at < object.length_bytes; at += 64)
		__builtin_prefetch((const char *)object.bytes + at);
}

int usw_content_load(const struct usw_session *session, uint32_t id, void *page,
		     enum usw_backend *ret, struct usw_disk_place *ret_place)
{
	uint64_t hash = usw_vswap_hash(&session->vswap, id);

	for (;;) {
		uint64_t word = usw_vswap_word(&session->vswap, id);
		uint64_t where = where_of(session, word);

		*ret = usw_word_backend(word);
		switch (*ret) {
		case USW_BACKEND_ZERO:
			memset(page, 0, USW_PAGE_BYTES);
			return 0;
		case USW_BACKEND_SAME:
			usw_codec_repeat(page, hash);
			return 0;
		case USW_BACKEND_OBJECT:
			if (usw_where_tier(where) != USW_TIER_RAM) {
				if (find_on_disk(session, word, ret_place))
					return -EREMOTE;
				break;
			}
			usw_content_touch(session, usw_place_group(usw_word_place(word)));
			__attribute__((fallthrough));
		case USW_BACKEND_MEMORY:
			if (read_place(session, word, page) &&
			    usw_codec_hash(page, session->hash_seed) == hash)
				return 0;
			break;
		case USW_BACKEND_FREE:
			usw_assert(!"a page map refers to a free descriptor");
		}

		if (usw_content_is_unmoved(session, id, word, where))
			return -EBADMSG;
	}
}

bool usw_content_is(const struct usw_session *session, uint32_t id, const void *page, uint64_t hash)
{
	uint64_t word = usw_vswap_word(&session->vswap, id);
	uint64_t repeated;

	if (word & USW_WORD_DAMAGED)
		return false;
	switch (usw_word_backend(word)) {
	case USW_BACKEND_ZERO:
		return usw_codec_is_repeated(page, &repeated) && repeated == 0;
	case USW_BACKEND_SAME:
		return usw_codec_is_repeated(page, &repeated) &&
		       repeated == usw_vswap_hash(&session->vswap, id);
	case USW_BACKEND_MEMORY:
	case USW_BACKEND_OBJECT:
		return hash == usw_vswap_hash(&session->vswap, id);
	case USW_BACKEND_FREE:
		usw_assert(!"a page map refers to a free descriptor");
	}
	return false;
}
