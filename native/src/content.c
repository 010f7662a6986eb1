// SPDX-License-Identifier: MIT

/**
 * @file
 * The optimistic read. See content.h.
 */

#include <errno.h>
#include <string.h>

#include "content.h"

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
	return usw_segments_find(&session->segments, group, index, &object) &&
	       usw_codec_decompress(object.codec, object.bytes, object.length_bytes, page) == 0;
}

int usw_content_load(const struct usw_session *session, uint32_t id, void *page,
		     enum usw_backend *ret)
{
	uint64_t hash = usw_vswap_hash(&session->vswap, id);

	for (;;) {
		uint64_t word = usw_vswap_word(&session->vswap, id);
		uint64_t again;

		*ret = usw_word_backend(word);
		switch (*ret) {
		case USW_BACKEND_ZERO:
			memset(page, 0, USW_PAGE_BYTES);
			return 0;
		case USW_BACKEND_SAME:
			usw_codec_repeat(page, hash);
			return 0;
		case USW_BACKEND_MEMORY:
		case USW_BACKEND_OBJECT:
			if (read_place(session, word, page) &&
			    usw_codec_hash(page, session->hash_seed) == hash)
				return 0;
			break;
		case USW_BACKEND_FREE:
			usw_assert(!"a page map refers to a free descriptor");
		}

		atomic_thread_fence(memory_order_seq_cst);
		again = usw_vswap_word(&session->vswap, id);
		if (usw_word_is_unmoved(word, again))
			return -EBADMSG;
	}
}

bool usw_content_is(const struct usw_session *session, uint32_t id, const void *page, uint64_t hash)
{
	uint64_t word = usw_vswap_word(&session->vswap, id);
	uint64_t repeated;

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
