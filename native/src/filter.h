// SPDX-License-Identifier: MIT

/**
 * @file
 * Reversible rearrangements of a page that let LZ4 find more in it.
 *
 * LZ4 finds repeated strings of bytes. Arrays of numbers and heaps full of pointers repeat their
 * high bytes and not their low ones, so bytes of one significance are brought together first. Which
 * filter serves a page is up to the codec; every filter maps any 4 KiB to 4 KiB and back.
 *
 * Pure functions without state, callable from any thread. There are two forms: one in vectors of
 * 16 bytes (compiled to the unpack instructions of SSE2, or zip of NEON), which is used where the
 * compiler has it, and one that says in loops what is meant, against which the tests hold it.
 */

#ifndef USW_FILTER_H
#define USW_FILTER_H

#include "base.h"

enum usw_filter {
	USW_FILTER_NONE = 0,
	USW_FILTER_SHUFFLE8 = 1,     /* byte k of all 8-byte words, for each k */
	USW_FILTER_SHUFFLE4 = 2,     /* the same for 4-byte words */
	USW_FILTER_LANES16 = 3,      /* 16-bit lanes of 8-byte words; the lowest lane bytewise */
	USW_FILTER_XOR_SHUFFLE8 = 4, /* each word xor the one before, then SHUFFLE8 */
	USW_FILTER_COUNT,
};

/** Filter a page. `out` and `page` are whole pages and do not overlap. */
void usw_filter_apply(enum usw_filter filter, const void *page, void *out);

/** The page as a compressor is to see it: itself, or filtered into `space`, a whole page. */
static inline const void *usw_filter_view(enum usw_filter filter, const void *page, void *space)
{
	if (filter == USW_FILTER_NONE)
		return page;
	usw_filter_apply(filter, page, space);
	return space;
}

/** The inverse; `filtered` may hold anything. */
void usw_filter_undo(enum usw_filter filter, const void *filtered, void *page);

/** The same two in plain loops: what the tests compare with, and where there are no vectors. */
void usw_filter_apply_portable(enum usw_filter filter, const void *page, void *out);
void usw_filter_undo_portable(enum usw_filter filter, const void *filtered, void *page);

#endif /* USW_FILTER_H */
