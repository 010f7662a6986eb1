// SPDX-License-Identifier: MIT

/**
 * @file
 * zstd, one page at a time. See dense.h.
 *
 * An object is one byte, the number of its filter, and a zstd frame without size and checksum.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "dense.h"

#ifdef USW_HAS_ZSTD

#include <zstd.h>

/* As many as read at once, mostly: a reader that finds none waits for some microseconds. */
#define USW_DECODERS 4u
/* Levels above take longer and gain a hundredth. */
#define USW_DENSE_LEVEL 1
/* A page: 4 KiB. */
#define USW_DENSE_WINDOW_LOG 12

struct decoder {
	atomic_flag is_taken;
	ZSTD_DCtx *context;
};

static struct decoder decoders[USW_DECODERS];
static pthread_mutex_t prepare_lock = PTHREAD_MUTEX_INITIALIZER;

struct usw_dense_encoder {
	ZSTD_CCtx *context;
};

static struct decoder *take_decoder(void)
{
	for (uint32_t i = 0;; i++) {
		struct decoder *decoder = &decoders[i % USW_DECODERS];

		if (!atomic_flag_test_and_set_explicit(&decoder->is_taken, memory_order_acquire))
			return decoder;
		usw_cpu_relax();
	}
}

static void give_decoder(struct decoder *decoder)
{
	atomic_flag_clear_explicit(&decoder->is_taken, memory_order_release);
}

int usw_dense_prepare(void)
{
	int ret = 0;

	pthread_mutex_lock(&prepare_lock);
	for (uint32_t i = 0; i < USW_DECODERS; i++) {
		if (!decoders[i].context)
			decoders[i].context = ZSTD_createDCtx();
		ret = decoders[i].context ? ret : -ENOMEM;
	}
	pthread_mutex_unlock(&prepare_lock);
	return ret;
}

struct usw_dense_encoder *usw_dense_encoder_create(void)
{
	struct usw_dense_encoder *encoder = calloc(1, sizeof(*encoder));

	if (!encoder)
		return NULL;
	encoder->context = ZSTD_createCCtx();
	if (!encoder->context ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_compressionLevel,
						USW_DENSE_LEVEL)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_windowLog,
						USW_DENSE_WINDOW_LOG)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(encoder->context, ZSTD_c_contentSizeFlag, 0))) {
		usw_dense_encoder_destroy(encoder);
		return NULL;
	}
	return encoder;
}

void usw_dense_encoder_destroy(struct usw_dense_encoder *encoder)
{
	if (!encoder)
		return;
	ZSTD_freeCCtx(encoder->context);
	free(encoder);
}

uint32_t usw_dense_compress(struct usw_dense_encoder *encoder, enum usw_filter filter,
			    const void *page, void *buffer, uint32_t limit_bytes)
{
	_Alignas(16) char filtered[USW_PAGE_BYTES];

	if (limit_bytes < 2)
		return 0;
	*(uint8_t *)buffer = (uint8_t)filter;
	size_t length = ZSTD_compress2(encoder->context, (char *)buffer + 1, limit_bytes - 1,
				       usw_filter_view(filter, page, filtered), USW_PAGE_BYTES);
	return ZSTD_isError(length) ? 0 : (uint32_t)length + 1;
}

/** A copy of what another thread may be writing: what is checked of it must not change after. */
USW_OPTIMISTIC
static void copy(const void *object, uint32_t length_bytes, char *ret)
{
	memcpy(ret, object, length_bytes);
}

int usw_dense_decompress(const void *object, uint32_t length_bytes, void *page)
{
	_Alignas(16) char filtered[USW_PAGE_BYTES];
	char bytes[USW_PAGE_BYTES];

	if (length_bytes < 2 || length_bytes > sizeof(bytes))
		return -EBADMSG;
	copy(object, length_bytes, bytes);
	enum usw_filter filter = (enum usw_filter)(uint8_t)bytes[0];
	if (filter >= USW_FILTER_COUNT || !decoders[0].context)
		return -EBADMSG;

	struct decoder *decoder = take_decoder();
	size_t length = ZSTD_decompressDCtx(decoder->context,
					    filter == USW_FILTER_NONE ? page : filtered,
					    USW_PAGE_BYTES, bytes + 1, length_bytes - 1);
	give_decoder(decoder);
	if (length != USW_PAGE_BYTES)
		return -EBADMSG;
	if (filter != USW_FILTER_NONE)
		usw_filter_undo(filter, filtered, page);
	return 0;
}

#else

int usw_dense_prepare(void)
{
	return -ENOSYS;
}

struct usw_dense_encoder *usw_dense_encoder_create(void)
{
	return NULL;
}

void usw_dense_encoder_destroy(struct usw_dense_encoder *encoder)
{
	(void)encoder;
}

uint32_t usw_dense_compress(struct usw_dense_encoder *encoder, enum usw_filter filter,
			    const void *page, void *buffer, uint32_t limit_bytes)
{
	(void)encoder;
	(void)filter;
	(void)page;
	(void)buffer;
	(void)limit_bytes;
	return 0;
}

int usw_dense_decompress(const void *object, uint32_t length_bytes, void *page)
{
	(void)object;
	(void)length_bytes;
	(void)page;
	return -EBADMSG;
}

#endif
