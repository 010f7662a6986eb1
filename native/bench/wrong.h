// SPDX-License-Identifier: MIT

/**
 * @file
 * How a page is wrong: whoever looks for the cause needs more than that it is.
 *
 * All zeros point to a page that was dropped, one run of wrong words to a copy that stopped or
 * began too late, an older version to a write that was lost, everything wrong to another page's
 * content. Each thread of the workload keeps its own few; the rest are counted.
 */

#ifndef USW_BENCH_WRONG_H
#define USW_BENCH_WRONG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "content.h"

#define USW_WRONG_PAGES_MAX 16

struct usw_wrong_page {
	uint64_t page;
	uint32_t version;
	bool by_audit;            /* found at the end, not by an access */
	unsigned int words;       /* how many are wrong */
	unsigned int first, last; /* of them, as word indexes */
	unsigned int zero_words;  /* of all words of the page */
	unsigned int older_by;    /* its first tag is that of so many versions ago; 0: of none */
	uint64_t expected, found; /* the first wrong word */
};

struct usw_wrong {
	uint64_t count;
	struct usw_wrong_page pages[USW_WRONG_PAGES_MAX]; /* the first ones */
};

/** Compare a page as it was found with what it must be in a version; note it if it is wrong. */
void usw_wrong_compare(struct usw_wrong *wrong, const struct usw_content *content, uint64_t number,
		       uint32_t version, const uint64_t *found, bool by_audit);

/** Add what another thread noted. */
void usw_wrong_add(struct usw_wrong *sum, const struct usw_wrong *wrong);

/** Print the pages that were kept, as a JSON array. */
void usw_wrong_print_json(const struct usw_wrong *wrong, FILE *file);

/** Print one line for people; there must be a wrong page. */
void usw_wrong_print_line(const struct usw_wrong *wrong, FILE *file);

#endif /* USW_BENCH_WRONG_H */
