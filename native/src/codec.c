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

uint32_t usw_codec_compress(const void *page, void *buffer, enum usw_codec *ret_codec)
{
	int length = LZ4_compress_default(page, buffer, USW_PAGE_BYTES, USW_CODEC_WORTH_BYTES);

	if (length > 0) {
		*ret_codec = USW_CODEC_LZ4;
		return (uint32_t)length;
	}
	memcpy(buffer, page, USW_PAGE_BYTES);
	*ret_codec = USW_CODEC_STORED;
	return USW_PAGE_BYTES;
}

USW_OPTIMISTIC
int usw_codec_decompress(enum usw_codec codec, const void *object, uint32_t length_bytes,
			 void *page)
{
	switch (codec) {
	case USW_CODEC_STORED:
		if (length_bytes != USW_PAGE_BYTES)
			return -EBADMSG;
		memcpy(page, object, USW_PAGE_BYTES);
		return 0;
	case USW_CODEC_LZ4:
		if (length_bytes > USW_PAGE_BYTES ||
		    LZ4_decompress_safe(object, page, (int)length_bytes, USW_PAGE_BYTES) !=
			    (int)USW_PAGE_BYTES)
			return -EBADMSG;
		return 0;
	}
	return -EBADMSG;
}
