// SPDX-License-Identifier: MIT

/**
 * @file
 * zstd, one page at a time. See dense.h.
 *
 * An object is one byte, the numbers of its filter (3 bits) and its dictionary (5), and a zstd frame
 * without size and checksum.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "dense.h"
#include "dictionary.h"

#ifdef USW_HAS_ZSTD

#include <zstd.h>

/* As many as read at once, mostly: a reader that finds none waits for some microseconds. */
#define USW_DECODERS 4u
/* A page: 4 KiB. */
#define USW_DENSE_WINDOW_LOG 12
#define USW_FILTER_BITS 3u
/* Every so many pages both ways are tried, with the dictionary and without. */
#define USW_DENSE_TRIAL_PAGES 16u
/* How much of what the trials have shown is forgotten at the next. */
#define USW_DENSE_FORGET_SHARE 8
/* A dictionary that saves less than one part in so many is not one for these pages. */
#define USW_DENSE_HELP_SHARE 32

_Static_assert(USW_FILTER_COUNT <= 1u << USW_FILTER_BITS &&
		       USW_DICTIONARIES_MAX < 1u << (8 - USW_FILTER_BITS),
	       "one byte says both");

struct decoder {
	atomic_flag is_taken;
	ZSTD_DCtx *context;
};

static struct decoder decoders[USW_DECODERS];
static pthread_mutex_t prepare_lock = PTHREAD_MUTEX_INITIALIZER;

/* One way to compress: what there is for it, and what it took in the trials of late. */
struct way {
	ZSTD_CCtx *context;
	uint32_t dictionary; /* its number; 0: none */
	int64_t trial_bytes;
};

struct usw_dense_encoder {
	struct way plain;
	struct way served; /* with a dictionary, if there is one */
	uint32_t until_trial;
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

static ZSTD_CCtx *create_context(void)
{
	ZSTD_CCtx *ret = ZSTD_createCCtx();

	if (ret &&
	    (ZSTD_isError(ZSTD_CCtx_setParameter(ret, ZSTD_c_compressionLevel, USW_DENSE_LEVEL)) ||
	     ZSTD_isError(ZSTD_CCtx_setParameter(ret, ZSTD_c_contentSizeFlag, 0)) ||
	     ZSTD_isError(ZSTD_CCtx_setParameter(ret, ZSTD_c_dictIDFlag, 0)))) {
		ZSTD_freeCCtx(ret);
		return NULL;
	}
	return ret;
}

struct usw_dense_encoder *usw_dense_encoder_create(void)
{
	struct usw_dense_encoder *encoder = calloc(1, sizeof(*encoder));

	if (!encoder)
		return NULL;
	encoder->plain.context = create_context();
	encoder->served.context = create_context();
	if (!encoder->plain.context || !encoder->served.context ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(encoder->plain.context, ZSTD_c_windowLog,
						USW_DENSE_WINDOW_LOG))) {
		usw_dense_encoder_destroy(encoder);
		return NULL;
	}
	return encoder;
}

void usw_dense_encoder_destroy(struct usw_dense_encoder *encoder)
{
	if (!encoder)
		return;
	ZSTD_freeCCtx(encoder->plain.context);
	ZSTD_freeCCtx(encoder->served.context);
	free(encoder);
}

void usw_dense_encoder_use(struct usw_dense_encoder *encoder, uint32_t dictionary)
{
	struct way *served = &encoder->served;

	if (served->dictionary == dictionary)
		return;
	// A page that did not fit has left it in the middle, where it takes no other.
	ZSTD_CCtx_reset(served->context, ZSTD_reset_session_only);
	if (ZSTD_isError(ZSTD_CCtx_refCDict(
		    served->context, dictionary ? usw_dictionary_compressor(dictionary) : NULL)))
		return;
	served->dictionary = dictionary;
	served->trial_bytes = encoder->plain.trial_bytes = 0;
	encoder->until_trial = 0;
}

bool usw_dense_encoder_is_served(const struct usw_dense_encoder *encoder)
{
	int64_t plain = encoder->plain.trial_bytes;

	return encoder->served.trial_bytes < plain - plain / USW_DENSE_HELP_SHARE;
}

/** The length of a page compressed in a way; 0: it does not fit. */
static uint32_t compress(const struct way *way, enum usw_filter filter, const void *filtered,
			 void *buffer, uint32_t limit_bytes)
{
	*(uint8_t *)buffer = (uint8_t)(filter | way->dictionary << USW_FILTER_BITS);
	size_t length = ZSTD_compress2(way->context, (char *)buffer + 1, limit_bytes - 1, filtered,
				       USW_PAGE_BYTES);
	return ZSTD_isError(length) ? 0 : (uint32_t)length + 1;
}

static void note_trial(struct way *way, uint32_t length)
{
	way->trial_bytes +=
		(length ? length : USW_PAGE_BYTES) - way->trial_bytes / USW_DENSE_FORGET_SHARE;
}

uint32_t usw_dense_compress(struct usw_dense_encoder *encoder, enum usw_filter filter,
			    const void *page, void *buffer, uint32_t limit_bytes)
{
	_Alignas(16) char filtered[USW_PAGE_BYTES];
	char other[USW_PAGE_BYTES];
	struct way *plain = &encoder->plain, *served = &encoder->served;

	usw_assert(limit_bytes <= USW_PAGE_BYTES);
	if (limit_bytes < 2)
		return 0;
	// Also a copy: its target may be writing to it, which zstd is not made for.
	usw_filter_apply(filter, page, filtered);
	if (!served->dictionary)
		return compress(plain, filter, filtered, buffer, limit_bytes);
	if (encoder->until_trial-- > 0)
		return compress(served->trial_bytes <= plain->trial_bytes ? served : plain, filter,
				filtered, buffer, limit_bytes);

	encoder->until_trial = USW_DENSE_TRIAL_PAGES;
	uint32_t plain_length = compress(plain, filter, filtered, buffer, limit_bytes);
	uint32_t served_length = compress(served, filter, filtered, other, limit_bytes);
	note_trial(plain, plain_length);
	note_trial(served, served_length);
	if (!served_length || (plain_length && plain_length <= served_length))
		return plain_length;
	memcpy(buffer, other, served_length);
	return served_length;
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
	uint32_t dictionary = (uint8_t)bytes[0] >> USW_FILTER_BITS;
	enum usw_filter filter = (uint8_t)bytes[0] & ((1u << USW_FILTER_BITS) - 1);
	const ZSTD_DDict *served = usw_dictionary_decompressor(dictionary);
	if (filter >= USW_FILTER_COUNT || !decoders[0].context || (dictionary && !served))
		return -EBADMSG;

	struct decoder *decoder = take_decoder();
	size_t length = ZSTD_decompress_usingDDict(decoder->context,
						   filter == USW_FILTER_NONE ? page : filtered,
						   USW_PAGE_BYTES, bytes + 1, length_bytes - 1,
						   served);
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

void usw_dense_encoder_use(struct usw_dense_encoder *encoder, uint32_t dictionary)
{
	(void)encoder;
	(void)dictionary;
}

bool usw_dense_encoder_is_served(const struct usw_dense_encoder *encoder)
{
	(void)encoder;
	return false;
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
