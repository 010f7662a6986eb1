// SPDX-License-Identifier: MIT

/**
 * @file
 * One page, quickly or denser. See compressor.h.
 */

#include "compressor.h"

void usw_compressor_deinit(struct usw_compressor *compressor)
{
	usw_dense_encoder_destroy(compressor->encoder);
	compressor->encoder = NULL;
}

struct usw_codec_hint *usw_compressor_hint(struct usw_compressor *compressor, uint32_t number)
{
	uint32_t at = number % USW_COMPRESSOR_HINTS;

	if (compressor->number[at] != number) {
		compressor->number[at] = number;
		compressor->hints[at] = (struct usw_codec_hint){0};
	}
	return &compressor->hints[at];
}

static bool has_encoder(struct usw_compressor *compressor)
{
	if (!compressor->encoder && !compressor->is_plain)
		compressor->encoder = usw_dense_encoder_create();
	compressor->is_plain = !compressor->encoder;
	return compressor->encoder;
}

uint32_t usw_compressor_compress(struct usw_compressor *compressor, uint32_t number,
				 const void *page, void *buffer, uint32_t dense,
				 enum usw_codec *ret_codec)
{
	struct usw_codec_hint *hint = usw_compressor_hint(compressor, number);

	if (dense != USW_DENSE_NOT && usw_codec_may_be_denser(hint) && has_encoder(compressor)) {
		usw_dense_encoder_use(compressor->encoder, dense);
		uint32_t length = usw_dense_compress(compressor->encoder,
						     (enum usw_filter)hint->filter, page, buffer,
						     USW_CODEC_WORTH_BYTES);

		usw_codec_note_denser(hint, length);
		if (length) {
			*ret_codec = USW_CODEC_DENSE;
			return length;
		}
	}
	return usw_codec_compress(hint, page, buffer, ret_codec);
}
