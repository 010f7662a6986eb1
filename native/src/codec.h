// SPDX-License-Identifier: MIT

/**
 * @file
 * What is done to the bytes of one page: classify, hash, compress, decompress.
 *
 * Functions without state of their own, callable from any thread. Compression is LZ4 (liblz4) on
 * single pages after one of a few filters (filter.h). Trying every filter on every page would cost
 * several compressions, so the caller keeps a hint of what its neighbours took, one for each stream
 * of pages and used by one thread at a time. Hashes are XXH3 64 (libxxhash) with a seed drawn once
 * per agent, so that no program can prepare two pages of equal hash.
 */

#ifndef USW_CODEC_H
#define USW_CODEC_H

#include "filter.h"

/** How the bytes of an object are to be read. Stored in three bits of an object entry. */
enum usw_codec {
	USW_CODEC_STORED = 0, /* as they are: the page did not compress */
	USW_CODEC_LZ4 = 1,    /* from here on LZ4, after filter number codec - USW_CODEC_LZ4 */
	USW_CODEC_LZ4_SHUFFLE8 = USW_CODEC_LZ4 + USW_FILTER_SHUFFLE8,
	USW_CODEC_LZ4_SHUFFLE4 = USW_CODEC_LZ4 + USW_FILTER_SHUFFLE4,
	USW_CODEC_LZ4_LANES16 = USW_CODEC_LZ4 + USW_FILTER_LANES16,
	USW_CODEC_LZ4_XOR_SHUFFLE8 = USW_CODEC_LZ4 + USW_FILTER_XOR_SHUFFLE8,
	USW_CODEC_DENSE = 7, /* zstd, see dense.h: made where RAM is tight */
};

/** What a stream of neighbouring pages took of late. All zero is how it begins. */
struct usw_codec_hint {
	uint16_t usual_bytes;           /* length of the last objects, averaged */
	uint8_t filter;                 /* enum usw_filter that was best at the last trial */
	uint8_t until_trial;            /* pages until others are tried again */
	uint8_t interval;               /* between trials; doubles while they confirm the filter */
	uint8_t settled;                /* pages since the last trial, up to when it may be early */
	uint8_t turn;                   /* whose turn it was at the last trial, wins or not */
	uint8_t wins[USW_FILTER_COUNT]; /* trials won, the last ones counting most */
	uint16_t dense_bytes; /* the same as usual_bytes, of those made denser since the last trial */
};

/** Pages whose compressed form is longer than this are stored as they are. */
#define USW_CODEC_WORTH_BYTES 3840u

/** True if all 512 words of the page are equal; stores that word. */
bool usw_codec_is_repeated(const void *page, uint64_t *ret_word);

/** Fill a page with one word: what `same` and `zero` pages are made of. */
void usw_codec_repeat(void *page, uint64_t word);

uint64_t usw_codec_hash(const void *page, uint64_t seed);

/**
 * Compress one page into buffer (at least USW_PAGE_BYTES long). Returns the object's length in
 * bytes and its codec; an incompressible page is copied. The hint is updated.
 */
uint32_t usw_codec_compress(struct usw_codec_hint *hint, const void *page, void *buffer,
			    enum usw_codec *ret_codec);

/**
 * True if the next page would take its neighbours' filter and no other was tried, and it may be made
 * denser (dense.h): they compress, and those that were made denser gained an eighth by it.
 */
bool usw_codec_may_be_denser(const struct usw_codec_hint *hint);

/** A page was made denser, with the filter of its neighbours; 0: it did not fit. */
void usw_codec_note_denser(struct usw_codec_hint *hint, uint32_t length);

/**
 * Decompress an object into a page. Safe for any input: returns 0 or -EBADMSG and never reads or
 * writes outside (object, length) and the page.
 */
int usw_codec_decompress(enum usw_codec codec, const void *object, uint32_t length_bytes,
			 void *page);

#endif /* USW_CODEC_H */
