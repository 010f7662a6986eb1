/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Compresses pages that leave: quickly, as their neighbours took it (codec.h), or denser (dense.h).
 *
 * Denser costs three times as much, so the caller says when. The denser codec is not tried where the
 * quick one gains nothing, or nearly as much; and which filter serves a page is found with the quick
 * one, at the pages at which it tries some.
 *
 * A compressor is used by one thread at a time. No locks.
 */

#ifndef USW_COMPRESSOR_H
#define USW_COMPRESSOR_H

#include "codec.h"
#include "dense.h"

#define USW_COMPRESSOR_HINTS 64u

/** All zero is how it begins. */
struct usw_compressor {
	struct usw_codec_hint hints[USW_COMPRESSOR_HINTS];
	uint32_t number[USW_COMPRESSOR_HINTS]; /* whose it is: the number of its standby */
	struct usw_dense_encoder *encoder;     /* NULL before the first page that is to be denser */
	bool is_plain;                         /* there can be no encoder */
};

void usw_compressor_deinit(struct usw_compressor *compressor);

/** What pages of one target took of late. It may be that of another one, or new. */
struct usw_codec_hint *usw_compressor_hint(struct usw_compressor *compressor, uint32_t number);

/**
 * Compress a page of a target into buffer (USW_PAGE_BYTES). Returns the object's length in bytes and
 * its codec. `dense`: USW_DENSE_NOT, or the dictionary to make it denser with, 0 for none.
 */
uint32_t usw_compressor_compress(struct usw_compressor *compressor, uint32_t number,
				 const void *page, void *buffer, uint32_t dense,
				 enum usw_codec *ret_codec);

#endif /* USW_COMPRESSOR_H */
