/* SPDX-License-Identifier: MIT */

/**
 * @file
 * The denser codec: a filter, then zstd. For where RAM is tight.
 *
 * It takes two thirds of the bytes of LZ4 (docs/internals/codec.md), and half of them where a
 * dictionary serves (dictionary.h); two to three times as long to compress, and 2 to 3 us longer to
 * read. What serves the pages of late is found by trying both on some. A decoder needs 160 KiB, so
 * there are a few for the whole process, made before the first dense object, and a reader takes one
 * that nobody uses: to read a page needs no memory that might not be there.
 *
 * Without zstd in the build there are no dense objects. Any thread; an encoder is its owner's.
 */

#ifndef USW_DENSE_H
#define USW_DENSE_H

#include "filter.h"

/** Of zstd. Levels above take longer and gain a hundredth. */
#define USW_DENSE_LEVEL 1
/** Instead of the number of a dictionary: not denser. */
#define USW_DENSE_NOT UINT32_MAX

struct usw_dense_encoder;

/** How long an object may be so that it is worth more time to read than one of `length_bytes`. */
static inline uint32_t usw_dense_worth(uint32_t length_bytes)
{
	return length_bytes - length_bytes / 8;
}

/** Make the decoders, once; before the first object is compressed. -ENOSYS: no zstd; -ENOMEM. */
int usw_dense_prepare(void);

/** NULL: no zstd, or no memory. */
struct usw_dense_encoder *usw_dense_encoder_create(void);
/** NULL is fine. */
void usw_dense_encoder_destroy(struct usw_dense_encoder *encoder);

/** Have a dictionary from now on; 0: none. */
void usw_dense_encoder_use(struct usw_dense_encoder *encoder, uint32_t dictionary);

/** True if the dictionary that it has makes the pages of late shorter. */
bool usw_dense_encoder_is_served(const struct usw_dense_encoder *encoder);

/**
 * Compress a page through a filter into buffer, of limit_bytes, a page at most. Returns the object's
 * length; 0: it does not fit.
 */
uint32_t usw_dense_compress(struct usw_dense_encoder *encoder, enum usw_filter filter,
			    const void *page, void *buffer, uint32_t limit_bytes);

/** As usw_codec_decompress(). The object may change meanwhile: then the page is anything. */
int usw_dense_decompress(const void *object, uint32_t length_bytes, void *page);

#endif /* USW_DENSE_H */
