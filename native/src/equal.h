// SPDX-License-Identifier: MIT

/**
 * @file
 * Equal pages: finding what a page on its way out is a copy of, so that it is stored once.
 *
 * A page that has left is noted here under its hash. The next page of that hash, whoever's it is,
 * takes a reference to the same virtual swap ID, as a forked page would, once both have been
 * compared byte for byte. The descriptor knows the whole hash, so an entry is an ID and 32 bits to
 * pass over the others without a look at their descriptors.
 *
 * The table is small on purpose, and forgets: 8 entries, one line of the cache, for 256 IDs in use,
 * a quarter of a byte a page. That is enough for two reasons. Half of a line is for what is worth
 * more: content that was found before, and one page in 128, chosen by its hash. And pages that are
 * copies come in runs, stored under IDs in a row: where one was found the next is looked for first
 * (struct usw_equal_run), so a copy made long ago is found from the first noted page on.
 *
 * What an entry says may be long out of date: its ID may be free, be another page's by now, or have
 * gone to a disk. Nothing is believed of it but what the descriptor confirms.
 *
 * Threads: all of it belongs to the owner of the IDs (the reclaim thread). See
 * usw_vswap_get_equal() and usw_equal_is() for what other threads may do meanwhile.
 */

#ifndef USW_EQUAL_H
#define USW_EQUAL_H

#include "standby.h"

/** A page that more than this many already share is stored once more: counts are for forks, too. */
#define USW_EQUAL_SHARES_MAX 1024u

struct usw_equal {
	struct usw_space space; /* lines; a successor begins with an empty one */
	struct usw_vswap *vswap;
	const struct usw_standby_space *standbys;
	uint32_t line_count; /* a power of two; 0: nothing is noted */
	uint32_t line_count_max;
};

/** Where the pages of one target are looked for first. All zero: nowhere. */
struct usw_equal_run {
	uint32_t next_id; /* USW_VSWAP_NONE: nowhere */
	uint32_t misses;  /* pages since the last that was found */
};

int usw_equal_create(struct usw_equal *equal, struct usw_vswap *vswap,
		     const struct usw_standby_space *standbys);
void usw_equal_destroy(struct usw_equal *equal);

/** Fit the size of the table to the IDs in use; cheap when it does. */
void usw_equal_fit(struct usw_equal *equal);

/** Note what has just been stored. */
void usw_equal_note(struct usw_equal *equal, uint32_t id, uint64_t hash);

/**
 * Find an ID of this hash whose content is in memory, and add a reference to it: it is the caller's
 * to publish or to put. USW_VSWAP_NONE if none is known. The contents have not been compared.
 */
uint32_t usw_equal_find(struct usw_equal *equal, struct usw_equal_run *run, uint64_t hash);

/**
 * True if the content of an ID the caller has a reference to is this page, byte for byte. False
 * also if it is on a disk: nothing is read for this.
 */
bool usw_equal_is(const struct usw_equal *equal, uint32_t id, const void *page);

/** Bytes of the table held in memory. */
uint64_t usw_equal_held_bytes(const struct usw_equal *equal);

#endif /* USW_EQUAL_H */
