// SPDX-License-Identifier: MIT

/**
 * @file
 * Which page a thread of the workload touches next, and whether it writes.
 *
 * Every thread has a pattern of its own over a slice of the pages of its own, so no two threads
 * write the same page and each content is known exactly. A step is a few nanoseconds and touches no
 * memory but the pattern itself: a table of accesses made beforehand would be memory that is paged
 * like the rest, and would show in what is measured.
 */

#ifndef USW_BENCH_PATTERN_H
#define USW_BENCH_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

enum usw_pattern_kind {
	USW_PATTERN_SEQUENTIAL, /* in order, again and again */
	USW_PATTERN_STRIDED,    /* every seventh, then the same one page on, until all were seen */
	USW_PATTERN_UNIFORM,    /* each page as likely as any other */
	USW_PATTERN_ZIPF,       /* the k-th most popular page in proportion to 1 / k^0.99 */
	USW_PATTERN_ZIPF_SCAN, /* three of ten go through all pages in order, the others are zipf */
	USW_PATTERN_HOT_WINDOW, /* nine of ten within a tenth of the pages, which moves */
};

struct usw_pattern_name {
	const char *name;
	enum usw_pattern_kind kind;
	unsigned int write_percent;
};

struct usw_pattern {
	enum usw_pattern_kind kind;
	unsigned int write_percent;
	uint64_t pages;
	uint64_t position; /* sequential, strided, scan: next page; hot window: its start */
	uint64_t lane;     /* strided: where this pass began */
	uint64_t random;
	uint64_t window_pages;
	uint64_t window_left; /* accesses until the window moves */
	double zipf_zeta;     /* sum of 1 / k^0.99 over all pages */
	double zipf_eta;
	uint64_t zipf_factor; /* rank r is page r * factor mod pages; the two have no common divisor */
};

/** Find a pattern by its name; NULL if there is none. */
const struct usw_pattern_name *usw_pattern_find(const char *name);

/** All names in one string, separated by commas. */
const char *usw_pattern_names(void);

/** Begin. Takes time in proportion to the pages for zipf, which needs its sum. */
void usw_pattern_init(struct usw_pattern *pattern, enum usw_pattern_kind kind,
		      unsigned int write_percent, uint64_t pages, uint64_t seed);

/** The next page, counted from 0, and in `ret_write` whether it is written. */
uint64_t usw_pattern_next(struct usw_pattern *pattern, bool *ret_write);

#endif /* USW_BENCH_PATTERN_H */
