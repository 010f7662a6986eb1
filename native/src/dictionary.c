// SPDX-License-Identifier: MIT

/**
 * @file
 * Made of pieces of pages, kept for good. See dictionary.h.
 */

#include <string.h>

#include "dense.h"
#include "dictionary.h"

#ifdef USW_HAS_ZSTD

#include <zdict.h>
#include <zstd.h>

/* Of each page: shorter pieces hold too little, longer ones come from fewer pages. */
#define USW_PIECE_BYTES 256u
#define USW_PAGE_PIECES (USW_PAGE_BYTES / USW_PIECE_BYTES)
/* What zstd puts before them: tables of how often what comes. */
#define USW_TABLE_BYTES 4096u
/* Of fewer nothing is learned. */
#define USW_DICTIONARY_PAGES_MIN 64u

static struct {
	ZSTD_CDict *compressor;
	_Atomic(ZSTD_DDict *) decompressor; /* stored last: then it is there */
} dictionaries[USW_DICTIONARIES_MAX + 1];

static _Atomic uint32_t last_number;

/** Both halves of a dictionary, under a number that is nobody else's. */
static uint32_t publish(ZSTD_CDict *compressor, ZSTD_DDict *decompressor)
{
	uint32_t number = atomic_fetch_add_explicit(&last_number, 1, memory_order_relaxed) + 1;

	if (number > USW_DICTIONARIES_MAX) {
		atomic_store_explicit(&last_number, USW_DICTIONARIES_MAX, memory_order_relaxed);
		return 0;
	}
	dictionaries[number].compressor = compressor;
	atomic_store_explicit(&dictionaries[number].decompressor, decompressor,
			      memory_order_release);
	return number;
}

/** A dictionary as zstd has it: its tables, and a piece of each page. Returns its length; 0: none. */
static size_t make(const char *pages, uint32_t page_count, char *ret, size_t limit_bytes)
{
	ZDICT_params_t params = {.compressionLevel = USW_DENSE_LEVEL};
	char pieces[USW_DICTIONARY_PAGES * USW_PIECE_BYTES];
	size_t page_bytes[USW_DICTIONARY_PAGES];

	for (uint32_t i = 0; i < page_count; i++) {
		// Each from another place: 7 goes round all sixteen.
		memcpy(pieces + (size_t)i * USW_PIECE_BYTES,
		       pages + (size_t)i * USW_PAGE_BYTES +
			       (size_t)(i * 7 % USW_PAGE_PIECES) * USW_PIECE_BYTES,
		       USW_PIECE_BYTES);
		page_bytes[i] = USW_PAGE_BYTES;
	}
	size_t length = ZDICT_finalizeDictionary(ret, limit_bytes, pieces,
						 (size_t)page_count * USW_PIECE_BYTES, pages,
						 page_bytes, page_count, params);
	return ZDICT_isError(length) ? 0 : length;
}

uint32_t usw_dictionary_make(const void *pages, uint32_t page_count)
{
	char bytes[USW_TABLE_BYTES + USW_DICTIONARY_PAGES * USW_PIECE_BYTES];
	uint32_t number = 0;

	if (page_count < USW_DICTIONARY_PAGES_MIN || page_count > USW_DICTIONARY_PAGES ||
	    atomic_load_explicit(&last_number, memory_order_relaxed) >= USW_DICTIONARIES_MAX)
		return 0;
	size_t length = make(pages, page_count, bytes, sizeof(bytes));
	if (!length)
		return 0;

	ZSTD_CDict *compressor = ZSTD_createCDict(bytes, length, USW_DENSE_LEVEL);
	ZSTD_DDict *decompressor = ZSTD_createDDict(bytes, length);
	if (compressor && decompressor)
		number = publish(compressor, decompressor);
	if (!number) {
		ZSTD_freeCDict(compressor);
		ZSTD_freeDDict(decompressor);
	}
	return number;
}

const struct ZSTD_CDict_s *usw_dictionary_compressor(uint32_t number)
{
	usw_assert(number && usw_dictionary_decompressor(number));
	return dictionaries[number].compressor;
}

const struct ZSTD_DDict_s *usw_dictionary_decompressor(uint32_t number)
{
	return number <= USW_DICTIONARIES_MAX
		       ? atomic_load_explicit(&dictionaries[number].decompressor,
					      memory_order_acquire)
		       : NULL;
}

#else

uint32_t usw_dictionary_make(const void *pages, uint32_t page_count)
{
	(void)pages;
	(void)page_count;
	return 0;
}

const struct ZSTD_CDict_s *usw_dictionary_compressor(uint32_t number)
{
	(void)number;
	return NULL;
}

const struct ZSTD_DDict_s *usw_dictionary_decompressor(uint32_t number)
{
	(void)number;
	return NULL;
}

#endif
