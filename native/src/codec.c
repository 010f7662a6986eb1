// SPDX-License-Identifier: MIT

/**
 * @file
 * One page's bytes. See codec.h.
 */

#include <errno.h>
#include <string.h>

#include <lz4.h>

#include "codec.h"
#include "dense.h"
#include "hash.h"

#define USW_PAGE_WORDS (USW_PAGE_BYTES / sizeof(uint64_t))

/* Pages between two trials: few after a change, more while nothing changes. */
#define USW_TRIAL_PAGES_MIN 4u
#define USW_TRIAL_PAGES_MAX 32u
/* Pages before a page that does not fit in with the others may be a reason for a trial. */
#define USW_SETTLED_PAGES 3u
#define USW_WIN 24u

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
	return usw_hash(page, seed);
}

/** One page through one filter. 0: longer than limit_bytes. */
static uint32_t compress_filtered(enum usw_filter filter, const void *page, void *buffer,
				  uint32_t limit_bytes)
{
	_Alignas(16) char filtered[USW_PAGE_BYTES];

	return (uint32_t)LZ4_compress_default(usw_filter_view(filter, page, filtered), buffer,
					      USW_PAGE_BYTES, (int)limit_bytes);
}

/** True if the neighbours' filter is not to be trusted for this page. */
static bool wants_trial(const struct usw_codec_hint *hint, uint32_t length)
{
	uint32_t now = length ? length : USW_PAGE_BYTES;

	return hint->until_trial == 0 || (hint->settled >= USW_SETTLED_PAGES &&
					  now > hint->usual_bytes + hint->usual_bytes / 2u);
}

/**
 * The filters to try beside the one in use, as a mask: the one that has won most of late, and one
 * whose turn it is, so that each gets a chance. All of them for the first page of a stream.
 */
static uint32_t choose_rivals(struct usw_codec_hint *hint)
{
	uint32_t own = 1u << hint->filter;
	uint32_t first = hint->filter == 0;

	if (hint->interval == 0)
		return ((1u << USW_FILTER_COUNT) - 1) & ~own;
	for (uint32_t filter = first + 1; filter < USW_FILTER_COUNT; filter++)
		if (filter != hint->filter && hint->wins[filter] > hint->wins[first])
			first = filter;
	hint->turn = (uint8_t)((hint->turn + 1) % USW_FILTER_COUNT);
	return (1u << first | 1u << hint->turn) & ~own;
}

static void learn(struct usw_codec_hint *hint, enum usw_filter best)
{
	bool confirmed = best == hint->filter && hint->interval;

	for (uint32_t filter = 0; filter < USW_FILTER_COUNT; filter++)
		hint->wins[filter] -= hint->wins[filter] / 8;
	hint->wins[best] += USW_WIN;
	hint->interval = confirmed ? (uint8_t)usw_min(hint->interval * 2u, USW_TRIAL_PAGES_MAX)
				   : USW_TRIAL_PAGES_MIN;
	hint->until_trial = hint->interval;
	hint->settled = 0;
	hint->dense_bytes = 0;
	hint->filter = (uint8_t)best;
}

/** Try some other filters, each only for being shorter than the best so far. */
static uint32_t try_filters(struct usw_codec_hint *hint, const void *page, void *buffer,
			    uint32_t length)
{
	uint32_t rivals = choose_rivals(hint);
	enum usw_filter best = hint->filter;
	char candidate[USW_PAGE_BYTES];

	for (enum usw_filter filter = 0; filter < USW_FILTER_COUNT; filter++) {
		uint32_t limit = length ? length - 1 : USW_CODEC_WORTH_BYTES;
		uint32_t shorter = rivals >> filter & 1
					   ? compress_filtered(filter, page, candidate, limit)
					   : 0;

		if (shorter) {
			memcpy(buffer, candidate, shorter);
			length = shorter;
			best = filter;
		}
	}
	learn(hint, best);
	hint->usual_bytes = (uint16_t)(length ? length : USW_PAGE_BYTES);
	return length;
}

/** A page that took its neighbours' filter. */
static void note_length(struct usw_codec_hint *hint, uint32_t length)
{
	uint32_t now = length ? length : USW_PAGE_BYTES;

	hint->usual_bytes = (uint16_t)((hint->usual_bytes * 3u + now) / 4);
	hint->until_trial--;
	if (hint->settled < USW_SETTLED_PAGES)
		hint->settled++;
}

bool usw_codec_may_be_denser(const struct usw_codec_hint *hint)
{
	return hint->until_trial > 0 && hint->usual_bytes <= USW_CODEC_WORTH_BYTES &&
	       hint->dense_bytes <= usw_dense_worth(hint->usual_bytes);
}

void usw_codec_note_denser(struct usw_codec_hint *hint, uint32_t length)
{
	uint32_t now = length ? length : USW_PAGE_BYTES;

	hint->dense_bytes =
		(uint16_t)(hint->dense_bytes ? (hint->dense_bytes * 3u + now) / 4 : now);
	if (length)
		hint->until_trial--;
}

uint32_t usw_codec_compress(struct usw_codec_hint *hint, const void *page, void *buffer,
			    enum usw_codec *ret_codec)
{
	uint32_t length = compress_filtered(hint->filter, page, buffer, USW_CODEC_WORTH_BYTES);

	if (wants_trial(hint, length))
		length = try_filters(hint, page, buffer, length);
	else
		note_length(hint, length);
	if (length > 0) {
		*ret_codec = (enum usw_codec)(USW_CODEC_LZ4 + hint->filter);
		return length;
	}
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
	case USW_CODEC_DENSE:
		return usw_dense_decompress(object, length_bytes, page);
	}
	return -EBADMSG;
}
