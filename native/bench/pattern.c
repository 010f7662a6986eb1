// SPDX-License-Identifier: MIT

/**
 * @file
 * The access patterns. Called by the workload's threads, each with a pattern of its own.
 *
 * Zipf follows Gray et al., "Quickly generating billion-record synthetic databases" (1994): one
 * power for each number, where an exact method would need a table that competes for the memory that
 * is being measured.
 */

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "pattern.h"
#include "random.h"

#define STRIDE_PAGES 7
#define ZIPF_EXPONENT 0.99
#define WINDOW_SHARE 10       /* the window is one in ten of the pages */
#define WINDOW_VISITS 8       /* it moves when each of its pages was due this often */
#define WINDOW_HOT_PERCENT 90 /* of the accesses go into it */
#define SCAN_PERCENT 30       /* of the accesses of a mixed scan are the scan */

static const struct usw_pattern_name pattern_names[] = {
	{"seq-read", USW_PATTERN_SEQUENTIAL, 0},   {"seq-write", USW_PATTERN_SEQUENTIAL, 100},
	{"strided", USW_PATTERN_STRIDED, 0},       {"uniform-read", USW_PATTERN_UNIFORM, 0},
	{"uniform-rw", USW_PATTERN_UNIFORM, 50},   {"zipf-read", USW_PATTERN_ZIPF, 0},
	{"zipf-rw", USW_PATTERN_ZIPF, 50},         {"zipf-scan", USW_PATTERN_ZIPF_SCAN, 0},
	{"hot-window", USW_PATTERN_HOT_WINDOW, 0},
};

const struct usw_pattern_name *usw_pattern_find(const char *name)
{
	for (size_t i = 0; i < sizeof(pattern_names) / sizeof(pattern_names[0]); i++)
		if (strcmp(pattern_names[i].name, name) == 0)
			return &pattern_names[i];
	return NULL;
}

const char *usw_pattern_names(void)
{
	return "seq-read, seq-write, strided, uniform-read, uniform-rw, zipf-read, zipf-rw, "
	       "zipf-scan, hot-window";
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

static void zipf_init(struct usw_pattern *pattern)
{
	double pages = (double)pattern->pages;
	double zeta_of_two = 1 + pow(0.5, ZIPF_EXPONENT);

	pattern->zipf_zeta = 0;
	for (uint64_t k = 1; k <= pattern->pages; k++)
		pattern->zipf_zeta += pow((double)k, -ZIPF_EXPONENT);
	pattern->zipf_eta =
		(1 - pow(2 / pages, 1 - ZIPF_EXPONENT)) / (1 - zeta_of_two / pattern->zipf_zeta);
	/* Popular pages lie scattered, as they do in a heap. */
	do
		pattern->zipf_factor = 1 + usw_random_below(&pattern->random, pattern->pages);
	while (common_divisor(pattern->zipf_factor, pattern->pages) != 1);
}

void usw_pattern_init(struct usw_pattern *pattern, enum usw_pattern_kind kind,
		      unsigned int write_percent, uint64_t pages, uint64_t seed)
{
	*pattern = (struct usw_pattern){
		.kind = kind,
		.write_percent = write_percent,
		.pages = pages,
		.random = usw_mix(seed),
		.window_pages = pages / WINDOW_SHARE ? pages / WINDOW_SHARE : 1,
	};
	if (kind == USW_PATTERN_ZIPF || kind == USW_PATTERN_ZIPF_SCAN)
		zipf_init(pattern);
}

static uint64_t next_sequential(struct usw_pattern *pattern)
{
	uint64_t page = pattern->position;

	pattern->position = page + 1 < pattern->pages ? page + 1 : 0;
	return page;
}

static uint64_t next_strided(struct usw_pattern *pattern)
{
	uint64_t page = pattern->position;

	pattern->position += STRIDE_PAGES;
	if (pattern->position >= pattern->pages) {
		pattern->lane = (pattern->lane + 1) % STRIDE_PAGES;
		pattern->position = pattern->lane % pattern->pages;
	}
	return page;
}

static uint64_t next_zipf(struct usw_pattern *pattern)
{
	double share = (double)(usw_random(&pattern->random) >> 11) * 0x1p-53;
	double mass = share * pattern->zipf_zeta;
	double base = pattern->zipf_eta * (share - 1) + 1;
	uint64_t rank;

	if (mass < 1)
		rank = 0;
	else if (mass < 1 + pow(0.5, ZIPF_EXPONENT))
		rank = 1;
	else
		rank = (uint64_t)((double)pattern->pages * pow(base, 1 / (1 - ZIPF_EXPONENT)));
	if (rank >= pattern->pages)
		rank = pattern->pages - 1;
	return rank * pattern->zipf_factor % pattern->pages;
}

/** A scan that cares for nothing goes on beside what is popular. */
static uint64_t next_zipf_or_scan(struct usw_pattern *pattern)
{
	return usw_random_below(&pattern->random, 100) < SCAN_PERCENT ? next_sequential(pattern)
								      : next_zipf(pattern);
}

static uint64_t next_in_window(struct usw_pattern *pattern)
{
	uint64_t page;

	if (!pattern->window_left) {
		pattern->window_left = pattern->window_pages * WINDOW_VISITS;
		pattern->position = usw_random_below(&pattern->random, pattern->pages);
	}
	pattern->window_left--;
	if (usw_random_below(&pattern->random, 100) >= WINDOW_HOT_PERCENT)
		return usw_random_below(&pattern->random, pattern->pages);
	page = pattern->position + usw_random_below(&pattern->random, pattern->window_pages);
	return page < pattern->pages ? page : page - pattern->pages;
}

static bool next_is_write(struct usw_pattern *pattern)
{
	if (pattern->write_percent == 0 || pattern->write_percent == 100)
		return pattern->write_percent == 100;
	return usw_random_below(&pattern->random, 100) < pattern->write_percent;
}

uint64_t usw_pattern_next(struct usw_pattern *pattern, bool *ret_write)
{
	*ret_write = next_is_write(pattern);
	switch (pattern->kind) {
	case USW_PATTERN_SEQUENTIAL:
		return next_sequential(pattern);
	case USW_PATTERN_STRIDED:
		return next_strided(pattern);
	case USW_PATTERN_UNIFORM:
		return usw_random_below(&pattern->random, pattern->pages);
	case USW_PATTERN_ZIPF:
		return next_zipf(pattern);
	case USW_PATTERN_ZIPF_SCAN:
		return next_zipf_or_scan(pattern);
	case USW_PATTERN_HOT_WINDOW:
		return next_in_window(pattern);
	}
	__builtin_unreachable();
}
