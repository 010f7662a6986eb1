// SPDX-License-Identifier: MIT

/**
 * @file
 * One page's bytes. See codec.h.
 */

#include <errno.h>
#include <string.h>

#include <lz4.h>
#include <xxhash.h>

#include "codec.h"

#define USW_PAGE_WORDS (USW_PAGE_BYTES / sizeof(uint64_t))

/* Pages between two trials of all filters: few after a change, more while nothing changes. */
#define USW_TRIAL_PAGES_MIN 8u
#define USW_TRIAL_PAGES_MAX 32u

bool usw_codec_is_repeated(const void *page, uint64_t *ret_word)
{
	const uint64_t *words = page;
	uint64_t first = words[0];

	// Most pages differ early or at the end; look there before the full pass.
	if (words[1] != first || words[USW_PAGE_WORDS - 1] != first ||
	    words[USW_PAGE_WORDS / 2] != first)
		return false;
	for (size_t i = 0; i < USW_PAGE_WORDS; i += 8) {
		uint64_t differs = 0;

		for (size_t j = 0; j < 8; j++)
			differs |= words[i + j] ^ first;
		if (differs)
			return false;
	}
	*ret_word = first;
	return true;
}

void usw_codec_repeat(void *page, uint64_t word)
{
	uint64_t *words = page;

	for (size_t i = 0; i < USW_PAGE_WORDS; i++)
		words[i] = word;
}

uint64_t usw_codec_hash(const void *page, uint64_t seed)
{
	return XXH3_64bits_withSeed(page, USW_PAGE_BYTES, seed);
}

/** One page through one filter. 0: longer than limit_bytes. */
static uint32_t compress_filtered(enum usw_filter filter, const void *page, void *buffer,
				  uint32_t limit_bytes)
{
	_Alignas(16) char filtered[USW_PAGE_BYTES];
	const void *source = page;

	if (filter != USW_FILTER_NONE) {
		usw_filter_apply(filter, page, filtered);
		source = filtered;
	}
	return (uint32_t)LZ4_compress_default(source, buffer, USW_PAGE_BYTES, (int)limit_bytes);
}

/** True if the neighbours' filter is not to be trusted for this page. */
static bool wants_trial(const struct usw_codec_hint *hint, uint32_t length)
{
	uint32_t now = length ? length : USW_PAGE_BYTES;

	return hint->until_trial == 0 || now > hint->last_bytes + hint->last_bytes / 2u;
}

/** Try the other filters, each only for being shorter than the best so far. */
static uint32_t try_filters(struct usw_codec_hint *hint, const void *page, void *buffer,
			    uint32_t length)
{
	enum usw_filter tried = hint->filter;
	enum usw_filter best = tried;
	char candidate[USW_PAGE_BYTES];

	for (enum usw_filter filter = 0; filter < USW_FILTER_COUNT; filter++) {
		uint32_t limit = length ? length - 1 : USW_CODEC_WORTH_BYTES;
		uint32_t shorter =
			filter == tried ? 0 : compress_filtered(filter, page, candidate, limit);

		if (shorter) {
			memcpy(buffer, candidate, shorter);
			length = shorter;
			best = filter;
		}
	}
	hint->interval = best == tried && hint->interval
				 ? (uint8_t)usw_min(hint->interval * 2u, USW_TRIAL_PAGES_MAX)
				 : USW_TRIAL_PAGES_MIN;
	hint->until_trial = hint->interval;
	hint->filter = (uint8_t)best;
	return length;
}

uint32_t usw_codec_compress(struct usw_codec_hint *hint, const void *page, void *buffer,
			    enum usw_codec *ret_codec)
{
	uint32_t length = compress_filtered(hint->filter, page, buffer, USW_CODEC_WORTH_BYTES);

	if (wants_trial(hint, length))
		length = try_filters(hint, page, buffer, length);
	else
		hint->until_trial--;
	if (length > 0) {
		hint->last_bytes = (uint16_t)length;
		*ret_codec = (enum usw_codec)(USW_CODEC_LZ4 + hint->filter);
		return length;
	}
	hint->last_bytes = USW_PAGE_BYTES;
	memcpy(buffer, page, USW_PAGE_BYTES);
	*ret_codec = USW_CODEC_STORED;
	return USW_PAGE_BYTES;
}

USW_OPTIMISTIC
static bool expand(const void *object, uint32_t length_bytes, void *page)
{
	return length_bytes <= USW_PAGE_BYTES &&
	       LZ4_decompress_safe(object, page, (int)length_bytes, USW_PAGE_BYTES) ==
		       (int)USW_PAGE_BYTES;
}

USW_OPTIMISTIC
int usw_codec_decompress(enum usw_codec codec, const void *object, uint32_t length_bytes,
			 void *page)
{
	_Alignas(16) char filtered[USW_PAGE_BYTES];

	switch (codec) {
	case USW_CODEC_STORED:
		if (length_bytes != USW_PAGE_BYTES)
			return -EBADMSG;
		memcpy(page, object, USW_PAGE_BYTES);
		return 0;
	case USW_CODEC_LZ4:
		return expand(object, length_bytes, page) ? 0 : -EBADMSG;
	case USW_CODEC_LZ4_SHUFFLE8:
	case USW_CODEC_LZ4_SHUFFLE4:
	case USW_CODEC_LZ4_LANES16:
	case USW_CODEC_LZ4_XOR_SHUFFLE8:
		if (!expand(object, length_bytes, filtered))
			return -EBADMSG;
		usw_filter_undo((enum usw_filter)(codec - USW_CODEC_LZ4), filtered, page);
		return 0;
	case USW_CODEC_RESERVED:
		break;
	}
	return -EBADMSG;
}
